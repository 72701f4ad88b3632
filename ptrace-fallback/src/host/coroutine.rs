//! The switch between a vCPU thread's host stack and the sentry's stack.
//!
//! The sentry is a coroutine of the vCPU thread: [`Coroutine::resume`] continues it, and its call of [`entry_address`]
//! comes back as the return of `resume`. Callee-saved registers and MXCSR are kept on both sides. FS stays the thread's TLS
//! pointer; GS is the sentry's and is not touched by the switch, since host code on x86-64 does not use it.

use std::{
    arch::naked_asm,
    cell::Cell,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::faults::{Crash, FixupTable};

/// Bytes of the stack a vCPU starts with; the sentry soon moves to its own.
const STACK_SIZE: usize = 256 << 10;
const GUARD_SIZE: usize = 4096;

/// What the assembly below and the signal handlers share. The assembly knows the offsets of the first seven words.
#[repr(C)]
pub(super) struct Switch {
    host_sp: u64,
    sentry_sp: u64,
    pub(super) op: u64,
    args: [u64; 4],
    pub(super) in_sentry: AtomicBool,
    pub(super) fixups: AtomicPtr<FixupTable>,
    pub(super) crash: Option<Crash>,
}

/// `Switch::op` when a signal handler ended the sentry.
pub(super) const OP_CRASH: u64 = u64::MAX;

thread_local! {
    static CURRENT: Cell<*mut Switch> = const { Cell::new(ptr::null_mut()) };
}

/// The switch of the coroutine this thread runs; null elsewhere. Async-signal-safe.
pub(super) extern "sysv64" fn current() -> *mut Switch {
    CURRENT.get()
}

/// What the sentry asked for.
#[derive(Clone, Copy, Debug)]
pub enum Yield {
    Call { op: u64, args: [u64; 4] },
    Crash,
}

pub struct Coroutine {
    switch: Box<Switch>,
    stack: *mut u8,
}

impl Coroutine {
    /// A coroutine of this thread that starts at `entry(a0, a1)` with an aligned stack.
    pub fn new(entry: u64, a0: u64, a1: u64, fixups: *mut FixupTable) -> Result<Coroutine> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK;
        let size = STACK_SIZE + GUARD_SIZE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let stack = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, flags)
                .context("mapping a vCPU's first stack")?
        };
        // SAFETY: the lowest page of the mapping made just above.
        unsafe { rustix::mm::mprotect(stack, GUARD_SIZE, MprotectFlags::empty()).context("guard page")? };
        let top = stack as u64 + size as u64;
        // As `switch_to_sentry` pops it: MXCSR, r15, r14, r13, r12, rbx, rbp, return address; `start` finds rsp aligned.
        let frame: [u64; 8] = [0x1f80, entry, 0, a1, a0, 0, 0, start as *const () as u64];
        let sentry_sp = top - 16 - 64;
        // SAFETY: inside the mapping's last page, aligned to 8.
        unsafe { ptr::write(sentry_sp as *mut [u64; 8], frame) };
        let switch = Box::new(Switch {
            host_sp: 0,
            sentry_sp,
            op: 0,
            args: [0; 4],
            in_sentry: AtomicBool::new(false),
            fixups: AtomicPtr::new(fixups),
            crash: None,
        });
        Ok(Coroutine { switch, stack: stack.cast() })
    }

    /// Runs the sentry until its next call; `value` is what its last call returns. The same thread every time.
    pub fn resume(&mut self, value: u64) -> Yield {
        let switch: *mut Switch = &mut *self.switch;
        CURRENT.set(switch);
        // SAFETY: `switch` is alive and only this thread uses it; `sentry_sp` is a frame that `new` or `para_entry` left.
        // The sentry's code is trusted as part of this process, as the design says of this backend.
        unsafe {
            (*switch).in_sentry.store(true, Ordering::Relaxed);
            switch_to_sentry(switch, value);
            (*switch).in_sentry.store(false, Ordering::Relaxed);
            match (*switch).op {
                OP_CRASH => Yield::Crash,
                op => Yield::Call { op, args: (*switch).args },
            }
        }
    }

    /// The registers of the fault that ended the sentry.
    pub fn crash(&self) -> Option<&Crash> {
        self.switch.crash.as_ref()
    }
}

impl Drop for Coroutine {
    fn drop(&mut self) {
        CURRENT.set(ptr::null_mut());
        // SAFETY: the mapping `new` made; the sentry does not run any more and host code has no pointer into it.
        let _ = unsafe { rustix::mm::munmap(self.stack.cast(), STACK_SIZE + GUARD_SIZE) };
    }
}

/// Sets this thread's GS base.
pub fn set_gs_base(base: u64) -> Result<()> {
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: changes only the GS base, which host code does not use.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("arch_prctl(ARCH_SET_GS)");
    }
    Ok(())
}

/// The address for `BootParams::para_entry`.
pub fn entry_address() -> u64 {
    para_entry as *const () as u64
}

/// `fn(op, a0, a1, a2, a3) -> u64`, called by the sentry on its stack.
#[unsafe(naked)]
unsafe extern "sysv64" fn para_entry(op: u64, a0: u64, a1: u64, a2: u64, a3: u64) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "mov rbx, rdi",
        "mov rbp, rsi",
        "mov r12, rdx",
        "mov r13, rcx",
        "mov r14, r8",
        "call {current}",
        "mov [rax + 16], rbx",
        "mov [rax + 24], rbp",
        "mov [rax + 32], r12",
        "mov [rax + 40], r13",
        "mov [rax + 48], r14",
        "mov [rax + 8], rsp",
        "mov rdi, rax",
        "jmp {leave}",
        current = sym current,
        leave = sym leave_sentry,
    )
}

/// Continues on the host stack behind `switch_to_sentry`. Signal handlers send a crashed sentry here.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn leave_sentry(switch: *mut Switch) -> ! {
    naked_asm!(
        "mov rsp, [rdi]",
        "cld",
        "ldmxcsr [rsp]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

#[unsafe(naked)]
unsafe extern "sysv64" fn switch_to_sentry(switch: *mut Switch, value: u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "mov [rdi], rsp",
        "mov rsp, [rdi + 8]",
        "mov rax, rsi",
        "ldmxcsr [rsp]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// First instructions of a coroutine: r12 and r13 are its arguments, r15 its entry.
#[unsafe(naked)]
unsafe extern "sysv64" fn start() -> ! {
    naked_asm!("mov rdi, r12", "mov rsi, r13", "xor ebp, ebp", "jmp r15")
}
