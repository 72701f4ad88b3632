//! The kernel heap: slabs of fixed sizes over kernel pages; larger blocks are whole pages.
//!
//! A free block holds the link of its class's free list. Slab memory stays with its class.

use core::{
    alloc::{GlobalAlloc, Layout},
    ptr::null_mut,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use sentry_abi::layout::PAGE_SIZE;

use super::kmem::KernelPages;
use crate::sync::SpinLock;

/// Powers of two, and half-way sizes where that saves memory. All are multiples of 16.
const CLASSES: [usize; 14] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];
const MAX_CLASS: usize = 2048;
const SLAB: usize = 4 * PAGE_SIZE as usize;

struct Class {
    /// First free block, 0 if none.
    free: u64,
}

pub struct Heap {
    classes: [SpinLock<Class>; CLASSES.len()],
    used: AtomicU64,
}

/// Class index of a layout, or None for whole pages.
fn class_of(layout: Layout) -> Option<usize> {
    // Blocks of a class are aligned to its largest power-of-two factor.
    let size = layout.size().max(1);
    if layout.align() > 16 {
        let size = size.next_multiple_of(layout.align()).next_power_of_two();
        return CLASSES.iter().position(|&c| c >= size && c.is_power_of_two());
    }
    if size > MAX_CLASS { None } else { CLASSES.iter().position(|&c| c >= size) }
}

impl Heap {
    pub const fn new() -> Self {
        Heap { classes: [const { SpinLock::new(Class { free: 0 }) }; CLASSES.len()], used: AtomicU64::new(0) }
    }

    /// Bytes in blocks that are allocated.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Relaxed)
    }

    fn alloc_class(&self, index: usize) -> *mut u8 {
        let size = CLASSES[index];
        let mut class = self.classes[index].lock();
        if class.free == 0 {
            let Some(pages) = KernelPages::new(SLAB) else { return null_mut() };
            let base = pages.into_raw();
            // Linked so that the lowest address is handed out first.
            for i in (0..SLAB / size).rev() {
                // SAFETY: block `i` lies inside the slab, which is ours.
                unsafe {
                    let block = base.add(i * size);
                    block.cast::<u64>().write(class.free);
                    class.free = block as u64;
                }
            }
        }
        let block = class.free as *mut u8;
        // SAFETY: a block on the free list holds its link and is used by nobody.
        class.free = unsafe { block.cast::<u64>().read() };
        block
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: blocks are disjoint, at least as large and as aligned as asked, and stay valid until freed.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.used.fetch_add(layout.size() as u64, Relaxed);
        match class_of(layout) {
            Some(index) => self.alloc_class(index),
            None if layout.align() > PAGE_SIZE as usize => null_mut(),
            None => KernelPages::new(layout.size()).map_or(null_mut(), KernelPages::into_raw),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.used.fetch_sub(layout.size() as u64, Relaxed);
        match class_of(layout) {
            Some(index) => {
                let mut class = self.classes[index].lock();
                // SAFETY: the block came from this class by the same layout and is not used any more.
                unsafe { block.cast::<u64>().write(class.free) };
                class.free = block as u64;
            }
            // SAFETY: it came from `KernelPages::into_raw` with this size.
            None => drop(unsafe { KernelPages::from_raw(block, layout.size()) }),
        }
    }
}

#[cfg(sentry_image)]
#[global_allocator]
static HEAP: Heap = Heap::new();

/// Bytes of heap blocks in use.
pub fn used_bytes() -> u64 {
    #[cfg(sentry_image)]
    return HEAP.used_bytes();
    #[cfg(not(sentry_image))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_is_asked() {
        for size in 1..=4096usize {
            for align in [1, 8, 16, 32, 64, 256, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                if let Some(index) = class_of(layout) {
                    assert!(CLASSES[index] >= size, "{layout:?}");
                    assert!(align <= 16 || CLASSES[index].is_multiple_of(align), "{layout:?}");
                }
            }
        }
    }

    #[test]
    fn blocks_are_disjoint() {
        let heap = Heap::new();
        let layout = Layout::from_size_align(40, 8).unwrap();
        // SAFETY: the layout is not empty.
        let alloc = |heap: &Heap| unsafe { heap.alloc(layout) } as usize;
        let blocks: Vec<usize> = (0..1000).map(|_| alloc(&heap)).collect();
        let mut sorted = blocks.clone();
        sorted.sort();
        assert!(sorted.windows(2).all(|w| w[1] - w[0] >= 48));
        for b in blocks {
            // SAFETY: allocated above with this layout.
            unsafe { heap.dealloc(b as *mut u8, layout) };
        }
        assert_eq!(heap.used_bytes(), 0);
    }
}
