//! The KVM backend: the sentry runs in ring 0 of a guest, applications in ring 3, on hardware page tables.
//!
//! The guest has no firmware, no PIC, PIT or IOAPIC: a split irqchip whose local APICs live in the kernel, interrupts as MSIs,
//! queue notifications as ioeventfds. Memory slots are set once and never change; files come and go in the window by mmap.

mod cpuid;
mod entry;
mod ioctl;
mod kick;
pub mod probe;
mod tables;
mod vcpu;

use std::{
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    CpuId, KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use sentry_abi::{boot::Backend, counters::Counter, irq::VECTOR_BASE, layout::KVM_DIRECT_BASE};
use vmm_sys_util::eventfd::EventFd;

pub use self::probe::probe;
use self::{kick::Kicks, vcpu::KvmVcpu};
use crate::{
    memory::GuestMemory,
    seccomp::Role,
    vcpu::{Entry, Kick, Platform, Vcpu, Vm},
    xstate::{self, Xstate},
};

const API_VERSION: i32 = 12;
/// GSIs below belong to the IOAPIC that nobody has.
const FIRST_GSI: u32 = 24;
/// In the hole below 4 GB, behind the MMIO pages: three pages and one that Intel's KVM wants for itself.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

pub struct KvmVm {
    vm: VmFd,
    memory: Arc<GuestMemory>,
    cpuid: CpuId,
    xstate: Xstate,
    routes: Mutex<Vec<kvm_irq_routing_entry>>,
    kicks: Arc<Kicks>,
    runs: Arc<AtomicU64>,
}

impl KvmVm {
    /// A virtual machine over `memory`; opens /dev/kvm.
    pub fn new(memory: Arc<GuestMemory>) -> Result<KvmVm> {
        KvmVm::on(&Kvm::new().context("opening /dev/kvm")?, memory)
    }

    /// The same with a descriptor of /dev/kvm that was opened before (the process's root may have none).
    pub fn with_device(device: OwnedFd, memory: Arc<GuestMemory>) -> Result<KvmVm> {
        // SAFETY: ownership of an open descriptor moves in; a descriptor of something else fails the version check.
        let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
        KvmVm::on(&kvm, memory)
    }

    fn on(kvm: &Kvm, memory: Arc<GuestMemory>) -> Result<KvmVm> {
        let missing = missing(kvm);
        ensure!(missing.is_empty(), "KVM on this host lacks {}", missing.join(", "));
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
        let xstate = xstate::host(cpuid::supported_xcr0(&supported));
        let cpuid = cpuid::for_guest(&supported, xstate, kvm.check_extension(Cap::TscDeadlineTimer))?;

        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        vm.set_tss_address(TSS_ADDRESS).context("KVM_SET_TSS_ADDR")?;
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).context("KVM_SET_IDENTITY_MAP_ADDR")?;
        let split =
            kvm_enable_cap { cap: Cap::SplitIrqchip as u32, args: [FIRST_GSI.into(), 0, 0, 0], ..Default::default() };
        vm.enable_cap(&split).context("KVM_CAP_SPLIT_IRQCHIP")?;
        let ids = u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
        let x2apic = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args: [ids, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&x2apic).context("KVM_CAP_X2APIC_API")?;
        for (slot, region) in memory.regions().into_iter().enumerate() {
            ioctl::set_slot(&vm, slot as u32, region.gpa, region.size, region.host)
                .with_context(|| format!("memory slot of {:?} memory", region.kind))?;
        }
        tables::write(&memory, cpuid::has_gigabyte_pages(&cpuid))?;
        kick::install_handler()?;
        Ok(KvmVm {
            vm,
            memory,
            cpuid,
            xstate,
            routes: Mutex::new(Vec::new()),
            kicks: Arc::new(Kicks::default()),
            runs: Arc::new(AtomicU64::new(0)),
        })
    }
}

/// What of KVM the backend cannot do without and this host does not have.
fn missing(kvm: &Kvm) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if kvm.get_api_version() != API_VERSION {
        missing.push("API version 12");
        return missing;
    }
    let wanted = [
        (Cap::UserMemory, "user memory slots"),
        (Cap::SplitIrqchip, "the split irqchip"),
        (Cap::Irqfd, "irqfd"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::SignalMsi, "KVM_SIGNAL_MSI"),
        (Cap::ImmediateExit, "immediate_exit"),
        (Cap::Xcrs, "XCR0"),
        (Cap::ExtCpuid, "KVM_GET_SUPPORTED_CPUID"),
    ];
    missing.extend(wanted.into_iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| name));
    if let Ok(supported) = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES) {
        missing.extend(cpuid::missing(&supported));
    }
    missing
}

impl Vm for KvmVm {
    fn platform(&self) -> Platform {
        Platform {
            backend: Backend::Native,
            direct_base: KVM_DIRECT_BASE,
            para_entry: 0,
            boot_root: tables::ROOT,
            xstate: self.xstate,
        }
    }

    fn create_vcpu(&self, index: u32, entry: Entry) -> Result<Box<dyn Vcpu>> {
        let fd = self.vm.create_vcpu(index.into()).context("KVM_CREATE_VCPU")?;
        let cpuid = cpuid::for_vcpu(&self.cpuid, index)?;
        entry::set(&fd, &cpuid, self.xstate.xcr0, index, entry)?;
        Ok(Box::new(KvmVcpu::new(fd, index, self.memory.clone(), self.kicks.clone(), self.runs.clone())))
    }

    fn register_ioevent(&self, fd: &EventFd, addr: u64, datamatch: u32) -> Result<()> {
        self.vm
            .register_ioevent(fd, &IoEventAddress::Mmio(addr), datamatch)
            .with_context(|| format!("ioeventfd at {addr:#x}"))
    }

    fn register_irq(&self, fd: EventFd, irq: u32) -> Result<()> {
        let gsi = FIRST_GSI + irq;
        let message = message(0, irq)?;
        let msi = kvm_irq_routing_msi {
            address_lo: message.address_lo,
            address_hi: message.address_hi,
            data: message.data,
            ..Default::default()
        };
        let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
        let route = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, u, ..Default::default() };
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.retain(|old| old.gsi != gsi);
        routes.push(route);
        let table = KvmIrqRouting::from_entries(&routes).context("interrupt routes")?;
        self.vm.set_gsi_routing(&table).context("KVM_SET_GSI_ROUTING")?;
        self.vm.register_irqfd(&fd, gsi).context("KVM_IRQFD")
    }

    fn raise_irq(&self, cpu: u32, irq: u32) -> Result<()> {
        self.vm.signal_msi(message(cpu, irq)?).context("KVM_SIGNAL_MSI")?;
        Ok(())
    }

    fn window_map(&self, window_offset: u64, file: &Arc<OwnedFd>, offset: u64, len: u64, writable: bool) -> Result<()> {
        self.memory.window_map(window_offset, file, offset, len, writable)
    }

    // The host's MMU notifier removes the translations.
    fn window_unmap(&self, window_offset: u64, len: u64) -> Result<()> {
        self.memory.window_unmap(window_offset, len)
    }

    fn vcpu_role(&self) -> Option<Role> {
        Some(Role::VcpuKvm)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kicks.clone()
    }

    fn counters(&self) -> Vec<(Counter, u64)> {
        vec![(Counter::KvmRuns, self.runs.load(Relaxed))]
    }
}

/// The MSI that sets interrupt bit `irq` on a vCPU: fixed delivery, edge, physical destination (32 bits with the x2APIC API).
fn message(cpu: u32, irq: u32) -> Result<kvm_msi> {
    const MSI_BASE: u32 = 0xfee0_0000;
    ensure!(irq < 64, "interrupt bit {irq}: at most 63");
    Ok(kvm_msi {
        address_lo: MSI_BASE | (cpu & 0xff) << 12,
        address_hi: cpu & !0xff,
        data: u32::from(VECTOR_BASE) + irq,
        ..Default::default()
    })
}
