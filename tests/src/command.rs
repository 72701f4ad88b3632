//! Running a program with a time limit and taking all it says.

use std::{
    ffi::OsString,
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    thread::{JoinHandle, spawn},
    time::{Duration, Instant},
};

use crate::host;

/// How something ended and what it said.
#[derive(Clone, Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// It was killed for taking too long.
    pub timed_out: bool,
    pub elapsed: Duration,
}

impl Finished {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// As a shell has it: 128 + the signal for one that was killed.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Everything, for a failing test's message.
    pub fn describe(&self) -> String {
        format!(
            "{}{} after {:.1?}\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            if self.timed_out { " (out of time)" } else { "" },
            self.elapsed,
            tail(&self.stdout()),
            tail(&self.stderr())
        )
    }
}

/// The last part of a long text.
pub fn tail(text: &str) -> &str {
    const MAX: usize = 6000;
    let mut start = text.len().saturating_sub(MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// A program in its own process group, killed as a group when it takes longer than its limit.
pub struct Running {
    child: Child,
    started: Instant,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    pub fn start(command: &mut Command, input: Vec<u8>) -> Running {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin");
        // A program need not read all of its input.
        spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let stdout = collect(child.stdout.take().expect("stdout"));
        let stderr = collect(child.stderr.take().expect("stderr"));
        Running { child, started: Instant::now(), stdout, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits at most `limit` (times the machine's scale) from the start.
    pub fn finish(mut self, limit: Duration) -> Finished {
        let limit = limit * host::time_scale();
        let mut pause = Duration::from_micros(500);
        let mut timed_out = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            if self.started.elapsed() > limit {
                timed_out = true;
                kill_group(self.child.id());
                break self.child.wait().expect("wait");
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let elapsed = self.started.elapsed();
        if !timed_out {
            // What is left of it holds the pipes open; give it a moment, then end it.
            let deadline = Instant::now() + Duration::from_secs(5) * host::time_scale();
            while !(self.stdout.is_finished() && self.stderr.is_finished()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            if !(self.stdout.is_finished() && self.stderr.is_finished()) {
                kill_group(self.child.id());
                timed_out = true;
            }
        }
        let stdout = self.stdout.join().expect("stdout");
        let stderr = self.stderr.join().expect("stderr");
        Finished { status, stdout, stderr, timed_out, elapsed }
    }
}

fn kill_group(pid: u32) {
    // SAFETY: kill touches no memory. The group is the child's own, made by `start`, and the child may not have been reaped.
    unsafe { libc::kill(-(pid as i32), libc::SIGKILL) };
}

/// Runs `command` to its end, at most `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    Running::start(command, Vec::new()).finish(limit)
}

/// Arguments as a list, from anything that looks like them.
pub fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(items: I) -> Vec<OsString> {
    items.into_iter().map(Into::into).collect()
}
