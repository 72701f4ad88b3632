//! A buddy allocator over a range of page frames, with its bookkeeping beside the memory it manages.
//!
//! Blocks are powers of two from one page to `1 << MAX_ORDER` pages (16 MB), naturally aligned. Memory that was never
//! allocated costs nothing: it is carved from the untouched tail in blocks of the largest order, so that both the memory and
//! its bookkeeping are first touched in address order.

use super::table::LazyTable;

pub const MAX_ORDER: usize = 12;
const NONE: u32 = u32::MAX;

/// Per frame: links of the free list it heads, and what it is. All zero: not the head of a free block.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Frame {
    next: u32,
    prev: u32,
    /// `order + 1` if a free block starts here.
    free: u8,
    /// That block reads as zeros: the host has its memory back.
    clean: bool,
}

pub struct Buddy {
    frames: LazyTable<Frame>,
    total: u32,
    heads: [u32; MAX_ORDER + 1],
    /// Frames from here on were never allocated.
    untouched: u32,
    free: u64,
    /// Free blocks of at least [`LARGE`] that are not clean.
    dirty_large: u32,
}

/// Order from which a free block is worth giving back to the host: 2 MB.
pub const LARGE: usize = 9;

impl Buddy {
    /// Manages frames `0..frames.len()`, all free.
    pub const fn new(frames: LazyTable<Frame>, total: u32) -> Self {
        Buddy { frames, total, heads: [NONE; MAX_ORDER + 1], untouched: 0, free: total as u64, dirty_large: 0 }
    }

    /// Free frames.
    pub fn free_frames(&self) -> u64 {
        self.free
    }

    pub fn total_frames(&self) -> u64 {
        self.total as u64
    }

    /// Takes `frames` frames off the end of what was never allocated; they are not managed any more.
    pub fn shrink(&mut self, frames: u32) -> Option<u32> {
        let total = self.total.checked_sub(frames).filter(|&t| t >= self.untouched)?;
        self.total = total;
        self.free -= frames as u64;
        Some(total)
    }

    /// Allocates `1 << order` frames. The second value tells whether they were never used before (so they read as zeros).
    pub fn alloc(&mut self, order: usize) -> Option<(u32, bool)> {
        let found = (order..=MAX_ORDER).find(|&o| self.heads[o] != NONE);
        if let Some(from) = found {
            let frame = self.heads[from];
            let clean = self.unlink(frame, from);
            for o in (order..from).rev() {
                self.link(frame + (1 << o), o, clean);
            }
            self.free -= 1 << order;
            return Some((frame, clean));
        }
        let frame = self.take_untouched(order)?;
        self.free -= 1 << order;
        Some((frame, true))
    }

    /// Cuts a block from the untouched tail. Smaller blocks leave the rest of their aligned 2 MB untouched too, so that a
    /// run of small allocations walks upwards.
    fn take_untouched(&mut self, order: usize) -> Option<u32> {
        let size = 1u32 << order;
        let start = self.untouched.checked_next_multiple_of(size)?;
        let end = start.checked_add(size)?;
        if end > self.total {
            return None;
        }
        // What alignment skips becomes free blocks.
        let mut at = self.untouched;
        while at < start {
            let o = (at.trailing_zeros() as usize).min(order);
            self.link(at, o, true);
            at += 1 << o;
        }
        self.untouched = end;
        Some(start)
    }

    /// Frees a block of that order. Returns the order of the merged free block and its first frame.
    pub fn free(&mut self, frame: u32, order: usize) -> (u32, usize) {
        debug_assert!(frame < self.untouched && self.frames.get(frame as usize).free == 0);
        self.free += 1 << order;
        let (mut frame, mut order) = (frame, order);
        while order < MAX_ORDER {
            let buddy = frame ^ (1 << order);
            if buddy >= self.untouched || self.frames.get(buddy as usize).free != order as u8 + 1 {
                break;
            }
            self.unlink(buddy, order);
            frame &= !(1 << order);
            order += 1;
        }
        self.link(frame, order, false);
        (frame, order)
    }

    /// Free blocks of at least 2 MB that hold memory of the host.
    pub fn dirty_large(&self) -> u32 {
        self.dirty_large
    }

    /// Takes such a block out, to be given back to the host and then returned with [`Buddy::put_clean`].
    pub fn take_dirty(&mut self) -> Option<(u32, usize)> {
        for order in LARGE..=MAX_ORDER {
            let mut at = self.heads[order];
            while at != NONE {
                let Frame { next, clean, .. } = *self.frames.get(at as usize);
                if !clean {
                    self.unlink(at, order);
                    self.free -= 1 << order;
                    return Some((at, order));
                }
                at = next;
            }
        }
        None
    }

    pub fn put_clean(&mut self, frame: u32, order: usize) {
        self.free += 1 << order;
        self.link(frame, order, true);
    }

    fn link(&mut self, frame: u32, order: usize, clean: bool) {
        let next = self.heads[order];
        *self.frames.get_mut(frame as usize) = Frame { next, prev: NONE, free: order as u8 + 1, clean };
        if next != NONE {
            self.frames.get_mut(next as usize).prev = frame;
        }
        self.heads[order] = frame;
        self.dirty_large += u32::from(order >= LARGE && !clean);
    }

    /// Returns whether the block was clean.
    fn unlink(&mut self, frame: u32, order: usize) -> bool {
        let Frame { next, prev, clean, .. } = *self.frames.get(frame as usize);
        if prev == NONE {
            self.heads[order] = next;
        } else {
            self.frames.get_mut(prev as usize).next = next;
        }
        if next != NONE {
            self.frames.get_mut(next as usize).prev = prev;
        }
        *self.frames.get_mut(frame as usize) = Frame::default();
        self.dirty_large -= u32::from(order >= LARGE && !clean);
        clean
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn buddy(total: u32) -> Buddy {
        Buddy::new(LazyTable::from_static(vec![Frame::default(); total as usize].leak()), total)
    }

    #[test]
    fn all_memory_can_be_had_and_merges_again() {
        let mut b = buddy(8192);
        let frames: Vec<u32> = (0..8192).map(|_| b.alloc(0).unwrap().0).collect();
        assert_eq!(b.alloc(0), None);
        for f in frames {
            b.free(f, 0);
        }
        assert_eq!(b.free_frames(), 8192);
        assert!(b.alloc(MAX_ORDER).is_some() && b.alloc(MAX_ORDER).is_some());
    }

    proptest! {
        #[test]
        fn blocks_never_overlap(ops in proptest::collection::vec((0usize..=MAX_ORDER, any::<bool>(), any::<u16>()), 1..200)) {
            let mut b = buddy(4096);
            let mut live: BTreeMap<u32, usize> = BTreeMap::new();
            for (order, alloc, pick) in ops {
                if alloc {
                    if let Some((frame, _)) = b.alloc(order) {
                        prop_assert_eq!(frame % (1 << order), 0);
                        if let Some((f, o)) = live.range(..=frame).next_back() { prop_assert!(f + (1 << o) <= frame); }
                        if let Some((f, _)) = live.range(frame..).next() { prop_assert!(frame + (1 << order) <= *f); }
                        live.insert(frame, order);
                    }
                } else if !live.is_empty() {
                    let frame = *live.keys().nth(pick as usize % live.len()).unwrap();
                    let order = live.remove(&frame).unwrap();
                    b.free(frame, order);
                }
                let used: u64 = live.values().map(|o| 1u64 << o).sum();
                prop_assert_eq!(b.free_frames() + used, 4096);
            }
        }
    }
}
