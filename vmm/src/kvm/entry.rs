//! The state a vCPU starts in: 64-bit ring 0 on the bootstrap page tables, interrupts off, no descriptor tables (the sentry
//! loads its own), x2APIC on.

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use super::{cpuid, ioctl, tables};
use crate::vcpu::Entry;

const CR0_PE: u64 = 1;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
/// Base address, enabled, x2APIC mode.
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11 | 1 << 10;
const APIC_BASE_BSP: u64 = 1 << 8;

const MSR_TSC: u32 = 0x10;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_PAT: u32 = 0x277;
/// Write-back first: every mapping of the sentry and of applications uses it.
const PAT: u64 = 0x0007_0406_0007_0406;

/// Selectors that the sentry's own descriptor table has at the same places.
const KERNEL_CS: u16 = 0x10;
const KERNEL_DS: u16 = 0x18;

pub(super) fn set(fd: &VcpuFd, cpuid: &CpuId, xcr0: u64, index: u32, entry: Entry) -> Result<()> {
    fd.set_cpuid2(cpuid).context("KVM_SET_CPUID2")?;
    set_tsc(fd)?;
    let entries = [msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS), msr(MSR_PAT, PAT)];
    let written = fd.set_msrs(&Msrs::from_entries(&entries).context("MSR list")?).context("KVM_SET_MSRS")?;
    ensure!(written == entries.len(), "KVM refuses MSR {:#x}", entries[written].index);

    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
    let flat = |selector, type_, l| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(l == 0),
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(KERNEL_CS, 0xb, 1);
    let data = flat(KERNEL_DS, 0x3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
    sregs.ldt = kvm_segment { type_: 0x2, present: 1, unusable: 1, ..Default::default() };
    sregs.gdt.base = 0;
    sregs.gdt.limit = 0;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    sregs.cr2 = 0;
    sregs.cr3 = tables::ROOT;
    sregs.cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
    for (present, bit) in
        [(cpuid::has_smep(cpuid), CR4_SMEP), (cpuid::has_smap(cpuid), CR4_SMAP), (cpuid::has_umip(cpuid), CR4_UMIP)]
    {
        sregs.cr4 |= if present { bit } else { 0 };
    }
    sregs.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    sregs.apic_base = APIC_BASE | if index == 0 { APIC_BASE_BSP } else { 0 };
    fd.set_sregs(&sregs).context("KVM_SET_SREGS")?;

    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: xcr0, ..Default::default() };
    fd.set_xcrs(&xcrs).with_context(|| format!("KVM_SET_XCRS {xcr0:#x}"))?;

    let regs = kvm_regs { rip: entry.rip, rdi: entry.params, rsi: index.into(), rflags: 2, ..Default::default() };
    fd.set_regs(&regs).context("KVM_SET_REGS")?;
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).context("KVM_SET_MP_STATE")
}

fn msr(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

/// Gives the guest the host's TSC, against which the boot parameters' clock was sampled.
fn set_tsc(fd: &VcpuFd) -> Result<()> {
    if ioctl::set_tsc_offset(fd, 0).is_ok() {
        return Ok(());
    }
    // Before Linux 5.16: writing the value; KVM gives vCPUs whose values nearly agree the same offset.
    // SAFETY: RDTSC exists on every x86-64 CPU and reads a counter.
    let now = unsafe { std::arch::x86_64::_rdtsc() };
    fd.set_msrs(&Msrs::from_entries(&[msr(MSR_TSC, now)]).context("MSR list")?).context("writing the TSC")?;
    Ok(())
}
