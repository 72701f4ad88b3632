//! A sandbox as the command sees it: made by forking, started, waited for. The processes are
//!
//! - the command, which in the foreground stays until the container has ended;
//! - the VMM ([`crate::boot`]), made in namespaces of its own, init of its pid namespace: nothing outlives it;
//! - the gofer ([`crate::gofer`]), made by the VMM while it still may open files.
//!
//! They are forks and not executed anew, which would cost a millisecond each; what a child must not have is closed in it.

pub mod channel;
pub mod confine;
pub mod handover;
pub mod mount_points;
pub mod pid_file;
pub mod process;
pub mod proxy;
pub mod signals;
pub mod stdio;
pub mod terminal;

use std::{fs::File, os::unix::net::UnixListener, path::PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use devices::control::{Client, SignalTarget};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FileType, Mode, OFlags},
    io::Errno,
    process::{Pid, WaitOptions, waitpid},
};
use sentry_abi::config::SandboxConfig;

use crate::{boot, flags::Settings, platform::Backend, spec::mounts::HostRoot, store::HostProcess};
use channel::{Channel, Command, Report};
use process::Fork;
use signals::Signals;
use stdio::Streams;

/// Exit code of a failure of ours.
pub const FAILURE: i32 = 128;

/// A sandbox to make.
pub struct Launch {
    pub id: String,
    pub config: SandboxConfig,
    pub roots: Vec<devices::gofer::Root>,
    pub vcpus: u32,
    pub backend: Backend,
    pub streams: Streams,
    /// Ends with the command that made it.
    pub foreground: bool,
    /// Its terminal is nobody's yet, and becomes that of the sandbox.
    pub own_terminal: bool,
    pub control: UnixListener,
    /// Its path, for signals of a foreground command.
    pub control_path: PathBuf,
    /// Takes the wait status.
    pub exit_file: File,
    pub settings: Settings,
    /// Effective user and group of the caller.
    pub user: (u32, u32),
}

/// A sandbox that this command has made.
pub struct Sandbox {
    pub process: HostProcess,
    pid: Pid,
    channel: Channel,
    control_path: PathBuf,
    id: String,
    terminal: bool,
    reaped: bool,
}

/// Why a container's process did not begin.
#[derive(Debug)]
pub struct InitError {
    pub errno: i32,
    /// The sandbox's words, which engines derive exit codes from: `exec: "x": permission denied`.
    message: String,
}

impl std::fmt::Display for InitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for InitError {}

impl InitError {
    pub fn new(errno: i32, message: String) -> InitError {
        InitError { errno, message }
    }

    /// An error reply of the control socket: the sandbox has said what is wrong, and its errno comes with it.
    pub fn from_control(error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            Some(errno) => InitError::new(errno, error.to_string()).into(),
            None => error,
        }
    }
}

/// Opens what the gofer will serve, while this process may.
pub fn open_roots(roots: &[HostRoot]) -> Result<Vec<devices::gofer::Root>> {
    let mut opened = Vec::with_capacity(roots.len());
    for (i, root) in roots.iter().enumerate() {
        let what = || format!("{}: {}", root.what, root.path.display());
        let fd = rustix::fs::open(&root.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).with_context(what)?;
        let stat = rustix::fs::fstat(&fd).with_context(what)?;
        if i == 0 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            bail!("{}: not a directory", what());
        }
        opened.push(devices::gofer::Root { fd, readonly: root.readonly });
    }
    Ok(opened)
}

/// The namespaces of a sandbox, from most to least.
fn namespaces() -> Vec<(libc::c_int, &'static str)> {
    let all = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    vec![
        (all | libc::CLONE_NEWCGROUP, "mount, pid, net, ipc, uts and cgroup namespaces"),
        (all | libc::CLONE_NEWUSER, "user, mount, pid, net, ipc and uts namespaces"),
        (libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID, "user, mount and pid namespaces"),
        (0, "no namespaces"),
    ]
}

/// Makes the sandbox's processes; the container's process does not begin before [`Sandbox::start`].
pub fn launch(launch: Launch) -> Result<Sandbox> {
    process::check_single_threaded()?;
    let (ours, theirs) = Channel::pair()?;
    let mut refused = Vec::new();
    for (flags, name) in namespaces() {
        match process::fork(flags) {
            Ok(Fork::Child) => {
                drop(ours);
                boot::main(launch, theirs, flags)
            }
            Ok(Fork::Parent(pid)) => {
                for reason in &refused {
                    log::debug!("confinement: missing: {reason}");
                }
                log::debug!("confinement: {name}");
                return Ok(Sandbox {
                    process: HostProcess::of(pid.as_raw_nonzero().get())?,
                    pid,
                    channel: ours,
                    control_path: launch.control_path,
                    id: launch.id,
                    terminal: launch.config.container.process.terminal,
                    reaped: false,
                });
            }
            Err(error) => refused.push(format!("{name}: {error}")),
        }
    }
    Err(anyhow!("make the sandbox's process: {}", refused.join("; ")))
}

impl Sandbox {
    /// Lets the container's process begin.
    pub fn start(&self) -> Result<()> {
        self.channel.send(&Command::Start)
    }

    /// Waits until everything is in place.
    pub fn ready(&mut self) -> Result<()> {
        match self.report()? {
            Report::Ready => Ok(()),
            other => bail!("unexpected report of the sandbox: {other:?}"),
        }
    }

    /// Waits until the container's process has begun. A process that ends that soon has begun.
    pub fn begun(&mut self) -> Result<()> {
        loop {
            match self.report()? {
                Report::Ready => {}
                Report::Init { errno: 0, .. } | Report::Ended { .. } => return Ok(()),
                Report::Init { errno, message } => return Err(InitError { errno, message }.into()),
                other => bail!("unexpected report of the sandbox: {other:?}"),
            }
        }
    }

    /// Leaves the sandbox to itself.
    pub fn detach(mut self) -> Result<()> {
        if self.channel.send(&Command::Detach).is_err() {
            // It has ended; that is no failure of this command.
            return Ok(());
        }
        loop {
            match self.channel.receive()? {
                None | Some(Report::Detached) => break,
                Some(Report::Failed { message }) => bail!("{message}"),
                Some(_) => {}
            }
        }
        self.reaped = true;
        Ok(())
    }

    /// Waits for the end and hands signals on meanwhile; the wait status of the container.
    pub fn wait(&mut self, signals: &mut Signals) -> Result<i32> {
        let mut status = None;
        let mut failure = None;
        loop {
            let events = {
                let mut fds = [PollFd::new(&self.channel, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error).context("poll"),
                }
                [fds[0].revents(), fds[1].revents()]
            };
            if !events[1].is_empty() {
                while let Some(signal) = signals.next() {
                    self.forward(signal);
                }
            }
            if events[0].is_empty() {
                continue;
            }
            match self.channel.receive()? {
                Some(Report::Ended { status: ended }) => status = Some(ended),
                Some(Report::Init { errno, message }) if errno != 0 => {
                    failure.get_or_insert(anyhow::Error::new(InitError { errno, message }));
                }
                Some(Report::Failed { message }) => {
                    failure.get_or_insert(anyhow!("{message}"));
                }
                Some(_) => {}
                None => break,
            }
        }
        let ended = self.reap()?;
        match (failure, status) {
            (Some(error), _) => Err(error),
            (None, Some(status)) => Ok(status),
            (None, None) => Err(anyhow!("the sandbox {ended}")),
        }
    }

    fn forward(&self, signal: u32) {
        let target = if self.terminal { SignalTarget::Foreground } else { SignalTarget::Init };
        let send = || -> Result<()> {
            let mut client = Client::connect(&self.control_path)?;
            if signal == libc::SIGWINCH as u32 && self.terminal {
                client.window_changed(1)
            } else {
                client.signal(&self.id, target, signal)
            }
        };
        match send() {
            Ok(()) => log::debug!("signal {signal} forwarded"),
            Err(error) => {
                log::debug!("signal {signal}: {error:#}");
                // It has just ended, or takes no signals any more: then it is the sandbox that ends.
                if matches!(signal as i32, libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT) {
                    let _ = self.process.kill();
                }
            }
        }
    }

    fn report(&mut self) -> Result<Report> {
        match self.channel.receive()? {
            Some(Report::Failed { message }) => bail!("{message}"),
            Some(report) => Ok(report),
            None => {
                let ended = self.reap()?;
                bail!("the sandbox {ended}")
            }
        }
    }

    /// Waits for the process and says how it ended.
    fn reap(&mut self) -> Result<String> {
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => {
                    self.reaped = true;
                    return Ok(match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => format!("ended unexpectedly with code {code}"),
                        (_, Some(signal)) => format!("was killed by signal {signal}"),
                        _ => "ended".into(),
                    });
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for the sandbox"),
            }
        }
    }
}

impl Drop for Sandbox {
    /// A command that fails takes its sandbox with it.
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.process.kill();
            let _ = self.reap();
        }
    }
}

/// What a wait status means as an exit code.
pub fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(0x80 | 11), 139);
    }
}
