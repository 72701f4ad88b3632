//! Kernel memory in pages: page tables, kernel stacks, slabs of the heap. Never visible to applications.

use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use sentry_abi::{boot::BootParams, layout::PAGE_SIZE};

use super::{buddy::Buddy, table::LazyTable};
use crate::{arch, sync::SpinLock};

struct Pool {
    buddy: Buddy,
    /// Guest-physical address of frame 0.
    base: u64,
}

static POOL: SpinLock<Pool> = SpinLock::new(Pool { buddy: Buddy::new(LazyTable::empty(), 0), base: 0 });

/// Takes over kernel memory behind the image. Returns the first guest-physical address after what it reserves.
pub fn init(params: &BootParams) {
    let start = (params.image.base + params.image.size).next_multiple_of(2 << 20);
    let end = params.kernel.base + params.kernel.size;
    // Bookkeeping first: at most 12 bytes a frame.
    let frames = ((end - start) / PAGE_SIZE) as usize;
    let table_bytes = (frames * size_of::<super::buddy::Frame>()).next_multiple_of(2 << 20) as u64;
    let base = start + table_bytes;
    let total = ((end - base) / PAGE_SIZE) as u32;
    // SAFETY: kernel memory behind the image is zeroed and unused at boot, and this range is never handed out.
    let table = unsafe { LazyTable::from_memory(arch::direct_map(start), frames) };
    let mut pool = POOL.lock();
    pool.base = base;
    pool.buddy = Buddy::new(table.unwrap_or(LazyTable::empty()), total);
}

/// Cuts zeroed memory for a boot-time table off the region's end, for good.
pub fn reserve(bytes: usize) -> Option<*mut u8> {
    let mut pool = POOL.lock();
    let frames = (bytes as u64).div_ceil(PAGE_SIZE);
    let first = pool.buddy.shrink(u32::try_from(frames).ok()?)?;
    Some(arch::direct_map(pool.base + first as u64 * PAGE_SIZE))
}

/// Free kernel memory in bytes.
pub fn free_bytes() -> u64 {
    POOL.lock().buddy.free_frames() * PAGE_SIZE
}

/// Most bytes that were in use at a time: what the host has given for them, which stays given.
static PEAK: AtomicU64 = AtomicU64::new(0);

pub fn peak() -> u64 {
    PEAK.load(Relaxed)
}

/// Called with the pool locked, after an allocation.
fn note_peak(buddy: &Buddy) {
    let used = buddy.total_frames().saturating_sub(buddy.free_frames()) * PAGE_SIZE;
    PEAK.fetch_max(used, Relaxed);
}

/// Below this much free kernel memory, applications' requests for new objects are refused with ENOMEM.
pub const WATERMARK: u64 = 16 << 20;

/// Whether the kernel has memory for a new task, mapping or file; checked on entry so that the heap itself never fails.
pub fn under_pressure() -> bool {
    arch_has_memory() && free_bytes() < WATERMARK
}

fn arch_has_memory() -> bool {
    POOL.lock().buddy.total_frames() != 0
}

/// Pages of kernel memory, owned. Contents are unspecified unless made by [`KernelPages::zeroed`].
pub struct KernelPages {
    base: NonNull<u8>,
    order: usize,
}

// SAFETY: owned memory, like a Box<[u8]>.
unsafe impl Send for KernelPages {}
// SAFETY: shared access hands out raw pointers only.
unsafe impl Sync for KernelPages {}

fn order_of(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_SIZE as usize).next_power_of_two().trailing_zeros() as usize
}

impl KernelPages {
    /// At least `bytes` bytes, rounded up to a power of two of pages; at most 16 MB.
    pub fn new(bytes: usize) -> Option<Self> {
        Self::alloc(bytes).map(|(pages, _)| pages)
    }

    pub fn zeroed(bytes: usize) -> Option<Self> {
        let (pages, fresh) = Self::alloc(bytes)?;
        if !fresh {
            // SAFETY: the pages are ours and that long.
            unsafe { pages.base.as_ptr().write_bytes(0, (PAGE_SIZE as usize) << pages.order) };
        }
        Some(pages)
    }

    fn alloc(bytes: usize) -> Option<(Self, bool)> {
        let order = order_of(bytes);
        if order > super::buddy::MAX_ORDER {
            return None;
        }
        let mut pool = POOL.lock();
        if pool.buddy.total_frames() == 0 {
            drop(pool);
            return hosted::alloc(order);
        }
        let (frame, fresh) = pool.buddy.alloc(order)?;
        note_peak(&pool.buddy);
        let base = NonNull::new(arch::direct_map(pool.base + frame as u64 * PAGE_SIZE))?;
        Some((KernelPages { base, order }, fresh))
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub fn gpa(&self) -> u64 {
        arch::gpa_of(self.base.as_ptr())
    }

    pub fn len(&self) -> usize {
        (PAGE_SIZE as usize) << self.order
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// Gives up ownership: for pages that are reached by their address and freed with [`KernelPages::from_raw`].
    pub fn into_raw(self) -> *mut u8 {
        core::mem::ManuallyDrop::new(self).base.as_ptr()
    }

    /// # Safety
    /// `base` came from [`KernelPages::into_raw`] of pages of `bytes` bytes and is not used any more.
    pub unsafe fn from_raw(base: *mut u8, bytes: usize) -> Option<Self> {
        Some(KernelPages { base: NonNull::new(base)?, order: order_of(bytes) })
    }
}

impl Drop for KernelPages {
    fn drop(&mut self) {
        let mut pool = POOL.lock();
        if pool.buddy.total_frames() == 0 {
            drop(pool);
            return hosted::free(self.base, self.order);
        }
        let frame = ((arch::gpa_of(self.base.as_ptr()) - pool.base) / PAGE_SIZE) as u32;
        pool.buddy.free(frame, self.order);
    }
}

/// Unit tests on the host have no kernel memory of their own and use the test process's heap.
#[cfg(test)]
mod hosted {
    use super::*;
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    fn layout(order: usize) -> Layout {
        Layout::from_size_align((PAGE_SIZE as usize) << order, PAGE_SIZE as usize).unwrap()
    }

    pub fn alloc(order: usize) -> Option<(KernelPages, bool)> {
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { alloc_zeroed(layout(order)) }).map(|base| (KernelPages { base, order }, true))
    }

    pub fn free(base: NonNull<u8>, order: usize) {
        // SAFETY: `alloc` made it with the same layout.
        unsafe { dealloc(base.as_ptr(), layout(order)) }
    }
}

#[cfg(not(test))]
mod hosted {
    use super::*;

    pub fn alloc(_order: usize) -> Option<(KernelPages, bool)> {
        None
    }

    pub fn free(_base: NonNull<u8>, _order: usize) {}
}
