//! What to fill on a fault: the page itself, all that is contiguous with it, and what lies near.
//!
//! A fill costs a round trip to the stub whatever its size, so pages of the same table that are present are taken along: the
//! faulting page's whole extent first, then other extents within 64 KB.

use sentry_abi::layout::{USER_BASE, WINDOW_BASE, WINDOW_SIZE};

use crate::{
    fills::{Fill, Fills},
    pagetable::{Leaf, PAGE, Page},
};

/// Distance in pages within which other extents are taken along.
const NEAR: usize = 16;
/// Extents of one fill.
const MAX_RUNS: usize = 24;
const TABLE: usize = 512;

/// The runs to map, the one with the faulting page first, and marks them accessed (and dirty where mapped writable).
/// `write` says that the access is known to be a write.
pub fn runs(leaf: &Leaf<'_>, address: u64, write: bool, fills: &Fills) -> Vec<Fill> {
    let index = ((address - leaf.base) / PAGE) as usize;
    let Some(page) = leaf.page(index) else { return Vec::new() };
    let writable = page.write && (write || dirty_ahead(&page));
    let mut low = index;
    let mut high = index + 1;
    while low > 0 && extends(leaf, low - 1, &page, index, writable) {
        low -= 1;
    }
    while high < TABLE && extends(leaf, high, &page, index, writable) {
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
