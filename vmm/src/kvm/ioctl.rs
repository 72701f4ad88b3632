//! The KVM ioctls that take addresses, or that kvm-ioctls does not have.

use anyhow::{Context, Result};
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::{errno::Error, ioctl::ioctl_with_ref, ioctl_iow_nr};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);

/// Makes `size` bytes at `host` of this process the guest's memory at `gpa`.
pub(super) fn set_slot(vm: &VmFd, slot: u32, gpa: u64, size: u64, host: u64) -> Result<()> {
    let region =
        kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr: gpa, memory_size: size, userspace_addr: host };
    // SAFETY: callers pass ranges of `GuestMemory` (or of the probe's own mapping), which outlive the virtual machine and
    // which Rust code reaches by raw pointers and volatile accessors only.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
}

/// Sets what a vCPU's TSC is ahead of the host's (Linux 5.16).
pub(super) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), Error> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw const offset as u64,
        flags: 0,
    };
    // SAFETY: the descriptor is a vCPU's; the kernel reads the structure and the word its `addr` points at, which live on
    // this stack.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(Error::last()),
    }
}
