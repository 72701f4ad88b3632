//! The command line's side of the control socket.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use sentry_abi::control::Process;

use super::{
    protocol::{PROTOCOL_VERSION, Proxy, Reply, Request, SignalTarget, frame, receive, send},
    socket,
};

/// A connection to a sandbox. Requests are answered one after another.
pub struct Client {
    stream: UnixStream,
    /// What both sides speak.
    version: u32,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A path to `path` that fits a socket address, and the directory descriptor it goes through.
pub(super) fn short_path(path: &Path) -> io::Result<(OwnedFd, std::path::PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no socket path: {}", path.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let dir = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut short = std::path::PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()));
    short.push(name);
    Ok((dir, short))
}

impl Client {
    /// Connects to the control socket at `path` (of any length) and agrees on a version.
    pub fn connect(path: &Path) -> Result<Client> {
        let (_dir, short) = short_path(path).with_context(|| format!("control socket {}", path.display()))?;
        let stream =
            UnixStream::connect(short).with_context(|| format!("connecting to the sandbox at {}", path.display()))?;
        Client::from_stream(stream)
    }

    /// Speaks over a stream that is already connected.
    pub fn from_stream(stream: UnixStream) -> Result<Client> {
        let mut client = Client { stream, version: 1 };
        match client.call(&Request::Hello { version: PROTOCOL_VERSION })? {
            Reply::Hello { version } if version >= 1 => {
                client.version = version;
                Ok(client)
            }
            other => bail!("the sandbox does not speak this control protocol: {other:?}"),
        }
    }

    /// Sends a request and waits for its reply; an error reply is an `Err` with its message.
    pub fn call(&mut self, request: &Request) -> Result<Reply> {
        self.send(request)?;
        self.receive()
    }

    /// Refuses what the sandbox would not understand.
    fn check(&self, request: &Request) -> Result<()> {
        if request.since() > self.version {
            bail!("the sandbox was started by an older runsc, which cannot do this");
        }
        Ok(())
    }

    /// As [`Client::call`], with descriptors.
    pub fn call_with(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply> {
        self.check(request)?;
        let what = "sending to the sandbox";
        socket::write_with(&mut self.stream, &frame(request).context(what)?, fds).context(what)?;
        self.receive()
    }

    /// Sends a request whose reply is taken by [`Client::receive`].
    pub fn send(&mut self, request: &Request) -> Result<()> {
        self.check(request)?;
        send(&mut self.stream, request).context("sending to the sandbox")
    }

    pub fn receive(&mut self) -> Result<Reply> {
        match receive(&mut self.stream).context("receiving from the sandbox")? {
            Some(Reply::Error { errno, message }) => {
                Err(anyhow::Error::new(io::Error::from_raw_os_error(errno)).context(message))
            }
            Some(reply) => Ok(reply),
            None => bail!("the sandbox has ended"),
        }
    }

    pub fn start(&mut self, container: &str) -> Result<()> {
        self.done(&Request::Start { container: container.into() })
    }

    pub fn signal(&mut self, container: &str, target: SignalTarget, signo: u32) -> Result<()> {
        self.done(&Request::Signal { container: container.into(), target, signo })
    }

    /// The container's wait status, as wait(2) encodes it.
    pub fn wait(&mut self, container: &str) -> Result<i32> {
        match self.call(&Request::Wait { container: container.into() })? {
            Reply::Exited { status } => Ok(status),
            other => bail!("unexpected reply to wait: {other:?}"),
        }
    }

    pub fn ps(&mut self, container: &str) -> Result<Vec<Process>> {
        match self.call(&Request::Ps { container: container.into() })? {
            Reply::Ps { processes } => Ok(processes),
            other => bail!("unexpected reply to ps: {other:?}"),
        }
    }

    pub fn counters(&mut self) -> Result<Vec<(String, u64)>> {
        match self.call(&Request::Counters)? {
            Reply::Counters { counters } => Ok(counters),
            other => bail!("unexpected reply to counters: {other:?}"),
        }
    }

    pub fn stacks(&mut self) -> Result<String> {
        match self.call(&Request::Stacks)? {
            Reply::Stacks { text } => Ok(text),
            other => bail!("unexpected reply to stacks: {other:?}"),
        }
    }

    pub fn window_changed(&mut self, pid: i32) -> Result<()> {
        self.done(&Request::WindowChanged { pid })
    }

    /// The wait status of one process, as wait(2) encodes it.
    pub fn wait_process(&mut self, container: &str, pid: i32) -> Result<i32> {
        match self.call(&Request::WaitProcess { container: container.into(), pid })? {
            Reply::Exited { status } => Ok(status),
            other => bail!("unexpected reply to wait: {other:?}"),
        }
    }

    pub fn proxies(&mut self, container: &str) -> Result<Vec<Proxy>> {
        match self.call(&Request::Proxies { container: container.into() })? {
            Reply::Proxies { proxies } => Ok(proxies),
            other => bail!("unexpected reply to proxies: {other:?}"),
        }
    }

    pub fn pause(&mut self, container: &str) -> Result<()> {
        self.done(&Request::Pause { container: container.into() })
    }

    pub fn resume(&mut self, container: &str) -> Result<()> {
        self.done(&Request::Resume { container: container.into() })
    }

    /// `only`: names of the system calls to trace; empty: all.
    pub fn strace(&mut self, enabled: bool, only: Vec<String>) -> Result<()> {
        self.done(&Request::Strace { enabled, only })
    }

    /// Whether the container was started, and whether it is paused.
    pub fn state(&mut self, container: &str) -> Result<(bool, bool)> {
        match self.call(&Request::State { container: container.into() })? {
            Reply::State { started, paused, .. } => Ok((started, paused)),
            other => bail!("unexpected reply to state: {other:?}"),
        }
    }

    pub fn shutdown(&mut self) -> Result<()> {
        self.done(&Request::Shutdown)
    }

    fn done(&mut self, request: &Request) -> Result<()> {
        match self.call(request)? {
            Reply::Done => Ok(()),
            other => bail!("unexpected reply: {other:?}"),
        }
    }
}
