//! One side of a connected byte stream.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use super::{Ancillary, Base, ByteQueue, Patience, Received, SHUT_RECEIVE, SHUT_SEND, byte_queue::Pull, msg};
use crate::{
    errno::{EPIPE, Result},
    fs::poll,
    mm::io::{IoDst, IoSrc},
    sync::Once,
};

pub struct StreamEnd {
    /// What this side reads.
    pub incoming: Arc<ByteQueue>,
    /// What the other side reads, once connected.
    outgoing: Once<Arc<ByteQueue>>,
}

impl StreamEnd {
    pub fn new(base: &Base) -> Self {
        StreamEnd { incoming: ByteQueue::new(base), outgoing: Once::new() }
    }

    /// Joins two ends that are not connected.
    pub fn join(&self, other: &StreamEnd) {
        self.outgoing.call_once(|| other.incoming.clone());
        other.outgoing.call_once(|| self.incoming.clone());
    }

    /// Where what is sent goes; None: not connected.
    #[inline]
    pub fn outgoing(&self) -> Option<&Arc<ByteQueue>> {
        self.outgoing.get()
    }

    /// Sends all of it, or what fits before the patience ends; at most `limit` bytes are on their way at a time. EPIPE when the other side will not read.
    pub fn send(
        &self,
        base: &Base,
        outgoing: &ByteQueue,
        src: &mut IoSrc<'_>,
        mut ancillary: Ancillary,
        patience: Patience,
        limit: usize,
    ) -> Result<usize> {
        if base.shut() & SHUT_SEND != 0 {
            return Err(EPIPE);
        }
        let mut done = 0;
        while src.remaining() > 0 {
            let result = patience.wait(&base.writable, || {
                if base.shut() & SHUT_SEND != 0 {
                    return Some(Err(EPIPE));
                }
                outgoing.push(src, &mut ancillary, limit, &base.writable)
            });
            match result {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Receives what there is, or all that is asked for with MSG_WAITALL; 0 at the end.
    pub fn receive(
        &self,
        base: &Base,
        dst: &mut IoDst<'_>,
        flags: u32,
        patience: Patience,
        into: &mut Received,
    ) -> Result<usize> {
        let peeks = flags & msg::PEEK != 0;
        let offset = if peeks { base.peek_offset.load(Relaxed) } else { -1 };
        let start = usize::try_from(offset).unwrap_or(0);
        let low_water = base.options.lock().receive_low_water;
        let wanted = dst.remaining();
        let target = if flags & msg::WAITALL != 0 { wanted } else { wanted.min(low_water) };
        let credentials = base.pass_credentials.load(Relaxed);
        let mut done = 0;
        let result = loop {
            let how = Pull { peek: peeks.then_some(start + done), credentials };
            let step = patience.wait(&base.readable, || {
                if let Some(result) = self.incoming.pull(dst, &how, into) {
                    return Some(result);
                }
                if done >= target {
                    return Some(Ok(0));
                }
                if let Err(error) = base.check_error() {
                    return Some(Err(error));
                }
                (base.shut() & SHUT_RECEIVE != 0).then_some(Ok(0))
            });
            match step {
                Ok(n) => {
                    done += n;
                    if n == 0 || done >= target || !into.rights.is_empty() || dst.remaining() == 0 {
                        break Ok(done);
                    }
                }
                Err(_) if done > 0 => break Ok(done),
                Err(error) => break Err(error),
            }
        };
        move_peek_offset(base, peeks, done);
        result
    }

    /// POLL* bits of a connected end.
    pub fn poll(&self, base: &Base, interest: u32) -> u32 {
        let mut ready = base.poll();
        if interest & (poll::IN | poll::RDNORM) != 0 && !self.incoming.is_empty() {
            ready |= poll::IN | poll::RDNORM;
        }
        const OUT: u32 = poll::OUT | poll::WRNORM | poll::WRBAND;
        if interest & OUT != 0 && self.outgoing().is_none_or(|queue| queue.writable(&base.writable)) {
            ready |= OUT;
        }
        ready
    }
}

/// After `len` bytes were read or peeked at: SO_PEEK_OFF moves on with peeks and back with reads.
pub fn move_peek_offset(base: &Base, peeked: bool, len: usize) {
    let offset = base.peek_offset.load(Relaxed);
    if offset < 0 || len == 0 {
        return;
    }
    let len = i32::try_from(len).unwrap_or(i32::MAX);
    let moved = if peeked { offset.saturating_add(len) } else { (offset - len).max(0) };
    base.peek_offset.store(moved, Relaxed);
}
