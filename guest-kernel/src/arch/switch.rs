//! Kernel stacks and the switch between them.

use core::{
    arch::naked_asm,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::mm::kmem::KernelPages;

/// Bytes of a task's kernel stack.
pub const STACK_SIZE: usize = 64 << 10;
const CANARY: u64 = 0x5afe_57ac_c0de_ca11;

/// A kernel stack with a canary at its low end, checked at every switch away from it.
pub struct KernelStack {
    pages: KernelPages,
}

/// What runs first on a new stack.
pub type Entry = extern "sysv64" fn(argument: u64) -> !;

impl KernelStack {
    pub fn new() -> Option<Self> {
        let pages = KernelPages::new(STACK_SIZE)?;
        // SAFETY: the pages are ours and at least 8 bytes long.
        unsafe { pages.as_ptr().cast::<u64>().write(CANARY) };
        Some(KernelStack { pages })
    }

    pub fn intact(&self) -> bool {
        // SAFETY: as in `new`.
        unsafe { self.pages.as_ptr().cast::<u64>().read() == CANARY }
    }

    /// Range of its addresses, for backtraces.
    pub fn range(&self) -> core::ops::Range<u64> {
        let base = self.pages.as_ptr() as u64;
        base..base + STACK_SIZE as u64
    }

    /// The saved stack pointer that makes the first switch to this stack call `entry(argument)`.
    pub fn prepare(&self, entry: Entry, argument: u64) -> u64 {
        let top = self.range().end;
        // Upwards: what `switch` pops (r15 r14 r13 r12 rbx rbp), the return address, a zero that ends backtraces.
        let frame: [u64; 8] = [0, 0, argument, entry as usize as u64, 0, 0, begin as *const () as u64, 0];
        // `begin` starts at `sp + 56`, which must be 16-byte aligned for its call.
        let sp = top - 72;
        // SAFETY: the 64 bytes lie inside our pages.
        unsafe { (sp as *mut [u64; 8]).write(frame) };
        sp
    }
}

/// A stack that is not running: where to go on. CPUs hand stacks to each other through this.
pub struct SavedStack {
    sp: AtomicU64,
    /// A CPU runs on it, or has not finished leaving it.
    running: AtomicBool,
    stack: Option<KernelStack>,
}

impl SavedStack {
    /// The stack a CPU booted on: running, and never freed.
    pub const fn boot() -> Self {
        SavedStack { sp: AtomicU64::new(0), running: AtomicBool::new(true), stack: None }
    }

    pub fn new(entry: Entry, argument: u64) -> Option<Self> {
        let stack = KernelStack::new()?;
        let sp = stack.prepare(entry, argument);
        Some(SavedStack { sp: AtomicU64::new(sp), running: AtomicBool::new(false), stack: Some(stack) })
    }

    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Address range of the stack, for backtraces.
    pub fn range(&self) -> core::ops::Range<u64> {
        self.stack.as_ref().map_or(0..0, KernelStack::range)
    }
}

/// Leaves `from`, the stack this CPU runs on, for `to`. Returns when some CPU switches to `from` again. Pointers, because no
/// reference of the caller may look as if it lived across: `from` may go on on another CPU, or never.
/// The scheduler keeps both alive: `to` by the CPU's current task, `from` until its stack is left.
pub(crate) fn switch_between(from: *const SavedStack, to: *const SavedStack) {
    // SAFETY: see above; `to` is claimed by the swap, so its saved pointer is good and no CPU runs on it; `from.running` is
    // cleared only after the stack pointer has moved away.
    unsafe {
        assert!((*from).stack.as_ref().is_none_or(KernelStack::intact), "kernel stack overflow");
        assert!(!(*to).running.swap(true, Ordering::AcqRel), "the stack to switch to is in use");
        switch((*from).sp.as_ptr(), (*to).sp.load(Ordering::Relaxed), (*from).running.as_ptr())
    }
}

/// Saves the callee-saved registers and the stack pointer to `*save`, goes on at the stack pointer `next`, and clears `*left`
/// once nothing of the old stack is needed.
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(save: *mut u64, next: u64, left: *mut bool) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "mov byte ptr [rdx], 0",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// First code on a new stack: r13 holds the argument and r12 the entry, by the order of `prepare`'s frame.
#[unsafe(naked)]
extern "sysv64" fn begin() {
    naked_asm!("mov rdi, r13", "xor ebp, ebp", "call r12", "ud2")
}
