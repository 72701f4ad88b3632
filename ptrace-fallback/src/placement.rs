//! Keeps a stub on its tracer's host CPU.
//!
//! A stop costs about 7 us when both run on one CPU and up to 50 on two, and the host's scheduler, seeing an idle CPU, would
//! part them at every wake-up. So both are bound to the CPU the vCPU's thread is on, for a slice; then the thread runs free
//! for one stop, in which the scheduler may move it, and the pair settles there. A stub that runs long without a stop is
//! let go by the event thread: two busy sandboxes are never bound to each other for long.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::Relaxed};

use crate::host::{
    futex,
    sched::{CpuSet, current_cpu},
};

/// For how long a pair stays bound, ns.
const SLICE: u64 = 10_000_000;

/// What the event thread sees of a vCPU, to let go of a stub that runs long.
#[derive(Default)]
pub struct Watched {
    /// Counts stops.
    stops: AtomicU32,
    /// The bound stub thread that runs now; 0: none.
    running: AtomicI32,
    /// The event thread has let go of it.
    released: AtomicBool,
    /// `stops` at the last tick.
    seen: AtomicU32,
}

impl Watched {
    /// A tick of the event thread; false when the vCPU has done nothing since the last one.
    pub fn tick(&self, allowed: &CpuSet) -> bool {
        let (stops, tid) = (self.stops.load(Relaxed), self.running.load(Relaxed));
        let moved = self.seen.swap(stops, Relaxed) != stops;
        if !moved && tid != 0 && !self.released.swap(true, Relaxed) {
            allowed.apply(tid);
        }
        moved
    }
}

pub struct Placement {
    allowed: CpuSet,
    bound: Option<usize>,
    slice_end: u64,
}

impl Placement {
    pub fn new() -> Placement {
        Placement { allowed: CpuSet::allowed(), bound: None, slice_end: 0 }
    }

    /// Before `tid` runs; `cpu` is where it is bound to. True when a new slice has begun.
    pub fn enter(&mut self, watched: &Watched, tid: i32, cpu: &mut Option<usize>) -> bool {
        if self.allowed.count() < 2 {
            return false;
        }
        if watched.released.load(Relaxed) && watched.released.swap(false, Relaxed) {
            *cpu = None;
        }
        let now = futex::now();
        let mut begun = false;
        if now >= self.slice_end {
            if self.bound.take().is_some() {
                self.allowed.apply(0);
            } else {
                let here = current_cpu();
                CpuSet::one(here).apply(0);
                self.bound = Some(here);
                self.slice_end = now + SLICE;
                begun = true;
            }
        }
        if self.bound.is_some() && *cpu != self.bound {
            if let Some(here) = self.bound {
                CpuSet::one(here).apply(tid);
            }
            *cpu = self.bound;
        }
        watched.running.store(tid, Relaxed);
        begun
    }

    /// Puts a stub of this thread's that works for it, without running a task, on this thread's CPU.
    pub fn join(&self, tid: i32, cpu: &mut Option<usize>) {
        if let Some(here) = self.bound
            && *cpu != self.bound
        {
            CpuSet::one(here).apply(tid);
            *cpu = self.bound;
        }
    }

    /// After the stop.
    pub fn leave(&self, watched: &Watched) {
        watched.running.store(0, Relaxed);
        watched.stops.store(watched.stops.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        if self.bound.is_some() {
            self.allowed.apply(0);
        }
    }
}
