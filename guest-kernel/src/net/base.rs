//! What every socket has: its kind, who waits for it, which directions are shut down, a pending error, buffer sizes, timeouts.

use alloc::sync::Arc;
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU8, AtomicU16, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use super::{Account, options::Options};
use crate::{
    errno::{EAGAIN, EINTR, Errno, Error, Result},
    fs::poll,
    sync::{SpinLock, WaitQueue},
    time,
};

/// SOCK_* of socket(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Kind {
    Stream = 1,
    Datagram = 2,
    Raw = 3,
    SeqPacket = 5,
}

/// MSG_* of send(2) and recv(2).
pub mod msg {
    pub const OOB: u32 = 1;
    pub const PEEK: u32 = 2;
    pub const CTRUNC: u32 = 8;
    pub const TRUNC: u32 = 0x20;
    pub const DONTWAIT: u32 = 0x40;
    pub const EOR: u32 = 0x80;
    pub const WAITALL: u32 = 0x100;
    pub const ERRQUEUE: u32 = 0x2000;
    pub const NOSIGNAL: u32 = 0x4000;
    pub const WAITFORONE: u32 = 0x10000;
    pub const CMSG_CLOEXEC: u32 = 0x4000_0000;
}

/// Bits of [`Base::shut`].
pub const SHUT_RECEIVE: u8 = 1;
pub const SHUT_SEND: u8 = 2;

/// net.core.wmem_default and rmem_default; also the most that SO_SNDBUF and SO_RCVBUF may ask for.
pub const DEFAULT_BUFFER: usize = 212_992;
/// No timeout.
pub const FOREVER: u64 = u64::MAX;

pub struct Base {
    pub domain: u16,
    pub kind: Kind,
    pub protocol: i32,
    /// Readers (and those who accept) wait for data, writers for room.
    pub readable: Arc<WaitQueue>,
    pub writable: Arc<WaitQueue>,
    shut: AtomicU8,
    /// What SO_ERROR will say, 0: nothing.
    error: AtomicU16,
    /// SO_SNDBUF and SO_RCVBUF, bytes.
    pub send_buffer: AtomicUsize,
    pub receive_buffer: AtomicUsize,
    /// SO_SNDTIMEO and SO_RCVTIMEO, ns.
    pub send_timeout: AtomicU64,
    pub receive_timeout: AtomicU64,
    /// SO_PEEK_OFF; negative: off.
    pub peek_offset: AtomicI32,
    /// SO_PASSCRED.
    pub pass_credentials: Arc<AtomicBool>,
    pub options: SpinLock<Options>,
    /// Messages that have been sent and not yet been received.
    pub sent: Arc<Account>,
    /// Inode number, once it has one.
    pub ino: AtomicU64,
}

impl Base {
    pub fn new(domain: u16, kind: Kind, protocol: i32) -> Self {
        let writable = Arc::new(WaitQueue::new());
        Base {
            domain,
            kind,
            protocol,
            readable: Arc::new(WaitQueue::new()),
            sent: Account::new(writable.clone()),
            writable,
            shut: AtomicU8::new(0),
            error: AtomicU16::new(0),
            send_buffer: AtomicUsize::new(DEFAULT_BUFFER),
            receive_buffer: AtomicUsize::new(DEFAULT_BUFFER),
            send_timeout: AtomicU64::new(FOREVER),
            receive_timeout: AtomicU64::new(FOREVER),
            peek_offset: AtomicI32::new(-1),
            pass_credentials: Arc::new(AtomicBool::new(false)),
            options: SpinLock::new(Options::default()),
            ino: AtomicU64::new(0),
        }
    }

    /// Directions that are shut down: SHUT_RECEIVE, SHUT_SEND.
    #[inline]
    pub fn shut(&self) -> u8 {
        self.shut.load(SeqCst)
    }

    /// Shuts directions down and tells whoever waits.
    pub fn shut_down(&self, directions: u8) {
        self.shut.fetch_or(directions, SeqCst);
        self.wake_all();
    }

    /// Nothing is shut down any more: a failed connection may be tried again.
    pub fn reopen(&self) {
        self.shut.store(0, SeqCst);
    }

    pub fn wake_all(&self) {
        self.readable.wake_all();
        self.writable.wake_all();
    }

    /// Data (or a connection) has come.
    #[inline]
    pub fn wake_readers(&self) {
        self.readable.wake(poll::IN | poll::RDNORM);
    }

    pub fn set_error(&self, error: Error) {
        self.error.store(error.errno().0, SeqCst);
    }

    pub fn has_error(&self) -> bool {
        self.peek_error() != 0
    }

    /// The pending error, which stays.
    pub fn peek_error(&self) -> u16 {
        self.error.load(Relaxed)
    }

    /// The pending error, which is then gone; 0: none.
    pub fn take_error(&self) -> u16 {
        if self.has_error() { self.error.swap(0, SeqCst) } else { 0 }
    }

    /// The pending error as a failure.
    pub fn check_error(&self) -> Result<()> {
        match self.take_error() {
            0 => Ok(()),
            error => Err(Errno(error).into()),
        }
    }

    pub fn send_patience(&self, nonblocking: bool) -> Patience {
        Patience::new(nonblocking, &self.send_timeout)
    }

    pub fn receive_patience(&self, nonblocking: bool) -> Patience {
        Patience::new(nonblocking, &self.receive_timeout)
    }

    /// POLL* bits of what this level knows.
    pub fn poll(&self) -> u32 {
        let mut ready = 0;
        if self.has_error() {
            ready |= poll::ERR;
        }
        let shut = self.shut();
        if shut == SHUT_RECEIVE | SHUT_SEND {
            ready |= poll::HUP;
        }
        if shut & SHUT_RECEIVE != 0 {
            ready |= poll::RDHUP | poll::IN | poll::RDNORM;
        }
        ready
    }
}

/// How long a call is ready to wait.
#[derive(Clone, Copy)]
pub struct Patience {
    nonblocking: bool,
    timed: bool,
    /// CLOCK_MONOTONIC, ns.
    deadline: u64,
}

impl Patience {
    fn new(nonblocking: bool, timeout: &AtomicU64) -> Self {
        let timeout = timeout.load(Relaxed);
        let timed = timeout != FOREVER;
        let deadline = if timed && !nonblocking { time::monotonic().saturating_add(timeout) } else { FOREVER };
        Patience { nonblocking, timed, deadline }
    }

    /// Waits on a queue until `attempt` has an answer. EAGAIN when there is none in time; a call with a timeout is not
    /// restarted after a signal (signal(7)).
    pub fn wait<R>(&self, queue: &WaitQueue, mut attempt: impl FnMut() -> Option<Result<R>>) -> Result<R> {
        if self.nonblocking {
            return attempt().unwrap_or(Err(EAGAIN));
        }
        match queue.wait_deadline(self.deadline, attempt) {
            Ok(Some(result)) => result,
            Ok(None) => Err(EAGAIN),
            Err(Error::Restart(_)) if self.timed => Err(EINTR),
            Err(error) => Err(error),
        }
    }
}
