//! Whose kernel device it is, and of which mapping: `quarry:CLUSTER:VOLUME.SINCE.SDC:NAME`, which the kernel shows as the
//! device's backend.
//!
//! A device outlives the daemon that connected it, and the kernel sends what it held again to whoever takes the device over.
//! So it must be of the very mapping that stands: what it holds of an earlier one may be older than what others wrote
//! meanwhile (R21). And it must be this client's: two on one host may have the same volume.
//!
//! Releases before this one wrote `quarry:CLUSTER:VOLUME:NAME`, and an MDM of an older release does not say since when a
//! mapping stands. Such a device is taken over unless something says that it is of another mapping: restarting a client for
//! an upgrade must not cut a mounted file system off. The mapping under which it is taken over first is written down
//! ([`Notes`]), and from then on decides as if it stood in the identifier.

use crate::kernel::device::all_attached;
use crate::kernel::{Attached, KernelNbd, Roots};
use quarry_base::{Generation, SdcId, VolumeId};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// How long taking a device over may take, and letting one go.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Whose devices: this client's, in its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    pub cluster: String,
    pub sdc: SdcId,
}

/// A connected device of the own cluster that another client does not claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub index: u32,
    /// Bytes.
    pub size: u64,
    /// Its identifier, as the kernel has it.
    pub backend: String,
    pub volume: VolumeId,
    /// Generation since when the mapping stands that it was connected for; zero: not known.
    pub since: Generation,
    /// It says that it is this client's. Releases before this one did not.
    pub ours: bool,
    /// The volume's name.
    pub name: String,
}

impl Owner {
    /// The identifier of a volume's device.
    pub fn backend(&self, volume: VolumeId, since: Generation, name: &str) -> String {
        format!("quarry:{}:{volume}.{}.{}:{name}", self.cluster, since.0, self.sdc.0)
    }

    /// What an identifier says; `None` if it is of another cluster, another client, or no volume's.
    fn read(&self, a: &Attached) -> Option<Left> {
        let backend = a.backend.clone()?;
        let mut fields = backend.splitn(4, ':');
        let (kind, cluster) = (fields.next()?, fields.next()?);
        let (what, name) = (fields.next()?, fields.next()?.to_string());
        let mut what = what.split('.');
        let volume = VolumeId(what.next()?.parse().ok()?);
        let (since, sdc) = match (what.next(), what.next(), what.next()) {
            (None, ..) => (0, None),
            (Some(since), Some(sdc), None) => (since.parse().ok()?, Some(SdcId(sdc.parse().ok()?))),
            _ => return None,
        };
        if kind != "quarry" || cluster != self.cluster || sdc.is_some_and(|s| s != self.sdc) {
            return None;
        }
        let (since, ours) = (Generation(since), sdc.is_some());
        Some(Left { index: a.index, size: a.size, backend, volume, since, ours, name })
    }

    /// Every connected device of the own cluster that another client does not claim, by index.
    pub fn left(&self, roots: &Roots) -> Vec<Left> {
        all_attached(roots).iter().filter_map(|a| self.read(a)).collect()
    }

    /// Those of one volume.
    pub fn left_of(&self, roots: &Roots, volume: VolumeId) -> Vec<Left> {
        let mut all = self.left(roots);
        all.retain(|l| l.volume == volume);
        all
    }
}

impl Left {
    /// Can it be of the mapping that stands since `wanted`? `note`: what was written down of the volume.
    pub fn may_be_of(&self, wanted: Generation, note: Option<Generation>) -> bool {
        let of = if self.since == Generation::ZERO { note } else { Some(self.since) };
        let unknown = wanted == Generation::ZERO;
        unknown || of.is_none_or(|of| of == Generation::ZERO || of == wanted)
    }
}

/// What was written down of devices whose identifier does not say it: the generation since when the mapping stood under which
/// this client took over the volume's.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    dir: PathBuf,
}

impl Notes {
    /// In the daemon's data directory.
    pub fn new(dir: PathBuf) -> Notes {
        Notes { dir }
    }

    fn path(&self, volume: VolumeId) -> PathBuf {
        self.dir.join(format!("device-{volume}"))
    }

    pub fn get(&self, volume: VolumeId) -> Option<Generation> {
        let text = std::fs::read_to_string(self.path(volume)).ok()?;
        text.trim().parse().ok().map(Generation)
    }

    /// The device of the volume that is taken over belongs to this mapping.
    pub fn keep(&self, volume: VolumeId, since: Generation) {
        if since == Generation::ZERO || self.get(volume) == Some(since) {
            return;
        }
        let text = format!("{}\n", since.0);
        if let Err(error) = quarry_control::replace_file(&self.path(volume), text.as_bytes(), 0o644)
        {
            tracing::warn!(%volume, %error, "the mapping of a kernel device of an earlier release is not written down");
        }
    }

    /// There is no such device of the volume any more.
    pub fn forget(&self, volume: VolumeId) {
        // Nothing is written down of most volumes.
        std::fs::remove_file(self.path(volume)).ok();
    }
}

/// Detaches a device, also when something still holds it, and waits at most `wait` for its end: its requests fail already, or
/// will never be sent. Says whether it is gone.
pub(super) fn release(kernel: &KernelNbd, l: &Left, wait: Duration) -> bool {
    let (volume, index) = (l.volume, l.index);
    match kernel.detach(index, &l.backend, &l.name, true, wait) {
        Ok(()) => {
            tracing::info!(%volume, index, "kernel device detached");
            true
        }
        Err(error) => {
            tracing::warn!(%volume, index, %error, "a detached kernel device is still held");
            false
        }
    }
}

/// Of the devices found those to detach because no mapping wants them: this client's, and those of an earlier release that
/// this client has taken over.
pub(super) fn unwanted(all: Vec<Left>, wanted: &BTreeSet<VolumeId>, notes: &Notes) -> Vec<Left> {
    let mut gone = all;
    gone.retain(|l| !wanted.contains(&l.volume));
    gone.retain(|l| {
        let claimed = l.ours || notes.get(l.volume).is_some();
        if !claimed {
            tracing::warn!(
                volume = %l.volume, index = l.index,
                "a kernel device of an earlier release is left alone: it may be another client's of this host"
            );
        }
        claimed
    });
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::device::tests::{scratch, show};

    const VOLUME: VolumeId = VolumeId(7);

    fn owner(sdc: u32) -> Owner {
        Owner { cluster: "c".into(), sdc: SdcId(sdc) }
    }

    fn connected(roots: &Roots, index: u32, backend: &str) {
        show(roots, index, "size", "8\n");
        show(roots, index, "pid", "1\n");
        show(roots, index, "backend", &format!("{backend}\n"));
    }

    fn indices(left: &[Left]) -> Vec<u32> {
        left.iter().map(|l| l.index).collect()
    }

    #[test]
    fn a_device_is_known_by_cluster_client_volume_and_mapping() {
        let dir = scratch("owner");
        let roots = Roots::under(&dir);
        let all = [
            &owner(9).backend(VOLUME, Generation(3), "db"),
            &owner(8).backend(VOLUME, Generation(3), "db"),
            "quarry:c:7:db",
            "quarry:other:7.3.9:db",
            "quarry:c:70.3.9:db2",
            "quarry:c:7.3:db",
            "quarry:c:7.3.9.1:db",
            "quarry:c:x.3.9:db",
            "quarry:c",
            "foreign",
        ];
        (0..).zip(all).for_each(|(i, b)| connected(&roots, i, b));
        assert_eq!(
            all[0], "quarry:c:7.3.9:db",
            "the udev rule takes the name behind the third colon"
        );
        let left = owner(9).left(&roots);
        assert_eq!(indices(&left), [0, 2, 4]);
        let got: Vec<_> = left.iter().map(|l| (l.volume.0, l.since.0, l.ours, &*l.name)).collect();
        assert_eq!(got, [(7, 3, true, "db"), (7, 0, false, "db"), (70, 3, true, "db2")]);
        assert_eq!(indices(&owner(9).left_of(&roots, VOLUME)), [0, 2]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_device_of_another_mapping_is_told_from_one_that_can_be_of_this_one() {
        let left = |since| Left {
            index: 0,
            size: 1,
            backend: String::new(),
            volume: VOLUME,
            since: Generation(since),
            ours: true,
            name: "db".into(),
        };
        let (none, note) = (None, |n| Some(Generation(n)));
        assert!(left(3).may_be_of(Generation(3), none));
        assert!(!left(3).may_be_of(Generation(5), none));
        assert!(!left(3).may_be_of(Generation(5), note(5)), "its own word counts");
        // An earlier release did not say it; what was written down then counts.
        assert!(left(0).may_be_of(Generation(5), none));
        assert!(left(0).may_be_of(Generation(5), note(5)));
        assert!(!left(0).may_be_of(Generation(5), note(3)));
        // An MDM of an older release does not say it.
        assert!(
            left(3).may_be_of(Generation(0), none) && left(0).may_be_of(Generation(0), note(3))
        );
    }

    #[test]
    fn what_no_mapping_wants_is_detached_but_nothing_of_another_client() {
        let dir = scratch("unwanted");
        let roots = Roots::under(&dir);
        let notes = Notes::new(dir.clone());
        let mine = owner(9);
        connected(&roots, 0, &mine.backend(VolumeId(1), Generation(3), "one"));
        connected(&roots, 1, &mine.backend(VolumeId(2), Generation(3), "two"));
        connected(&roots, 2, &owner(8).backend(VolumeId(1), Generation(3), "one"));
        connected(&roots, 3, "quarry:c:3:three");
        connected(&roots, 4, "quarry:c:4:four");
        connected(&roots, 5, "quarry:d:1.3.9:one");
        notes.keep(VolumeId(4), Generation(6));
        let wanted = BTreeSet::from([VolumeId(2)]);
        assert_eq!(indices(&unwanted(mine.left(&roots), &wanted, &notes)), [0, 4]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_mapping_of_a_device_that_does_not_say_it_is_kept_until_it_is_gone() {
        let dir = scratch("notes");
        let notes = Notes::new(dir.clone());
        assert_eq!(notes.get(VOLUME), None);
        notes.keep(VOLUME, Generation::ZERO);
        assert_eq!(notes.get(VOLUME), None, "an MDM of an older release says nothing of it");
        notes.keep(VOLUME, Generation(5));
        assert_eq!(Notes::new(dir.clone()).get(VOLUME), Some(Generation(5)));
        notes.forget(VOLUME);
        assert_eq!(notes.get(VOLUME), None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
