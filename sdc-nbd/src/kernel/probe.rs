//! Is the kernel's NBD driver there, and if not, what would help.

use super::socket::Netlink;
use super::{genl, KernelError, KernelNbd, Roots};
use rustix::io::Errno;
use std::path::Path;
use std::process::{Command, Stdio};

/// Looks for the driver, changes nothing.
///
/// # Errors
/// [`KernelError::NoDriver`] says what the operator can do.
pub fn probe() -> Result<KernelNbd, KernelError> {
    match family()? {
        Some(family) => Ok(KernelNbd::new(family, Roots::default())),
        None => Err(KernelError::NoDriver { cure: cure(&Roots::default()) }),
    }
}

/// Like [`probe`], and loads the module first if it is there but not loaded.
pub fn probe_or_load() -> Result<KernelNbd, KernelError> {
    let first = probe();
    let missing = matches!(first, Err(KernelError::NoDriver { .. }));
    if !missing || module(&Roots::default()) != Module::Loadable {
        return first;
    }
    let mut modprobe = Command::new("modprobe");
    modprobe.arg("nbd").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    match modprobe.output() {
        Ok(o) if o.status.success() => probe(),
        Ok(o) => {
            let said = String::from_utf8_lossy(&o.stderr);
            let said: String = said.trim().chars().take(200).collect();
            Err(KernelError::NoDriver { cure: format!("`modprobe nbd` failed: {said}") })
        }
        Err(e) => Err(KernelError::NoDriver {
            cure: format!("load the module nbd (running modprobe failed: {e})"),
        }),
    }
}

/// The number of the family "nbd"; `None` if the kernel does not know it.
fn family() -> Result<Option<u16>, KernelError> {
    let mut netlink = Netlink::open()?;
    let request = genl::get_family(netlink.next_seq(), "nbd");
    let mut id = None;
    let asked = netlink.exchange("asking for the nbd family", &request, |a| {
        id = Some(genl::family_id(a)?);
        Ok(())
    });
    match asked {
        Ok(()) => Ok(id),
        Err(KernelError::Refused { errno, .. }) if errno == Errno::NOENT.raw_os_error() => Ok(None),
        Err(e) => Err(e),
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Module {
    /// Listed among the modules of the running kernel.
    Loadable,
    /// Not among them.
    Missing,
    /// There are no modules for the running kernel here.
    NoModules,
}

/// What the module tree of the running kernel says about nbd.
pub(super) fn module(roots: &Roots) -> Module {
    let release = std::fs::read_to_string(roots.proc.join("sys/kernel/osrelease"));
    let release = release.unwrap_or_default();
    let dir = roots.modules.join(release.trim());
    match std::fs::read_to_string(dir.join("modules.dep")) {
        Ok(list) if lists_nbd(&list) => Module::Loadable,
        Ok(_) => Module::Missing,
        Err(_) => Module::NoModules,
    }
}

fn lists_nbd(modules_dep: &str) -> bool {
    let names = modules_dep.lines().filter_map(|l| l.split(':').next());
    let mut files = names.filter_map(|p| Path::new(p).file_name()?.to_str());
    files.any(|f| f == "nbd.ko" || f.starts_with("nbd.ko."))
}

/// What the operator can do about a missing driver.
pub(super) fn cure(roots: &Roots) -> String {
    match module(roots) {
        Module::Loadable => "run `modprobe nbd` as root, and name nbd in /etc/modules-load.d".into(),
        Module::Missing => {
            "install the package with the kernel's extra modules, or a kernel with CONFIG_BLK_DEV_NBD"
                .into()
        }
        Module::NoModules => {
            "no modules of the running kernel are installed here (in a container, load nbd on the \
             host); use a kernel with CONFIG_BLK_DEV_NBD"
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_fits_what_is_missing() {
        let dir = crate::kernel::device::tests::scratch("probe");
        let roots = Roots::under(&dir);
        let write = |path: &str, text: &str| {
            let p = dir.join(path);
            std::fs::create_dir_all(p.parent().unwrap()).unwrap();
            std::fs::write(p, text).unwrap();
        };
        write("proc/sys/kernel/osrelease", "6.1.0\n");
        assert!(cure(&roots).contains("on the host"));
        write("modules/6.1.0/modules.dep", "kernel/drivers/block/nbdx.ko: a\n");
        assert!(cure(&roots).contains("extra modules"));
        write("modules/6.1.0/modules.dep", "kernel/a.ko:\nkernel/drivers/block/nbd.ko.xz:\n");
        assert!(cure(&roots).contains("modprobe nbd"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn probing_answers_on_any_kernel() {
        match probe() {
            Ok(_) => {}
            Err(e) => assert!(e.to_string().contains("socket works without it"), "{e}"),
        }
    }

    #[test]
    fn the_controller_is_a_family_this_code_can_talk_to() {
        // "nlctrl" exists on every kernel: the same bytes, a family that is there.
        let mut n = Netlink::open().unwrap();
        let request = genl::get_family(n.next_seq(), "nlctrl");
        let mut id = 0;
        n.exchange("test", &request, |a| {
            id = genl::family_id(a)?;
            Ok(())
        })
        .unwrap();
        assert_eq!(id, genl::GENL_ID_CTRL);
    }
}
