//! Guest-physical addresses, the same in both backends. Sizes are bytes.
//!
//! | range | what | backed by |
//! | --- | --- | --- |
//! | `KERNEL_BASE..` | sentry image, heap, stacks, page tables | private anonymous memory of the VMM |
//! | `MMIO_BASE..` | virtio-mmio register pages | nothing: an access is an exit |
//! | `DEVICE_BASE..` | rings and buffers | a memfd that helper processes map |
//! | `WINDOW_BASE..` | host files | mappings placed with MAP_FIXED; zero pages where nothing is mapped |
//! | `USER_BASE..` | application memory | anonymous memory (KVM) or a memfd (ptrace) |
//!
//! The sentry reaches guest-physical `p` at virtual `direct_base + p` (see [`crate::boot::BootParams`]).

pub const PAGE_SHIFT: u32 = 12;
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

pub const KERNEL_BASE: u64 = 0;
/// Kernel memory is reserved, not committed: the host gives pages on first touch.
pub const KERNEL_SIZE: u64 = 1 << 30;
/// Below this the KVM backend keeps the first vCPU's page tables and descriptor tables.
pub const BOOT_PARAMS: u64 = 0x10_0000;
/// Room for [`crate::boot::BootParams`] and, behind it, the encoded configuration.
pub const BOOT_PARAMS_SIZE: u64 = 0x10_0000;
/// Where linux-loader puts the sentry image (guest-physical; the image is position independent).
pub const IMAGE_BASE: u64 = 0x20_0000;

pub const MMIO_BASE: u64 = 0xd000_0000;
/// One virtio-mmio device per page.
pub const MMIO_STRIDE: u64 = 0x1000;
pub const MMIO_SIZE: u64 = 0x10_0000;

pub const DEVICE_BASE: u64 = 0x1_0000_0000;
pub const DEVICE_SIZE: u64 = 64 << 20;

pub const WINDOW_BASE: u64 = 0x10_0000_0000;
pub const WINDOW_SIZE: u64 = 16 << 30;

pub const USER_BASE: u64 = 0x40_0000_0000;

/// First kernel virtual address under KVM; the direct map starts here. Under ptrace the VMM chooses.
pub const KVM_DIRECT_BASE: u64 = 0xffff_8000_0000_0000;

/// Lowest address an application may map (as `vm.mmap_min_addr`).
pub const USER_MIN: u64 = 0x1_0000;
/// One past the highest application address, in both backends. The pages from here to Linux's 0x7fff_ffff_f000 belong to
/// the ptrace stub (trampoline, command page, batch lists, fault frame).
pub const USER_TOP: u64 = 0x7fff_fff0_0000;

/// I/O port of the early serial console (8250): bytes written appear in the debug log.
pub const SERIAL_PORT: u16 = 0x3f8;
/// I/O port of host calls: a 32-bit write of the vCPU index performs the call described in that vCPU's
/// [`crate::hostcall::HostCall`] block.
pub const HOSTCALL_PORT: u16 = 0x600;
