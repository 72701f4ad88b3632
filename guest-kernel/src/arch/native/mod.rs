//! Ring 0 of a KVM guest: applications run in ring 3 of the same virtual machine, on hardware page tables.
//!
//! The kernel runs with interrupts off except in [`wait`] and for one instruction in [`take_pending`]. Every vector comes in on
//! an IST stack ([`descriptors`]); entry and exit are in [`entry`], what the kernel itself runs into is in [`trap`].

mod apic;
mod descriptors;
mod entry;
mod registers;
mod timer;
mod trap;
mod xsave;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use sentry_abi::{
    boot::BootParams,
    context::{TrapKind, UserContext, state, vector},
    irq::VECTOR_BASE,
    layout::PAGE_SIZE,
};

use self::registers::{read_cr3, write_cr3};
use super::percpu::{self, PerCpu};

/// This backend's part of the per-CPU block. The first three are used by the entry code.
#[repr(C)]
pub struct CpuState {
    /// Where the entry code keeps a user register for a moment.
    scratch: AtomicU64,
    /// The [`UserContext`] that user code was entered with.
    context: AtomicU64,
    /// Kernel stack pointer to return to.
    stack: AtomicU64,
    /// Interrupt bits (`sentry_abi::irq`) that have come in.
    pending: AtomicU64,
    /// The page table root in CR3.
    root: AtomicU64,
    /// Task (`UserContext::task`) whose extended state and segment bases the CPU's registers hold; 0: none.
    owner: AtomicU64,
    timer: timer::Timer,
}

impl CpuState {
    pub const fn new() -> Self {
        CpuState {
            scratch: AtomicU64::new(0),
            context: AtomicU64::new(0),
            stack: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            root: AtomicU64::new(0),
            owner: AtomicU64::new(0),
            timer: timer::Timer::new(),
        }
    }
}

impl Default for CpuState {
    fn default() -> Self {
        Self::new()
    }
}

/// The root without a user half.
static BOOT_ROOT: AtomicU64 = AtomicU64::new(0);

#[inline(always)]
fn this() -> &'static CpuState {
    &percpu::this().native
}

pub(super) fn init_cpu(index: usize, block: &'static PerCpu, params: &BootParams) {
    BOOT_ROOT.store(params.boot_root, Relaxed);
    xsave::init(params.xcr0);
    descriptors::load(index, block);
    entry::init();
    block.native.root.store(read_cr3(), Relaxed);
    apic::init();
}

/// Flags that programs may have set; the others have their fixed values in user mode.
const USER_FLAGS: u64 = 0x0024_0dd5 | TRAP_FLAG;
const TRAP_FLAG: u64 = 1 << 8;
const INTERRUPT_FLAG: u64 = 1 << 9;
const FIXED_FLAGS: u64 = INTERRUPT_FLAG | 2;
/// Beyond it, SYSRET would fault in ring 0 on some CPUs.
const CANONICAL_END: u64 = 1 << 47;
/// `int 0x80`.
const VECTOR_INT80: u32 = 0x80;

pub(super) fn enter_user(ctx: &mut UserContext, root: u64) -> TrapKind {
    let cpu = this();
    // What this CPU sent to itself did not come as an interrupt.
    if cpu.pending.load(Relaxed) != 0 {
        return TrapKind::Interrupt;
    }
    if cpu.root.load(Relaxed) != root {
        load_root(cpu, root);
    }
    let held = cpu.owner.load(Relaxed) == ctx.task;
    if !held || ctx.xsave_dirty != 0 {
        if !xsave::load(ctx) {
            // A program edited its signal frame's extended state into something the CPU refuses.
            return exception(ctx, vector::GP);
        }
        ctx.xsave_dirty = 0;
    }
    if !held || ctx.state & state::DIRTY != 0 {
        registers::load_segments(&ctx.regs);
    }
    cpu.owner.store(ctx.task, Relaxed);

    let regs = &mut ctx.regs;
    regs.rflags = regs.rflags & USER_FLAGS | FIXED_FLAGS;
    // SYSRET takes rip from rcx and the flags from r11.
    let fast =
        regs.rcx == regs.rip && regs.r11 == regs.rflags && regs.rip < CANONICAL_END && regs.rflags & TRAP_FLAG == 0;
    // From here the CPU holds the segment bases.
    ctx.state = 0;
    // SAFETY: the context is exclusively ours; the root has the kernel's half, so the code goes on mapped; the entry code
    // comes back here with every callee-saved register restored.
    if unsafe { entry::run_user(ctx, fast) } == entry::SYSCALL {
        return TrapKind::Syscall;
    }
    match ctx.vector {
        VECTOR_INT80 => TrapKind::ForeignSyscall,
        trap::NMI => TrapKind::Interrupt,
        trap::MACHINE_CHECK => {
            ctx.vector = vector::FILE_PAST_END;
            TrapKind::Exception
        }
        0..32 => TrapKind::Exception,
        number => {
            trap::interrupt(number);
            TrapKind::Interrupt
        }
    }
}

fn exception(ctx: &mut UserContext, vector: u32) -> TrapKind {
    ctx.vector = vector;
    ctx.error_code = 0;
    ctx.address = 0;
    TrapKind::Exception
}

/// Completes `ctx.regs`: a trap leaves the segment bases in the CPU.
pub(super) fn load_registers(ctx: &mut UserContext) {
    if ctx.state & state::LOADED == 0 {
        if this().owner.load(Relaxed) == ctx.task {
            registers::save_segments(&mut ctx.regs);
        }
        ctx.state |= state::LOADED;
    }
}

pub(super) fn save_xstate(ctx: &mut UserContext) {
    let cpu = this();
    if cpu.owner.load(Relaxed) == ctx.task {
        load_registers(ctx);
        if ctx.xsave_dirty == 0 {
            xsave::save(ctx);
        }
        // The task may go on elsewhere, or the area may be changed: it is loaded before the task runs again.
        cpu.owner.store(0, Relaxed);
    }
}

fn load_root(cpu: &CpuState, root: u64) {
    cpu.root.store(root, Relaxed);
    // SAFETY: every root shares the kernel's half.
    unsafe { write_cr3(root) };
}

/// No address space stays loaded: the one that is may be freed at any time from now on.
pub(super) fn unload_space() {
    let cpu = this();
    let root = BOOT_ROOT.load(Relaxed);
    if cpu.root.load(Relaxed) != root {
        load_root(cpu, root);
    }
}

/// The address space may not stay loaded: its tables are about to be freed.
pub(super) fn leave_space(root: u64) {
    if this().root.load(Relaxed) == root {
        unload_space();
    }
}

pub(super) fn flush(root: u64, start: u64, len: u64) {
    /// More pages than this cost more one by one than the refills after dropping everything.
    const FEW: u64 = 16 * PAGE_SIZE;
    let cpu = this();
    // Loading another root drops everything of this one.
    if cpu.root.load(Relaxed) != root {
        return;
    }
    if len > FEW {
        load_root(cpu, root);
        return;
    }
    let mut address = start & !(PAGE_SIZE - 1);
    while address < start + len {
        registers::invalidate_page(address);
        address += PAGE_SIZE;
    }
}

pub(super) fn wait(deadline: u64) {
    let cpu = this();
    unload_space();
    loop {
        timer::arm_for_wait(&cpu.timer, deadline);
        // Interrupts are off: one that is on its way ends the HLT at once.
        if cpu.pending.load(SeqCst) != 0 || crate::time::monotonic() >= deadline {
            break;
        }
        registers::halt_until_interrupt();
    }
    timer::restore(&cpu.timer);
}

pub(super) fn set_timer(deadline: u64) {
    timer::set(&this().timer, deadline);
}

pub(super) fn send_interrupt(cpu: usize, bit: u32) {
    super::percpu::block(cpu).native.pending.fetch_or(1 << bit, SeqCst);
    if cpu != super::cpu_index() {
        apic::send(cpu, trap::VECTOR_KICK);
    }
}

pub(super) fn take_pending() -> u64 {
    let pending = &this().pending;
    if pending.load(Relaxed) == 0 {
        // Lets in what the local APIC holds back while interrupts are off.
        registers::open_interrupt_window();
    }
    pending.swap(0, SeqCst)
}

/// Makes the bit of an interrupt vector pending on this CPU.
fn set_pending(vector: u32) {
    this().pending.fetch_or(1 << (vector - u32::from(VECTOR_BASE)), SeqCst);
}
