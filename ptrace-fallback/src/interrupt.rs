//! What other threads may do to a vCPU: make interrupts pending, and get it out of user mode or out of its sleep.
//!
//! A vCPU publishes where it is before it looks at its pending word for the last time; whoever makes something pending
//! writes the word before looking where the vCPU is. So one of the two always sees the other.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use anyhow::{Context, Result};
use sentry_abi::irq;
use vmm_sys_util::eventfd::EventFd;

use crate::{
    host::{futex, ptrace},
    placement::Watched,
};

/// The signal that stops a stub. Its default action is none, so one that comes late does nothing.
pub const KICK_SIGNAL: i32 = libc::SIGURG;
const NEVER: u64 = u64::MAX;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const ASLEEP_AMONG_DEVICES: u32 = 2;

pub struct CpuState {
    pending: AtomicU64,
    /// The VMM asks the vCPU to return from `run`.
    stop: AtomicBool,
    /// The stub that runs for this vCPU, `pid << 32 | tid`; 0: none.
    user: AtomicU64,
    /// [`AWAKE`] or how the vCPU sleeps, or is about to.
    sleeping: AtomicU32,
    /// Ends the sleep of a vCPU that waits for devices at the same time.
    wake: EventFd,
    /// CLOCK_MONOTONIC ns at which the timer bit is due.
    deadline: AtomicU64,
    pub watched: Watched,
}

impl CpuState {
    pub fn new() -> Result<CpuState> {
        Ok(CpuState {
            pending: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            user: AtomicU64::new(0),
            sleeping: AtomicU32::new(AWAKE),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("eventfd")?,
            deadline: AtomicU64::new(NEVER),
            watched: Watched::default(),
        })
    }

    /// Readable when a sleep among devices is to end.
    pub fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    /// Makes an interrupt pending. From any thread.
    pub fn raise(&self, bit: u32) {
        let bit = 1 << (bit & 63);
        if self.pending.fetch_or(bit, SeqCst) & bit == 0 {
            self.notify();
        }
    }

    /// Makes `run` return. From any thread.
    pub fn request_stop(&self) {
        self.stop.store(true, SeqCst);
        self.notify();
    }

    /// Whether a stop was asked for since the last call.
    pub fn take_stop(&self) -> bool {
        self.stop.load(SeqCst) && self.stop.swap(false, SeqCst)
    }

    pub fn has_pending(&self) -> bool {
        self.pending.load(SeqCst) != 0
    }

    /// Takes the pending word.
    pub fn take_pending(&self) -> u64 {
        if self.pending.load(SeqCst) == 0 { 0 } else { self.pending.swap(0, SeqCst) }
    }

    fn notify(&self) {
        match self.sleeping.swap(AWAKE, SeqCst) {
            ASLEEP => futex::wake(&self.sleeping),
            // Only a counter at its limit fails, and then it is readable.
            ASLEEP_AMONG_DEVICES => _ = self.wake.write(1),
            _ => {}
        }
        let user = self.user.load(SeqCst);
        if user != 0 {
            ptrace::kill_thread((user >> 32) as i32, user as u32 as i32, KICK_SIGNAL);
        }
    }

    fn attention(&self) -> bool {
        self.has_pending() || self.stop.load(SeqCst)
    }

    /// Says that a stub is about to run; false when there is a reason not to.
    pub fn enter_user(&self, pid: i32, tid: i32) -> bool {
        self.user.store((pid as u64) << 32 | u64::from(tid as u32), SeqCst);
        if self.attention() {
            self.user.store(0, SeqCst);
            return false;
        }
        true
    }

    pub fn leave_user(&self) {
        self.user.store(0, SeqCst);
    }

    /// Sleeps until something is pending, a stop is asked for, or the monotonic clock reaches `deadline`.
    pub fn sleep(&self, deadline: u64) {
        self.sleep_by(ASLEEP, deadline, |limit| futex::wait(&self.sleeping, ASLEEP, limit));
    }

    /// As [`Self::sleep`]; `wait` waits for devices and for [`Self::wake_fd`], until the time it is given.
    pub fn sleep_among_devices(&self, deadline: u64, wait: impl FnMut(u64)) {
        self.sleep_by(ASLEEP_AMONG_DEVICES, deadline, wait);
    }

    fn sleep_by(&self, how: u32, deadline: u64, mut wait: impl FnMut(u64)) {
        loop {
            self.sleeping.store(how, SeqCst);
            let limit = deadline.min(self.deadline.load(SeqCst));
            if self.attention() {
                break;
            }
            wait(limit);
            let now = if limit == NEVER { 0 } else { futex::now() };
            self.expire(now);
            if self.attention() || now >= deadline {
                break;
            }
        }
        self.sleeping.store(AWAKE, SeqCst);
    }

    /// Makes an interrupt pending, on the vCPU's own thread.
    pub fn note(&self, bit: u32) {
        self.pending.fetch_or(1 << (bit & 63), SeqCst);
    }

    pub fn set_deadline(&self, deadline: u64) {
        self.deadline.store(deadline, SeqCst);
    }

    pub fn deadline(&self) -> u64 {
        self.deadline.load(SeqCst)
    }

    /// Makes the timer pending if it is due. From any thread.
    pub fn expire(&self, now: u64) {
        let deadline = self.deadline.load(SeqCst);
        if deadline <= now && self.deadline.compare_exchange(deadline, NEVER, SeqCst, SeqCst).is_ok() {
            self.raise(irq::TIMER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_keeps_from_entering() {
        let cpu = CpuState::new().unwrap();
        assert!(cpu.enter_user(1, 1));
        cpu.leave_user();
        cpu.raise(irq::IPI);
        assert!(!cpu.enter_user(1, 1));
        assert_eq!(cpu.take_pending(), 1 << irq::IPI);
        assert_eq!(cpu.take_pending(), 0);
        cpu.request_stop();
        assert!(!cpu.enter_user(1, 1));
        assert!(cpu.take_stop());
        assert!(!cpu.take_stop());
    }

    #[test]
    fn sleep_ends_by_timer_and_by_interrupt() {
        let cpu = CpuState::new().unwrap();
        cpu.set_deadline(futex::now() + 2_000_000);
        cpu.sleep(NEVER);
        assert_eq!(cpu.take_pending(), 1 << irq::TIMER);
        let before = futex::now();
        cpu.sleep(before + 1_000_000);
        assert!(futex::now() >= before + 1_000_000);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(2));
                cpu.raise(irq::DEVICE0);
            });
            cpu.sleep(NEVER);
        });
        assert_eq!(cpu.take_pending(), 1 << irq::DEVICE0);
    }
}
