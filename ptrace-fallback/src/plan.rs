//! What to fill on a fault: the page itself, all that is contiguous with it, and what lies near.
//!
//! A fill costs a round trip to the stub whatever its size, so pages of the same table that are present are taken along: the
//! faulting page's whole extent first, then other extents within 64 KB.

use sentry_abi::layout::{USER_BASE, WINDOW_BASE, WINDOW_SIZE};

use crate::{
    fills::{Fill, Fills},
    host::guest::KernelMemory,
    pagetable::{self, Leaf, PAGE, Page},
};

/// Distance in pages within which other extents are taken along.
const NEAR: usize = 16;
/// Extents of one fill.
const MAX_RUNS: usize = 24;
const TABLE: usize = 512;
/// Extents that a new address space takes over.
const MAX_INHERITED: usize = 40;

/// The runs to map, the one with the faulting page first, and marks them accessed (and dirty where mapped writable).
/// `write` says that the access is known to be a write.
pub fn runs(leaf: &Leaf<'_>, address: u64, write: bool, fills: &Fills) -> Vec<Fill> {
    let index = ((address - leaf.base) / PAGE) as usize;
    let Some(page) = leaf.page(index) else { return Vec::new() };
    let writable = page.write && (write || dirty_ahead(&page));
    let mut low = index;
    let mut high = index + 1;
    // Up to what is filled already: mapping that again would cost as much as the first time.
    let new = |at: usize| {
        extends(leaf, at, &page, index, writable)
            && leaf.page(at).is_some_and(|page| !filled(fills, leaf.base + at as u64 * PAGE, &page, writable))
    };
    while low > 0 && new(low - 1) {
        low -= 1;
    }
    while high < TABLE && new(high) {
        high += 1;
    }
    let mut runs = vec![fill(leaf, low, high, &page, index, writable)];

    let (near_low, near_high) = (index.saturating_sub(NEAR), (index + NEAR).min(TABLE));
    let mut at = near_low;
    while at < near_high && runs.len() < MAX_RUNS {
        if (low..high).contains(&at) {
            at = high;
            continue;
        }
        let start = at;
        at += 1;
        let Some(first) = leaf.page(start) else { continue };
        let writable = first.write && dirty_ahead(&first);
        if filled(fills, leaf.base + start as u64 * PAGE, &first, writable) {
            continue;
        }
        while at < near_high && at != low && extends(leaf, at, &first, start, writable) {
            at += 1;
        }
        runs.push(fill(leaf, start, at, &first, start, writable));
    }
    runs
}

/// The runs of what is present in ranges that another address space had filled: what a fork's child is likely to use. It
/// saves a round trip for each.
pub fn inherited(memory: &KernelMemory, root: u64, ranges: &[(u64, u64)]) -> Vec<Fill> {
    let mut runs = Vec::new();
    for &(start, end) in ranges {
        let mut address = start;
        while address < end && runs.len() < MAX_INHERITED {
            let Some(leaf) = pagetable::leaf(memory, root, address) else {
                address = (address | (TABLE as u64 * PAGE - 1)) + 1;
                continue;
            };
            let low = ((address - leaf.base) / PAGE) as usize;
            let limit = ((end - leaf.base).div_ceil(PAGE) as usize).min(TABLE);
            let mut high = low + 1;
            if let Some(page) = leaf.page(low) {
                let writable = page.write && dirty_ahead(&page);
                while high < limit && extends(&leaf, high, &page, low, writable) {
                    high += 1;
                }
                runs.push(fill(&leaf, low, high, &page, low, writable));
            }
            address = leaf.base + high as u64 * PAGE;
        }
    }
    runs
}

/// Whether a writable page that was not written yet may be mapped writable, which makes it dirty. For memory that costs
/// nothing; for a page of a file it would be a lie that is written back.
fn dirty_ahead(page: &Page) -> bool {
    page.dirty || !(WINDOW_BASE..WINDOW_BASE + WINDOW_SIZE).contains(&page.gpa)
}

fn extends(leaf: &Leaf<'_>, at: usize, page: &Page, index: usize, writable: bool) -> bool {
    leaf.page(at).is_some_and(|other| {
        let expected = page.gpa.wrapping_add((at as u64).wrapping_sub(index as u64).wrapping_mul(PAGE));
        other.gpa == expected
            && other.execute == page.execute
            && (other.write && dirty_ahead(&other)) == writable
            && (other.gpa >= USER_BASE) == (page.gpa >= USER_BASE)
    })
}

fn filled(fills: &Fills, address: u64, page: &Page, writable: bool) -> bool {
    fills.at(address).is_some_and(|fill| {
        fill.gpa + (address - fill.start) == page.gpa && fill.write == writable && fill.execute == page.execute
    })
}

fn fill(leaf: &Leaf<'_>, low: usize, high: usize, page: &Page, index: usize, writable: bool) -> Fill {
    for at in low..high {
        leaf.mark(at, writable);
    }
    Fill {
        start: leaf.base + low as u64 * PAGE,
        len: (high - low) as u64 * PAGE,
        gpa: page.gpa - (index - low) as u64 * PAGE,
        write: writable,
        execute: page.execute,
    }
}
