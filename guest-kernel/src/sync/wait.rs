//! Waiting for a condition: one queue type for blocking calls and for poll, select and epoll.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst, fence};

use super::SpinLock;
use crate::{
    errno::{Error, Restart, Result},
    sched,
};

/// What a queue wakes: a task, or an epoll entry. `events` are the POLL* bits that became true (0: unspecified).
/// Called with no lock of the queue held.
pub trait Wake: Send + Sync {
    fn wake(self: Arc<Self>, events: u32);
}

struct Entry {
    id: usize,
    /// Wake only for these POLL* bits (all bits for a blocking call).
    interest: u32,
    wake: Arc<dyn Wake>,
}

/// Those who wait for one object. Empty queues cost an atomic load on wake-up.
pub struct WaitQueue {
    count: AtomicUsize,
    entries: SpinLock<Vec<Entry>>,
}

static NEXT_ID: AtomicUsize = AtomicUsize::new(1);

impl WaitQueue {
    pub const fn new() -> Self {
        WaitQueue { count: AtomicUsize::new(0), entries: SpinLock::new(Vec::new()) }
    }

    /// Adds a waiter; the id is for [`WaitQueue::unregister`].
    pub fn register(&self, interest: u32, wake: Arc<dyn Wake>) -> usize {
        let id = NEXT_ID.fetch_add(1, SeqCst);
        self.entries.lock().push(Entry { id, interest, wake });
        self.count.fetch_add(1, SeqCst);
        id
    }

    pub fn unregister(&self, id: usize) {
        let entry = {
            let mut entries = self.entries.lock();
            let Some(at) = entries.iter().position(|e| e.id == id) else { return };
            self.count.fetch_sub(1, SeqCst);
            entries.remove(at)
        };
        drop(entry);
    }

    pub fn is_empty(&self) -> bool {
        fence(SeqCst);
        self.count.load(SeqCst) == 0
    }

    /// Wakes every waiter interested in `events` (POLL* bits; 0 wakes all). The condition must be true before the call.
    pub fn wake(&self, events: u32) {
        if self.is_empty() {
            return;
        }
        let woken: smallvec::SmallVec<[Arc<dyn Wake>; 4]> = self
            .entries
            .lock()
            .iter()
            .filter(|e| events == 0 || e.interest & events != 0)
            .map(|e| e.wake.clone())
            .collect();
        for wake in woken {
            wake.wake(events);
        }
    }

    pub fn wake_all(&self) {
        self.wake(0)
    }

    /// Wakes the one who has waited longest. It stays in the queue until it has run.
    pub fn wake_one(&self) {
        if self.is_empty() {
            return;
        }
        let first = {
            let mut entries = self.entries.lock();
            if entries.is_empty() {
                return;
            }
            // Rotate, so that a second wake-up before the first waiter has run reaches another one.
            entries.rotate_left(1);
            entries.last().map(|e| e.wake.clone())
        };
        if let Some(wake) = first {
            wake.wake(0);
        }
    }

    /// Blocks until `condition` yields a value. A signal for the task ends the wait with a restart request.
    pub fn wait_until<R>(&self, condition: impl FnMut() -> Option<R>) -> Result<R> {
        match self.wait(u64::MAX, true, condition)? {
            Some(value) => Ok(value),
            None => Err(Error::Restart(Restart::Sys)),
        }
    }

    /// As [`WaitQueue::wait_until`], but gives `None` when CLOCK_MONOTONIC passes `deadline` (ns; `u64::MAX`: never).
    pub fn wait_deadline<R>(&self, deadline: u64, condition: impl FnMut() -> Option<R>) -> Result<Option<R>> {
        self.wait(deadline, true, condition)
    }

    /// Blocks whatever signals arrive: for waits that the sentry itself ends soon.
    pub fn wait_uninterruptible<R>(&self, mut condition: impl FnMut() -> Option<R>) -> R {
        loop {
            if let Ok(Some(value)) = self.wait(u64::MAX, false, &mut condition) {
                return value;
            }
        }
    }

    fn wait<R>(
        &self,
        deadline: u64,
        interruptible: bool,
        mut condition: impl FnMut() -> Option<R>,
    ) -> Result<Option<R>> {
        if let Some(value) = condition() {
            return Ok(Some(value));
        }
        let task = sched::current_wake();
        let id = self.register(u32::MAX, task);
        let result = loop {
            if let Some(value) = condition() {
                break Ok(Some(value));
            }
            if interruptible && sched::interrupted() {
                break Err(Error::Restart(Restart::Sys));
            }
            if !sched::park_until(deadline) {
                break Ok(condition());
            }
        };
        self.unregister(id);
        result
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

/// The queues one poll, select or epoll_wait call (or one epoll entry) is registered with; leaving them is automatic.
pub struct PollTable {
    wake: Arc<dyn Wake>,
    registered: Vec<(Arc<WaitQueue>, usize)>,
}

impl PollTable {
    pub fn new(wake: Arc<dyn Wake>) -> Self {
        PollTable { wake, registered: Vec::new() }
    }

    /// Called by a file's `poll` for each queue that its readiness depends on, before it looks at its state.
    pub fn add(&mut self, queue: &Arc<WaitQueue>, interest: u32) {
        let id = queue.register(interest, self.wake.clone());
        self.registered.push((queue.clone(), id));
    }
}

impl Drop for PollTable {
    fn drop(&mut self) {
        for (queue, id) in self.registered.drain(..) {
            queue.unregister(id);
        }
    }
}
