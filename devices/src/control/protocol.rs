//! Messages on the control socket and their framing: a little-endian `u32` length, then that many bytes of JSON.

use std::io::{self, Read, Write};

use sentry_abi::{
    config::ProcessConfig,
    control::{Process, Target},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::console::Prepared;

/// Incremented when an old peer would misunderstand a message. Both sides name theirs; the lower one is spoken.
pub const PROTOCOL_VERSION: u32 = 2;

/// Largest message, bytes.
const MAX_MESSAGE: u32 = 4 << 20;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    Hello {
        version: u32,
    },
    /// Lets a created container's process begin.
    Start {
        container: String,
    },
    Signal {
        container: String,
        target: SignalTarget,
        signo: u32,
    },
    /// Answered when the container's init process has ended.
    Wait {
        container: String,
    },
    State {
        container: String,
    },
    /// Processes of a container.
    Ps {
        container: String,
    },
    Counters,
    Stacks,
    /// The size of the host terminal of process `pid`'s session has changed.
    WindowChanged {
        #[serde(default = "init")]
        pid: i32,
    },
    /// Starts a process in the container; since version 2. Its descriptors come with the message as SCM_RIGHTS, in the order
    /// of `process.stdio`, made ready as `streams` says. Answered with `Started`, and with `Exited` when it has ended. Until
    /// then the connection stands for the process: its end is that of the process.
    Exec {
        container: String,
        process: Box<ProcessConfig>,
        streams: Vec<Prepared>,
        /// The process of the host that stands for it.
        proxy: i32,
    },
    /// Answered when process `pid` of the container has ended; since version 2.
    WaitProcess {
        container: String,
        pid: i32,
    },
    /// Processes of the host that stand for processes of the container; since version 2.
    Proxies {
        container: String,
    },
    /// No process of the container runs from the answer on; since version 2.
    Pause {
        container: String,
    },
    Resume {
        container: String,
    },
    /// Traces system calls in the log, or stops that; since version 2.
    Strace {
        enabled: bool,
        /// Names of the calls; all when it is empty.
        #[serde(default)]
        only: Vec<String>,
    },
    /// Ends the sandbox and everything in it.
    Shutdown,
}

impl Request {
    /// The version of the protocol that has it.
    pub fn since(&self) -> u32 {
        match self {
            Request::Exec { .. }
            | Request::WaitProcess { .. }
            | Request::Proxies { .. }
            | Request::Pause { .. }
            | Request::Resume { .. }
            | Request::Strace { .. }
            | Request::Signal { target: SignalTarget::ForegroundOf(_), .. } => 2,
            _ => 1,
        }
    }
}

/// The container's first process.
fn init() -> i32 {
    1
}

/// As [`sentry_abi::control::Target`], in JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum SignalTarget {
    Init,
    Pid(i32),
    /// Of the container's terminal.
    Foreground,
    /// Of the terminal of process `pid`'s session; since version 2.
    ForegroundOf(i32),
    All,
}

impl From<SignalTarget> for Target {
    fn from(target: SignalTarget) -> Target {
        match target {
            SignalTarget::Init => Target::Init,
            SignalTarget::Pid(pid) => Target::Pid(pid),
            SignalTarget::Foreground => Target::Foreground(init()),
            SignalTarget::ForegroundOf(pid) => Target::Foreground(pid),
            SignalTarget::All => Target::All,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    Hello {
        version: u32,
    },
    Done,
    /// `errno` is positive; `message` says what failed and where.
    Error {
        errno: i32,
        message: String,
    },
    /// Wait status as wait(2) encodes it.
    Exited {
        status: i32,
    },
    /// `running` is false before `Start` and after the end; then `status` is set.
    State {
        started: bool,
        running: bool,
        #[serde(default)]
        paused: bool,
        #[serde(default)]
        status: Option<i32>,
    },
    Ps {
        processes: Vec<Process>,
    },
    /// Name and value.
    Counters {
        counters: Vec<(String, u64)>,
    },
    Stacks {
        text: String,
    },
    Started {
        pid: i32,
    },
    Proxies {
        proxies: Vec<Proxy>,
    },
}

/// A process of the host that stands for a process of the container.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Proxy {
    /// As the host sees it.
    pub host: i32,
    /// As the container sees it.
    pub pid: i32,
}

impl Reply {
    pub fn error(errno: i32, message: impl Into<String>) -> Reply {
        Reply::Error { errno, message: message.into() }
    }
}

pub(super) fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    stream.write_all(&frame(message)?)
}

/// A message as it goes over the stream.
pub(super) fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= MAX_MESSAGE);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "control message too long"))?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The next message; `None` at a clean end of the stream.
pub(super) fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    if stream.read(&mut len[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut len[1..])?;
    let len = u32::from_le_bytes(len);
    if len > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("control message of {len} bytes")));
    }
    // Grows with what arrives, not with what was announced.
    let mut body = Vec::new();
    if stream.take(u64::from(len)).read_to_end(&mut body)? != len as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_ignored() {
        let body = br#"{"reply":"state","started":true,"running":true,"later":"field"}"#;
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(body);
        let reply: Reply = receive(&mut &frame[..]).unwrap().unwrap();
        assert_eq!(reply, Reply::State { started: true, running: true, paused: false, status: None });
    }

    #[test]
    fn an_announced_length_is_not_trusted() {
        assert!(receive::<Reply>(&mut &[0xff, 0xff, 0xff, 0xff, b'{'][..]).is_err());
        assert!(receive::<Reply>(&mut &[200, 0, 0, 0, b'{'][..]).is_err());
        assert!(receive::<Reply>(&mut &[][..]).unwrap().is_none());
    }
}
