//! Signal dispositions: what sigaction(2) sets, shared by the threads of a process (and by CLONE_SIGHAND).

use alloc::sync::Arc;

use super::set::{DefaultAction, SIGNALS, SigSet, default_action};
use crate::sync::SpinLock;

pub const SA_NOCLDSTOP: u64 = 1;
pub const SA_NOCLDWAIT: u64 = 2;
pub const SA_SIGINFO: u64 = 4;
pub const SA_RESTORER: u64 = 0x0400_0000;
pub const SA_ONSTACK: u64 = 0x0800_0000;
pub const SA_RESTART: u64 = 0x1000_0000;
pub const SA_NODEFER: u64 = 0x4000_0000;
pub const SA_RESETHAND: u64 = 0x8000_0000;
/// Bits Linux keeps on x86-64; the others are cleared so that a program can tell (SA_UNSUPPORTED).
const KNOWN: u64 = SA_NOCLDSTOP
    | SA_NOCLDWAIT
    | SA_SIGINFO
    | SA_RESTORER
    | SA_ONSTACK
    | SA_RESTART
    | SA_NODEFER
    | SA_RESETHAND
    | 0x800;

pub const SIG_DFL: u64 = 0;
pub const SIG_IGN: u64 = 1;

/// The kernel's struct sigaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct Action {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

impl Action {
    pub fn is_ignored(&self, signal: u32) -> bool {
        match self.handler {
            SIG_IGN => true,
            SIG_DFL => default_action(signal) == DefaultAction::Ignore,
            _ => false,
        }
    }

    /// As the kernel stores it.
    pub fn cleaned(mut self) -> Self {
        self.flags &= KNOWN;
        self.mask = SigSet(self.mask).without(SigSet::UNBLOCKABLE).0;
        self
    }
}

pub struct Handlers {
    actions: SpinLock<[Action; SIGNALS as usize]>,
}

impl Handlers {
    pub fn new() -> Arc<Self> {
        Arc::new(Handlers { actions: SpinLock::new([Action::default(); SIGNALS as usize]) })
    }

    pub fn get(&self, signal: u32) -> Action {
        self.actions.lock().get(signal as usize).copied().unwrap_or_default()
    }

    /// Sets and returns the old one. `signal` is valid.
    pub fn set(&self, signal: u32, action: Action) -> Action {
        match self.actions.lock().get_mut(signal as usize) {
            Some(slot) => core::mem::replace(slot, action),
            None => Action::default(),
        }
    }

    pub fn duplicate(&self) -> Arc<Self> {
        Arc::new(Handlers { actions: SpinLock::new(*self.actions.lock()) })
    }

    /// Those after exec: handlers become the default, ignored signals stay ignored.
    pub fn after_exec(&self) -> Arc<Self> {
        let new = Self::new();
        for (slot, old) in new.actions.lock().iter_mut().zip(self.actions.lock().iter()) {
            if old.handler == SIG_IGN {
                slot.handler = SIG_IGN;
            }
        }
        new
    }

    /// CLONE_CLEAR_SIGHAND.
    pub fn cleared(&self) -> Arc<Self> {
        self.after_exec()
    }

    /// Signals that are caught and those ignored, for /proc/pid/status.
    pub fn summary(&self) -> (SigSet, SigSet) {
        let (mut caught, mut ignored) = (SigSet::EMPTY, SigSet::EMPTY);
        for (signal, action) in (0u32..).zip(self.actions.lock().iter()).skip(1) {
            match action.handler {
                SIG_DFL => {}
                SIG_IGN => ignored = ignored.with(signal),
                _ => caught = caught.with(signal),
            }
        }
        (caught, ignored)
    }
}
