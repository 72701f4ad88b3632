//! User pages: application memory, counted references, zeroing, giving memory back.
//!
//! A page has one reference for each page table entry that maps it and one for each owner (a file's page, the copy in hand).
//! A page whose last reference goes away may still be in use by a CPU that translated an address a moment ago: it is reused
//! only after every CPU that was in the kernel has passed a quiescent point ([`quiesce`]).

use alloc::vec::Vec;
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use sentry_abi::{
    boot::{BootParams, MAX_CPUS},
    layout::PAGE_SIZE,
};

use super::{
    buddy::{Buddy, Frame},
    table::LazyTable,
};
use crate::{
    arch,
    errno::{ENOMEM, Result},
    sched,
    sync::{Once, SpinLock},
};

static BUDDY: SpinLock<Buddy> = SpinLock::new(Buddy::new(LazyTable::empty(), 0));
static REFERENCES: Once<LazyTable<AtomicU32>> = Once::new();
static BASE: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Takes over the user region. Bookkeeping is 16 bytes of kernel memory a page, touched as pages are used.
pub fn init(params: &BootParams, limit: u64) -> Result<()> {
    let size = if limit == 0 { params.user.size } else { params.user.size.min(limit.next_multiple_of(PAGE_SIZE)) };
    let pages = (size / PAGE_SIZE) as usize;
    let frames = super::kmem::reserve(pages * size_of::<Frame>()).ok_or(ENOMEM)?;
    let references = super::kmem::reserve(pages * size_of::<AtomicU32>()).ok_or(ENOMEM)?;
    // SAFETY: `reserve` gives zeroed, page-aligned kernel memory of that size for good; all zeros are valid elements.
    let (frames, references) =
        unsafe { (LazyTable::from_memory(frames, pages), LazyTable::from_memory(references, pages)) };
    *BUDDY.lock() = Buddy::new(frames.ok_or(ENOMEM)?, pages as u32);
    let references = references.ok_or(ENOMEM)?;
    REFERENCES.call_once(|| references);
    BASE.store(params.user.base, Relaxed);
    END.store(params.user.base + size, Relaxed);
    Ok(())
}

/// Total and free bytes of user memory.
pub fn usage() -> (u64, u64) {
    let buddy = BUDDY.lock();
    (buddy.total_frames() * PAGE_SIZE, buddy.free_frames() * PAGE_SIZE)
}

/// Whether `gpa` is a user page (and not the window).
#[inline]
pub fn is_user(gpa: u64) -> bool {
    (BASE.load(Relaxed)..END.load(Relaxed)).contains(&gpa)
}

fn counter(gpa: u64) -> Option<&'static AtomicU32> {
    if !is_user(gpa) {
        return None;
    }
    REFERENCES.get().map(|t| t.get(((gpa - BASE.load(Relaxed)) / PAGE_SIZE) as usize))
}

/// Pages of the region. Kernel memory is taken for what applications do, and a limit holds both: they have that much less.
fn take(order: usize) -> Option<(u32, bool)> {
    let mut buddy = BUDDY.lock();
    let free = buddy.free_frames() * PAGE_SIZE;
    if free < super::kmem::peak() + (PAGE_SIZE << order) {
        return None;
    }
    buddy.alloc(order)
}

/// Allocates `1 << order` contiguous pages, zeroed, each with one reference. Returns the guest-physical address of the first.
pub fn alloc(order: usize) -> Result<u64> {
    let found = take(order);
    let (frame, fresh) = match found {
        Some(found) => found,
        None => {
            reclaim();
            take(order).ok_or(ENOMEM)?
        }
    };
    let gpa = BASE.load(Relaxed) + frame as u64 * PAGE_SIZE;
    if !fresh {
        // SAFETY: the pages are allocated to us and mapped nowhere.
        unsafe { arch::direct_map(gpa).write_bytes(0, (PAGE_SIZE as usize) << order) };
    }
    for i in 0..1 << order {
        if let Some(count) = counter(gpa + i * PAGE_SIZE) {
            count.store(1, Relaxed);
        }
    }
    Ok(gpa)
}

/// One more reference to a page that the caller knows to be alive. Nothing for window pages.
#[inline]
pub fn get(gpa: u64) {
    if let Some(count) = counter(gpa) {
        count.fetch_add(1, Relaxed);
    }
}

/// References to a user page.
pub fn references(gpa: u64) -> u32 {
    counter(gpa).map_or(u32::MAX, |c| c.load(SeqCst))
}

/// Gives a reference back. Nothing for window pages.
pub fn put(gpa: u64) {
    let Some(count) = counter(gpa) else { return };
    if count.fetch_sub(1, SeqCst) == 1 {
        free(gpa);
    }
}

/// An owned reference to a user page.
pub struct Page(u64);

impl Page {
    /// A zeroed page.
    pub fn new() -> Result<Self> {
        alloc(0).map(Page)
    }

    /// Takes over a reference that [`alloc`] or [`get`] made.
    pub fn from_reference(gpa: u64) -> Self {
        Page(gpa)
    }

    pub fn gpa(&self) -> u64 {
        self.0
    }

    /// Copies into the page; the range must lie within it.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE as usize);
        // SAFETY: within a user page that our reference keeps; programs that map it see the bytes change.
        unsafe { arch::copy::copy_fallible(arch::direct_map(self.0).add(offset), bytes.as_ptr(), bytes.len()) };
    }

    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE as usize);
        // SAFETY: as for `write`.
        unsafe { arch::copy::copy_fallible(bytes.as_mut_ptr(), arch::direct_map(self.0).add(offset), bytes.len()) };
    }

    pub fn zero(&self, offset: usize, len: usize) {
        assert!(offset + len <= PAGE_SIZE as usize);
        // SAFETY: as for `write`.
        unsafe { arch::copy::zero_fallible(arch::direct_map(self.0).add(offset), len) };
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        get(self.0);
        Page(self.0)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        put(self.0);
    }
}

/// Copies a whole page (of either kind) to a user page. False if the source faulted (its file shrank).
pub fn copy_page(from: u64, to: u64) -> bool {
    // SAFETY: both are pages that the caller holds; a window page may fault, which is reported.
    unsafe { arch::copy::copy_fallible(arch::direct_map(to), arch::direct_map(from), PAGE_SIZE as usize) == 0 }
}

struct Deferred {
    /// Pages freed while `EPOCH` was the first value.
    batches: Vec<(u64, Vec<u64>)>,
}

static DEFERRED: SpinLock<Deferred> = SpinLock::new(Deferred { batches: Vec::new() });
static ANY_DEFERRED: AtomicBool = AtomicBool::new(false);
static EPOCH: AtomicU64 = AtomicU64::new(1);
static SEEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn free(gpa: u64) {
    if !sched::others_in_kernel() {
        return give_back(gpa);
    }
    let mut deferred = DEFERRED.lock();
    let epoch = EPOCH.load(SeqCst);
    match deferred.batches.last_mut() {
        Some((e, pages)) if *e == epoch => pages.push(gpa),
        _ => deferred.batches.push((epoch, alloc::vec![gpa])),
    }
    ANY_DEFERRED.store(true, SeqCst);
}

fn give_back(gpa: u64) {
    let frame = ((gpa - BASE.load(Relaxed)) / PAGE_SIZE) as u32;
    BUDDY.lock().free(frame, 0);
}

/// Free memory kept for reuse before the rest goes back to the host, in blocks of 2 MB.
const KEEP_LARGE: u32 = 8;

/// Gives free memory beyond a reserve back to the host; called when a CPU is about to idle.
pub fn release_surplus() {
    while BUDDY.lock().dirty_large() > KEEP_LARGE {
        let Some((frame, order)) = BUDDY.lock().take_dirty() else { return };
        let gpa = BASE.load(Relaxed) + frame as u64 * PAGE_SIZE;
        match arch::host::release_memory(gpa, PAGE_SIZE << order) {
            Ok(()) => BUDDY.lock().put_clean(frame, order),
            Err(_) => {
                BUDDY.lock().free(frame, order);
                return;
            }
        }
    }
}

/// This CPU holds no translated user address: called when a task leaves the CPU, before user mode and when idle.
#[inline]
pub fn quiesce() {
    if ANY_DEFERRED.load(Relaxed) {
        SEEN[arch::cpu_index()].store(EPOCH.load(SeqCst), SeqCst);
        reclaim();
    }
}

/// Frees the pages that no CPU can still be using.
fn reclaim() {
    let mut ready = Vec::new();
    {
        let mut deferred = DEFERRED.lock();
        let oldest = sched::kernel_cpus().map(|cpu| SEEN[cpu].load(SeqCst)).min().unwrap_or(u64::MAX);
        while deferred.batches.first().is_some_and(|(epoch, _)| *epoch < oldest) {
            ready.append(&mut deferred.batches.remove(0).1);
        }
        // Close the open batch, so that a quiescent point after this one can tell.
        EPOCH.fetch_add(1, SeqCst);
        ANY_DEFERRED.store(!deferred.batches.is_empty(), SeqCst);
    }
    for gpa in ready {
        give_back(gpa);
    }
}

/// User memory for unit tests on the host: a leaked block of the test process's own.
#[cfg(test)]
pub fn init_hosted() {
    static READY: Once<()> = Once::new();
    READY.call_once(|| {
        const PAGES: usize = 16 << 10;
        let layout = std::alloc::Layout::from_size_align(PAGES * PAGE_SIZE as usize, 16 << 20).unwrap();
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) } as u64;
        *BUDDY.lock() = Buddy::new(LazyTable::from_static(vec![Frame::default(); PAGES].leak()), PAGES as u32);
        let references: Vec<AtomicU32> = (0..PAGES).map(|_| AtomicU32::new(0)).collect();
        REFERENCES.call_once(|| LazyTable::from_static(references.leak()));
        BASE.store(base, Relaxed);
        END.store(base + layout.size() as u64, Relaxed);
    });
}
