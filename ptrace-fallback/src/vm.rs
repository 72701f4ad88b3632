//! The virtual machine of the ptrace backend: what its vCPUs share.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, ensure};
use sentry_abi::{
    boot::{Backend, MAX_CPUS},
    counters::Counter,
    layout::PAGE_SIZE,
};
use vmm::{
    memory::GuestMemory,
    seccomp::Role,
    vcpu::{Entry, Kick, Platform, Vcpu, Vm},
};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    events::Events,
    files::StubFiles,
    host::{coroutine, faults::FixupTable, guest::KernelMemory},
    interrupt::CpuState,
    space::Space,
    vcpu::PtraceVcpu,
    zygote::Zygote,
};

/// The backend's counters, first to last in `sentry_abi::counters`.
const FIRST_COUNTER: usize = Counter::StubStops as usize;
const COUNTERS: [Counter; 6] = [
    Counter::StubStops,
    Counter::StubFills,
    Counter::StubFillPages,
    Counter::StubFlushes,
    Counter::StubRemoteCalls,
    Counter::StubsCreated,
];

struct IoEvent {
    addr: u64,
    datamatch: u32,
    fd: EventFd,
}

pub(crate) struct Shared {
    pub memory: Arc<GuestMemory>,
    pub kernel: KernelMemory,
    pub cpus: Arc<[CpuState]>,
    pub events: Arc<Events>,
    pub fixups: FixupTable,
    /// Size of the sentry's extended-state areas.
    pub xsave_size: usize,
    pub files: Mutex<StubFiles>,
    /// Grows with every space destroyed: vCPUs that see it change let go of their threads there.
    pub destroyed: AtomicU64,
    spaces: Mutex<HashMap<u64, Arc<Space>>>,
    ioevents: RwLock<Vec<IoEvent>>,
    counters: [AtomicU64; COUNTERS.len()],
    pub zygote: Zygote,
}

impl Shared {
    pub fn count(&self, counter: Counter, by: u64) {
        self.counters[counter as usize - FIRST_COUNTER].fetch_add(by, Relaxed);
    }

    pub fn spaces(&self) -> MutexGuard<'_, HashMap<u64, Arc<Space>>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn files(&self) -> MutexGuard<'_, StubFiles> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals the event registered for a write; false if there is none.
    pub fn signal_ioevent(&self, addr: u64, value: u32) -> bool {
        let ioevents = self.ioevents.read().unwrap_or_else(PoisonError::into_inner);
        let Some(event) = ioevents.iter().find(|event| event.addr == addr && event.datamatch == value) else {
            return false;
        };
        // Only a counter at its limit fails, and then the event is signalled anyway.
        let _ = event.fd.write(1);
        true
    }
}

/// See the crate's documentation.
pub struct PtraceVm {
    shared: Arc<Shared>,
}

impl PtraceVm {
    /// Makes the zygote stub, by a fork: call it before the process has other threads, on a thread that lives as long as the
    /// sandbox (the stubs end with it). `memory` must have its user pages in a memfd.
    pub fn new(memory: Arc<GuestMemory>, cpus: u32) -> Result<Arc<PtraceVm>> {
        ensure!((1..=MAX_CPUS as u32).contains(&cpus), "{cpus} vCPUs: not between 1 and {MAX_CPUS}");
        let zygote = Zygote::new(&memory, cpus)?;
        let states: Arc<[CpuState]> = (0..cpus).map(|_| CpuState::new()).collect::<Result<_>>()?;
        let shared = Shared {
            kernel: KernelMemory::new(memory.clone()),
            memory,
            events: Events::new(states.clone())?,
            cpus: states,
            fixups: FixupTable::default(),
            xsave_size: vmm::xstate::host(u64::MAX).size as usize,
            files: Mutex::default(),
            destroyed: AtomicU64::new(0),
            spaces: Mutex::default(),
            ioevents: RwLock::default(),
            counters: Default::default(),
            zygote,
        };
        Ok(Arc::new(PtraceVm { shared: Arc::new(shared) }))
    }

    fn check_cpu(&self, cpu: u32) -> Result<&CpuState> {
        self.shared.cpus.get(cpu as usize).with_context(|| format!("no vCPU {cpu}"))
    }
}

/// The address for `BootParams::para_entry`.
pub fn entry() -> u64 {
    coroutine::entry_address()
}

impl Vm for PtraceVm {
    fn platform(&self) -> Platform {
        Platform {
            backend: Backend::Para,
            direct_base: self.shared.memory.direct_base(),
            para_entry: entry(),
            boot_root: 0,
            xstate: vmm::xstate::host(u64::MAX),
        }
    }

    fn create_vcpu(&self, index: u32, entry: Entry) -> Result<Box<dyn Vcpu>> {
        self.check_cpu(index)?;
        self.shared.events.start()?;
        Ok(Box::new(PtraceVcpu::new(self.shared.clone(), index, entry)?))
    }

    fn register_ioevent(&self, fd: &EventFd, addr: u64, datamatch: u32) -> Result<()> {
        let fd = fd.try_clone().context("duplicating an eventfd")?;
        self.shared.ioevents.write().unwrap_or_else(PoisonError::into_inner).push(IoEvent { addr, datamatch, fd });
        Ok(())
    }

    fn register_irq(&self, fd: EventFd, irq: u32) -> Result<()> {
        ensure!(irq < u64::BITS, "interrupt bit {irq}");
        self.shared.events.add_irq(fd, irq)
    }

    fn raise_irq(&self, cpu: u32, irq: u32) -> Result<()> {
        ensure!(irq < u64::BITS, "interrupt bit {irq}");
        self.check_cpu(cpu)?.raise(irq);
        Ok(())
    }

    fn window_map(&self, window_offset: u64, file: &Arc<OwnedFd>, offset: u64, len: u64, writable: bool) -> Result<()> {
        self.shared.memory.window_map(window_offset, file, offset, len, writable)
    }

    fn window_unmap(&self, window_offset: u64, len: u64) -> Result<()> {
        ensure!(window_offset.is_multiple_of(PAGE_SIZE), "window offset {window_offset:#x} is not page aligned");
        // The sentry has cleared and flushed its entries, as a CPU would want it too; and before user code runs again in a
        // space whose flush was put off, that is made up for.
        self.shared.memory.window_unmap(window_offset, len)
    }

    fn vcpu_role(&self) -> Option<Role> {
        Some(Role::VcpuPtrace)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(Kicker(self.shared.cpus.clone()))
    }

    fn counters(&self) -> Vec<(Counter, u64)> {
        COUNTERS.into_iter().zip(&self.shared.counters).map(|(name, value)| (name, value.load(Relaxed))).collect()
    }
}

impl Drop for PtraceVm {
    fn drop(&mut self) {
        self.shared.events.stop();
    }
}

struct Kicker(Arc<[CpuState]>);

impl Kick for Kicker {
    fn kick(&self, cpu: u32) {
        if let Some(state) = self.0.get(cpu as usize) {
            state.request_stop();
        }
    }
}
