//! Getting a vCPU out of KVM_RUN from another thread: `immediate_exit` covers a kick that comes before the system call, a signal
//! one that comes during it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU8, Ordering::SeqCst},
};

use anyhow::{Context, Result};
use kvm_bindings::kvm_run;
use sentry_abi::boot::MAX_CPUS;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::vcpu::Kick;

/// Where a vCPU runs.
struct Target {
    thread: libc::pthread_t,
    run: *mut kvm_run,
}

// SAFETY: the pointer is used only under the table's lock, while the vCPU that it belongs to is alive (see `Kicks::leave`).
unsafe impl Send for Target {}

pub(super) struct Kicks {
    targets: [Mutex<Option<Target>>; MAX_CPUS],
}

impl Default for Kicks {
    fn default() -> Self {
        Kicks { targets: [const { Mutex::new(None) }; MAX_CPUS] }
    }
}

impl Kicks {
    /// The calling thread runs vCPU `cpu`, whose shared page is `run`, until it calls [`Kicks::leave`].
    pub fn enter(&self, cpu: u32, run: *mut kvm_run) {
        unblock_signal();
        // SAFETY: always succeeds.
        let thread = unsafe { libc::pthread_self() };
        self.set(cpu, Some(Target { thread, run }));
    }

    pub fn leave(&self, cpu: u32) {
        self.set(cpu, None);
    }

    fn set(&self, cpu: u32, target: Option<Target>) {
        if let Some(slot) = self.targets.get(cpu as usize) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = target;
        }
    }
}

impl Kick for Kicks {
    fn kick(&self, cpu: u32) {
        let Some(slot) = self.targets.get(cpu as usize) else { return };
        let target = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = &*target {
            set_immediate_exit(target.run, true);
            // SAFETY: the thread is alive: it leaves the table, which is locked, before it ends.
            unsafe { libc::pthread_kill(target.thread, SIGRTMIN()) };
        }
    }
}

/// Makes the next KVM_RUN of the vCPU return at once, or not.
pub(super) fn set_immediate_exit(run: *mut kvm_run, value: bool) {
    // SAFETY: `run` is the mapped page of a live vCPU; the byte is only ever accessed atomically here and by the kernel.
    let flag = unsafe { AtomicU8::from_ptr(&raw mut (*run).immediate_exit) };
    flag.store(value.into(), SeqCst);
}

/// Whoever started this process may have blocked the signal, and then it would not interrupt.
fn unblock_signal() {
    // SAFETY: the set is initialised by the first call and used by the others; only this thread's mask changes.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, SIGRTMIN());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}

/// The signal needs a handler, so that it interrupts and does not kill.
pub(super) fn install_handler() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).context("handler of the kick signal")
}
