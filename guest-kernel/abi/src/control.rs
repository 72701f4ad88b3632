//! Control messages between VMM and sentry, postcard-encoded on the control device.
//!
//! Queue 0 holds the sentry's empty buffers of [`BUFFER`] bytes, which come back with a [`Header`] and a [`Request`]. Queue 1
//! carries a [`Header`] with the same id and a [`Reply`] to the host.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const QUEUE_SIZE: u16 = 16;
/// Bytes of a request or reply buffer, header included.
pub const BUFFER: usize = 64 << 10;

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
    /// The host terminal's size has changed.
    WindowChanged,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum Target {
    /// The container's init process.
    Init,
    /// Process `pid` in the container.
    Pid(i32),
    /// The foreground process group of the container's terminal; init when it has none.
    Foreground,
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
