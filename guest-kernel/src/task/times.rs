//! CPU time and other use of resources, for getrusage(2), times(2), wait4(2) and CPU-time clocks.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Sums, as struct rusage wants them. Times in ns.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Usage {
    pub user: u64,
    pub system: u64,
    pub minor_faults: u64,
    pub voluntary: u64,
    pub involuntary: u64,
    /// Highest resident size, bytes.
    pub peak: u64,
}

impl Usage {
    pub fn add(&mut self, other: &Usage) {
        self.user += other.user;
        self.system += other.system;
        self.minor_faults += other.minor_faults;
        self.voluntary += other.voluntary;
        self.involuntary += other.involuntary;
        self.peak = self.peak.max(other.peak);
    }

    pub fn cpu(&self) -> u64 {
        self.user + self.system
    }
}

/// A task's own meters, in TSC ticks; only the task's CPU writes them.
#[derive(Default)]
pub struct Meter {
    user: AtomicU64,
    system: AtomicU64,
    /// TSC at the last change between user mode, kernel and off the CPU.
    since: AtomicU64,
    mode: core::sync::atomic::AtomicU8,
    pub faults: AtomicU64,
    pub voluntary: AtomicU64,
    pub involuntary: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    Off = 0,
    System = 1,
    User = 2,
}

impl Meter {
    /// The task changes to `mode` now.
    #[inline]
    pub fn switch(&self, mode: Mode) {
        let now = crate::arch::rdtsc();
        let passed = now.saturating_sub(self.since.load(Relaxed));
        let meter = match self.mode.load(Relaxed) {
            1 => Some(&self.system),
            2 => Some(&self.user),
            _ => None,
        };
        if let Some(meter) = meter {
            meter.store(meter.load(Relaxed) + passed, Relaxed);
        }
        self.since.store(now, Relaxed);
        self.mode.store(mode as u8, Relaxed);
    }

    #[inline]
    pub fn count_fault(&self) {
        self.faults.fetch_add(1, Relaxed);
    }

    /// User and system time so far, ns.
    pub fn read(&self) -> (u64, u64) {
        let (mut user, mut system) = (self.user.load(Relaxed), self.system.load(Relaxed));
        let running = crate::arch::rdtsc().saturating_sub(self.since.load(Relaxed));
        match self.mode.load(Relaxed) {
            1 => system += running,
            2 => user += running,
            _ => {}
        }
        let mult = crate::time::snapshot().mult as u128;
        let ns = |ticks: u64| ((ticks as u128 * mult) >> 32) as u64;
        (ns(user), ns(system))
    }
}

/// Clock ticks of times(2) and /proc: 100 a second.
pub const fn to_ticks(ns: u64) -> u64 {
    ns / 10_000_000
}
