//! x86-64 four-level page tables in kernel memory (Intel SDM volume 3, 4.5), as the hardware and the ptrace backend walk them.
//!
//! Entries change atomically: other CPUs and the backend read them, and set the accessed and dirty bits, at any time. Only
//! the owner's address-space lock allows structural changes.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use sentry_abi::layout::{PAGE_SIZE, USER_TOP};

use super::kmem::KernelPages;
use crate::{
    arch,
    errno::{ENOMEM, Result},
};

pub const PRESENT: u64 = 1;
pub const WRITE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
pub const NO_EXECUTE: u64 = 1 << 63;
/// Software bit: the page is a private copy (or anonymous), so its reference count tells whether it may be written in place.
pub const ANONYMOUS: u64 = 1 << 9;
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const ENTRIES: usize = 512;
/// Entries of the root that map the lower half.
const USER_ENTRIES: usize = 256;

type Entries = [AtomicU64; ENTRIES];

pub struct PageTable {
    root: KernelPages,
}

fn table(gpa: u64) -> &'static Entries {
    // SAFETY: `gpa` comes from a present non-leaf entry or the root: a zero-initialised page of kernel memory that holds a
    // table until the whole page table is dropped, which the address space's references rule out while it is walked.
    unsafe { &*arch::direct_map(gpa).cast::<Entries>() }
}

fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level)) as usize & (ENTRIES - 1)
}

impl PageTable {
    /// An empty lower half. The upper half is that of `template` (the boot root under KVM), or empty.
    pub fn new(template: u64) -> Result<Self> {
        let root = KernelPages::zeroed(PAGE_SIZE as usize).ok_or(ENOMEM)?;
        if template != 0 {
            for i in USER_ENTRIES..ENTRIES {
                table(root.gpa())[i].store(table(template)[i].load(SeqCst), SeqCst);
            }
        }
        Ok(PageTable { root })
    }

    pub fn root(&self) -> u64 {
        self.root.gpa()
    }

    /// The entry of the page at `address`, if its tables exist.
    #[inline]
    pub fn entry(&self, address: u64) -> Option<&AtomicU64> {
        walk(self.root.gpa(), address)
    }

    /// The entry of the page at `address`; makes the tables down to it.
    pub fn entry_or_create(&self, address: u64) -> Result<&AtomicU64> {
        debug_assert!(address < USER_TOP);
        let mut at = self.root.gpa();
        for level in (1..4).rev() {
            let entry = &table(at)[index(address, level)];
            let value = entry.load(SeqCst);
            at = if value & PRESENT != 0 {
                value & ADDRESS
            } else {
                let page = KernelPages::zeroed(PAGE_SIZE as usize).ok_or(ENOMEM)?;
                let gpa = page.gpa();
                page.into_raw();
                entry.store(gpa | PRESENT | WRITE | USER | ACCESSED, SeqCst);
                gpa
            };
        }
        Ok(&table(at)[index(address, 0)])
    }

    /// Calls `visit(address, entry)` for each present entry of `[start, end)`, skipping missing tables.
    pub fn for_each(&self, start: u64, end: u64, mut visit: impl FnMut(u64, &AtomicU64)) {
        let mut address = start;
        'next: while address < end {
            let mut at = self.root.gpa();
            for level in (1..4).rev() {
                let value = table(at)[index(address, level)].load(SeqCst);
                if value & PRESENT == 0 {
                    let span = PAGE_SIZE << (9 * level);
                    address = (address / span + 1) * span;
                    continue 'next;
                }
                at = value & ADDRESS;
            }
            // The rest of this last-level table.
            for entry in &table(at)[index(address, 0)..] {
                if address >= end {
                    return;
                }
                if entry.load(SeqCst) & PRESENT != 0 {
                    visit(address, entry);
                }
                address += PAGE_SIZE;
            }
        }
    }
}

/// The last-level entry for `address` below `root`. The address space must be alive.
#[inline]
pub fn walk(root: u64, address: u64) -> Option<&'static AtomicU64> {
    if address >= USER_TOP {
        return None;
    }
    let mut at = root;
    for level in (1..4).rev() {
        let value = table(at)[index(address, level)].load(SeqCst);
        if value & PRESENT == 0 {
            return None;
        }
        at = value & ADDRESS;
    }
    Some(&table(at)[index(address, 0)])
}

fn free_tables(gpa: u64, level: u32, entries: usize) {
    for entry in &table(gpa)[..entries] {
        let value = entry.load(SeqCst);
        if value & PRESENT == 0 {
            continue;
        }
        let child = value & ADDRESS;
        if level > 1 {
            free_tables(child, level - 1, ENTRIES);
        }
        // SAFETY: `entry_or_create` made the page with `into_raw`; the page table is being dropped, so nothing walks it.
        drop(unsafe { KernelPages::from_raw(arch::direct_map(child), PAGE_SIZE as usize) });
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        free_tables(self.root.gpa(), 3, USER_ENTRIES);
    }
}
