//! An address space of the sentry, and the stub process that shows it.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU8, Ordering},
};

use crate::fills::Fills;

const ALIVE: u8 = 0;
const DEAD: u8 = 1;
const DESTROYED: u8 = 2;

pub struct Space {
    /// Guest-physical address of its top-level page table.
    pub root: u64,
    pub pid: i32,
    state: AtomicU8,
    inner: Mutex<Inner>,
}

/// Held over a walk and the fill that follows, and over a flush: so that no fill lands behind the flush that revokes it.
pub struct Inner {
    pub fills: Fills,
    /// Threads of the process that wait, untraced, for a vCPU that has none here.
    pub spares: Vec<i32>,
    /// vCPUs with a thread here.
    pub threads: u32,
}

impl Space {
    pub fn new(root: u64, pid: i32, spares: Vec<i32>) -> Space {
        Space {
            root,
            pid,
            state: AtomicU8::new(ALIVE),
            inner: Mutex::new(Inner { fills: Fills::default(), spares, threads: 1 }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
