//! Calls of the ptrace backend that stand for privileged instructions.
//!
//! `para_entry(op, a0, a1, a2, a3) -> u64` switches from the sentry's stack to the vCPU thread's and back. The backend
//! keeps the sentry's callee-saved registers, MXCSR and GS base; everything else is clobbered as by a C call.
//!
//! Address spaces are named by the guest-physical address of their PML4 (`root`). Page tables are real x86-64 4-level
//! tables in kernel memory; entries point at user pages or at the window. A stub's host mappings are a TLB over them.

#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `(ctx: *mut UserContext, root) -> TrapKind`. Runs user code until it traps. Prefills around the last fault address of
    /// that address space.
    EnterUser = 1,
    /// `(ctx: *mut UserContext)`. Completes `ctx.regs` and sets `LOADED`.
    LoadRegisters = 2,
    /// `(ctx: *mut UserContext)`. Writes the vCPU's extended state of that task to `ctx.xsave` if this vCPU holds it.
    SaveXstate = 3,
    /// `(root)`. A stub for a new address space, empty. 0, or an errno.
    CreateSpace = 4,
    /// `(root)`. No vCPU is in it any more.
    DestroySpace = 5,
    /// `(root, start, len)`. Page table entries of `[start, start + len)` have changed; on return no vCPU uses the old ones.
    /// `(root, 0, u64::MAX)` flushes all of it.
    FlushRange = 6,
    /// `(deadline)`. Sleeps until an interrupt is pending or CLOCK_MONOTONIC reaches `deadline` ns (u64::MAX: no limit).
    Wait = 7,
    /// `(deadline)`. Makes the timer bit pending at CLOCK_MONOTONIC `deadline` ns; u64::MAX disarms.
    SetTimer = 8,
    /// `(cpu, bit)`. Makes an [`crate::irq`] bit pending on a vCPU and kicks it out of user mode or out of Wait.
    SendInterrupt = 9,
    /// `() -> word`. Takes (reads and clears) this vCPU's pending word.
    TakePending = 10,
    /// `(gpa, value)`: 32-bit MMIO write; `(gpa) -> value`: read.
    MmioWrite = 11,
    MmioRead = 12,
    /// `(port, value)`: 32-bit port write; `(port) -> value`.
    PioWrite = 13,
    PioRead = 14,
    /// `(start, end, table: *const FixupEntry, count)`. Code range of the sentry and its fixup table, once at boot: a
    /// SIGSEGV or SIGBUS whose rip is in a listed range resumes at that range's fixup.
    RegisterFixups = 15,
    /// `(gs_base)`: the sentry's per-CPU pointer, which the backend restores whenever the sentry runs.
    SetCpuBase = 16,
}

/// Instructions in `[start, end)` may fault; execution goes on at `fixup`. Offsets from the entry's own address, as in
/// Linux's exception table, so the table needs no relocation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FixupEntry {
    pub start: i32,
    pub end: i32,
    pub fixup: i32,
}
