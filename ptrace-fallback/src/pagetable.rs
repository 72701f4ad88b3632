//! The walk of x86-64 page tables in guest kernel memory, as a CPU's page walker does it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::host::guest::KernelMemory;

pub const PRESENT: u64 = 1;
pub const WRITE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
pub const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
pub const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;

/// What a range of a page table says: the entries of one lowest-level table, or one large page.
pub struct Leaf<'a> {
    /// First address the table covers (2 MB of them).
    pub base: u64,
    kind: Kind<'a>,
    /// Permissions of the levels above: bits that are cleared are missing everywhere below.
    upper: u64,
    upper_no_execute: u64,
}

enum Kind<'a> {
    Table(&'a [AtomicU64; 512]),
    Large(&'a AtomicU64),
}

/// A translation of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub gpa: u64,
    pub write: bool,
    pub execute: bool,
    pub dirty: bool,
}

/// The lowest level that covers `address`; none where a level above is not present for user mode.
pub fn leaf(memory: &KernelMemory, root: u64, address: u64) -> Option<Leaf<'_>> {
    let mut table = memory.table(root)?;
    let (mut upper, mut upper_no_execute) = (WRITE | USER, 0);
    for level in [3, 2, 1] {
        let entry = &table[(address >> (12 + 9 * level)) as usize & 511];
        let value = entry.load(Ordering::Acquire);
        if value & PRESENT == 0 {
            return None;
        }
        if level == 1 && value & LARGE != 0 {
            return Some(Leaf { base: address & !(LARGE_PAGE - 1), kind: Kind::Large(entry), upper, upper_no_execute });
        }
        upper &= value;
        upper_no_execute |= value & NO_EXECUTE;
        if upper & USER == 0 || (level > 1 && value & LARGE != 0) {
            return None;
        }
        table = memory.table(value & ADDRESS)?;
    }
    Some(Leaf { base: address & !(LARGE_PAGE - 1), kind: Kind::Table(table), upper, upper_no_execute })
}

impl Leaf<'_> {
    fn entry(&self, index: usize) -> &AtomicU64 {
        match &self.kind {
            Kind::Table(table) => &table[index & 511],
            Kind::Large(entry) => entry,
        }
    }

    /// Page `index` (0-511) from the base.
    pub fn page(&self, index: usize) -> Option<Page> {
        let value = self.entry(index).load(Ordering::Acquire);
        if value & PRESENT == 0 || value & self.upper & USER == 0 {
            return None;
        }
        let gpa = match self.kind {
            Kind::Table(_) => value & ADDRESS,
            Kind::Large(_) => (value & ADDRESS & !(LARGE_PAGE - 1)) + index as u64 * PAGE,
        };
        Some(Page {
            gpa,
            write: value & self.upper & WRITE != 0,
            execute: (value | self.upper_no_execute) & NO_EXECUTE == 0,
            dirty: value & DIRTY != 0,
        })
    }

    /// Sets accessed and, if asked, dirty, as the page walker does.
    pub fn mark(&self, index: usize, dirty: bool) {
        let bits = if dirty { ACCESSED | DIRTY } else { ACCESSED };
        let entry = self.entry(index);
        let value = entry.load(Ordering::Relaxed);
        if value & PRESENT != 0 && value & bits != bits {
            entry.fetch_or(bits, Ordering::Relaxed);
        }
    }
}
