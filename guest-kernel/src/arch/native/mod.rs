//! Ring 0 of a KVM guest.

use sentry_abi::{
    boot::BootParams,
    context::{TrapKind, UserContext},
};

use super::percpu::PerCpu;

/// This backend's part of the per-CPU block.
#[repr(C)]
pub struct CpuState {
    _reserved: [u64; 8],
}

impl CpuState {
    pub const fn new() -> Self {
        CpuState { _reserved: [0; 8] }
    }
}

impl Default for CpuState {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) fn init_cpu(_index: usize, _block: &'static PerCpu, _params: &BootParams) {}
pub(super) fn enter_user(_ctx: &mut UserContext, _root: u64) -> TrapKind {
    TrapKind::Dead
}
pub(super) fn save_xstate(_ctx: &mut UserContext) {}
/// The address space may not stay loaded: its tables are about to be freed.
pub(super) fn leave_space(_root: u64) {}
pub(super) fn flush(_root: u64, _start: u64, _len: u64) {}
pub(super) fn wait(_deadline: u64) {}
pub(super) fn set_timer(_deadline: u64) {}
pub(super) fn send_interrupt(_cpu: usize, _bit: u32) {}
pub(super) fn take_pending() -> u64 {
    0
}
