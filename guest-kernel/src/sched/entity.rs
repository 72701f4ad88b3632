//! What the scheduler keeps in each task.

use alloc::boxed::Box;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32,
    Ordering::{Relaxed, SeqCst},
};

use sentry_abi::context::UserContext;

use crate::arch::switch::SavedStack;

const RUNNABLE: u8 = 0;
const PARKED: u8 = 1;
/// Runnable, with a wake-up that came while it was not parked: the next park returns at once.
const NOTIFIED: u8 = 2;

pub struct Entity {
    pub(super) stack: Box<SavedStack>,
    state: AtomicU8,
    pub(super) last_cpu: AtomicU32,
    /// The task's user context, on its stack; null before the first run and after the end.
    pub(super) context: AtomicPtr<UserContext>,
    /// A signal or exit request wants the task to leave interruptible waits.
    interrupted: AtomicBool,
    /// Its CPU may not run it any more: queued elsewhere once its stack is left.
    moving: AtomicBool,
}

impl Entity {
    pub fn new(stack: Box<SavedStack>) -> Self {
        Entity {
            stack,
            state: AtomicU8::new(RUNNABLE),
            last_cpu: AtomicU32::new(0),
            context: AtomicPtr::new(core::ptr::null_mut()),
            interrupted: AtomicBool::new(false),
            moving: AtomicBool::new(false),
        }
    }

    pub fn interrupted(&self) -> bool {
        self.interrupted.load(SeqCst)
    }

    /// Set by whoever queues a signal (then unparks the task), cleared by the task when nothing is pending.
    pub fn set_interrupted(&self, value: bool) {
        self.interrupted.store(value, SeqCst);
    }

    pub fn set_context(&self, context: &mut UserContext) {
        self.context.store(context, SeqCst);
    }

    /// The context is about to go away.
    pub fn clear_context(&self) {
        self.context.store(core::ptr::null_mut(), SeqCst);
    }

    /// The CPU it ran on last.
    pub fn last_cpu(&self) -> usize {
        self.last_cpu.load(Relaxed) as usize
    }

    pub fn is_parked(&self) -> bool {
        self.state.load(Relaxed) == PARKED
    }

    pub(super) fn moving(&self) -> bool {
        self.moving.load(Relaxed)
    }

    pub(super) fn set_moving(&self, value: bool) {
        self.moving.store(value, Relaxed);
    }

    /// Returns whether the task must now give up its CPU; false when a wake-up was there already.
    pub(super) fn begin_park(&self) -> bool {
        if self.state.compare_exchange(RUNNABLE, PARKED, SeqCst, SeqCst).is_ok() {
            return true;
        }
        self.state.store(RUNNABLE, SeqCst);
        false
    }

    /// Returns whether the caller must queue the task.
    pub(super) fn end_park(&self) -> bool {
        // One word, so that no wake-up falls between a state and a token.
        loop {
            let next = match self.state.load(SeqCst) {
                PARKED => RUNNABLE,
                RUNNABLE => NOTIFIED,
                _ => return false,
            };
            let old = if next == RUNNABLE { PARKED } else { RUNNABLE };
            if self.state.compare_exchange(old, next, SeqCst, SeqCst).is_ok() {
                return next == RUNNABLE;
            }
        }
    }
}
