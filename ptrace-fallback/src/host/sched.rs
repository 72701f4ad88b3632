//! CPU affinity of threads, ours and the stubs'.

use std::mem;

/// A set of host CPUs.
#[derive(Clone, Copy)]
pub struct CpuSet(libc::cpu_set_t);

impl CpuSet {
    pub fn one(cpu: usize) -> CpuSet {
        // SAFETY: an all-zero set is a valid, empty one; CPU_SET checks the bound.
        unsafe {
            let mut set: libc::cpu_set_t = mem::zeroed();
            libc::CPU_SET(cpu.min(libc::CPU_SETSIZE as usize - 1), &mut set);
            CpuSet(set)
        }
    }

    /// What this thread may run on.
    pub fn allowed() -> CpuSet {
        // SAFETY: the kernel writes at most the size given.
        unsafe {
            let mut set: libc::cpu_set_t = mem::zeroed();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
            CpuSet(set)
        }
    }

    pub fn count(&self) -> usize {
        // SAFETY: reads the set.
        unsafe { libc::CPU_COUNT(&self.0) as usize }
    }

    /// Lets a thread (0: this one) run on these CPUs only. Failure leaves the thread where it was: affinity is only for speed.
    pub fn apply(&self, tid: i32) {
        // SAFETY: the kernel reads the set; only the named thread's affinity changes.
        unsafe {
            libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &self.0);
        }
    }
}

/// The CPU this thread runs on now.
pub fn current_cpu() -> usize {
    // SAFETY: no arguments.
    unsafe { libc::sched_getcpu() }.max(0) as usize
}
