//! Moving a task's extended state between its area and the CPU (XSAVE, standard format). The XMM registers and MXCSR of a task
//! that has trapped are in its context (see [`super::entry`]); everything else of it is in the CPU.

use core::{
    arch::global_asm,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use sentry_abi::context::UserContext;

static FEATURES: AtomicU64 = AtomicU64::new(3);

/// Layout of an area (Intel SDM volume 1, 13.4).
const MXCSR: u64 = 24;
const XMM: u64 = 160;
const XSTATE_BV: u64 = 512;
const SSE: u64 = 1 << 1;
/// Bits of MXCSR that exist.
const MXCSR_MASK: u32 = 0xffff;

global_asm!(
    ".pushsection .text",
    // (area, features low, features high) -> 0, or 1 on a fault
    ".globl sentry_xrstor",
    ".hidden sentry_xrstor",
    "sentry_xrstor:",
    "    mov eax, esi",
    ".globl sentry_xrstor_at",
    ".hidden sentry_xrstor_at",
    "sentry_xrstor_at:",
    "    xrstor64 [rdi]",
    "    xor eax, eax",
    "    ret",
    ".globl sentry_xrstor_fault",
    ".hidden sentry_xrstor_fault",
    "sentry_xrstor_fault:",
    "    mov eax, 1",
    "    ret",
    ".popsection",
);

unsafe extern "sysv64" {
    fn sentry_xrstor(area: u64, low: u32, high: u32) -> u32;
    static sentry_xrstor_at: u8;
    static sentry_xrstor_fault: u8;
}

pub(super) fn init(xcr0: u64) {
    FEATURES.store(xcr0, Relaxed);
}

pub(super) fn fixup(rip: u64) -> Option<u64> {
    (rip == &raw const sentry_xrstor_at as u64).then_some(&raw const sentry_xrstor_fault as u64)
}

/// Loads the area into the CPU and, for XMM and MXCSR, into the context. False when the CPU refuses the area.
pub(super) fn load(ctx: &mut UserContext) -> bool {
    let features = FEATURES.load(Relaxed);
    // SAFETY: the task's area has the size of all features; a fault goes on at the fixup. Nothing in the kernel lives in the
    // registers that are loaded: XMM registers are caller-saved, and the kernel uses no others.
    let refused = unsafe { sentry_xrstor(ctx.xsave, features as u32, (features >> 32) as u32) } != 0;
    // SAFETY: the same area.
    unsafe {
        core::arch::asm!("ldmxcsr [{}]", in(reg) &0x1f80u32, options(nostack, preserves_flags, readonly));
        let present = *((ctx.xsave + XSTATE_BV) as *const u64);
        ctx.mxcsr = *((ctx.xsave + MXCSR) as *const u32) & MXCSR_MASK;
        ctx.xmm = if present & SSE != 0 { *((ctx.xsave + XMM) as *const [[u64; 2]; 16]) } else { [[0; 2]; 16] };
    }
    !refused
}

/// Stores the CPU's state, and XMM and MXCSR of the context, into the area.
pub(super) fn save(ctx: &mut UserContext) {
    let features = FEATURES.load(Relaxed);
    // SAFETY: the task's area has the size of all features and is 64-byte aligned; it is exclusively the task's.
    unsafe {
        core::arch::asm!(
            "xsave64 [{}]",
            in(reg) ctx.xsave,
            in("eax") features as u32,
            in("edx") (features >> 32) as u32,
            options(nostack, preserves_flags),
        );
        *((ctx.xsave + MXCSR) as *mut u32) = ctx.mxcsr;
        *((ctx.xsave + XMM) as *mut [[u64; 2]; 16]) = ctx.xmm;
        *((ctx.xsave + XSTATE_BV) as *mut u64) |= SSE;
    }
}
