//! The seam between the VMM and what executes the sentry. Two implementations exist: `kvm::KvmVm` in this crate and
//! `ptrace_fallback::PtraceVm`. Everything above is written once against these traits.

use std::{os::fd::OwnedFd, sync::Arc};

use vmm_sys_util::eventfd::EventFd;

pub type Result<T> = anyhow::Result<T>;

/// What the boot parameters say about the backend.
#[derive(Clone, Copy, Debug)]
pub struct Platform {
    pub backend: sentry_abi::boot::Backend,
    /// Virtual address at which the sentry sees guest-physical address 0.
    pub direct_base: u64,
    /// See `sentry_abi::boot::BootParams`; 0 where the backend has none.
    pub para_entry: u64,
    pub boot_root: u64,
    /// Extended state that applications may use ([`crate::xstate`]).
    pub xstate: crate::xstate::Xstate,
}

/// A virtual machine: memory is in place when it is made, vCPUs are made from it.
pub trait Vm: Send + Sync {
    fn platform(&self) -> Platform;

    /// Makes vCPU `index`. It starts at `entry.rip` with the arguments of `sentry_abi::boot` when first run. Called on the
    /// thread that will run it.
    fn create_vcpu(&self, index: u32, entry: Entry) -> Result<Box<dyn Vcpu>>;

    /// A 32-bit write of `datamatch` to guest-physical `addr` signals `fd` and is no exit.
    fn register_ioevent(&self, fd: &EventFd, addr: u64, datamatch: u32) -> Result<()>;

    /// Each signal of `fd` sets bit `irq` (see `sentry_abi::irq`) on vCPU 0 and wakes it.
    fn register_irq(&self, fd: EventFd, irq: u32) -> Result<()>;

    /// Sets an interrupt bit on a vCPU from any VMM thread.
    fn raise_irq(&self, cpu: u32, irq: u32) -> Result<()>;

    /// Places `len` bytes of `file` from `offset` at `window_offset` (all page aligned); `writable` maps shared and writable.
    fn window_map(&self, window_offset: u64, file: &Arc<OwnedFd>, offset: u64, len: u64, writable: bool) -> Result<()>;

    /// Puts zero pages back and removes every translation of the range.
    fn window_unmap(&self, window_offset: u64, len: u64) -> Result<()>;

    /// The filter that vCPU threads get once their vCPU is made; none when the backend confines them itself.
    fn vcpu_role(&self) -> Option<crate::seccomp::Role> {
        None
    }

    /// What stops vCPUs from any thread, the run loop's way to end.
    fn kicker(&self) -> Arc<dyn Kick>;

    /// Name and value of the backend's own counters, in the order of `sentry_abi::counters`.
    fn counters(&self) -> Vec<(sentry_abi::counters::Counter, u64)>;
}

/// A vCPU, owned by one thread.
pub trait Vcpu {
    /// Runs the sentry (and through it applications) until the VMM has something to do. The next call continues behind the
    /// exit; a read's answer goes into its `data` first.
    fn run(&mut self) -> Result<Exit<'_>>;

    /// A report of where the vCPU stands, for panics and `debug --stacks`.
    fn describe(&self) -> String;
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug)]
pub enum Exit<'a> {
    MmioRead {
        addr: u64,
        data: &'a mut [u8],
    },
    MmioWrite {
        addr: u64,
        data: &'a [u8],
    },
    PioRead {
        port: u16,
        data: &'a mut [u8],
    },
    PioWrite {
        port: u16,
        data: &'a [u8],
    },
    /// A kick from [`Kick::kick`], or a signal.
    Interrupted,
    /// The sentry cannot go on (triple fault, internal error of KVM, fatal signal in sentry code): the text says why.
    Failed(String),
}

/// Stops vCPUs: their `run` returns [`Exit::Interrupted`] soon, also when the request comes just before the call.
pub trait Kick: Send + Sync {
    fn kick(&self, cpu: u32);
}

/// Where a vCPU starts. Virtual addresses.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub rip: u64,
    /// `rdi`: the boot parameters.
    pub params: u64,
}
