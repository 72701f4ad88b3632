//! Writes the boot parameters and the encoded configuration to guest memory.

use anyhow::{Context, Result, ensure};
use sentry_abi::{
    boot::{BootParams, ClockSample, Device, DeviceKind, MAGIC, MAX_CPUS, MAX_DEVICES, Region, VERSION},
    hostcall::HostCall,
    layout::{
        BOOT_PARAMS, BOOT_PARAMS_SIZE, DEVICE_BASE, DEVICE_SIZE, KERNEL_BASE, KERNEL_SIZE, USER_BASE, WINDOW_BASE,
        WINDOW_SIZE,
    },
};
use vm_memory::ByteValued;

use crate::{clock, loader::LoadedImage, memory::GuestMemory, vcpu::Platform};

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bytes(BootParams);

// SAFETY: `BootParams` is `repr(C)` of integers and arrays of integers, without padding (asserted below), so that every bit
// pattern is valid and every byte initialised.
unsafe impl ByteValued for Bytes {}

const _: () = {
    let regions = 6 * size_of::<Region>();
    let arrays = MAX_DEVICES * size_of::<Device>() + MAX_CPUS * size_of::<HostCall>();
    // magic, direct_base, xcr0, para_entry, boot_root; the other eight scalars have 32 bits.
    let scalars = size_of::<[u64; 5]>() + size_of::<[u32; 8]>();
    assert!(size_of::<BootParams>() == scalars + regions + size_of::<ClockSample>() + 32 + arrays);
    assert!(size_of::<Device>() == 16 && size_of::<HostCall>() == 64);
};

/// Where the host call block of `cpu` lies.
pub fn hostcall_block(cpu: u32) -> u64 {
    let offset = std::mem::offset_of!(BootParams, hostcalls) + cpu as usize * size_of::<HostCall>();
    BOOT_PARAMS + offset as u64
}

pub(crate) struct Contents<'a> {
    pub platform: Platform,
    pub image: LoadedImage,
    pub cpus: u32,
    pub devices: &'a [Device],
    /// Encoded `sentry_abi::config::SandboxConfig`.
    pub config: &'a [u8],
}

pub(crate) fn write(memory: &GuestMemory, contents: &Contents<'_>) -> Result<()> {
    let Contents { platform, image, cpus, devices, config } = contents;
    ensure!((1..=MAX_CPUS as u32).contains(cpus), "{cpus} vCPUs: not between 1 and {MAX_CPUS}");
    ensure!(devices.len() <= MAX_DEVICES, "{} devices: at most {MAX_DEVICES}", devices.len());
    let config_base = BOOT_PARAMS + (size_of::<BootParams>() as u64).next_multiple_of(64);
    let room = BOOT_PARAMS + BOOT_PARAMS_SIZE - config_base;
    ensure!(
        config.len() as u64 <= room,
        "the container's configuration takes {} bytes, at most {room} fit (arguments, environment and mounts)",
        config.len()
    );

    let mut seed = [0; 32];
    crate::hostcall::fill_random(&mut seed).context("getrandom")?;
    let mut device_table = [Device { kind: DeviceKind::None as u32, irq: 0, mmio: 0 }; MAX_DEVICES];
    device_table[..devices.len()].copy_from_slice(devices);
    let params = BootParams {
        magic: MAGIC,
        version: VERSION,
        backend: platform.backend as u32,
        size: size_of::<BootParams>() as u32,
        cpu_count: *cpus,
        direct_base: platform.direct_base,
        kernel: Region { base: KERNEL_BASE, size: KERNEL_SIZE },
        user: Region { base: USER_BASE, size: memory.user_size() },
        device: Region { base: DEVICE_BASE, size: DEVICE_SIZE },
        window: Region { base: WINDOW_BASE, size: WINDOW_SIZE },
        image: Region { base: image.base, size: image.size },
        config: Region { base: config_base, size: config.len() as u64 },
        xcr0: platform.xstate.xcr0,
        xsave_size: platform.xstate.size,
        tsc_khz: clock::tsc_khz(),
        tsc_stable: clock::tsc_stable().into(),
        device_count: devices.len() as u32,
        clock: clock::sample(),
        seed,
        para_entry: platform.para_entry,
        boot_root: platform.boot_root,
        devices: device_table,
        hostcalls: [HostCall::default(); MAX_CPUS],
    };
    memory.write(config_base, config)?;
    memory.write(BOOT_PARAMS, Bytes(params).as_slice())
}
