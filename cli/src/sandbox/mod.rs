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
pub mod title;

use std::{
    fs::File,
    os::{fd::AsFd, unix::net::UnixListener},
    path::PathBuf,
};

use anyhow::{Context, Result, anyhow, bail};
use devices::control::{Client, SignalTarget};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    process::{Pid, WaitOptions, waitpid},
};
use sentry_abi::config::SandboxConfig;

use crate::{
    boot::{self, machine::Host},
    cgroup,
    flags::Settings,
    hooks::{Hooks, Point, Subject},
    namespaces::Namespaces,
    spec::mounts::HostRoot,
    store::HostProcess,
};
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
    pub host: Host,
    pub streams: Streams,
    /// Ends with the command that made it.
    pub foreground: bool,
    /// Made ready to begin at once, and begun by a request on the control socket.
    pub hold: bool,
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
    pub cgroup: cgroup::Join,
    pub surroundings: Surroundings,
}

/// What a container asks of the host around its sandbox.
#[derive(Default)]
pub struct Surroundings {
    pub namespaces: Namespaces,
    pub hooks: Hooks,
    /// What hooks are told; none where there are none.
    pub subject: Option<Subject>,
    /// What the gofer serves, to be opened again behind hooks that may have mounted something there.
    pub roots: Vec<HostRoot>,
    /// Bytes that the container's control group holds.
    pub memory_limit: Option<u64>,
}

impl Surroundings {
    /// Whether the sandbox waits for [`Command::Proceed`] once it has its namespaces.
    pub fn waits(&self) -> bool {
        self.namespaces.user.is_some() || self.hooks.before_create()
    }

    /// The host's part, when the process `pid` has its namespaces and has done nothing in them.
    fn prepare(&self, pid: i32) -> Result<()> {
        if let Some(maps) = &self.namespaces.user {
            maps.write(pid)?;
        }
        if let Some(subject) = &self.subject {
            self.hooks.run(Point::Prestart, subject, pid)?;
            self.hooks.run(Point::CreateRuntime, subject, pid)?;
        }
        Ok(())
    }
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

/// As [`open_roots`], with what is mounted there in this process's mount namespace; it stays when the namespace is emptied.
pub fn clone_roots(roots: &[HostRoot]) -> Result<Vec<devices::gofer::Root>> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let clone = |root: &HostRoot| {
        let fd =
            open_tree(CWD, &root.path, flags).with_context(|| format!("{}: {}", root.what, root.path.display()))?;
        Ok(devices::gofer::Root { fd, readonly: root.readonly })
    };
    roots.iter().map(clone).collect()
}

/// The namespaces of a sandbox, from most to least, without those that it joins. One with ids of its own needs them.
fn namespaces(asked: &Namespaces) -> Vec<(libc::c_int, &'static str)> {
    let all = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let all = all & !asked.joined();
    if asked.user.is_some() {
        return vec![(all | libc::CLONE_NEWUSER | libc::CLONE_NEWCGROUP, "namespaces with ids of their own")];
    }
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
    let left = launch.surroundings.namespaces.enter()?;
    for name in crate::namespaces::interfaces().iter().filter(|_| launch.surroundings.namespaces.joined() != 0) {
        log::warn!(
            "network interface {name}: not supported yet; it is left alone, and the container has only a loopback"
        );
    }
    let mut refused = Vec::new();
    let mut made = None;
    for (flags, name) in namespaces(&launch.surroundings.namespaces) {
        match fork(flags, &launch.cgroup) {
            Ok((Fork::Child, in_group)) => {
                drop(ours);
                boot::main(launch, theirs, flags, in_group)
            }
            Ok((Fork::Parent(pid), _)) => {
                made = Some((pid, name));
                break;
            }
            Err(error) => refused.push(format!("{name}: {error}")),
        }
    }
    let back = left.back();
    let Some((pid, name)) = made else { return Err(anyhow!("make the sandbox's process: {}", refused.join("; "))) };
    for reason in &refused {
        log::debug!("confinement: missing: {reason}");
    }
    log::debug!("confinement: {name}");
    let pid_number = pid.as_raw_nonzero().get();
    let sandbox = Sandbox {
        process: HostProcess::of(pid_number)?,
        pid,
        channel: ours,
        control_path: launch.control_path,
        id: launch.id,
        terminal: launch.config.container.process.terminal,
        reaped: false,
    };
    back?;
    if launch.surroundings.waits() {
        launch.surroundings.prepare(pid_number)?;
        // Where it has ended, it has said why.
        let _ = sandbox.channel.send(&Command::Proceed { pid: pid_number });
    }
    Ok(sandbox)
}

/// Also says whether the process was made in its group of version 2.
pub fn fork(flags: libc::c_int, join: &cgroup::Join) -> std::io::Result<(Fork, bool)> {
    if let Some(group) = &join.group
        && let Ok(made) = process::fork_into(flags, group.as_fd())
    {
        return Ok((made, true));
    }
    Ok((process::fork(flags)?, false))
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
