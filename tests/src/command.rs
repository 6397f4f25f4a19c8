//! External programs with a time limit and their output.

use crate::failure::While;
use crate::{ensure, fail, Res};
use rustix::process::{kill_process, Pid, Signal};
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Bytes of each output stream kept; more is dropped.
const MAX_OUTPUT: u64 = 16 << 20;

/// A command line to run. Standard input is empty.
pub struct Command {
    inner: std::process::Command,
    shown: String,
    limit: Duration,
}

/// What a program said.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit status; None when a signal ended it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Command {
    /// `program` with a limit of 60 s.
    pub fn new(program: impl AsRef<std::ffi::OsStr>) -> Command {
        let inner = std::process::Command::new(&program);
        let shown = program.as_ref().to_string_lossy().into_owned();
        Command { inner, shown, limit: Duration::from_secs(60) }
    }
    /// Adds arguments.
    pub fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Command {
        for a in args {
            self.shown.push(' ');
            self.shown.push_str(a.as_ref());
            self.inner.arg(a.as_ref());
        }
        self
    }
    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Command {
        self.inner.env(name, value);
        self
    }
    /// Sets the time it may take.
    pub fn limit(mut self, limit: Duration) -> Command {
        self.limit = limit;
        self
    }

    /// Runs it to its end. Fails when it cannot be started or takes longer than the limit (it is killed then), not
    /// by its exit status.
    pub fn run(mut self) -> Res<Output> {
        self.inner.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.inner.spawn().doing(|| format!("starting {}", self.shown))?;
        let out = gather(child.stdout.take());
        let err = gather(child.stderr.take());
        let status = wait(&mut child, self.limit).doing(|| format!("`{}`", self.shown))?;
        Ok(Output { command: self.shown, status, stdout: out.text(), stderr: err.text() })
    }

    /// Runs it; any exit status but 0 is a failure that shows the end of its output.
    pub fn ok(self) -> Res<Output> {
        let out = self.run()?;
        ensure!(out.status == Some(0), "{}", out.told());
        Ok(out)
    }
}

impl Output {
    /// Command, status and the end of what it printed, for a message.
    pub fn told(&self) -> String {
        let status = self.status.map_or("a signal".to_string(), |s| format!("status {s}"));
        format!(
            "`{}` ended with {status}: {}{}",
            self.command,
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
    /// Both streams.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// At most the last 1,500 bytes of a text.
pub fn tail(text: &str) -> &str {
    let mut from = text.len().saturating_sub(1500);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

struct Gathered(Option<std::sync::mpsc::Receiver<String>>);

/// Reads a stream on a thread of its own, so that a full pipe never stops the program.
fn gather(stream: Option<impl Read + Send + 'static>) -> Gathered {
    let Some(mut stream) = stream else { return Gathered(None) };
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let read = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut kept);
        let rest = read.and_then(|_| std::io::copy(&mut stream, &mut std::io::sink()));
        let mut text = String::from_utf8_lossy(&kept).into_owned();
        if let Err(e) = rest {
            text.push_str(&format!("[output cut: {e}]"));
        }
        // Nobody listens any more when a grandchild held the pipe open for too long.
        if send.send(text).is_err() {
            eprintln!("output of an ended program came late");
        }
    });
    Gathered(Some(receive))
}

impl Gathered {
    /// The text. A daemon left behind may hold the pipe: waits 2 s at most.
    fn text(self) -> String {
        match self.0.map(|r| r.recv_timeout(Duration::from_secs(2))) {
            Some(Ok(text)) => text,
            Some(Err(_)) => {
                "[its output did not end: a process it started holds the pipe]".to_string()
            }
            None => String::new(),
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> Res<Option<i32>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() > end {
            give_up(child)?;
            fail!("took longer than {} s and was ended", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// SIGTERM first, so that a script can end what it started; SIGKILL after 15 s.
fn give_up(child: &mut Child) -> Res<()> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM)?;
    }
    let end = Instant::now() + Duration::from_secs(15);
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The first of `programs` that is not in `PATH`, for [`skip`](crate::skip).
pub fn need_programs(programs: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing =
        programs.iter().find(|p| !std::env::split_paths(&path).any(|d| d.join(p).is_file()));
    missing.map(|p| format!("{p} is not installed"))
}
