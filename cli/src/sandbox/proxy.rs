//! The process of the host that stands for one that was started in a running container: it ends as that one does, passes
//! signals on to it, and its own end is the other's.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, bail};
use devices::{
    console::{Prepared, prepare},
    control::{Client, Reply, Request, SignalTarget},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Resource, Rlimit, setrlimit},
    time::Timespec,
};
use sentry_abi::config::ProcessConfig;

use super::{
    InitError,
    channel::{Channel, Report},
    confine,
    process::{self, Fork, exit_now},
    signals::{self, Signals},
    stdio::Streams,
    terminal, title,
};
use crate::{cgroup, flags::Settings, logging};

/// A process to start.
pub struct Exec {
    pub id: String,
    pub process: ProcessConfig,
    pub streams: Streams,
    /// Its terminal is nobody's yet, and becomes that of the proxy.
    pub own_terminal: bool,
    pub settings: Settings,
    /// The container's, for a process that is left behind.
    pub cgroup: cgroup::Join,
}

/// A process that runs, as its proxy sees it.
struct Proxy {
    client: Client,
    pid: i32,
    terminal: bool,
}

/// Stands for the process until its end; its wait status.
pub fn foreground(exec: Exec, control: &Path, begun: impl FnOnce() -> Result<()>) -> Result<i32> {
    let mut signals = Signals::new()?;
    let client = Client::connect(control)?;
    let proxy = start(client, exec)?;
    begun()?;
    proxy.stand(&mut signals)
}

/// Runs a process to its end, or to that of the time it has; its wait status. Signals of this command stay with it.
pub fn to_the_end(exec: Exec, control: &Path, limit: Option<Timespec>) -> Result<Option<i32>> {
    let mut proxy = start(Client::connect(control)?, exec)?;
    loop {
        match poll(&mut [PollFd::new(&proxy.client, PollFlags::IN)], limit.as_ref()) {
            // The end of the connection is that of the process.
            Ok(0) => return Ok(None),
            Ok(_) => {
                return match proxy.client.receive()? {
                    Reply::Exited { status } => Ok(Some(status)),
                    other => bail!("unexpected reply: {other:?}"),
                };
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

/// Leaves a process behind that stands for the one it starts; its pid.
pub fn detached(exec: Exec, control: &Path) -> Result<i32> {
    process::check_single_threaded()?;
    let (ours, theirs) = Channel::pair()?;
    let client = Client::connect(control)?;
    let pid = match super::fork(0, &exec.cgroup).context("make the process that stands for it")? {
        (Fork::Child, in_group) => {
            drop(ours);
            stand_alone(exec, client, theirs, in_group)
        }
        (Fork::Parent(pid), _) => pid,
    };
    drop((theirs, client, exec));
    match ours.receive()? {
        Some(Report::Init { errno: 0, .. }) => Ok(pid.as_raw_nonzero().get()),
        Some(Report::Init { errno, message }) => Err(InitError::new(errno, message).into()),
        Some(Report::Failed { message }) => bail!("{message}"),
        other => bail!("unexpected report of the process that stands for it: {other:?}"),
    }
}

/// The forked process.
fn stand_alone(mut exec: Exec, client: Client, channel: Channel, in_group: bool) -> ! {
    let join = std::mem::take(&mut exec.cgroup);
    let ready = |exec: &Exec| -> Result<Signals> {
        join.enter(in_group)?;
        signals::reset();
        let signals = Signals::new()?;
        logging::init(&exec.settings, "exec", &exec.id)?;
        confine::layer("command line", title::set(&exec.process.args));
        confine::null_streams()?;
        let mut keep = vec![0, 1, 2, client.as_fd().as_raw_fd(), channel.as_fd().as_raw_fd()];
        keep.push(signals.as_fd().as_raw_fd());
        keep.extend(exec.streams.files.iter().map(|fd| fd.as_raw_fd()));
        keep.extend(logging::descriptors());
        process::close_all_but(&keep)?;
        if let Some(tty) = exec.streams.files.first().filter(|_| exec.own_terminal) {
            terminal::take(tty.as_fd())?;
        }
        Ok(signals)
    };
    let started = ready(&exec).and_then(|signals| Ok((start(client, exec)?, signals)));
    let (proxy, mut signals) = match started {
        Ok(started) => started,
        Err(error) => {
            let report = match error.downcast_ref::<InitError>() {
                Some(init) => Report::Init { errno: init.errno, message: init.to_string() },
                None => Report::Failed { message: format!("{error:#}") },
            };
            // Who would read it may be gone.
            let _ = channel.send(&report);
            exit_now(super::FAILURE);
        }
    };
    if channel.send(&Report::Init { errno: 0, message: String::new() }).is_err() {
        // The command was killed: nobody will know of the process, which ends with its proxy.
        exit_now(super::FAILURE);
    }
    drop(channel);
    match proxy.stand(&mut signals) {
        Ok(status) => end_as(status),
        Err(error) => {
            log::error!("{error:#}");
            exit_now(super::FAILURE)
        }
    }
}

/// Starts the process; its descriptors are closed here.
fn start(mut client: Client, exec: Exec) -> Result<Proxy> {
    let Exec { id, mut process, streams, .. } = exec;
    let mut prepared: Vec<(OwnedFd, Prepared)> = Vec::with_capacity(streams.files.len());
    for (fd, config) in streams.files.into_iter().zip(&streams.config) {
        prepared.push(prepare(fd).with_context(|| format!("descriptor {}", config.fd))?);
    }
    process.stdio = streams.config;
    let terminal = process.terminal;
    let request = Request::Exec {
        container: id,
        process: Box::new(process),
        streams: prepared.iter().map(|(_, how)| *how).collect(),
        proxy: i32::try_from(std::process::id())?,
    };
    let fds: Vec<_> = prepared.iter().map(|(fd, _)| fd.as_fd()).collect();
    let pid = match client.call_with(&request, &fds) {
        Ok(Reply::Started { pid }) => pid,
        Ok(other) => bail!("unexpected reply to exec: {other:?}"),
        Err(error) => return Err(InitError::from_control(error)),
    };
    Ok(Proxy { client, pid, terminal })
}

impl Proxy {
    fn stand(mut self, signals: &mut Signals) -> Result<i32> {
        loop {
            let events = {
                let mut fds = [PollFd::new(&self.client, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error).context("poll"),
                }
                [fds[0].revents(), fds[1].revents()]
            };
            if !events[0].is_empty() {
                return Ok(match self.client.receive() {
                    Ok(Reply::Exited { status }) => status,
                    // The sandbox has ended, and everything in it was killed.
                    Ok(_) | Err(_) => libc::SIGKILL,
                });
            }
            while let Some(signal) = signals.next() {
                if let Err(error) = self.pass_on(signal) {
                    log::debug!("signal {signal}: {error:#}");
                }
            }
        }
    }

    /// No answer follows.
    fn pass_on(&mut self, signo: u32) -> Result<()> {
        let keys = matches!(signo as i32, libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP);
        let request = if signo as i32 == libc::SIGWINCH {
            Request::WindowChanged { pid: self.pid }
        } else {
            let target = if self.terminal && keys { SignalTarget::Foreground } else { SignalTarget::Pid(self.pid) };
            // The connection stands for the process; the container's name is not needed.
            Request::Signal { container: String::new(), target, signo }
        };
        self.client.send(&request)
    }
}

/// Ends this process with a wait status.
fn end_as(status: i32) -> ! {
    if libc::WIFSIGNALED(status) {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        // A core file of ours would say nothing of the process.
        if setrlimit(Resource::Core, none).is_ok() {
            signals::raise(libc::WTERMSIG(status));
        }
    }
    exit_now(super::exit_code(status))
}
