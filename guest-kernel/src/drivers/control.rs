//! Control device: takes the VMM's requests, has them answered, sends the replies.
//!
//! Requests arrive in an interrupt or in whatever task looks at the queue; a handler that may block runs in a task of its own
//! ([`set_handler`]'s `wake`).

use alloc::{sync::Arc, vec::Vec};

use sentry_abi::{
    control::{BUFFER, Header, QUEUE_SIZE, Reply, Request},
    virtio::device_id,
};
use zerocopy::IntoBytes;

use super::virtio::{Buffer, Device, Queue};
use crate::{
    errno::Result,
    mm::dma::DmaBuffer,
    sync::{Once, SpinLock, WaitQueue},
};

/// Requests outstanding at a time.
const BUFFERS: usize = 2;

struct Control {
    requests: Arc<Queue>,
    replies: Arc<Queue>,
    /// Request buffers by the head descriptor they were posted with.
    posted: SpinLock<Vec<(u16, DmaBuffer)>>,
    arrived: SpinLock<Vec<(u64, Request)>>,
    waiting: WaitQueue,
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
        posted: SpinLock::default(),
        arrived: SpinLock::default(),
        waiting: WaitQueue::new(),
    });
    control.requests.on_used(Arc::new(|head, len| {
        if let Some(control) = CONTROL.get() {
            control.arrived(head, len);
        }
    }));
    for _ in 0..BUFFERS {
        control.post(DmaBuffer::new(BUFFER)?);
    }
    Ok(())
}

impl Control {
    fn post(&self, buffer: DmaBuffer) {
        // Held over the post, so that a completion finds the buffer.
        let mut posted = self.posted.lock();
        if let Some(head) = self.requests.post(&[Buffer { gpa: buffer.gpa(), len: BUFFER as u32, writable: true }]) {
            posted.push((head, buffer));
        }
    }

    fn arrived(&self, head: u16, len: u32) {
        let buffer = {
            let mut posted = self.posted.lock();
            let Some(at) = posted.iter().position(|(h, _)| *h == head) else { return };
            posted.swap_remove(at).1
        };
        let header: Header = buffer.read_object(0);
        let end = (header.len as usize).saturating_add(size_of::<Header>());
        if end <= (len as usize).min(BUFFER) {
            let mut body = alloc::vec![0; header.len as usize];
            buffer.read(size_of::<Header>(), &mut body);
            match postcard::from_bytes(&body) {
                Ok(request) => self.arrived.lock().push((header.id, request)),
                Err(_) => crate::warn!("control request {} cannot be decoded", header.id),
            }
        }
        self.post(buffer);
        self.waiting.wake_all();
    }
}

/// The next request; blocks until there is one. For a kernel task that serves them. None in a sandbox without the device.
pub fn next_request() -> Option<(u64, Request)> {
    let control = CONTROL.get()?;
    Some(control.waiting.wait_uninterruptible(|| {
        let mut arrived = control.arrived.lock();
        (!arrived.is_empty()).then(|| arrived.remove(0))
    }))
}

/// Answers request `id`.
pub fn reply(id: u64, reply: &Reply) -> Result<()> {
    let Some(control) = CONTROL.get() else { return Ok(()) };
    let body = match postcard::to_allocvec(reply) {
        Ok(body) if body.len() + size_of::<Header>() <= BUFFER => body,
        _ => postcard::to_allocvec(&Reply::Error(75)).unwrap_or_default(),
    };
    let header = Header { id, len: body.len() as u32, _pad: 0 };
    let len = size_of::<Header>() + body.len();
    let buffer = DmaBuffer::new(len)?;
    buffer.write(0, header.as_bytes());
    buffer.write(size_of::<Header>(), &body);
    control.replies.submit(&[Buffer { gpa: buffer.gpa(), len: len as u32, writable: false }])?.wait();
    Ok(())
}
