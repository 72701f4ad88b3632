//! The ptrace backend's side: operations are calls to an address in the boot parameters.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sentry_abi::{
    context::{TrapKind, UserContext},
    para::Op,
};

type Entry = extern "sysv64" fn(u64, u64, u64, u64, u64) -> u64;

static ENTRY: AtomicU64 = AtomicU64::new(0);

pub(super) fn init(entry: u64) {
    ENTRY.store(entry, Relaxed);
}

#[inline]
pub(super) fn call(op: Op, a0: u64, a1: u64, a2: u64, a3: u64) -> u64 {
    // SAFETY: the VMM put the address of a function of this type into the boot parameters, and `init` stored it before
    // the backend was set to para.
    let entry = unsafe { core::mem::transmute::<u64, Entry>(ENTRY.load(Relaxed)) };
    entry(op as u64, a0, a1, a2, a3)
}

#[inline]
pub(super) fn enter_user(ctx: &mut UserContext, root: u64) -> TrapKind {
    match call(Op::EnterUser, ctx as *mut _ as u64, root, 0, 0) {
        1 => TrapKind::Syscall,
        2 => TrapKind::Exception,
        3 => TrapKind::Interrupt,
        4 => TrapKind::ForeignSyscall,
        _ => TrapKind::Dead,
    }
}
