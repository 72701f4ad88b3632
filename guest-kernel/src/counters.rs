//! The sentry's side of `sentry_abi::counters`.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use sentry_abi::counters::Counter;

static COUNTERS: [AtomicU64; sentry_abi::counters::COUNT] = [const { AtomicU64::new(0) }; sentry_abi::counters::COUNT];

#[inline]
pub fn count(counter: Counter) {
    add(counter, 1);
}

#[inline]
pub fn add(counter: Counter, n: u64) {
    COUNTERS[counter as usize].fetch_add(n, Relaxed);
}

pub fn get(counter: Counter) -> u64 {
    COUNTERS[counter as usize].load(Relaxed)
}

/// By [`Counter`].
pub fn all() -> &'static [AtomicU64; sentry_abi::counters::COUNT] {
    &COUNTERS
}

/// All values, in the order of `sentry_abi::counters`.
pub fn snapshot() -> impl Iterator<Item = u64> {
    COUNTERS.iter().map(|counter| counter.load(Relaxed))
}
