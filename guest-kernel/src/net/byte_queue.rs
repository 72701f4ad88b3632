//! What has been sent to a stream socket and not yet been read: bytes, and what came along with some of them.

use alloc::{collections::VecDeque, sync::Arc};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{Ancillary, Base, Received, Ucred, base::DEFAULT_BUFFER};
use crate::{
    errno::{EPIPE, Result},
    fs::{poll, ring::Ring},
    mm::io::{IoDst, IoSrc},
    sync::{Mutex, WaitQueue},
};

/// Writes up to this size are not split.
const WHOLE: usize = 4096;
/// What a piece of its own counts as at least: it costs memory besides its bytes.
const PIECE_COST: usize = 768;

/// Bytes with the same sender, and what came with the first of them.
struct Segment {
    len: usize,
    ancillary: Ancillary,
}

/// TCP's urgent byte (tcp(7)): it is beside the others, at a place among them that reading stops at.
struct Urgent {
    /// Bytes before it that have not been read.
    before: usize,
    /// Until it has been received.
    byte: Option<u8>,
}

struct Inner {
    ring: Ring,
    segments: VecDeque<Segment>,
    urgent: Option<Urgent>,
    /// Nobody will read any more.
    closed: bool,
    /// The writer that found no room.
    starved: Option<Arc<WaitQueue>>,
}

pub struct ByteQueue {
    inner: Mutex<Inner>,
    readable: Arc<WaitQueue>,
    /// The reader's SO_PASSCRED.
    pub pass_credentials: Arc<AtomicBool>,
}

/// How to read.
pub struct Pull {
    /// Leave what is read, and begin so many bytes later.
    pub peek: Option<usize>,
    /// Do not go on from one sender's bytes to another's.
    pub credentials: bool,
}

impl Inner {
    /// Whether a writer that waits should be told of the room there is.
    fn has_room(&self) -> bool {
        self.ring.len() * 4 <= self.ring.capacity()
    }

    /// Pieces that there may be.
    fn may_add_segment(&self) -> bool {
        self.segments.len() < (self.ring.capacity() / PIECE_COST).max(4)
    }
}

impl ByteQueue {
    /// The receive queue of a socket.
    pub fn new(base: &Base) -> Arc<Self> {
        Arc::new(ByteQueue {
            inner: Mutex::new(Inner {
                ring: Ring::new(DEFAULT_BUFFER),
                segments: VecDeque::new(),
                urgent: None,
                closed: false,
                starved: None,
            }),
            readable: base.readable.clone(),
            pass_credentials: base.pass_credentials.clone(),
        })
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.inner.lock().ring.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes, at most what `limit` leaves room for. None when there is no room: `writer` is woken once there is.
    /// `ancillary` goes with the first byte. EPIPE when nobody will read it.
    pub fn push(
        &self,
        src: &mut IoSrc<'_>,
        ancillary: &mut Ancillary,
        limit: usize,
        writer: &Arc<WaitQueue>,
    ) -> Option<Result<usize>> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Some(Err(EPIPE));
        }
        if inner.ring.capacity() != limit {
            inner.ring.set_capacity(limit);
        }
        let same = ancillary.rights.is_none()
            && inner.segments.back().is_some_and(|last| {
                last.ancillary.rights.is_none() && last.ancillary.credentials == ancillary.credentials
            });
        let wanted = src.remaining();
        let len = wanted.min(inner.ring.room());
        if len == 0 || len < wanted && wanted <= WHOLE || !same && !inner.may_add_segment() {
            inner.starved = Some(writer.clone());
            return None;
        }
        let result = inner.ring.write(src, len);
        let Ok(n @ 1..) = result else { return Some(result) };
        match inner.segments.back_mut() {
            Some(last) if same => last.len += n,
            _ => inner.segments.push_back(Segment { len: n, ancillary: ancillary.take() }),
        }
        drop(inner);
        self.readable.wake(poll::IN | poll::RDNORM);
        Some(result)
    }

    /// Takes (or peeks at) bytes, up to where something else came along. None when there are none.
    pub fn pull(&self, dst: &mut IoDst<'_>, how: &Pull, into: &mut Received) -> Option<Result<usize>> {
        let mut inner = self.inner.lock();
        if inner.ring.is_empty() {
            return None;
        }
        let result = match how.peek {
            Some(skip) => inner.peek(dst, skip, how.credentials, into)?,
            None => inner.take(dst, how.credentials, into),
        };
        let writer = if how.peek.is_none() && inner.has_room() { inner.starved.take() } else { None };
        drop(inner);
        if let Some(writer) = writer {
            writer.wake(poll::OUT | poll::WRNORM | poll::WRBAND);
        }
        Some(result)
    }

    /// Whether there is room to speak of for a writer; if not, `writer` is woken once there is.
    pub fn writable(&self, writer: &Arc<WaitQueue>) -> bool {
        let mut inner = self.inner.lock();
        let room = inner.has_room();
        if !room {
            inner.starved = Some(writer.clone());
        }
        room
    }

    /// Nobody will read any more: what is there goes, and writers are told. Whether anything was there.
    pub fn close(&self) -> bool {
        let (ring, segments, writer) = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            let capacity = inner.ring.capacity();
            let ring = core::mem::replace(&mut inner.ring, Ring::new(capacity));
            (ring, core::mem::take(&mut inner.segments), inner.starved.take())
        };
        if let Some(writer) = writer {
            writer.wake_all();
        }
        drop(segments);
        !ring.is_empty()
    }

    /// Lets go of files that wait here to be received.
    pub fn drop_rights(&self) {
        let rights: alloc::vec::Vec<_> =
            self.inner.lock().segments.iter_mut().filter_map(|segment| segment.ancillary.rights.take()).collect();
        drop(rights);
    }
}

/// Whether bytes of this sender may follow those that `into` has; notes the sender of the first.
fn goes_with(credentials: Option<Ucred>, wanted: bool, into: &mut Received) -> bool {
    if !wanted {
        return true;
    }
    match into.credentials {
        Some(known) => known == credentials,
        None => {
            into.credentials = Some(credentials);
            true
        }
    }
}

impl Inner {
    /// How far a read may go: to the urgent byte, or beyond it for one that begins there.
    fn reach(&self) -> usize {
        self.urgent.as_ref().map(|urgent| urgent.before).filter(|&before| before > 0).unwrap_or(usize::MAX)
    }

    /// So many bytes have been read.
    fn passed(&mut self, len: usize) {
        if len == 0 {
            return;
        }
        match &mut self.urgent {
            Some(urgent) if urgent.before > 0 => urgent.before = urgent.before.saturating_sub(len),
            _ => self.urgent = None,
        }
    }

    fn take(&mut self, dst: &mut IoDst<'_>, credentials: bool, into: &mut Received) -> Result<usize> {
        let mut done = 0;
        let reach = self.reach();
        while dst.remaining() > 0 && done < reach {
            let Some(segment) = self.segments.front_mut() else { break };
            if !goes_with(segment.ancillary.credentials, credentials, into) {
                break;
            }
            let n = match self.ring.peek(0, segment.len.min(reach - done), dst) {
                Ok(n) => n,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            self.ring.consume(n);
            done += n;
            segment.len -= n;
            let rights = segment.ancillary.rights.take();
            let whole = segment.len == 0;
            if whole {
                self.segments.pop_front();
            }
            if let Some(rights) = rights {
                into.rights.extend(rights.into_files());
            }
            if !whole || !into.rights.is_empty() {
                break;
            }
        }
        self.passed(done);
        Ok(done)
    }

    /// None when `skip` is beyond what there is.
    fn peek(
        &mut self,
        dst: &mut IoDst<'_>,
        mut skip: usize,
        credentials: bool,
        into: &mut Received,
    ) -> Option<Result<usize>> {
        if skip >= self.ring.len() {
            return None;
        }
        let (mut at, mut done) = (skip, 0);
        let reach = self.reach();
        for segment in &self.segments {
            if skip >= segment.len {
                skip -= segment.len;
                continue;
            }
            if dst.remaining() == 0 || at >= reach || !goes_with(segment.ancillary.credentials, credentials, into) {
                break;
            }
            let max = (segment.len - skip).min(reach - at);
            let n = match self.ring.peek(at, max, dst) {
                Ok(n) => n,
                Err(error) if done == 0 => return Some(Err(error)),
                Err(_) => break,
            };
            skip = 0;
            at += n;
            done += n;
            if let Some(rights) = &segment.ancillary.rights {
                into.rights.extend(rights.files().iter().cloned());
                break;
            }
            if n < max {
                break;
            }
        }
        Some(Ok(done))
    }
}

impl ByteQueue {
    /// Puts an urgent byte after what there is, in place of one that has not been received. EPIPE when nobody will read.
    pub fn push_urgent(&self, byte: u8) -> Result<()> {
        {
            let mut inner = self.inner.lock();
            if inner.closed {
                return Err(EPIPE);
            }
            inner.urgent = Some(Urgent { before: inner.ring.len(), byte: Some(byte) });
        }
        self.readable.wake(poll::PRI);
        Ok(())
    }

    /// Receives (or peeks at) the urgent byte; None when there is none or it has been received.
    pub fn pull_urgent(&self, peek: bool) -> Option<u8> {
        let mut inner = self.inner.lock();
        let urgent = inner.urgent.as_mut()?;
        if peek { urgent.byte } else { urgent.byte.take() }
    }

    /// Whether there is an urgent byte to receive, and whether reading has come to its place.
    pub fn urgent(&self) -> (bool, bool) {
        let inner = self.inner.lock();
        inner.urgent.as_ref().map_or((false, false), |urgent| (urgent.byte.is_some(), urgent.before == 0))
    }

    /// The reader's SO_PASSCRED.
    #[inline]
    pub fn wants_credentials(&self) -> bool {
        self.pass_credentials.load(Relaxed)
    }
}
