//! The window: where host files show in guest-physical memory.
//!
//! A file appears in segments of a power of two pages, at most [`CHUNK`]; mapping one costs the host the same whatever its
//! size, so a segment may reach beyond the file's end and the file may grow into it. The host bounds the number of mappings
//! and of descriptors, so the segments used longest ago give way, unless something maps them.

use alloc::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Weak},
    vec::Vec,
};

use sentry_abi::layout::{PAGE_SIZE, WINDOW_BASE, WINDOW_SIZE};

use super::node::Node;
use crate::{
    arch::host,
    counters::{Counter, count},
    errno::{ENOMEM, Result},
    mm::MappingList,
    sync::SpinLock,
};

/// Largest segment, pages: 64 MB.
pub(super) const CHUNK: u64 = 16384;
/// Smallest segment, pages.
const LEAST: u64 = 4;
const ORDERS: usize = (CHUNK / LEAST).ilog2() as usize + 1;
/// Segments at a time.
const MAX_SEGMENTS: usize = 2048;

/// Free ranges of the window: a buddy allocator over powers of two.
struct Space {
    /// Offsets in pages, by order.
    free: [Vec<u32>; ORDERS],
    /// Never used beyond this page.
    top: u64,
}

static SPACE: SpinLock<Space> = SpinLock::new(Space { free: [const { Vec::new() }; ORDERS], top: 0 });

/// Segments in the order they were made or last given another chance.
static QUEUE: SpinLock<VecDeque<(Weak<Node>, Weak<Segment>)>> = SpinLock::new(VecDeque::new());

fn order(pages: u64) -> usize {
    (pages / LEAST).ilog2() as usize
}

impl Space {
    /// Splits larger ranges; blocks are not merged again, since segments of one size come and go.
    fn take(&mut self, order: usize) -> Option<u64> {
        if let Some(page) = self.free[order].pop() {
            return Some(page.into());
        }
        let size = LEAST << order;
        if (self.top + size) * PAGE_SIZE <= WINDOW_SIZE {
            let page = self.top;
            self.top += size;
            return Some(page);
        }
        let larger = (order + 1..ORDERS).find(|o| !self.free[*o].is_empty())?;
        let page = u64::from(self.free[larger].pop()?);
        for o in (order..larger).rev() {
            self.free[o].push((page + (LEAST << o)) as u32);
        }
        Some(page)
    }
}

/// A part of a file in the window. Dropping it clears the range: nothing may translate to it by then.
pub(super) struct Segment {
    /// Page of the window.
    page: u64,
    pages: u64,
    /// Page of the file.
    first: u64,
    pub writable: bool,
}

impl Segment {
    /// Shows `pages` pages (a power of two) of the file that the gofer has handed over as `handle`.
    pub fn map(handle: u64, first: u64, pages: u64, writable: bool) -> Result<Segment> {
        let page = SPACE.lock().take(order(pages)).ok_or(ENOMEM)?;
        let mapped = host::window_map(handle, first * PAGE_SIZE, pages * PAGE_SIZE, page * PAGE_SIZE, writable);
        if let Err(error) = mapped {
            SPACE.lock().free[order(pages)].push(page as u32);
            return Err(error);
        }
        count(Counter::WindowMaps);
        Ok(Segment { page, pages, first, writable })
    }

    /// Guest-physical address of the file's page `index`, and how many pages follow.
    pub fn gpa(&self, index: u64) -> Option<(u64, u64)> {
        let at = index.checked_sub(self.first).filter(|at| *at < self.pages)?;
        Some((WINDOW_BASE + (self.page + at) * PAGE_SIZE, self.pages - at))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if host::window_unmap(self.page * PAGE_SIZE, self.pages * PAGE_SIZE).is_ok() {
            SPACE.lock().free[order(self.pages)].push(self.page as u32);
        }
    }
}

/// The segments of one file, by chunk.
#[derive(Default)]
pub(super) struct Segments(SpinLock<BTreeMap<u64, Arc<Segment>>>);

impl Segments {
    /// The segment that shows page `index`, writable if need be.
    pub fn find(&self, index: u64, writable: bool) -> Option<Arc<Segment>> {
        let segments = self.0.lock();
        let segment = segments.get(&(index / CHUNK))?;
        (segment.gpa(index).is_some() && (segment.writable || !writable)).then(|| segment.clone())
    }

    /// Puts a segment in place; the one it replaces, if any.
    pub fn insert(&self, node: &Arc<Node>, segment: Arc<Segment>) -> Option<Arc<Segment>> {
        QUEUE.lock().push_back((Arc::downgrade(node), Arc::downgrade(&segment)));
        self.0.lock().insert(segment.first / CHUNK, segment)
    }

    /// Takes all of them out: what they show is not the file any more.
    pub fn take_all(&self) -> BTreeMap<u64, Arc<Segment>> {
        core::mem::take(&mut *self.0.lock())
    }

    /// Takes a segment out unless something maps the file. A mapping is made known before its first page is asked for, so
    /// one that is not known yet will not find the segment.
    fn evict(&self, segment: &Arc<Segment>, mapped: &MappingList) -> Option<Arc<Segment>> {
        let mut segments = self.0.lock();
        let chunk = segment.first / CHUNK;
        let here = segments.get(&chunk).is_some_and(|s| Arc::ptr_eq(s, segment));
        if here && mapped.is_empty() { segments.remove(&chunk) } else { None }
    }
}

/// How many pages a segment for page `index` of a file of `size` bytes should have, and its first page.
pub(super) fn shape(index: u64, size: u64) -> (u64, u64) {
    let first = index / CHUNK * CHUNK;
    let pages = size.div_ceil(PAGE_SIZE).saturating_sub(first).max(index - first + 1);
    (first, pages.next_power_of_two().clamp(LEAST, CHUNK))
}

/// Makes room for one more segment. Called without locks.
pub(super) fn make_room() {
    for _ in 0..16 {
        let oldest = {
            let mut queue = QUEUE.lock();
            if queue.len() < MAX_SEGMENTS {
                return;
            }
            queue.pop_front()
        };
        let Some((node, weak)) = oldest else { return };
        let (Some(owner), Some(segment)) = (node.upgrade(), weak.upgrade()) else { continue };
        match owner.segments.evict(&segment, &owner.mapped) {
            Some(evicted) => drop(evicted),
            None if owner.is_mapped() => QUEUE.lock().push_back((node, weak)),
            // It was replaced meanwhile.
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_what_is_asked_for() {
        assert_eq!(shape(0, 1), (0, 4));
        assert_eq!(shape(0, 5 * PAGE_SIZE), (0, 8));
        assert_eq!(shape(9, 5 * PAGE_SIZE), (0, 16));
        assert_eq!(shape(CHUNK + 1, u64::MAX / 2), (CHUNK, CHUNK));
    }

    #[test]
    fn space_is_split_and_reused() {
        let mut space = Space { free: [const { Vec::new() }; ORDERS], top: 0 };
        let (a, b) = (space.take(0).unwrap(), space.take(2).unwrap());
        assert!(a + LEAST <= b);
        space.free[0].push(a as u32);
        assert_eq!(space.take(0), Some(a));
        space.top = WINDOW_SIZE / PAGE_SIZE;
        assert_eq!(space.take(0), None);
        space.free[2].push(b as u32);
        let parts: Vec<u64> = core::iter::from_fn(|| space.take(0)).collect();
        assert_eq!(parts.len(), 4);
        assert!(parts.iter().all(|p| (b..b + 4 * LEAST).contains(p)));
    }
}
