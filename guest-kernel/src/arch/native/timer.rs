//! This CPU's timer. Writing its register is an exit, so a deadline that moves back or goes away is left to fire: what is
//! wanted is looked at then.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use super::apic;
use crate::{arch::rdtsc, time};

const NONE: u64 = u64::MAX;

/// Deadlines are CLOCK_MONOTONIC ns; `NONE`: no deadline.
pub(super) struct Timer {
    /// What the kernel asked for.
    wanted: AtomicU64,
    /// What the hardware will do.
    armed: AtomicU64,
}

impl Timer {
    pub const fn new() -> Self {
        Timer { wanted: AtomicU64::new(NONE), armed: AtomicU64::new(NONE) }
    }
}

pub(super) fn set(timer: &Timer, deadline: u64) {
    timer.wanted.store(deadline, Relaxed);
    if deadline < timer.armed.load(Relaxed) {
        program(timer, deadline);
    }
}

/// Arms for the earlier of `deadline` and what the kernel asked for: exactly, since a timer that fires early would wake an idle
/// CPU for nothing.
pub(super) fn arm_for_wait(timer: &Timer, deadline: u64) {
    let next = deadline.min(timer.wanted.load(Relaxed));
    if next != timer.armed.load(Relaxed) {
        program(timer, next);
    }
}

/// After a wait: what the kernel asked for still comes.
pub(super) fn restore(timer: &Timer) {
    let wanted = timer.wanted.load(Relaxed);
    if wanted < timer.armed.load(Relaxed) {
        program(timer, wanted);
    }
}

/// The hardware timer has fired: whether what the kernel asked for has come.
pub(super) fn expired(timer: &Timer) -> bool {
    timer.armed.store(NONE, Relaxed);
    let wanted = timer.wanted.load(Relaxed);
    if wanted <= time::monotonic() {
        timer.wanted.store(NONE, Relaxed);
        return true;
    }
    if wanted != NONE {
        program(timer, wanted);
    }
    false
}

fn program(timer: &Timer, deadline: u64) {
    timer.armed.store(deadline, Relaxed);
    let ns = if deadline == NONE { 0 } else { deadline.saturating_sub(time::monotonic()).max(1) };
    if tsc_deadline_mode() {
        let mult = time::snapshot().mult.max(1);
        let ticks = ((u128::from(ns) << 32) / u128::from(mult)).min(1 << 62) as u64;
        apic::set_tsc_deadline(if deadline == NONE { 0 } else { rdtsc() + ticks.max(1) });
    } else {
        apic::set_one_shot(u32::try_from(ns).unwrap_or(u32::MAX));
    }
}

/// CPUID is an exit: asked once.
fn tsc_deadline_mode() -> bool {
    static MODE: AtomicU8 = AtomicU8::new(0);
    match MODE.load(Relaxed) {
        0 => {
            let has = apic::has_tsc_deadline();
            MODE.store(if has { 1 } else { 2 }, Relaxed);
            has
        }
        mode => mode == 1,
    }
}
