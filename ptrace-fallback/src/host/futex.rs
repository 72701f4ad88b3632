//! Sleeping on a 32-bit word.

use std::{
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

/// Sleeps while `word` is `expected`, until [`wake`] or until CLOCK_MONOTONIC reaches `deadline` ns (`u64::MAX`: no limit).
pub fn wait(word: &AtomicU32, expected: u32, deadline: u64) {
    if word.load(Ordering::SeqCst) != expected {
        return;
    }
    let limit =
        libc::timespec { tv_sec: (deadline / 1_000_000_000) as i64, tv_nsec: (deadline % 1_000_000_000) as i64 };
    let limit = if deadline == u64::MAX { ptr::null() } else { &raw const limit };
    // SAFETY: the kernel reads the word and the time; an early return (EINTR, EAGAIN, ETIMEDOUT) is the caller's to check.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG,
            expected,
            limit,
            ptr::null::<u32>(),
            u32::MAX,
        );
    }
}

pub fn wake(word: &AtomicU32) {
    // SAFETY: only the address is used.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
    }
}

/// CLOCK_MONOTONIC in ns.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
