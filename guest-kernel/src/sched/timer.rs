//! One-shot timers, a queue per CPU: what is due is expired by the CPU it was added on.

use alloc::{collections::BTreeMap, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sentry_abi::boot::MAX_CPUS;

use crate::{arch, sync::SpinLock, time};

/// What a timer does when it is due. Runs on the CPU's own time, with no lock held; it must not block.
pub trait Expire: Send + Sync {
    fn expire(self: Arc<Self>);
}

/// Names an armed timer.
#[derive(Clone, Copy, Debug)]
pub struct Timer {
    cpu: usize,
    deadline: u64,
    id: u64,
}

struct Queue {
    timers: SpinLock<BTreeMap<(u64, u64), Arc<dyn Expire>>>,
    /// Deadline of the first, `u64::MAX` when empty: read without the lock.
    next: AtomicU64,
}

static QUEUES: [Queue; MAX_CPUS] =
    [const { Queue { timers: SpinLock::new(BTreeMap::new()), next: AtomicU64::new(u64::MAX) } }; MAX_CPUS];
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Arms a timer for CLOCK_MONOTONIC `deadline`, ns.
pub fn add(deadline: u64, what: Arc<dyn Expire>) -> Timer {
    let cpu = arch::cpu_index();
    let id = NEXT_ID.fetch_add(1, Relaxed);
    let queue = &QUEUES[cpu];
    let mut timers = queue.timers.lock();
    timers.insert((deadline, id), what);
    queue.next.fetch_min(deadline, Relaxed);
    Timer { cpu, deadline, id }
}

/// Disarms; false when it has expired already (or is just doing so).
pub fn cancel(timer: &Timer) -> bool {
    let queue = &QUEUES[timer.cpu];
    let removed = {
        let mut timers = queue.timers.lock();
        let removed = timers.remove(&(timer.deadline, timer.id));
        queue.next.store(timers.keys().next().map_or(u64::MAX, |k| k.0), Relaxed);
        removed
    };
    removed.is_some()
}

pub fn next_deadline(cpu: usize) -> u64 {
    QUEUES[cpu].next.load(Relaxed)
}

/// Expires what is due on this CPU.
pub fn expire(cpu: usize) {
    let queue = &QUEUES[cpu];
    loop {
        let next = queue.next.load(Relaxed);
        if next == u64::MAX || time::monotonic() < next {
            return;
        }
        let due = {
            let mut timers = queue.timers.lock();
            let now = time::monotonic();
            let due = match timers.first_entry() {
                Some(first) if first.key().0 <= now => Some(first.remove()),
                _ => None,
            };
            queue.next.store(timers.keys().next().map_or(u64::MAX, |k| k.0), Relaxed);
            due
        };
        match due {
            Some(what) => what.expire(),
            None => return,
        }
    }
}
