//! Control device: takes the VMM's requests and sends the replies.
//!
//! Requests arrive in an interrupt and are answered right there, or later by whoever holds their [`Ticket`]: no task has to
//! wait for them and an idle sandbox has none. What answers them ([`super::requests`]) does not block.

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};

use sentry_abi::{
    control::{BUFFER, Header, QUEUE_SIZE, Reply, Request},
    virtio::device_id,
};
use zerocopy::IntoBytes;

use super::virtio::{Buffer, Device, Queue};
use crate::{
    errno::Result,
    mm::dma::DmaBuffer,
    sync::{Once, SpinLock},
};

/// Requests outstanding at a time.
const BUFFERS: usize = 2;

/// Buffers the device has, by the head descriptor they were posted with.
type Posted = SpinLock<Vec<(u16, DmaBuffer)>>;

struct Control {
    requests: Arc<Queue>,
    replies: Arc<Queue>,
    waiting: Posted,
    sent: Posted,
    /// Replies that found the queue full.
    backlog: SpinLock<VecDeque<(DmaBuffer, usize)>>,
}

/// A request that has not been answered.
pub struct Ticket(u64);

impl Ticket {
    /// Does not block.
    pub fn reply(self, reply: &Reply) {
        if let Some(control) = CONTROL.get()
            && let Err(error) = control.reply(self.0, reply)
        {
            crate::warn!("control request {}: no reply: {error:?}", self.0);
        }
    }
}

static CONTROL: Once<Control> = Once::new();

pub(super) fn start(mmio: u64, number: u32) -> Result<()> {
    let device = Device::probe(mmio, device_id::CONTROL)?;
    let (requests, replies) = (device.queue(0, QUEUE_SIZE)?, device.queue(1, QUEUE_SIZE)?);
    device.start();
    super::listen(number, &requests);
    super::listen(number, &replies);
    let control = CONTROL.call_once(|| Control {
        requests,
        replies,
        waiting: Posted::default(),
        sent: Posted::default(),
        backlog: SpinLock::default(),
    });
    control.requests.on_used(Arc::new(|head, len| {
        if let Some(control) = CONTROL.get() {
            control.arrived(head, len);
        }
    }));
    control.replies.on_used(Arc::new(|head, _| {
        if let Some(control) = CONTROL.get() {
            drop(take(&control.sent, head));
            control.send_backlog();
        }
    }));
    for _ in 0..BUFFERS {
        // The queue is empty and has room for them.
        let _ = post(&control.requests, &control.waiting, DmaBuffer::new(BUFFER)?, BUFFER, true);
    }
    Ok(())
}

/// Gives the buffer to the device, or back when the queue is full.
fn post(queue: &Queue, posted: &Posted, buffer: DmaBuffer, len: usize, writable: bool) -> Result<(), DmaBuffer> {
    // Held over the post, so that a completion finds the buffer.
    let mut posted = posted.lock();
    match queue.post(&[Buffer { gpa: buffer.gpa(), len: len as u32, writable }]) {
        Some(head) => {
            posted.push((head, buffer));
            Ok(())
        }
        None => Err(buffer),
    }
}

fn take(posted: &Posted, head: u16) -> Option<DmaBuffer> {
    let mut posted = posted.lock();
    let at = posted.iter().position(|(h, _)| *h == head)?;
    Some(posted.swap_remove(at).1)
}

impl Control {
    fn arrived(&self, head: u16, len: u32) {
        let Some(buffer) = take(&self.waiting, head) else { return };
        let header: Header = buffer.read_object(0);
        let end = (header.len as usize).saturating_add(size_of::<Header>());
        let request: Option<Request> = (end <= (len as usize).min(BUFFER))
            .then(|| {
                let mut body = alloc::vec![0; header.len as usize];
                buffer.read(size_of::<Header>(), &mut body);
                postcard::from_bytes(&body).ok()
            })
            .flatten();
        // Its descriptor has just become free.
        let _ = post(&self.requests, &self.waiting, buffer, BUFFER, true);
        let ticket = Ticket(header.id);
        match request {
            Some(request) => super::requests::answer(request, ticket),
            None => ticket.reply(&Reply::Error(71)),
        }
    }

    fn reply(&self, id: u64, reply: &Reply) -> Result<()> {
        const EOVERFLOW: i32 = 75;
        let body = match postcard::to_allocvec(reply) {
            Ok(body) if body.len() + size_of::<Header>() <= BUFFER => body,
            _ => postcard::to_allocvec(&Reply::Error(EOVERFLOW)).unwrap_or_default(),
        };
        let header = Header { id, len: body.len() as u32, _pad: 0 };
        let len = size_of::<Header>() + body.len();
        let buffer = DmaBuffer::new(len)?;
        buffer.write(0, header.as_bytes());
        buffer.write(size_of::<Header>(), &body);
        if let Err(buffer) = post(&self.replies, &self.sent, buffer, len, false) {
            self.backlog.lock().push_back((buffer, len));
            // The queue may have become empty meanwhile, and then nothing else would send it.
            self.send_backlog();
        }
        Ok(())
    }

    fn send_backlog(&self) {
        loop {
            let Some((buffer, len)) = self.backlog.lock().pop_front() else { return };
            if let Err(buffer) = post(&self.replies, &self.sent, buffer, len, false) {
                self.backlog.lock().push_front((buffer, len));
                return;
            }
        }
    }
}
