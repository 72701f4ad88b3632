//! A split queue as its server sees it.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use sentry_abi::{fuse, virtio::feature};
use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::{BadChain, Chain, DeviceMemory};

/// Addresses of a queue, as the driver has set them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSetup {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// The driver has broken the queue: it cannot be served any more.
#[derive(Debug, Error)]
pub enum QueueError {
    #[error("queue: {0}")]
    Queue(#[from] virtio_queue::Error),
    #[error("queue of size {size} at {desc:#x}, {avail:#x}, {used:#x} is not valid", size = .0.size, desc = .0.desc,
            avail = .0.avail, used = .0.used)]
    Setup(QueueSetup),
    #[error("queue: {0}")]
    Chain(#[from] BadChain),
    #[error("completion event: {0}")]
    Event(#[from] std::io::Error),
}

/// Largest queue served.
const MAX_SIZE: u16 = if fuse::QUEUE_SIZE > 256 { fuse::QUEUE_SIZE } else { 256 };

pub struct DeviceQueue {
    memory: DeviceMemory,
    queue: Queue,
    call: EventFd,
}

impl DeviceQueue {
    /// `call` is signalled when the driver wants to hear about completions.
    pub fn new(
        memory: DeviceMemory,
        setup: QueueSetup,
        features: u64,
        call: EventFd,
    ) -> Result<DeviceQueue, QueueError> {
        let mut queue = Queue::new(MAX_SIZE)?;
        let invalid = |_| QueueError::Setup(setup);
        queue.try_set_size(setup.size).map_err(invalid)?;
        queue.try_set_desc_table_address(GuestAddress(setup.desc)).map_err(invalid)?;
        queue.try_set_avail_ring_address(GuestAddress(setup.avail)).map_err(invalid)?;
        queue.try_set_used_ring_address(GuestAddress(setup.used)).map_err(invalid)?;
        queue.set_event_idx(features & feature::EVENT_IDX != 0);
        queue.set_ready(true);
        if !queue.is_valid(&*memory) {
            return Err(QueueError::Setup(setup));
        }
        Ok(DeviceQueue { memory, queue, call })
    }

    /// The next request, checked.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let memory = self.memory.clone();
        let Some(chain) = self.queue.iter(&*memory)?.next() else { return Ok(None) };
        Ok(Some(Chain::new(&self.memory, chain)?))
    }

    /// Whether a request is there.
    pub fn pending(&self) -> Result<bool, QueueError> {
        Ok(self.queue.avail_idx(&*self.memory, Ordering::Acquire)?.0 != self.queue.next_avail())
    }

    /// Completes a request and tells the driver if it wants to know.
    pub fn complete(&mut self, chain: Chain) -> Result<(), QueueError> {
        self.queue.add_used(&*self.memory, chain.head(), chain.written())?;
        if self.queue.needs_notification(&*self.memory)? {
            // Only a full counter could fail here, and then the driver will be told anyhow.
            let _ = self.call.write(1);
        }
        Ok(())
    }

    /// Asks the driver for a kick at the next request. True: one has come meanwhile, so look first.
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(&*self.memory)?)
    }
}

/// Decides whether looking at a queue for a few microseconds before sleeping pays.
#[derive(Debug, Default)]
pub struct Spinner {
    /// Spins in a row that found nothing.
    failures: u32,
}

impl Spinner {
    const LIMIT: Duration = Duration::from_micros(4);
    /// After this many fruitless spins it stops, until requests come closely again.
    const PATIENCE: u32 = 8;

    /// Spins until `ready` holds or time is up; whether it held.
    pub fn spin(&mut self, mut ready: impl FnMut() -> Result<bool, QueueError>) -> Result<bool, QueueError> {
        if self.failures >= Self::PATIENCE {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < Self::LIMIT {
            if ready()? {
                self.failures = 0;
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        self.failures += 1;
        Ok(false)
    }

    /// A request came `after` the server went to sleep.
    pub fn woken(&mut self, after: Duration) {
        if after < 4 * Self::LIMIT {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sentry_abi::layout;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::{
        super::test_driver::{Driver, SIZE, memfd},
        *,
    };

    fn queue(driver: &Driver) -> DeviceQueue {
        let call = EventFd::new(EFD_NONBLOCK).unwrap();
        DeviceQueue::new(driver.memory.clone(), driver.setup, feature::EVENT_IDX, call).unwrap()
    }

    #[test]
    fn a_request_is_read_and_answered_across_buffers() {
        let mut driver = Driver::new(memfd(), 16, 0);
        let mut queue = queue(&driver);
        assert!(queue.pop().unwrap().is_none());
        driver.submit(b"hello, device", 64);
        assert!(queue.pending().unwrap());
        let mut chain = queue.pop().unwrap().unwrap();
        assert_eq!((chain.readable(), chain.writable()), (13, 64));
        let head = chain.reserve(2).unwrap();
        assert_eq!(chain.read_vec(13).unwrap(), b"hello, device");
        assert!(chain.read_vec(1).is_err());
        chain.write_all(b"an answer that is longer than the first buffer").unwrap();
        chain.fill(&head, b"> ").unwrap();
        driver.want_event();
        queue.complete(chain).unwrap();
        assert_eq!(queue.call.read().unwrap(), 1);
        assert_eq!(driver.take(64).unwrap(), b"> an answer that is longer than the first buffer");
    }

    #[test]
    fn no_event_unless_wanted() {
        let mut driver = Driver::new(memfd(), 16, 0);
        let mut queue = queue(&driver);
        driver.want_event();
        for wanted in [true, false, false] {
            driver.submit(b"x", 8);
            let chain = queue.pop().unwrap().unwrap();
            queue.complete(chain).unwrap();
            assert_eq!(queue.call.read().is_ok(), wanted);
        }
    }

    #[test]
    fn broken_queues_are_refused() {
        let driver = Driver::new(memfd(), 16, 0);
        let mut broken = queue(&driver);
        driver.set_avail_index(17);
        assert!(broken.pop().is_err());
        driver.set_avail_index(0);

        // A chain that runs in a circle, one outside of memory, a readable buffer behind a writable one.
        let inside = layout::DEVICE_BASE + 0x10_0000;
        let bad = [
            (inside, 8, 1, 0, BadChain::Malformed),
            (layout::DEVICE_BASE + SIZE - 4, 8, 0, 0, BadChain::OutOfRange(layout::DEVICE_BASE + SIZE - 4, 8)),
            (u64::MAX - 4, 8, 0, 0, BadChain::OutOfRange(u64::MAX - 4, 8)),
            (0x1000, 8, 0, 0, BadChain::OutOfRange(0x1000, 8)),
        ];
        for (addr, len, flags, next, expected) in bad {
            let mut driver = Driver::new(memfd(), 16, 0);
            let mut queue = queue(&driver);
            driver.write_descriptor(0, addr, len, flags, next);
            driver.publish(0);
            match queue.pop() {
                Err(QueueError::Chain(error)) => assert_eq!(error, expected),
                other => panic!("{expected}: {}", other.is_ok()),
            }
        }
        let mut driver = Driver::new(memfd(), 16, 0);
        let mut queue = queue(&driver);
        driver.write_descriptor(0, inside, 8, 3, 1);
        driver.write_descriptor(1, inside, 8, 0, 0);
        driver.publish(0);
        assert!(matches!(queue.pop(), Err(QueueError::Chain(BadChain::Order))));
        // Queues that do not lie in device memory.
        let mut setup = driver.setup;
        setup.used = layout::DEVICE_BASE + SIZE - 8;
        let call = EventFd::new(EFD_NONBLOCK).unwrap();
        assert!(DeviceQueue::new(driver.memory.clone(), setup, 0, call).is_err());
    }

    proptest! {
        /// Whatever the descriptors say, a chain's buffers lie in device memory and its lengths add up.
        #[test]
        fn hostile_descriptors(
            descriptors in prop::collection::vec(
                (
                    prop_oneof![any::<u64>(), layout::DEVICE_BASE - 64..layout::DEVICE_BASE + SIZE + 64],
                    prop_oneof![any::<u32>(), 0u32..8192],
                    0u16..8,
                    0u16..20,
                ),
                16,
            ),
            heads in prop::collection::vec(0u16..20, 1..16),
        ) {
            let mut driver = Driver::new(memfd(), 16, 0);
            let mut queue = queue(&driver);
            for (index, (addr, len, flags, next)) in descriptors.iter().enumerate() {
                driver.write_descriptor(index as u16, *addr, *len, *flags, *next);
            }
            for head in heads {
                driver.publish(head);
            }
            let mut chains = 0;
            while let Ok(Some(mut chain)) = queue.pop() {
                let (readable, writable) = (chain.readable(), chain.writable());
                prop_assert!(readable as u64 <= 16 * SIZE && writable as u64 <= 16 * SIZE);
                let total = |slices: Vec<vm_memory::VolatileSlice<'_>>| slices.iter().map(|s| s.len()).sum::<usize>();
                prop_assert_eq!(total(chain.readable_slices(usize::MAX).unwrap()), readable);
                prop_assert_eq!(total(chain.writable_slices(usize::MAX).unwrap()), writable);
                let some = readable.min(100);
                prop_assert_eq!(chain.read_vec(some).unwrap().len(), some);
                prop_assert_eq!(chain.readable(), readable - some);
                let some = writable.min(100);
                chain.write_all(&vec![1; some]).unwrap();
                prop_assert_eq!(chain.written() as usize, some);
                prop_assert_eq!(chain.writable(), writable - some);
                if queue.complete(chain).is_err() {
                    break;
                }
                chains += 1;
                prop_assert!(chains <= 16);
            }
        }
    }
}
