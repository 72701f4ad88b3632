//! Control registers, MSRs, segment registers and the instructions around them.

use core::arch::{asm, global_asm};

use sentry_abi::context::Registers;

pub(super) const MSR_GS_BASE: u32 = 0xc000_0101;
pub(super) const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// # Safety
/// The MSR exists and the value does not take away what the kernel runs on.
#[inline]
pub(super) unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

pub(super) fn read_cr3() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// # Safety
/// `root` is a PML4 that maps the kernel as the current one does.
#[inline]
pub(super) unsafe fn write_cr3(root: u64) {
    // SAFETY: the caller's contract. Not `nomem`: what page tables map may change.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

pub(super) fn read_cr2() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

#[inline]
pub(super) fn invalidate_page(address: u64) {
    // SAFETY: drops a translation; the next access walks the page table.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

global_asm!(
    ".pushsection .text",
    ".globl sentry_halt",
    ".hidden sentry_halt",
    "sentry_halt:",
    "    sti",
    ".globl sentry_halt_hlt",
    ".hidden sentry_halt_hlt",
    "sentry_halt_hlt:",
    "    hlt",
    ".globl sentry_halt_end",
    ".hidden sentry_halt_end",
    "sentry_halt_end:",
    "    cli",
    "    ret",
    ".popsection",
);

unsafe extern "sysv64" {
    fn sentry_halt();
    static sentry_halt_hlt: u8;
    static sentry_halt_end: u8;
}

/// Sleeps until an interrupt has been handled.
pub(super) fn halt_until_interrupt() {
    // SAFETY: handlers only touch this CPU's pending word and APIC, on stacks of their own. STI takes effect behind the HLT, and
    // where it did not, `behind_halt` skips the HLT: nothing is missed.
    unsafe { sentry_halt() };
}

/// Where an interrupt that came at `rip` returns to. One between the STI and the HLT was to end the HLT: QEMU's SVM forgets at
/// VMRUN that the STI still holds interrupts back.
pub(super) fn behind_halt(rip: u64) -> u64 {
    if rip == &raw const sentry_halt_hlt as u64 { &raw const sentry_halt_end as u64 } else { rip }
}

/// Handles the interrupts that are waiting, if any.
#[inline]
pub(super) fn open_interrupt_window() {
    // SAFETY: as above. The compiler must not keep anything below the stack pointer: no `nostack`.
    unsafe { asm!("sti", "nop", "cli") };
}

/// Brings an address into the canonical form that the base registers demand.
fn canonical(address: u64) -> u64 {
    ((address << 16) as i64 >> 16) as u64
}

/// Loads the segment bases of a task. Data segment selectors mean nothing in 64-bit mode; what another task left there goes.
/// The user's GS base is on the other side of SWAPGS, which is cheaper to visit than its MSR.
pub(super) fn load_segments(regs: &Registers) {
    // SAFETY: null selectors are valid in 64-bit mode. Loading GS clears its base, which holds the per-CPU pointer: it is put
    // back before anything uses it, with interrupts off; traps find the per-CPU block by their stack.
    unsafe {
        asm!(
            "rdgsbase {kernel}",
            "mov ds, {zero:e}",
            "mov es, {zero:e}",
            "mov fs, {zero:e}",
            "mov gs, {zero:e}",
            "wrgsbase {kernel}",
            "wrfsbase {fs}",
            "swapgs",
            "wrgsbase {gs}",
            "swapgs",
            zero = in(reg) 0,
            kernel = out(reg) _,
            fs = in(reg) canonical(regs.fs_base),
            gs = in(reg) canonical(regs.gs_base),
            options(nostack, preserves_flags),
        );
    }
}

/// Reads the segment bases of the task that last ran.
pub(super) fn save_segments(regs: &mut Registers) {
    // SAFETY: reads registers; the boot state enables the instructions. Between the two SWAPGS, with interrupts off, nothing
    // uses GS; traps find the per-CPU block by their stack.
    unsafe {
        asm!(
            "rdfsbase {fs}",
            "swapgs",
            "rdgsbase {gs}",
            "swapgs",
            fs = out(reg) regs.fs_base,
            gs = out(reg) regs.gs_base,
            options(nomem, nostack, preserves_flags),
        );
    }
}
