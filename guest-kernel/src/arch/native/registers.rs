//! Control registers, MSRs, segment registers and the instructions around them.

use core::arch::asm;

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

fn read_kernel_gs_base() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the MSR exists on every CPU with long mode; reading has no effect.
    unsafe {
        asm!("rdmsr", in("ecx") MSR_KERNEL_GS_BASE, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
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

/// Sleeps until an interrupt has been handled.
pub(super) fn halt_until_interrupt() {
    // SAFETY: handlers only touch this CPU's pending word and APIC. STI takes effect behind the HLT, so nothing is missed. The
    // handlers use stacks of their own, but the compiler must not keep anything below the stack pointer: no `nostack`.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Handles the interrupts that are waiting, if any.
#[inline]
pub(super) fn open_interrupt_window() {
    // SAFETY: as above.
    unsafe { asm!("sti", "nop", "cli") };
}

/// Brings an address into the canonical form that the base registers demand.
fn canonical(address: u64) -> u64 {
    ((address << 16) as i64 >> 16) as u64
}

/// Loads the segment bases of a task. Data segment selectors mean nothing in 64-bit mode; what another task left there goes.
pub(super) fn load_segments(regs: &Registers) {
    // SAFETY: null selectors are valid in 64-bit mode. Loading GS clears its base, which holds the per-CPU pointer: it is put
    // back before anything uses it, with interrupts off and NMIs finding it by their stack.
    unsafe {
        asm!(
            "rdgsbase {kernel}",
            "mov ds, {zero:e}",
            "mov es, {zero:e}",
            "mov fs, {zero:e}",
            "mov gs, {zero:e}",
            "wrgsbase {kernel}",
            "wrfsbase {fs}",
            zero = in(reg) 0,
            kernel = out(reg) _,
            fs = in(reg) canonical(regs.fs_base),
            options(nostack, preserves_flags),
        );
        write_msr(MSR_KERNEL_GS_BASE, canonical(regs.gs_base));
    }
}

/// Reads the segment bases of the task that last ran.
pub(super) fn save_segments(regs: &mut Registers) {
    // SAFETY: reads a register; the boot state enables the instruction.
    unsafe { asm!("rdfsbase {}", out(reg) regs.fs_base, options(nomem, nostack, preserves_flags)) };
    regs.gs_base = read_kernel_gs_base();
}
