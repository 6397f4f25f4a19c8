//! A panic ends the process.
//!
//! A task that has panicked is gone while the process looks alive: an MDM without its driver answers and heals nothing.
//! All state is durable and systemd starts the daemon again, so the whole process ends.

use std::any::Any;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// How long the log may take to write the message: a panic inside it must not keep the process.
const LOG: Duration = Duration::from_secs(1);

/// From now on a panic in any thread is said on stderr and in the log, and ends the process by SIGABRT. For `main` only.
pub fn abort_on_panic() {
    let on_stderr = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        on_stderr(info);
        let panic = text(info.payload());
        let place = info.location().map(|l| l.to_string()).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_string();
        let (tx, rx) = sync_channel::<()>(1);
        // By a thread of its own: this one may hold a lock of the log.
        let log = move || {
            tracing::error!(panic, place, thread, "a broken invariant (panic): ending at once");
            tx.send(()).ok();
        };
        if std::thread::Builder::new().name("panic-log".to_string()).spawn(log).is_ok() {
            rx.recv_timeout(LOG).ok();
        }
        std::process::abort();
    }));
}

fn text(payload: &(dyn Any + Send)) -> String {
    let fixed = payload.downcast_ref::<&str>().map(|s| (*s).to_string());
    fixed.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    /// Set in the process that is to panic.
    const CHILD: &str = "QUARRY_TEST_PANIC";

    #[test]
    fn a_panic_in_any_thread_is_logged_with_its_place_and_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let args = crate::cli::CommonArgs::default();
            crate::logging::init(&args).unwrap();
            abort_on_panic();
            std::thread::spawn(|| panic!("nothing is {}", "left")).join().ok();
            std::thread::sleep(Duration::from_secs(30));
            return;
        }
        let name =
            "panics::tests::a_panic_in_any_thread_is_logged_with_its_place_and_ends_the_process";
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(out.status.signal(), Some(6), "{out:?}");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(said.contains("ERROR") && said.contains("a broken invariant"), "{said}");
        assert!(said.matches("nothing is left").count() >= 2, "on stderr and in the log: {said}");
        assert!(said.matches("panics.rs:").count() >= 2, "{said}");
    }
}
