//! Standard streams of the host ([`sentry_abi::console`]): reads, writes and ioctls that never wait there, and readiness that
//! tasks here can wait for.

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use sentry_abi::{
    console::{EVENT_QUEUE_SIZE, Event, MAX_DATA, Op, REQUEST_QUEUE_SIZE, Request, Response, Stat},
    virtio::device_id,
};
use zerocopy::IntoBytes;

use super::virtio::{Buffer, Device, Queue};
use crate::{
    errno::{EBADF, EIO, Errno, Error, Result},
    mm::{
        dma::DmaBuffer,
        io::{IoDst, IoSrc},
    },
    sync::{Once, SpinLock, WaitQueue},
};

struct Console {
    requests: Arc<Queue>,
    events: Arc<Queue>,
    /// Event buffers: places of one page, by the head descriptor they were posted with.
    posted: SpinLock<Vec<(u16, usize)>>,
    event_page: DmaBuffer,
    /// Who waits for a stream's readiness.
    ready: SpinLock<BTreeMap<u32, Arc<Ready>>>,
}

/// A stream's readiness, as far as events tell.
#[derive(Default)]
struct Ready {
    queue: Arc<WaitQueue>,
    /// Events so far: whoever has asked the host and then sees another number asks again.
    events: AtomicU64,
}

static CONSOLE: Once<Console> = Once::new();

/// Bytes of the fixed part of a request, and where its response goes.
const REQUEST: usize = size_of::<Request>();
const RESPONSE_AT: usize = 64;
const DATA_AT: usize = 128;

pub(super) fn start(mmio: u64, number: u32) -> Result<()> {
    let device = Device::probe(mmio, device_id::CONSOLE)?;
    let (requests, events) = (device.queue(0, REQUEST_QUEUE_SIZE)?, device.queue(1, EVENT_QUEUE_SIZE)?);
    device.start();
    super::listen(number, &requests);
    super::listen(number, &events);
    let event_page = DmaBuffer::new(size_of::<Event>() * EVENT_QUEUE_SIZE as usize)?;
    let console = CONSOLE.call_once(|| Console {
        requests,
        events,
        posted: SpinLock::default(),
        event_page,
        ready: SpinLock::default(),
    });
    console.events.on_used(Arc::new(|head, _| {
        if let Some(console) = CONSOLE.get() {
            console.event(head);
        }
    }));
    for place in 0..EVENT_QUEUE_SIZE as usize {
        console.post(place);
    }
    Ok(())
}

impl Console {
    fn post(&self, place: usize) {
        let at = place * size_of::<Event>();
        let buffer = Buffer { gpa: self.event_page.gpa() + at as u64, len: size_of::<Event>() as u32, writable: true };
        // Held over the post, so that a completion finds the place.
        let mut posted = self.posted.lock();
        if let Some(head) = self.events.post(&[buffer]) {
            posted.push((head, place));
        }
    }

    fn event(&self, head: u16) {
        let place = {
            let mut posted = self.posted.lock();
            let Some(at) = posted.iter().position(|(h, _)| *h == head) else { return };
            posted.swap_remove(at).1
        };
        let event: Event = self.event_page.read_object(place * size_of::<Event>());
        self.post(place);
        let ready = self.ready.lock().get(&event.index).cloned();
        if let Some(ready) = ready {
            ready.events.fetch_add(1, SeqCst);
            ready.queue.wake(event.events);
        }
    }
}

/// One of the host's descriptors.
pub struct Stream {
    index: u32,
    ready: Arc<Ready>,
}

impl Stream {
    /// EBADF in a sandbox without the device.
    pub fn open(index: u32) -> Result<Stream> {
        let console = CONSOLE.get().ok_or(EBADF)?;
        let ready = console.ready.lock().entry(index).or_default().clone();
        Ok(Stream { index, ready })
    }

    /// Woken when a readiness that [`Stream::poll`] found missing has come.
    pub fn ready(&self) -> &Arc<WaitQueue> {
        &self.ready.queue
    }

    /// Blocks until one of the poll(2) bits `events` holds; a signal for the task ends it.
    pub fn wait(&self, events: u32) -> Result<u32> {
        loop {
            let (ready, seen) = self.poll_numbered(events)?;
            if ready != 0 {
                return Ok(ready);
            }
            self.ready.queue.wait_until(|| (self.ready.events.load(SeqCst) != seen).then_some(()))?;
        }
    }

    /// What holds, and the number of the last event before that was asked.
    fn poll_numbered(&self, events: u32) -> Result<(u32, u64)> {
        let mut request = self.request(Op::Poll);
        request.arg = events.into();
        loop {
            let seen = self.ready.events.load(SeqCst);
            let ready = self.simple(request)? as u32;
            // While this task waited for the answer, a wake-up for the event may have passed it by.
            if ready != 0 || self.ready.events.load(SeqCst) == seen {
                return Ok((ready, seen));
            }
        }
    }

    fn request(&self, op: Op) -> Request {
        Request { op: op as u32, index: self.index, offset: -1, ..Default::default() }
    }

    /// Sends a request whose data, if any, lies in `buffer` behind [`DATA_AT`]; what the host's call returned.
    fn send(&self, request: Request, buffer: &DmaBuffer, out: usize, back: usize) -> Result<u64> {
        let console = CONSOLE.get().ok_or(EBADF)?;
        buffer.write(0, request.as_bytes());
        let piece =
            |at: usize, len: usize, writable| Buffer { gpa: buffer.gpa() + at as u64, len: len as u32, writable };
        let mut pieces = smallvec::SmallVec::<[Buffer; 3]>::new();
        pieces.push(piece(0, REQUEST, false));
        if out > 0 {
            pieces.push(piece(DATA_AT, out, false));
        }
        pieces.push(piece(RESPONSE_AT, size_of::<Response>(), true));
        if back > 0 {
            pieces.push(piece(DATA_AT, back, true));
        }
        let len = console.requests.submit(&pieces)?.wait() as usize;
        if len < size_of::<Response>() {
            return Err(EIO);
        }
        let response: Response = buffer.read_object(RESPONSE_AT);
        match response.result {
            result @ 0.. => Ok(result as u64),
            error @ -4095..0 => Err(Error::Errno(Errno(-error as u16))),
            _ => Err(EIO),
        }
    }

    fn simple(&self, request: Request) -> Result<u64> {
        self.send(request, &DmaBuffer::new(DATA_AT)?, 0, 0)
    }

    /// Reads what is there: at `offset`, or at the stream's own position. EAGAIN when the host would wait.
    pub fn read(&self, dst: &mut IoDst<'_>, offset: Option<u64>) -> Result<usize> {
        let len = dst.remaining().min(MAX_DATA as usize);
        let buffer = DmaBuffer::new(DATA_AT + len)?;
        let mut request = self.request(Op::Read);
        request.len = len as u32;
        request.offset = offset.map_or(-1, |offset| offset as i64);
        let done = self.send(request, &buffer, 0, len)? as usize;
        if done == 0 {
            return Ok(0);
        }
        dst.put_physical(buffer.gpa() + DATA_AT as u64, done.min(len))
    }

    /// Writes what the host takes now, at most `MAX_DATA`. EAGAIN when it takes nothing.
    pub fn write(&self, src: &mut IoSrc<'_>, offset: Option<u64>) -> Result<usize> {
        let len = src.remaining().min(MAX_DATA as usize);
        let buffer = DmaBuffer::new(DATA_AT + len)?;
        // A copy: what the host does not take is offered again by the caller, from its own start.
        let len = if len == 0 { 0 } else { src.peek_physical(buffer.gpa() + DATA_AT as u64, len)? };
        let mut request = self.request(Op::Write);
        request.len = len as u32;
        request.offset = offset.map_or(-1, |offset| offset as i64);
        let done = self.send(request, &buffer, len, 0)? as usize;
        src.skip(done.min(len));
        Ok(done.min(len))
    }

    /// Which of the poll(2) bits `events` hold. When none does, [`Stream::ready`] is woken once one of them does.
    pub fn poll(&self, events: u32) -> Result<u32> {
        Ok(self.poll_numbered(events)?.0)
    }

    /// An ioctl with an argument of at most 36 bytes, which is replaced by what comes back; or with the integer `value`.
    pub fn ioctl(&self, number: u32, value: i64, argument: &mut [u8]) -> Result<u64> {
        let buffer = DmaBuffer::new(DATA_AT + argument.len())?;
        let mut request = self.request(Op::Ioctl);
        request.arg = number.into();
        request.offset = value;
        buffer.write(DATA_AT, argument);
        let result = self.send(request, &buffer, argument.len(), argument.len())?;
        buffer.read(DATA_AT, argument);
        Ok(result)
    }

    pub fn seek(&self, offset: i64, whence: u32) -> Result<u64> {
        let mut request = self.request(Op::Seek);
        (request.offset, request.arg) = (offset, whence.into());
        self.simple(request)
    }

    pub fn truncate(&self, size: u64) -> Result<()> {
        let mut request = self.request(Op::Truncate);
        request.offset = size as i64;
        self.simple(request).map(drop)
    }

    pub fn sync(&self) -> Result<()> {
        self.simple(self.request(Op::Sync)).map(drop)
    }

    pub fn stat(&self) -> Result<Stat> {
        let buffer = DmaBuffer::new(DATA_AT + size_of::<Stat>())?;
        self.send(self.request(Op::Stat), &buffer, 0, size_of::<Stat>())?;
        Ok(buffer.read_object(DATA_AT))
    }

    /// The last user here is gone: the host's side is closed, so that a reader there sees the end.
    pub fn close(&self) {
        if let Some(console) = CONSOLE.get() {
            // Before the host hears of it: then the number may be given to another stream.
            let gone = console.ready.lock().remove(&self.index);
            drop(gone);
        }
        // A stream that the host does not know needs no closing.
        let _ = self.simple(self.request(Op::Close));
    }
}
