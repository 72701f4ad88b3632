//! What the command and the sandbox it made tell each other while the sandbox begins: one SOCK_SEQPACKET pair, a JSON
//! message a packet. Both ends are the same build. The sandbox is not trusted: packets are bounded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const MAX_MESSAGE: usize = 64 << 10;

/// To the sandbox.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum Command {
    /// The host has done its part; the sandbox, whose process has this pid there, goes on.
    Proceed { pid: i32 },
    /// Begin the container's process.
    Start,
    /// Live on without the command.
    Detach,
}

/// From the sandbox.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum Report {
    /// Everything is in place; the container's process can begin.
    Ready,
    /// Init's program has begun, or errno says why not.
    Init { errno: i32, message: String },
    /// The command may end.
    Detached,
    /// The container has ended with this wait status.
    Ended { status: i32 },
    /// The sandbox has failed.
    Failed { message: String },
}

pub struct Channel(OwnedFd);

impl Channel {
    pub fn pair() -> Result<(Channel, Channel)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .context("make a socket pair")?;
        Ok((Channel(a), Channel(b)))
    }

    pub fn send<T: Serialize>(&self, message: &T) -> Result<()> {
        let mut text = serde_json::to_vec(message)?;
        if text.len() > MAX_MESSAGE {
            text = serde_json::to_vec(&Report::Failed { message: "a message was too long".into() })?;
        }
        loop {
            match send(&self.0, &text, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("tell the other side"),
            }
        }
    }

    /// None when the other side is gone.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let length = loop {
            match recv(&self.0, &mut *buffer, RecvFlags::TRUNC) {
                Ok((_, length)) => break length,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(error).context("hear from the other side"),
            }
        };
        match length {
            0 => Ok(None),
            n if n > MAX_MESSAGE => bail!("a message of {n} bytes"),
            n => Ok(Some(serde_json::from_slice(&buffer[..n]).context("a message")?)),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_the_end() {
        let (a, b) = Channel::pair().expect("pair");
        let report = Report::Init { errno: 2, message: "x".into() };
        a.send(&report).expect("send");
        assert_eq!(b.receive::<Report>().expect("receive"), Some(report));
        drop(a);
        assert_eq!(b.receive::<Report>().expect("end"), None);
        assert!(b.send(&Command::Start).is_err());
    }
}
