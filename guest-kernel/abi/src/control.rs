//! Control messages between VMM and sentry, postcard-encoded on the control device.
//!
//! Queue 0 holds the sentry's empty buffers of [`BUFFER`] bytes, which come back with a [`Header`] and a [`Request`]. Queue 1
//! carries a [`Header`] with the same id and a [`Reply`] to the host.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::config::{ProcessConfig, Strace};

pub const QUEUE_SIZE: u16 = 16;
/// Bytes of a request or reply buffer, header included.
pub const BUFFER: usize = 256 << 10;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Header {
    pub id: u64,
    /// Bytes behind the header.
    pub len: u32,
    pub _pad: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum Request {
    /// Lets an init that is held begin.
    Start,
    Signal {
        container: String,
        target: Target,
        signo: u32,
    },
    /// Processes of a container; of all for an empty id.
    Ps {
        container: String,
    },
    /// Values by [`crate::counters::Counter`].
    Counters,
    /// Stacks and registers of all tasks, as text.
    Stacks,
    /// The size of the host terminal of process `pid`'s session has changed.
    WindowChanged {
        pid: i32,
    },
    /// Starts a process beside init, which belongs to the host: answered with [`Reply::Started`] or [`Reply::Failed`] when
    /// its program has begun or cannot. Its streams are the sentry's to close unless the answer is [`Reply::Error`].
    Exec {
        process: ProcessConfig,
    },
    /// Answered with [`Reply::Exited`] when process `pid` has ended. One that the host has started exists until then.
    Wait {
        pid: i32,
    },
    /// No task runs user code from the reply on, until [`Request::Resume`].
    Pause,
    Resume,
    Strace(Strace),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum Target {
    /// The container's init process.
    Init,
    /// Process `pid` in the container.
    Pid(i32),
    /// The foreground process group of the terminal that controls process `pid`'s session; the process when it has none.
    Foreground(i32),
    /// Every process of the container.
    All,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum Reply {
    Done,
    /// A positive errno: ESRCH for no such process, ENOENT for no such container.
    Error(i32),
    Ps(Vec<Process>),
    Counters(Vec<u64>),
    Stacks(String),
    Started {
        pid: i32,
    },
    /// A positive errno and what failed, in words that engines look for.
    Failed {
        errno: i32,
        message: String,
    },
    /// A wait status.
    Exited(u32),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub ppid: i32,
    pub uid: u32,
    /// Of its threads.
    pub threads: Vec<i32>,
    /// CLOCK_REALTIME at its start, ns.
    pub start: u64,
    /// CPU time used, ns.
    pub cpu: u64,
    /// Host-like name of its terminal; empty: none.
    pub tty: String,
    pub command: String,
}
