//! The per-CPU block that GS points at while the sentry runs.

use core::sync::atomic::{AtomicU32, AtomicU64};

use sentry_abi::boot::MAX_CPUS;

use super::{Backend, backend, native};

/// Fields up to `native` are read by assembly at fixed offsets.
#[repr(C, align(64))]
pub struct PerCpu {
    /// Offset 0: the block's own address, so that `mov rax, gs:0` finds it.
    self_pointer: AtomicU64,
    pub index: u32,
    /// Spin locks held, for the debug checks.
    pub spin_depth: AtomicU32,
    pub native: native::CpuState,
}

static BLOCKS: [PerCpu; MAX_CPUS] = {
    const fn blocks() -> [PerCpu; MAX_CPUS] {
        let mut blocks = [const {
            PerCpu {
                self_pointer: AtomicU64::new(0),
                index: 0,
                spin_depth: AtomicU32::new(0),
                native: native::CpuState::new(),
            }
        }; MAX_CPUS];
        let mut i = 0;
        while i < MAX_CPUS {
            blocks[i].index = i as u32;
            i += 1;
        }
        blocks
    }
    blocks()
};

pub(super) fn block(index: usize) -> &'static PerCpu {
    let block = &BLOCKS[index];
    block.self_pointer.store(block as *const _ as u64, core::sync::atomic::Ordering::Relaxed);
    block
}

/// The block of the CPU this runs on.
#[inline(always)]
pub fn this() -> &'static PerCpu {
    if backend() == Backend::Hosted {
        return &BLOCKS[0];
    }
    let block: *const PerCpu;
    // SAFETY: `init_cpu` pointed GS at this CPU's block, whose first word is its own address; blocks are never freed. The
    // asm is not `pure`: a task that blocks may go on on another CPU.
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) block, options(nostack, preserves_flags, readonly));
        &*block
    }
}
