//! A paused sandbox: its tasks stop before they would run user code again. What they wait for inside the kernel goes on, as
//! under Linux's freezer, and so do clocks.

use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::synchronize_user;
use crate::{sync::WaitQueue, task::Task};

static FROZEN: AtomicBool = AtomicBool::new(false);
static THAWED: WaitQueue = WaitQueue::new();

#[inline]
pub fn frozen() -> bool {
    FROZEN.load(SeqCst)
}

/// No task runs user code from the return on. Does not block.
pub fn freeze() {
    FROZEN.store(true, SeqCst);
    // Whoever enters user mode looks at the flag after it has marked its CPU.
    synchronize_user(0, false);
}

pub fn thaw() {
    FROZEN.store(false, SeqCst);
    THAWED.wake_all();
}

/// What a task does that finds itself frozen. One that has been killed does not wait.
pub fn wait_thawed(task: &Task) {
    THAWED.wait_uninterruptible(|| (!frozen() || task.must_die()).then_some(()));
}
