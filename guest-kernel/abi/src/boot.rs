//! Boot parameters: at guest-physical [`crate::layout::BOOT_PARAMS`] when the sentry's entry point is called.
//!
//! Entry: `extern "sysv64" fn(params: *const BootParams /* virtual */, cpu: u64) -> !`, stack pointer 16-byte aligned at a
//! small boot stack, direct map in force. CPU 0 starts at boot; the others when the sentry asks
//! ([`crate::hostcall::Op::StartCpu`]) and enter at the same address.

use crate::hostcall::HostCall;

pub const MAGIC: u64 = 0x7972_746e_6573_7221;
pub const VERSION: u32 = 1;
/// Upper bound of vCPUs of a sandbox.
pub const MAX_CPUS: usize = 64;
pub const MAX_DEVICES: usize = 32;

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Ring 0 in a KVM guest.
    Native = 0,
    /// User code of the VMM; operations are calls through [`BootParams::para_entry`].
    Para = 1,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    pub base: u64,
    pub size: u64,
}

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    None = 0,
    /// A file server; `tag` is the index of the mount it serves requests for (one gofer serves all).
    Gofer = 1,
    /// Standard streams of containers.
    Console = 2,
    Control = 3,
    Network = 4,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub kind: u32,
    /// Bit of [`crate::irq`] its completions set.
    pub irq: u32,
    /// Guest-physical address of its virtio-mmio registers.
    pub mmio: u64,
}

/// One reading of the host's clocks against the TSC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ClockSample {
    pub tsc: u64,
    /// CLOCK_MONOTONIC, ns.
    pub monotonic: u64,
    /// CLOCK_REALTIME, ns since the epoch.
    pub realtime: u64,
    /// CLOCK_BOOTTIME, ns.
    pub boottime: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootParams {
    pub magic: u64,
    pub version: u32,
    pub backend: u32,
    /// Size of this structure.
    pub size: u32,
    pub cpu_count: u32,
    pub direct_base: u64,
    pub kernel: Region,
    pub user: Region,
    pub device: Region,
    pub window: Region,
    /// Guest-physical extent of the loaded image, .bss included; kernel memory behind `end` is free.
    pub image: Region,
    /// Guest-physical address and length of the postcard-encoded [`crate::config::SandboxConfig`].
    pub config: Region,
    /// XCR0 for applications and the size of the standard-format XSAVE area for it (fixed for the sandbox's life).
    pub xcr0: u64,
    pub xsave_size: u32,
    pub tsc_khz: u32,
    /// 1 when the TSC is constant and the vDSO may read it; else clocks go through system calls.
    pub tsc_stable: u32,
    pub device_count: u32,
    pub clock: ClockSample,
    pub seed: [u8; 32],
    /// `extern "sysv64" fn(op, a0, a1, a2, a3) -> u64` of the ptrace backend ([`crate::para`]); 0 under KVM.
    pub para_entry: u64,
    /// Guest-physical address of the bootstrap page table root (PML4) under KVM: kernel half shared by every address
    /// space, user half empty. 0 under ptrace.
    pub boot_root: u64,
    pub devices: [Device; MAX_DEVICES],
    /// Host call blocks, one per vCPU; sentry and VMM both write them.
    pub hostcalls: [HostCall; MAX_CPUS],
}
