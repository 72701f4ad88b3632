//! The standard streams device: what the sentry asks about the descriptors that the containers were given.
//!
//! Queue 0 carries requests: readable [`Request`] and data, writable [`Response`] and data; every one is answered at once
//! (EAGAIN where the host would wait). Queue 1 holds empty buffers that come back as [`Event`]s.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const REQUEST_QUEUE_SIZE: u16 = 32;
pub const EVENT_QUEUE_SIZE: u16 = 32;
/// Largest payload of a read or write.
pub const MAX_DATA: u32 = 64 << 10;

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `len` bytes at `offset` (-1: at the file's own position).
    Read = 1,
    Write = 2,
    /// Which of the poll(2) bits in `arg` hold now; when none does, one [`Event`] as soon as one of them does.
    Poll = 3,
    /// ioctl(2) number `arg`: TCGETS, TCSETS, TCSETSW, TCSETSF, TIOCGWINSZ, TIOCSWINSZ, FIONREAD, with the argument's
    /// bytes behind the request or the response; TCFLSH, TCSBRK, TCXONC with their argument in `offset`.
    Ioctl = 4,
    /// lseek(2): `offset`, whence `arg`.
    Seek = 5,
    /// F_GETFL.
    GetFlags = 6,
    /// ftruncate(2) to `offset`.
    Truncate = 7,
    /// [`Stat`] follows.
    Stat = 8,
    /// fsync(2).
    Sync = 9,
    /// The last user inside the sandbox has closed it.
    Close = 10,
}

impl Op {
    pub fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Op::Read,
            2 => Op::Write,
            3 => Op::Poll,
            4 => Op::Ioctl,
            5 => Op::Seek,
            6 => Op::GetFlags,
            7 => Op::Truncate,
            8 => Op::Stat,
            9 => Op::Sync,
            10 => Op::Close,
            _ => return None,
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Request {
    pub op: u32,
    /// Which stream.
    pub index: u32,
    pub arg: u64,
    pub offset: i64,
    pub len: u32,
    pub _pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Response {
    /// What the host's call returned, or a negative errno.
    pub result: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Stat {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub rdev: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub blksize: u32,
    pub mtimensec: u32,
    pub mtime: i64,
}

/// Streams that were asked about with [`Op::Poll`] are ready.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Event {
    pub index: u32,
    /// poll(2) bits that hold.
    pub events: u32,
}
