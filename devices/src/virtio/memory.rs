//! Device memory as a server of queues maps it: one region at `layout::DEVICE_BASE`.

use std::{fs::File, os::fd::BorrowedFd, sync::Arc};

use anyhow::{Context, Result, bail};
use sentry_abi::layout;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, mmap::GuestRegionMmap, mmap::MmapRegion};

pub type DeviceMemory = Arc<GuestMemoryMmap<()>>;

/// Maps the device memory behind `fd`, a memfd the VMM has made.
pub fn device_memory(fd: BorrowedFd<'_>) -> Result<DeviceMemory> {
    let file = File::from(fd.try_clone_to_owned().context("device memory descriptor")?);
    let size = file.metadata().context("device memory")?.len();
    if size == 0 || size > layout::DEVICE_SIZE || size % layout::PAGE_SIZE != 0 {
        bail!("device memory of {size} bytes");
    }
    let region = MmapRegion::from_file(FileOffset::new(file, 0), size as usize).context("mapping device memory")?;
    let region =
        GuestRegionMmap::new(region, GuestAddress(layout::DEVICE_BASE)).context("device memory does not fit")?;
    Ok(Arc::new(GuestMemoryMmap::from_regions(vec![region]).context("device memory")?))
}
