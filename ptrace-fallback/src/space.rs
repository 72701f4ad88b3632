//! An address space of the sentry, and the stub process that shows it.
//!
//! A flush that nobody can notice is put off: while no vCPU runs user code here, revoked ranges are only noted, and unmapped
//! by whoever comes here next, in the same call as its fills. A vCPU says that it runs before it looks whether something was
//! noted; a flush notes before it looks whether somebody runs.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
};

use crate::fills::Fills;

const ALIVE: u8 = 0;
const DEAD: u8 = 1;
const DESTROYED: u8 = 2;
/// Ranges noted before they are taken together.
const MAX_REVOKED: usize = 32;

pub struct Space {
    /// Guest-physical address of its top-level page table.
    pub root: u64,
    pub pid: i32,
    state: AtomicU8,
    /// vCPUs that run user code here.
    running: AtomicU32,
    /// `Inner::revoked` is not empty.
    flush_due: AtomicBool,
    inner: Mutex<Inner>,
}

/// Held over a walk and the fill that follows, and over a flush: so that no fill lands behind the flush that revokes it.
pub struct Inner {
    pub fills: Fills,
    /// Ranges (start, end) that are not filled any more but still mapped in the stub.
    revoked: Vec<(u64, u64)>,
    /// What the address space that made this one had filled, until this one is entered.
    pub inherited: Vec<(u64, u64)>,
    /// Threads of the process that wait, untraced, for a vCPU that has none here.
    pub spares: Vec<i32>,
    /// vCPUs with a thread here.
    pub threads: u32,
}

impl Space {
    pub fn new(root: u64, pid: i32, spares: Vec<i32>, inherited: Vec<(u64, u64)>) -> Space {
        Space {
            root,
            pid,
            state: AtomicU8::new(ALIVE),
            running: AtomicU32::new(0),
            flush_due: AtomicBool::new(false),
            inner: Mutex::new(Inner { fills: Fills::default(), revoked: Vec::new(), inherited, spares, threads: 1 }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that user code is about to run here; false when a flush is due first.
    pub fn begin(&self) -> bool {
        self.running.fetch_add(1, Ordering::SeqCst);
        if self.flush_due.load(Ordering::SeqCst) {
            self.end();
            return false;
        }
        true
    }

    pub fn end(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }

    /// Notes a range that `inner.fills` has lost; true when it must be unmapped now, since another vCPU runs here.
    pub fn revoke(&self, inner: &mut Inner, low: u64, high: u64) -> bool {
        inner.revoked.push((low, high));
        if inner.revoked.len() > MAX_REVOKED {
            let low = inner.revoked.iter().map(|range| range.0).min().unwrap_or(low);
            let high = inner.revoked.iter().map(|range| range.1).max().unwrap_or(high);
            inner.fills.remove(low, high - low);
            inner.revoked = vec![(low, high)];
        }
        self.flush_due.store(true, Ordering::SeqCst);
        self.running.load(Ordering::SeqCst) != 0
    }

    /// Takes what has to be unmapped. When that is done, and before the lock is given up, comes [`Self::flushed`].
    pub fn take_revoked(&self, inner: &mut Inner) -> Vec<(u64, u64)> {
        std::mem::take(&mut inner.revoked)
    }

    pub fn flushed(&self, inner: &Inner) {
        if inner.revoked.is_empty() {
            self.flush_due.store(false, Ordering::SeqCst);
        }
    }

    /// Its process is gone: tasks in it cannot go on.
    pub fn set_dead(&self) {
        let _ = self.state.compare_exchange(ALIVE, DEAD, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// The sentry has no use for it any more.
    pub fn set_destroyed(&self) {
        self.state.store(DESTROYED, Ordering::SeqCst);
    }

    pub fn is_dead(&self) -> bool {
        self.state.load(Ordering::SeqCst) != ALIVE
    }

    pub fn is_destroyed(&self) -> bool {
        self.state.load(Ordering::SeqCst) == DESTROYED
    }
}
