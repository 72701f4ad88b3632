//! Messages on the control socket and their framing: a little-endian `u32` length, then that many bytes of JSON.

use std::io::{self, Read, Write};

use sentry_abi::control::{Process, Target};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Incremented when an old peer would misunderstand a message. Both sides name theirs; the lower one is spoken.
pub const PROTOCOL_VERSION: u32 = 1;

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
    /// The host terminal's size has changed.
    WindowChanged,
    /// Ends the sandbox and everything in it.
    Shutdown,
}

/// As [`sentry_abi::control::Target`], in JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum SignalTarget {
    Init,
    Pid(i32),
    Foreground,
    All,
}

impl From<SignalTarget> for Target {
    fn from(target: SignalTarget) -> Target {
        match target {
            SignalTarget::Init => Target::Init,
            SignalTarget::Pid(pid) => Target::Pid(pid),
            SignalTarget::Foreground => Target::Foreground,
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
}

impl Reply {
    pub fn error(errno: i32, message: impl Into<String>) -> Reply {
        Reply::Error { errno, message: message.into() }
    }
}

pub(super) fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= MAX_MESSAGE);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "control message too long"))?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&body);
    stream.write_all(&frame)
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
        assert_eq!(reply, Reply::State { started: true, running: true, status: None });
    }

    #[test]
    fn an_announced_length_is_not_trusted() {
        assert!(receive::<Reply>(&mut &[0xff, 0xff, 0xff, 0xff, b'{'][..]).is_err());
        assert!(receive::<Reply>(&mut &[200, 0, 0, 0, b'{'][..]).is_err());
        assert!(receive::<Reply>(&mut &[][..]).unwrap().is_none());
    }
}
