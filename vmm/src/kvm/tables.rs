//! The page tables vCPUs start on: the direct map, shared by every address space, and an empty user half. They lie below the boot
//! parameters in kernel memory.

use anyhow::{Result, ensure};
use sentry_abi::layout::{BOOT_PARAMS, KVM_DIRECT_BASE, MMIO_BASE, MMIO_SIZE, PAGE_SIZE};

use crate::memory::{GuestMemory, RegionKind};

/// Guest-physical address of the PML4. Page 0 stays empty.
pub(super) const ROOT: u64 = PAGE_SIZE;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

const MEGABYTES_2: u64 = 2 << 20;
const GIGABYTE: u64 = 1 << 30;
const GIGABYTES_512: u64 = 512 << 30;

struct Builder<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

pub(super) fn write(memory: &GuestMemory, gigabyte_pages: bool) -> Result<()> {
    let mut builder = Builder { memory, next: ROOT + PAGE_SIZE };
    for region in memory.regions() {
        // Only kernel memory holds code.
        let protection = if region.kind == RegionKind::Kernel { 0 } else { NO_EXECUTE };
        builder.map(region.gpa, region.size, protection, gigabyte_pages)?;
    }
    builder.map(MMIO_BASE, MMIO_SIZE, NO_EXECUTE, false)
}

impl Builder<'_> {
    /// Maps the whole large pages that `[gpa, gpa + size)` touches.
    fn map(&mut self, gpa: u64, size: u64, protection: u64, gigabyte_pages: bool) -> Result<()> {
        let leaf = PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE | GLOBAL | protection;
        let step = if gigabyte_pages { GIGABYTE } else { MEGABYTES_2 };
        let mut at = gpa & !(step - 1);
        while at < gpa + size {
            let address = KVM_DIRECT_BASE + at;
            let directory_pointers = self.table(ROOT + 8 * (address / GIGABYTES_512 % 512))?;
            let slot = directory_pointers + 8 * (address / GIGABYTE % 512);
            if gigabyte_pages {
                self.memory.write_obj(slot, at | leaf)?;
            } else {
                let directory = self.table(slot)?;
                self.memory.write_obj(directory + 8 * (address / MEGABYTES_2 % 512), at | leaf)?;
            }
            at += step;
        }
        Ok(())
    }

    /// The table that the entry at `slot` points at; a new one when it is empty.
    fn table(&mut self, slot: u64) -> Result<u64> {
        let entry: u64 = self.memory.read_obj(slot)?;
        if entry & PRESENT != 0 {
            return Ok(entry & 0x000f_ffff_ffff_f000);
        }
        let table = self.next;
        ensure!(
            table + PAGE_SIZE <= BOOT_PARAMS,
            "{} GB of memory need 1 GB pages for the direct map, which this CPU does not have",
            self.memory.user_size() >> 30
        );
        self.next += PAGE_SIZE;
        self.memory.write_obj(slot, table | PRESENT | WRITABLE | ACCESSED)?;
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use sentry_abi::layout::{DEVICE_BASE, USER_BASE, WINDOW_BASE};

    use super::*;
    use crate::memory::{MemoryConfig, UserBacking};

    /// Physical address and leaf entry for a virtual address.
    fn walk(memory: &GuestMemory, address: u64) -> Option<(u64, u64)> {
        let mut table = ROOT;
        for (shift, index) in [(39u64, 4), (30, 3), (21, 2)] {
            let entry: u64 = memory.read_obj(table + 8 * (address >> shift & 511)).unwrap();
            if entry & PRESENT == 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if index < 4 && entry & LARGE != 0 {
                return Some((table + (address & ((1 << shift) - 1)), entry));
            }
        }
        panic!("a 4 KB page at {address:#x}")
    }

    #[test]
    fn direct_map_covers_the_regions() {
        let config = MemoryConfig { user_size: 3 << 30, user_backing: UserBacking::Anonymous };
        for gigabyte_pages in [true, false] {
            let memory = GuestMemory::new(&config).unwrap();
            write(&memory, gigabyte_pages).unwrap();
            for gpa in [0x20_1234, MMIO_BASE + 0x50, DEVICE_BASE, WINDOW_BASE + 0x1234_5678, USER_BASE + (3 << 30) - 8]
            {
                let (physical, entry) = walk(&memory, KVM_DIRECT_BASE + gpa).unwrap();
                assert_eq!(physical, gpa);
                assert_eq!(entry & NO_EXECUTE == 0, gpa < BOOT_PARAMS * 16);
            }
            assert!(walk(&memory, KVM_DIRECT_BASE + USER_BASE - GIGABYTE).is_none());
            assert!(walk(&memory, 0x40_0000).is_none());
        }
    }

    #[test]
    fn too_much_memory_for_small_tables_is_an_error() {
        let config = MemoryConfig { user_size: 300 << 30, user_backing: UserBacking::Anonymous };
        let memory = GuestMemory::new(&config).unwrap();
        assert!(write(&memory, false).unwrap_err().to_string().contains("1 GB pages"));
    }
}
