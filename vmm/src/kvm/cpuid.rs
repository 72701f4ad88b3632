//! What CPUID tells the guest: what KVM supports, less what sandboxes are not offered (AMX, MPX, protection keys, five-level
//! paging, supervisor states, KVM's paravirtual features).

use anyhow::{Context, Result, bail};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::xstate::Xstate;

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Leaf, subleaf, register and bit of what the sentry cannot do without.
const REQUIRED: &[(u32, u32, usize, u32, &str)] = &[
    (1, 0, EDX, 26, "SSE2"),
    (1, 0, ECX, 13, "CMPXCHG16B"),
    (1, 0, ECX, 21, "x2APIC"),
    (1, 0, ECX, 26, "XSAVE"),
    (7, 0, EBX, 0, "FSGSBASE"),
    (0x8000_0001, 0, EDX, 11, "SYSCALL"),
    (0x8000_0001, 0, EDX, 20, "NX"),
    (0x8000_0001, 0, EDX, 29, "long mode"),
];

/// What is not offered.
const HIDDEN: &[(u32, u32, usize, u32)] = &[
    (7, 0, EBX, 14),  // MPX
    (7, 0, ECX, 3),   // PKU
    (7, 0, ECX, 4),   // OSPKE
    (7, 0, ECX, 16),  // LA57
    (7, 0, ECX, 7),   // CET shadow stacks
    (7, 0, EDX, 20),  // CET indirect branch tracking
    (7, 0, EDX, 22),  // AMX-BF16
    (7, 0, EDX, 24),  // AMX-TILE
    (7, 0, EDX, 25),  // AMX-INT8
    (7, 1, EAX, 21),  // AMX-FP16
    (0xd, 1, EAX, 3), // XSAVES
    (0xd, 1, EAX, 4), // XFD
];

fn register(entry: &mut kvm_cpuid_entry2, register: usize) -> &mut u32 {
    match register {
        EAX => &mut entry.eax,
        EBX => &mut entry.ebx,
        ECX => &mut entry.ecx,
        _ => &mut entry.edx,
    }
}

fn has(cpuid: &CpuId, leaf: u32, subleaf: u32, in_register: usize, bit: u32) -> bool {
    cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == leaf && entry.index == subleaf)
        .is_some_and(|entry| *register(&mut entry.clone(), in_register) & (1 << bit) != 0)
}

/// Names of required features that are missing.
pub(super) fn missing(supported: &CpuId) -> impl Iterator<Item = &'static str> {
    REQUIRED
        .iter()
        .filter(|&&(leaf, subleaf, register, bit, _)| !has(supported, leaf, subleaf, register, bit))
        .map(|&(.., name)| name)
}

/// XCR0 bits that KVM lets a guest set.
pub(super) fn supported_xcr0(supported: &CpuId) -> u64 {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0xd && entry.index == 0);
    leaf.map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax))
}

pub(super) fn has_gigabyte_pages(cpuid: &CpuId) -> bool {
    has(cpuid, 0x8000_0001, 0, EDX, 26)
}

/// The optional features that control registers enable.
pub(super) fn has_smep(cpuid: &CpuId) -> bool {
    has(cpuid, 7, 0, EBX, 7)
}

pub(super) fn has_smap(cpuid: &CpuId) -> bool {
    has(cpuid, 7, 0, EBX, 20)
}

pub(super) fn has_umip(cpuid: &CpuId) -> bool {
    has(cpuid, 7, 0, ECX, 2)
}

/// The table that all vCPUs share.
pub(super) fn for_guest(supported: &CpuId, xstate: Xstate, tsc_deadline: bool) -> Result<CpuId> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .copied()
        .filter(|entry| match entry.function {
            // Extended state that XCR0 does not have; AMX's tiles and multiplication.
            0xd => entry.index < 2 || (entry.index < 64 && xstate.xcr0 >> entry.index & 1 != 0),
            0x1d | 0x1e => false,
            // The sentry does not speak to KVM.
            0x4000_0001..=0x4000_00ff => false,
            _ => true,
        })
        .collect();
    for &(leaf, subleaf, in_register, bit) in HIDDEN {
        for entry in entries.iter_mut().filter(|entry| entry.function == leaf && entry.index == subleaf) {
            *register(entry, in_register) &= !(1 << bit);
        }
    }
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (1, _) => {
                const TSC_DEADLINE: u32 = 1 << 24;
                entry.ecx = if tsc_deadline { entry.ecx | TSC_DEADLINE } else { entry.ecx & !TSC_DEADLINE };
            }
            (0xd, 0) => {
                entry.eax = xstate.xcr0 as u32;
                entry.edx = (xstate.xcr0 >> 32) as u32;
                entry.ebx = xstate.size;
                entry.ecx = xstate.size;
            }
            (0xd, 1) => {
                entry.ecx = 0;
                entry.edx = 0;
            }
            (0x4000_0000, _) => entry.eax = 0x4000_0000,
            _ => {}
        }
    }
    if entries.is_empty() {
        bail!("KVM supports no CPUID leaf");
    }
    CpuId::from_entries(&entries).context("CPUID table")
}

/// The table of one vCPU: with its APIC ID.
pub(super) fn for_vcpu(cpuid: &CpuId, index: u32) -> Result<CpuId> {
    let mut cpuid = cpuid.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | index << 24,
            0xb | 0x1f => entry.edx = index,
            0x8000_001e => entry.eax = index,
            _ => {}
        }
    }
    Ok(cpuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn amx_is_out_and_sizes_are_ours() {
        let all = u32::MAX;
        let entries = [
            leaf(1, 0, [all; 4]),
            leaf(7, 0, [1, all, all, all]),
            leaf(0xd, 0, [0x602e7, 11008, 11008, 0]),
            leaf(0xd, 2, [256, 576, 0, 0]),
            leaf(0xd, 18, [8192, 2816, 0, 0]),
            leaf(0x1d, 0, [1, 0, 0, 0]),
            leaf(0x4000_0000, 0, [0x4000_0001, 0, 0, 0]),
            leaf(0x4000_0001, 0, [all; 4]),
        ];
        let supported = CpuId::from_entries(&entries).unwrap();
        assert_eq!(supported_xcr0(&supported), 0x602e7);
        let guest = for_guest(&supported, Xstate { xcr0: 7, size: 832 }, false).unwrap();
        assert!(!has(&guest, 7, 0, EDX, 24) && !has(&guest, 1, 0, ECX, 24) && has(&guest, 7, 0, EBX, 0));
        let functions: Vec<_> = guest.as_slice().iter().map(|entry| (entry.function, entry.index)).collect();
        assert_eq!(functions, [(1, 0), (7, 0), (0xd, 0), (0xd, 2), (0x4000_0000, 0)]);
        assert_eq!(guest.as_slice()[2].ebx, 832);
        let second = for_vcpu(&guest, 1).unwrap();
        assert_eq!(second.as_slice()[0].ebx >> 24, 1);
    }

    #[test]
    fn missing_features_are_named() {
        let supported = CpuId::from_entries(&[leaf(1, 0, [0, 0, 0, 1 << 26]), leaf(7, 0, [0; 4])]).unwrap();
        let names: Vec<_> = missing(&supported).collect();
        assert!(names.contains(&"XSAVE") && names.contains(&"FSGSBASE") && !names.contains(&"SSE2"));
    }
}
