//! The host's clocks against the TSC: one sample, and the TSC's frequency.

use std::{
    arch::x86_64::{__cpuid, _rdtsc},
    sync::OnceLock,
};

use rustix::time::{ClockId, clock_gettime};
use sentry_abi::boot::ClockSample;

/// Shortest time over which the frequency is measured: the uncertainty of two readings, some 30 ns, is then 15 ppm.
const MEASURE_NS: u64 = 2_000_000;

static FIRST: OnceLock<(u64, u64)> = OnceLock::new();

/// Takes the first reading of the measurement. Called as early as possible, so that [`tsc_khz`] need not wait.
pub fn start() {
    FIRST.get_or_init(read_pair);
}

/// TSC ticks a millisecond.
pub fn tsc_khz() -> u32 {
    if let Some(khz) = announced_khz() {
        return khz;
    }
    let &(tsc, monotonic) = FIRST.get_or_init(read_pair);
    loop {
        let (tsc_now, now) = read_pair();
        let ns = now.saturating_sub(monotonic);
        if ns >= MEASURE_NS {
            let khz = u128::from(tsc_now.saturating_sub(tsc)) * 1_000_000 / u128::from(ns);
            return u32::try_from(khz).unwrap_or(u32::MAX).max(1);
        }
        std::hint::spin_loop();
    }
}

/// Whether the TSC runs at one rate in every power state, so that programs may read the time from it.
pub fn tsc_stable() -> bool {
    const INVARIANT_TSC: u32 = 1 << 8;
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & INVARIANT_TSC != 0
}

pub fn sample() -> ClockSample {
    let (tsc, monotonic) = read_pair();
    // The offsets to the other clocks are taken at once; an interruption between two readings must not become part of them.
    let (realtime, boottime) = (0..5)
        .map(|_| {
            let before = ns(ClockId::Monotonic);
            let (realtime, boottime) = (ns(ClockId::Realtime), ns(ClockId::Boottime));
            (ns(ClockId::Monotonic) - before, realtime.wrapping_sub(before), boottime.wrapping_sub(before))
        })
        .min()
        .map_or((0, 0), |(_, realtime, boottime)| (realtime, boottime));
    ClockSample {
        tsc,
        monotonic,
        realtime: monotonic.wrapping_add(realtime),
        boottime: monotonic.wrapping_add(boottime),
    }
}

/// The frequency where the CPU or the hypervisor states it: leaf 15H (Intel), or the timing leaf of a hypervisor.
fn announced_khz() -> Option<u32> {
    const HYPERVISOR: u32 = 1 << 31;
    if __cpuid(0).eax >= 0x15 {
        let leaf = __cpuid(0x15);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
            return u32::try_from(hz / 1000).ok().filter(|&khz| khz > 0);
        }
    }
    if __cpuid(1).ecx & HYPERVISOR != 0 && (0x4000_0010..0x4000_1000).contains(&__cpuid(0x4000_0000).eax) {
        return Some(__cpuid(0x4000_0010).eax).filter(|&khz| khz > 0);
    }
    None
}

/// TSC and CLOCK_MONOTONIC at one moment: the closest of a few readings.
fn read_pair() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..5 {
        let before = rdtsc();
        let monotonic = ns(ClockId::Monotonic);
        let width = rdtsc().saturating_sub(before);
        best = best.min((width, before + width / 2, monotonic));
    }
    (best.1, best.2)
}

fn ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

fn rdtsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU and reads a counter.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_predicts_the_clock() {
        start();
        let khz = u128::from(tsc_khz());
        let first = sample();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let second = sample();
        let predicted = u128::from(second.tsc - first.tsc) * 1_000_000 / khz;
        let actual = u128::from(second.monotonic - first.monotonic);
        assert!(predicted.abs_diff(actual) < actual / 500, "predicted {predicted} ns, was {actual} ns");
        assert!(second.realtime > first.realtime && second.boottime > first.boottime);
    }
}
