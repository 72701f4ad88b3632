//! Processes of the host that state files name. A pid alone may belong to another process by now; the start time tells.

use std::{fs, os::fd::OwnedFd, time::Duration};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct HostProcess {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since boot.
    pub start: u64,
}

/// State letter and start time out of /proc/PID/stat.
fn stat(pid: i32) -> Option<(u8, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let rest = &text[text.iter().rposition(|&b| b == b')')? + 1..];
    let rest = std::str::from_utf8(rest).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl HostProcess {
    pub fn of(pid: i32) -> Result<HostProcess> {
        let (_, start) = stat(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(HostProcess { pid, start })
    }

    pub fn alive(&self) -> bool {
        matches!(stat(self.pid), Some((state, start)) if start == self.start && !matches!(state, b'Z' | b'X'))
    }

    fn pidfd(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { bail!("invalid pid {}", self.pid) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("process {}", self.pid)),
        };
        // Now the pid cannot come to mean another process behind our back.
        Ok(self.alive().then_some(fd))
    }

    /// False when the process is gone already.
    pub fn kill(&self) -> Result<bool> {
        let Some(fd) = self.pidfd()? else { return Ok(false) };
        match pidfd_send_signal(&fd, Signal::KILL) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("kill process {}", self.pid)),
        }
    }

    /// Waits for its end; false when the time is over first.
    pub fn wait(&self, limit: Option<Duration>) -> Result<bool> {
        let Some(fd) = self.pidfd()? else { return Ok(true) };
        let timeout =
            limit.map(|l| rustix::time::Timespec { tv_sec: l.as_secs() as i64, tv_nsec: i64::from(l.subsec_nanos()) });
        loop {
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref()) {
                Ok(n) => return Ok(n > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("poll a process"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_end() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("spawn");
        let process = HostProcess::of(child.id() as i32).expect("alive");
        assert!(process.alive());
        let other = HostProcess { start: process.start + 1, ..process };
        assert!(!other.alive() && !other.kill().expect("not ours"));
        assert!(!process.wait(Some(Duration::from_millis(1))).expect("still there"));
        assert!(process.kill().expect("kill"));
        assert!(process.wait(Some(Duration::from_secs(10))).expect("gone"));
        child.wait().expect("reap");
        assert!(!process.alive());
    }
}
