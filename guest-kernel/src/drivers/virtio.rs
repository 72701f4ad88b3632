//! Virtio driver: device initialisation over MMIO (virtio 1.2 section 3.1.1) and split queues in device memory with many
//! requests in flight.
//!
//! A task that submits a request looks at the queue for a few microseconds, since the answer often comes that fast, and only
//! then asks for an interrupt and sleeps. Whoever looks takes in completions for everybody.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};

use sentry_abi::virtio::{MAGIC, QueueLayout, VERSION, desc, feature, reg, status};

use crate::{
    arch,
    errno::{EINVAL, ENODEV, Result},
    mm::dma::DmaBuffer,
    sync::{SpinLock, WaitQueue},
    time,
};

/// How long a task looks at a queue before it sleeps.
const SPIN_NS: u64 = 5_000;

/// A device being set up.
pub struct Device {
    mmio: u64,
}

impl Device {
    /// Resets the device and agrees on features.
    pub fn probe(mmio: u64, id: u32) -> Result<Device> {
        let device = Device { mmio };
        if device.read(reg::MAGIC_VALUE) != MAGIC
            || device.read(reg::VERSION) != VERSION
            || device.read(reg::DEVICE_ID) != id
        {
            return Err(ENODEV);
        }
        device.write(reg::STATUS, 0);
        device.write(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let features = feature::VERSION_1 | feature::EVENT_IDX;
        for half in 0..2 {
            device.write(reg::DEVICE_FEATURES_SEL, half);
            let offered = device.read(reg::DEVICE_FEATURES);
            let wanted = (features >> (32 * half)) as u32;
            if offered & wanted != wanted {
                return Err(ENODEV);
            }
            device.write(reg::DRIVER_FEATURES_SEL, half);
            device.write(reg::DRIVER_FEATURES, wanted);
        }
        device.write(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        if device.read(reg::STATUS) & status::FEATURES_OK == 0 {
            return Err(ENODEV);
        }
        Ok(device)
    }

    /// Sets up queue `index` with `size` descriptors (a power of two).
    pub fn queue(&self, index: u32, size: u16) -> Result<Arc<Queue>> {
        self.write(reg::QUEUE_SEL, index);
        if self.read(reg::QUEUE_NUM_MAX) < u32::from(size) || !size.is_power_of_two() {
            return Err(ENODEV);
        }
        let layout = QueueLayout { size };
        let ring = DmaBuffer::new(layout.bytes() as usize)?;
        ring.zero();
        self.write(reg::QUEUE_NUM, size.into());
        for (low, high, offset) in [
            (reg::QUEUE_DESC_LOW, reg::QUEUE_DESC_HIGH, layout.desc()),
            (reg::QUEUE_DRIVER_LOW, reg::QUEUE_DRIVER_HIGH, layout.avail()),
            (reg::QUEUE_DEVICE_LOW, reg::QUEUE_DEVICE_HIGH, layout.used()),
        ] {
            let gpa = ring.gpa() + offset;
            self.write(low, gpa as u32);
            self.write(high, (gpa >> 32) as u32);
        }
        self.write(reg::QUEUE_READY, 1);
        Ok(Arc::new(Queue::new(index, self.mmio, layout, ring)))
    }

    /// The device may serve its queues from now on.
    pub fn start(&self) {
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.write(reg::STATUS, all);
    }

    fn read(&self, register: u64) -> u32 {
        arch::mmio_read32(self.mmio + register)
    }

    fn write(&self, register: u64, value: u32) {
        arch::mmio_write32(self.mmio + register, value)
    }
}

/// One buffer of a request: memory in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub gpa: u64,
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// Descriptors of one request.
pub const MAX_BUFFERS: usize = 8;

pub struct Queue {
    index: u32,
    mmio: u64,
    layout: QueueLayout,
    ring: DmaBuffer,
    state: SpinLock<State>,
    /// By head descriptor.
    slots: Box<[Slot]>,
    /// Tasks without descriptors.
    room: WaitQueue,
    /// Tasks that sleep until a completion: without any, no interrupt is asked for.
    sleepers: AtomicUsize,
    /// Called with every completion that nobody waits for ([`Queue::post`]).
    on_used: SpinLock<Option<OnUsed>>,
}

/// Gets the head of a used buffer and the bytes written.
type OnUsed = Arc<dyn Fn(u16, u32) + Send + Sync>;

struct State {
    free: Vec<u16>,
    avail: u16,
    used: u16,
    /// Descriptors of the request that starts with this one.
    chains: Box<[smallvec::SmallVec<[u16; 4]>]>,
}

#[derive(Default)]
struct Slot {
    done: AtomicBool,
    len: AtomicU32,
    waiter: WaitQueue,
    /// Completion goes to the queue's callback.
    posted: AtomicBool,
}

/// A submitted request. It has to be waited for: the device may write its buffers until then.
#[must_use]
pub struct Pending<'a> {
    queue: &'a Queue,
    head: u16,
}

impl Queue {
    fn new(index: u32, mmio: u64, layout: QueueLayout, ring: DmaBuffer) -> Queue {
        let state = State {
            free: (0..layout.size).rev().collect(),
            avail: 0,
            used: 0,
            chains: (0..layout.size).map(|_| Default::default()).collect(),
        };
        Queue {
            index,
            mmio,
            layout,
            ring,
            state: SpinLock::new(state),
            slots: (0..layout.size).map(|_| Slot::default()).collect(),
            room: WaitQueue::new(),
            sleepers: AtomicUsize::new(0),
            on_used: SpinLock::new(None),
        }
    }

    /// A queue without registers, and the addresses of its descriptors, available and used rings.
    #[cfg(test)]
    pub fn hosted(size: u16) -> (Arc<Queue>, [u64; 3]) {
        let layout = QueueLayout { size };
        let ring = DmaBuffer::new(layout.bytes() as usize).unwrap();
        ring.zero();
        let base = ring.gpa();
        let places = [base + layout.desc(), base + layout.avail(), base + layout.used()];
        (Arc::new(Queue::new(0, 0, layout, ring)), places)
    }

    /// Submits a request, waiting for descriptors if need be. The buffers must stay until the request is complete.
    pub fn submit(&self, buffers: &[Buffer]) -> Result<Pending<'_>> {
        if buffers.is_empty() || buffers.len() > MAX_BUFFERS {
            return Err(EINVAL);
        }
        let head = match self.try_submit(buffers, false) {
            Some(head) => head,
            None => {
                self.sleepers.fetch_add(1, SeqCst);
                let head = self.room.wait_uninterruptible(|| {
                    self.arm();
                    self.reap();
                    self.try_submit(buffers, false)
                });
                self.sleepers.fetch_sub(1, SeqCst);
                head
            }
        };
        Ok(Pending { queue: self, head })
    }

    /// Submits buffers whose completion goes to the callback; their head, or None without free descriptors.
    pub fn post(&self, buffers: &[Buffer]) -> Option<u16> {
        self.try_submit(buffers, true)
    }

    /// Sets what is called, from any task or from an interrupt, for completions of posted buffers: head and bytes written.
    /// It must not block.
    pub fn on_used(&self, callback: Arc<dyn Fn(u16, u32) + Send + Sync>) {
        *self.on_used.lock() = Some(callback);
        self.sleepers.fetch_add(1, SeqCst);
        self.arm();
    }

    fn try_submit(&self, buffers: &[Buffer], posted: bool) -> Option<u16> {
        let mut state = self.state.lock();
        if state.free.len() < buffers.len() {
            return None;
        }
        let at = state.free.len() - buffers.len();
        let chain: smallvec::SmallVec<[u16; 4]> = state.free.drain(at..).collect();
        for (i, (buffer, &descriptor)) in buffers.iter().zip(&chain).enumerate() {
            let next = chain.get(i + 1).copied();
            let flags = if next.is_some() { desc::NEXT } else { 0 } | if buffer.writable { desc::WRITE } else { 0 };
            let mut raw = [0u8; desc::SIZE as usize];
            raw[..8].copy_from_slice(&buffer.gpa.to_le_bytes());
            raw[8..12].copy_from_slice(&buffer.len.to_le_bytes());
            raw[12..14].copy_from_slice(&flags.to_le_bytes());
            raw[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
            self.ring.write(self.layout.desc() as usize + descriptor as usize * raw.len(), &raw);
        }
        let head = chain[0];
        let slot = &self.slots[head as usize];
        slot.done.store(false, Relaxed);
        slot.posted.store(posted, Relaxed);
        state.chains[head as usize] = chain;
        let avail = self.layout.avail() as usize;
        self.ring.store_u16(avail + 4 + 2 * (state.avail % self.layout.size) as usize, head, Relaxed);
        let old = state.avail;
        state.avail = old.wrapping_add(1);
        self.ring.store_u16(avail + 2, state.avail, Release);
        // The index must be visible before the device's wish is read (section 2.7.13.4.1).
        fence(SeqCst);
        let wish = self.ring.load_u16(self.layout.used() as usize + 4 + 8 * self.layout.size as usize, Acquire);
        let kick = state.avail.wrapping_sub(wish).wrapping_sub(1) < state.avail.wrapping_sub(old);
        drop(state);
        if kick {
            arch::mmio_write32(self.mmio + reg::QUEUE_NOTIFY, self.index);
        }
        Some(head)
    }

    /// Asks for an interrupt at the next completion.
    fn arm(&self) {
        // Under the lock: an older wish stored late would ask for an interrupt that has passed.
        let state = self.state.lock();
        self.ring.store_u16(self.layout.avail() as usize + 4 + 2 * self.layout.size as usize, state.used, SeqCst);
        drop(state);
        fence(SeqCst);
    }

    /// Takes in completions.
    fn reap(&self) {
        let used_ring = self.layout.used() as usize;
        let mut reaped = false;
        loop {
            let mut state = self.state.lock();
            if self.ring.load_u16(used_ring + 2, Acquire) == state.used {
                break;
            }
            let element = used_ring + 4 + 8 * (state.used % self.layout.size) as usize;
            let mut raw = [0u8; 8];
            self.ring.read(element, &mut raw);
            state.used = state.used.wrapping_add(1);
            let head = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
            let len = u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]);
            // The other side is not trusted to name a request that exists.
            let Some(slot) = self.slots.get(head as usize) else { continue };
            let chain = core::mem::take(&mut state.chains[head as usize]);
            if chain.is_empty() {
                continue;
            }
            reaped = true;
            slot.len.store(len, Relaxed);
            if slot.posted.load(Relaxed) {
                state.free.extend(chain.iter().rev());
                drop(state);
                let callback = self.on_used.lock().clone();
                if let Some(callback) = callback {
                    callback(head as u16, len);
                }
            } else {
                // The descriptors are free, except that the head names the request until its task has seen the result.
                state.free.extend(chain[1..].iter().rev());
                slot.done.store(true, Release);
                drop(state);
                slot.waiter.wake_all();
            }
        }
        if reaped {
            self.room.wake_all();
        }
    }

    /// The device has announced completions.
    pub fn interrupt(&self) {
        self.reap();
        if self.sleepers.load(SeqCst) > 0 {
            self.arm();
            self.reap();
        }
    }

    fn finish(&self, head: u16) -> u32 {
        let len = self.slots[head as usize].len.load(Relaxed);
        self.state.lock().free.push(head);
        self.room.wake_all();
        len
    }
}

impl Pending<'_> {
    /// Waits until the device has answered; bytes it says it has written.
    pub fn wait(self) -> u32 {
        let queue = self.queue;
        let slot = &queue.slots[self.head as usize];
        let start = time::monotonic();
        loop {
            queue.reap();
            if slot.done.load(Acquire) {
                return queue.finish(self.head);
            }
            if !crate::sched::alone() || time::monotonic().wrapping_sub(start) > SPIN_NS {
                break;
            }
            core::hint::spin_loop();
        }
        queue.sleepers.fetch_add(1, SeqCst);
        slot.waiter.wait_uninterruptible(|| {
            queue.arm();
            queue.reap();
            slot.done.load(Acquire).then_some(())
        });
        queue.sleepers.fetch_sub(1, SeqCst);
        queue.finish(self.head)
    }
}
