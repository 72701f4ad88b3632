//! Clocks from the TSC, calibrated against the host's.
//!
//! The boot parameters give one sample and the frequency. Later samples correct the frequency's error: taken when a clock is
//! read and the last is older than [`RESAMPLE`], by whoever reads, so an idle sandbox takes none.

mod clock;
mod interval;
pub mod syscalls;
pub mod timerfd;
pub mod timers;
mod timespec;
pub mod vdso;

pub use clock::{Clock, CpuKind};
pub use interval::Interval;
pub use timespec::{Itimerspec, Itimerval, NSEC_PER_SEC, Timespec, Timeval};

use core::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use sentry_abi::boot::{BootParams, ClockSample};

use crate::arch;

/// Age of a sample after which the next reader takes a new one, ns.
const RESAMPLE: u64 = 1_000_000_000;

/// A sequence lock over the conversion: `ns = base_ns + (tsc - base_tsc) * mult >> 32`.
struct Conversion {
    sequence: AtomicU64,
    base_tsc: AtomicU64,
    mult: AtomicU64,
    monotonic: AtomicU64,
    /// CLOCK_REALTIME and CLOCK_BOOTTIME minus CLOCK_MONOTONIC, ns.
    realtime_offset: AtomicU64,
    boottime_offset: AtomicU64,
}

static CONVERSION: Conversion = Conversion {
    sequence: AtomicU64::new(0),
    base_tsc: AtomicU64::new(0),
    mult: AtomicU64::new(1 << 32),
    monotonic: AtomicU64::new(0),
    realtime_offset: AtomicU64::new(0),
    boottime_offset: AtomicU64::new(0),
};
static RESAMPLING: AtomicBool = AtomicBool::new(false);
/// CLOCK_MONOTONIC when the sandbox started.
static STARTED: AtomicU64 = AtomicU64::new(0);

static TSC_STABLE: AtomicBool = AtomicBool::new(false);

pub fn init(params: &BootParams) {
    TSC_STABLE.store(params.tsc_stable != 0, Relaxed);
    let mult = (1_000_000u64 << 32) / u64::from(params.tsc_khz.max(1));
    store(&params.clock, mult);
    STARTED.store(params.clock.monotonic, Relaxed);
}

fn store(sample: &ClockSample, mult: u64) {
    let c = &CONVERSION;
    let sequence = c.sequence.load(Relaxed);
    c.sequence.store(sequence + 1, Relaxed);
    core::sync::atomic::fence(Release);
    c.base_tsc.store(sample.tsc, Relaxed);
    c.mult.store(mult, Relaxed);
    c.monotonic.store(sample.monotonic, Relaxed);
    c.realtime_offset.store(sample.realtime.wrapping_sub(sample.monotonic), Relaxed);
    c.boottime_offset.store(sample.boottime.wrapping_sub(sample.monotonic), Relaxed);
    c.sequence.store(sequence + 2, Release);
    vdso::update(&snapshot());
}

/// Whether the TSC can be trusted between samples.
fn tsc_is_stable() -> bool {
    TSC_STABLE.load(Relaxed)
}

/// The conversion in force: what the vDSO's data page carries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    pub base_tsc: u64,
    /// ns per TSC tick, 32.32 fixed point.
    pub mult: u64,
    pub monotonic: u64,
    pub realtime_offset: u64,
    pub boottime_offset: u64,
}

impl Snapshot {
    pub fn monotonic_at(&self, tsc: u64) -> u64 {
        let ticks = tsc.saturating_sub(self.base_tsc);
        self.monotonic + ((ticks as u128 * self.mult as u128) >> 32) as u64
    }
}

pub fn snapshot() -> Snapshot {
    let c = &CONVERSION;
    loop {
        let before = c.sequence.load(Acquire);
        let snapshot = Snapshot {
            base_tsc: c.base_tsc.load(Relaxed),
            mult: c.mult.load(Relaxed),
            monotonic: c.monotonic.load(Relaxed),
            realtime_offset: c.realtime_offset.load(Relaxed),
            boottime_offset: c.boottime_offset.load(Relaxed),
        };
        core::sync::atomic::fence(Acquire);
        if before & 1 == 0 && c.sequence.load(Relaxed) == before {
            return snapshot;
        }
        core::hint::spin_loop();
    }
}

/// CLOCK_MONOTONIC, ns.
pub fn monotonic() -> u64 {
    snapshot().monotonic_at(arch::rdtsc())
}

/// CLOCK_REALTIME, ns since the epoch.
pub fn realtime() -> u64 {
    resample_if_old();
    let s = snapshot();
    s.monotonic_at(arch::rdtsc()).wrapping_add(s.realtime_offset)
}

/// CLOCK_BOOTTIME, ns.
pub fn boottime() -> u64 {
    let s = snapshot();
    s.monotonic_at(arch::rdtsc()).wrapping_add(s.boottime_offset)
}

/// CLOCK_MONOTONIC when the sandbox started.
pub fn started() -> u64 {
    STARTED.load(Relaxed)
}

/// Takes a new sample of the host's clocks when the last one is old.
pub fn resample_if_old() {
    let old = snapshot();
    let now = old.monotonic_at(arch::rdtsc());
    if now.wrapping_sub(old.monotonic) < RESAMPLE || RESAMPLING.swap(true, Acquire) {
        return;
    }
    let sample = arch::host::clock_sample();
    if sample.tsc > old.base_tsc {
        // Measured over at least RESAMPLE, so reading errors of the two samples weigh little. The monotonic clock may not
        // step back: the rate closes a small gap within the next period instead.
        let ticks = sample.tsc - old.base_tsc;
        let true_mult = ((sample.monotonic.saturating_sub(old.monotonic) as u128) << 32) / ticks as u128;
        let ours = old.monotonic_at(sample.tsc);
        let mut sample = sample;
        let mut mult = true_mult as u64;
        if ours > sample.monotonic {
            let ahead = (ours - sample.monotonic).min(RESAMPLE / 1000);
            mult -= ((mult as u128 * ahead as u128) / RESAMPLE as u128) as u64;
            sample.monotonic = ours;
        }
        store(&sample, mult);
    }
    RESAMPLING.store(false, Release);
}

/// The CLOCK_MONOTONIC deadline for an absolute CLOCK_REALTIME time, ns.
pub fn realtime_deadline(at: u64) -> u64 {
    if at == u64::MAX { u64::MAX } else { monotonic().saturating_add(at.saturating_sub(realtime())) }
}
