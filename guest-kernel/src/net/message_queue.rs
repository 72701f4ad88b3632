//! What has been sent to a message socket and not yet been received; and what a sender has on its way.

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use core::sync::atomic::{
    AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use super::{Ancillary, Base, Patience, Received, Recv, SHUT_RECEIVE, SockAddr, msg, stream::move_peek_offset};
use crate::{
    errno::{EFAULT, ENOBUFS, Result},
    fs::poll,
    mm::io::IoSrc,
    sync::{SpinLock, WaitQueue},
};

/// What a message counts as besides its bytes.
const MESSAGE_COST: usize = 768;

/// Bytes that a socket has sent and nobody has received yet.
pub struct Account {
    used: AtomicUsize,
    writable: Arc<WaitQueue>,
}

impl Account {
    pub fn new(writable: Arc<WaitQueue>) -> Arc<Self> {
        Arc::new(Account { used: AtomicUsize::new(0), writable })
    }

    pub fn used(&self) -> usize {
        self.used.load(SeqCst)
    }

    /// Whether poll calls the sender writable: three quarters of `limit` are free.
    pub fn has_room(&self, limit: usize) -> bool {
        self.used() * 4 <= limit
    }

    /// Charges a message of `len` bytes; None when `limit` has been reached.
    fn charge(self: &Arc<Self>, len: usize, limit: usize) -> Option<Charge> {
        let cost = len + MESSAGE_COST;
        let add = |used: usize| (used < limit).then_some(used + cost);
        self.used.fetch_update(SeqCst, SeqCst, add).ok()?;
        Some(Charge { account: self.clone(), cost })
    }
}

/// A message's share of its sender's account, until it is gone.
struct Charge {
    account: Arc<Account>,
    cost: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.used.fetch_sub(self.cost, SeqCst);
        self.account.writable.wake(poll::OUT | poll::WRNORM | poll::WRBAND);
    }
}

pub struct Message {
    pub data: Vec<u8>,
    /// The sender's address, if it has one.
    pub from: Option<SockAddr>,
    pub ancillary: Ancillary,
    _charge: Charge,
}

impl Message {
    /// Copies a message in, at the cost of `account`. None when `limit` leaves no room now.
    pub fn new(
        src: &mut IoSrc<'_>,
        from: Option<SockAddr>,
        ancillary: &mut Ancillary,
        account: &Arc<Account>,
        limit: usize,
    ) -> Option<Result<Arc<Self>>> {
        let len = src.remaining();
        let charge = account.charge(len, limit)?;
        if crate::mm::kmem::under_pressure() {
            return Some(Err(ENOBUFS));
        }
        let mut data = alloc::vec![0; len];
        match src.get(&mut data) {
            Ok(n) if n == len => {}
            Ok(_) => return Some(Err(EFAULT)),
            Err(error) => return Some(Err(error)),
        }
        Some(Ok(Arc::new(Message { data, from, ancillary: ancillary.take(), _charge: charge })))
    }
}

#[derive(Default)]
struct Inner {
    messages: VecDeque<Arc<Message>>,
    bytes: usize,
    closed: bool,
    /// Senders that found the queue full.
    starved: Vec<Arc<WaitQueue>>,
}

impl Inner {
    fn add_starved(&mut self, writer: &Arc<WaitQueue>) {
        if !self.starved.iter().any(|other| Arc::ptr_eq(other, writer)) {
            self.starved.push(writer.clone());
        }
    }
}

pub struct MessageQueue {
    inner: SpinLock<Inner>,
    readable: Arc<WaitQueue>,
}

/// Why a message was not taken.
pub enum Refused {
    /// The writer is woken once there is room.
    Full,
    Closed,
}

impl MessageQueue {
    pub fn new(readable: Arc<WaitQueue>) -> Self {
        MessageQueue { inner: SpinLock::default(), readable }
    }

    pub fn is_empty(&self) -> bool {
        self.inner.lock().messages.is_empty()
    }

    /// Bytes of the first message, and of all.
    pub fn sizes(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.messages.front().map_or(0, |message| message.data.len()), inner.bytes)
    }

    /// Adds a message unless there are more than `most` already.
    pub fn push(&self, message: Arc<Message>, most: usize, writer: &Arc<WaitQueue>) -> Result<(), Refused> {
        {
            let mut inner = self.inner.lock();
            if inner.closed {
                return Err(Refused::Closed);
            }
            if inner.messages.len() > most {
                inner.add_starved(writer);
                return Err(Refused::Full);
            }
            inner.bytes += message.data.len();
            inner.messages.push_back(message);
        }
        self.readable.wake(poll::IN | poll::RDNORM);
        Ok(())
    }

    /// Whether a message would be refused for there being more than `most`; `writer` is woken once it would not.
    pub fn is_full(&self, most: usize, writer: &Arc<WaitQueue>) -> bool {
        let mut inner = self.inner.lock();
        let full = inner.messages.len() > most;
        if full {
            inner.add_starved(writer);
        }
        full
    }

    pub fn pop(&self) -> Option<Arc<Message>> {
        let (message, starved) = {
            let mut inner = self.inner.lock();
            let message = inner.messages.pop_front()?;
            inner.bytes -= message.data.len();
            (message, core::mem::take(&mut inner.starved))
        };
        for writer in starved {
            writer.wake(poll::OUT | poll::WRNORM | poll::WRBAND);
        }
        Some(message)
    }

    /// The message that `offset` bytes of peeking lead to, and where in it.
    pub fn peek(&self, mut offset: usize) -> Option<(Arc<Message>, usize)> {
        let inner = self.inner.lock();
        for message in &inner.messages {
            let len = message.data.len();
            if offset > 0 && offset >= len {
                offset -= len;
                continue;
            }
            return Some((message.clone(), offset));
        }
        None
    }

    /// Takes everything out.
    pub fn take_all(&self) -> Vec<Arc<Message>> {
        let (messages, starved) = {
            let mut inner = self.inner.lock();
            inner.bytes = 0;
            (inner.messages.drain(..).collect(), core::mem::take(&mut inner.starved))
        };
        for writer in starved {
            writer.wake_all();
        }
        messages
    }

    /// Nobody will receive any more; what there was.
    pub fn close(&self) -> Vec<Arc<Message>> {
        self.inner.lock().closed = true;
        self.take_all()
    }

    /// Receives a message for a socket whose queue it is. `packets`: a connection, whose end those see too who do not wait.
    pub fn receive(
        &self,
        base: &Base,
        request: Recv<'_, '_>,
        patience: Patience,
        packets: bool,
        into: &mut Received,
    ) -> Result<usize> {
        let peeks = request.flags & msg::PEEK != 0;
        let offset = if peeks { base.peek_offset.load(Relaxed) } else { -1 };
        let start = usize::try_from(offset).unwrap_or(0);
        let found = patience.wait(&base.readable, || {
            if let Err(error) = base.check_error() {
                return Some(Err(error));
            }
            let found = if peeks { self.peek(start) } else { self.pop().map(|message| (message, 0)) };
            match found {
                Some(found) => Some(Ok(Some(found))),
                // Datagrams have an end only for those who wait for it.
                None if base.shut() & SHUT_RECEIVE != 0 && (packets || !request.nonblocking) => Some(Ok(None)),
                None => None,
            }
        });
        let Some((message, skip)) = found? else { return Ok(0) };
        let rest = message.data.get(skip..).unwrap_or(&[]);
        let n = rest.len().min(request.dst.remaining());
        if request.dst.put(&rest[..n])? < n {
            return Err(EFAULT);
        }
        if n < rest.len() {
            into.flags |= msg::TRUNC;
        }
        into.whole = Some(rest.len());
        into.from = message.from.clone();
        into.packet = message.ancillary.packet;
        if base.pass_credentials.load(Relaxed) {
            into.credentials = Some(message.ancillary.credentials);
        }
        let moved = if peeks { n } else { message.data.len() };
        move_peek_offset(base, peeks, moved);
        into.rights = match Arc::try_unwrap(message) {
            Ok(message) => message.ancillary.rights.map_or_else(Vec::new, |rights| rights.into_files()),
            // Others see it too: it is peeked at.
            Err(shared) => shared.ancillary.rights.as_ref().map_or_else(Vec::new, |rights| rights.files().to_vec()),
        };
        Ok(n)
    }
}
