//! Page faults: demand paging, copy-on-write, stack growth.

use core::sync::atomic::Ordering::SeqCst;

use sentry_abi::{context::pf, layout::PAGE_SIZE};

use super::{
    AddressSpace, Extent, frames,
    page_table::{ACCESSED, ADDRESS, ANONYMOUS, DIRTY, NO_EXECUTE, PRESENT, USER, WRITE},
    space::Inner,
    vma::{Prot, Vma, VmaFlags, VmaKind},
};
use crate::counters::{Counter, count};

/// Why a fault cannot be resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// No mapping: SIGSEGV, SEGV_MAPERR.
    Unmapped,
    /// The mapping does not allow the access: SIGSEGV, SEGV_ACCERR.
    Protection,
    /// A page wholly past its object's end, or an I/O error: SIGBUS, BUS_ADRERR.
    PastEnd,
    /// The sandbox is out of memory.
    NoMemory,
}

/// Pages mapped at once around a fault: anonymous memory, and pages of objects.
const AROUND_ANONYMOUS: u64 = 16;
const AROUND_OBJECT: u64 = 64;
/// Most for anonymous memory that is touched in order.
const STREAM_MAX: u64 = 128;

impl AddressSpace {
    /// Resolves a fault of user code, or of a copy on its behalf, at `address`. `error` is the page-fault error code
    /// ([`pf`]); its `PRESENT` bit is not relied on.
    pub fn fault(&self, address: u64, error: u32) -> Result<(), FaultError> {
        count(Counter::PageFaults);
        let (write, fetch) = (error & pf::WRITE != 0, error & pf::FETCH != 0);
        let mut inner = self.lock();
        let vma = self.find_or_grow(&mut inner, address).ok_or(FaultError::Unmapped)?;
        let allowed = if write {
            vma.prot.contains(Prot::WRITE)
        } else if fetch {
            vma.prot.contains(Prot::EXEC)
        } else {
            // On x86 anything mapped with some permission can be read.
            !vma.prot.is_empty()
        };
        if !allowed {
            return Err(FaultError::Protection);
        }
        let page = address & !(PAGE_SIZE - 1);
        let entry = inner.table.entry_or_create(page).map_err(|_| FaultError::NoMemory)?;
        let value = entry.load(SeqCst);
        if value & PRESENT != 0 {
            return if write && value & WRITE == 0 {
                self.write_protected(&inner, &vma, page)
            } else {
                // Another CPU was faster, or the translation in use was stale.
                Ok(())
            };
        }
        match &vma.kind {
            VmaKind::Anonymous => self.fault_anonymous(&mut inner, &vma, page),
            VmaKind::Object { .. } if write && vma.is_private() => self.fault_private_write(&inner, &vma, page),
            VmaKind::Object { .. } => self.fault_object(&inner, &vma, page, write),
            VmaKind::Kernel { gpa, .. } => {
                let gpa = gpa + (page - vma.start);
                entry.store(gpa | PRESENT | USER | ACCESSED | no_execute(vma.prot), SeqCst);
                Ok(())
            }
        }
    }

    /// The mapping at `address`; a stack above it grows down to it.
    fn find_or_grow(&self, inner: &mut Inner, address: u64) -> Option<Vma> {
        if let Some((_, vma)) = inner.vmas.range(..=address).next_back()
            && address < vma.end
        {
            return Some(vma.clone());
        }
        let (&start, above) = inner.vmas.range(address..).next()?;
        let page = address & !(PAGE_SIZE - 1);
        let floor = inner.vmas.range(..start).next_back().map_or(0, |(_, v)| v.end);
        if !above.flags.contains(VmaFlags::GROWS_DOWN)
            || above.end - page > self.stack_limit()
            || page < floor + 256 * PAGE_SIZE
        {
            return None;
        }
        let mut vma = inner.vmas.remove(&start)?;
        inner.total += start - page;
        vma.start = page;
        inner.vmas.insert(page, vma.clone());
        Some(vma)
    }

    fn fault_anonymous(&self, inner: &mut Inner, vma: &Vma, page: u64) -> Result<(), FaultError> {
        // Memory that is touched in order gets more at a time: a fault costs more than the pages.
        let mut pages = if page == inner.stream.0 { (inner.stream.1 * 2).min(STREAM_MAX) } else { AROUND_ANONYMOUS };
        // The largest aligned block around the page that is inside the mapping and unmapped, and that memory has in one piece.
        let (gpa, start) = loop {
            let (block, end) = (page & !(pages * PAGE_SIZE - 1), (page | (pages * PAGE_SIZE - 1)) + 1);
            let mut whole = block >= vma.start && end <= vma.end;
            if whole && pages > 1 {
                inner.table.for_each(block, end, |_, _| whole = false);
            }
            if whole || pages == 1 {
                match frames::alloc(pages.trailing_zeros() as usize) {
                    Ok(gpa) => break (gpa, block),
                    Err(_) if pages > 1 => {}
                    Err(_) => return Err(FaultError::NoMemory),
                }
            }
            pages /= 2;
        };
        inner.stream = (start + pages * PAGE_SIZE, pages);
        let bits = PRESENT | USER | ANONYMOUS | permission(vma.prot);
        for i in 0..pages {
            let Ok(entry) = inner.table.entry_or_create(start + i * PAGE_SIZE) else {
                for j in i..pages {
                    frames::put(gpa + j * PAGE_SIZE);
                }
                self.mapped(i);
                return Err(FaultError::NoMemory);
            };
            entry.store((gpa + i * PAGE_SIZE) | bits, SeqCst);
        }
        self.mapped(pages);
        Ok(())
    }

    fn fault_object(&self, inner: &Inner, vma: &Vma, page: u64, write: bool) -> Result<(), FaultError> {
        let VmaKind::Object { pager, offset } = &vma.kind else { return Err(FaultError::Unmapped) };
        let index = (offset + (page - vma.start)) / PAGE_SIZE;
        let max = ((vma.end - page) / PAGE_SIZE).min(AROUND_OBJECT);
        let shared = !vma.is_private();
        let extent = pager.fault(index, max, write && shared)?;
        let writable = shared && (write || !needs_write_notice(&extent)) && vma.prot.contains(Prot::WRITE);
        let bits =
            PRESENT | USER | if writable { permission(vma.prot) } else { permission(vma.prot) & !(WRITE | DIRTY) };
        let map = |address: u64, gpa: u64| {
            let Ok(entry) = inner.table.entry_or_create(address) else { return false };
            if entry.load(SeqCst) & PRESENT != 0 {
                return false;
            }
            frames::get(gpa);
            entry.store(gpa | bits, SeqCst);
            true
        };
        let ahead = 0..extent.pages.min(max);
        let mut mapped = ahead.take_while(|i| map(page + i * PAGE_SIZE, extent.gpa + i * PAGE_SIZE)).count() as u64;
        // A file in the window is there as a whole: what lies before the page in its block comes at no cost.
        let block = (page & !(AROUND_OBJECT * PAGE_SIZE - 1)).max(vma.start);
        let back = (page - block) / PAGE_SIZE;
        if back > 0
            && !frames::is_user(extent.gpa)
            && let Ok(before) = pager.fault(index - back, back, false)
            && before.pages == back
            && before.gpa + back * PAGE_SIZE == extent.gpa
        {
            let behind = 1..=back;
            mapped += behind.take_while(|i| map(page - i * PAGE_SIZE, extent.gpa - i * PAGE_SIZE)).count() as u64;
        }
        self.mapped(mapped);
        if mapped == 0 { Err(FaultError::NoMemory) } else { Ok(()) }
    }

    /// A first write to a private mapping of an object: straight to a copy.
    fn fault_private_write(&self, inner: &Inner, vma: &Vma, page: u64) -> Result<(), FaultError> {
        let VmaKind::Object { pager, offset } = &vma.kind else { return Err(FaultError::Unmapped) };
        let extent = pager.fault((offset + (page - vma.start)) / PAGE_SIZE, 1, false)?;
        let copy = frames::alloc(0).map_err(|_| FaultError::NoMemory)?;
        if !frames::copy_page(extent.gpa, copy) {
            frames::put(copy);
            return Err(FaultError::PastEnd);
        }
        match inner.table.entry_or_create(page) {
            Ok(entry) => entry.store(copy | PRESENT | USER | ANONYMOUS | permission(vma.prot), SeqCst),
            Err(_) => {
                frames::put(copy);
                return Err(FaultError::NoMemory);
            }
        }
        count(Counter::CowCopies);
        self.mapped(1);
        Ok(())
    }

    /// A write to a present read-only entry of a writable mapping.
    fn write_protected(&self, inner: &Inner, vma: &Vma, page: u64) -> Result<(), FaultError> {
        let Some(entry) = inner.table.entry(page) else { return Err(FaultError::Unmapped) };
        let value = entry.load(SeqCst);
        let gpa = value & ADDRESS;
        if !vma.is_private() {
            if let VmaKind::Object { pager, offset } = &vma.kind {
                let extent = pager.fault((offset + (page - vma.start)) / PAGE_SIZE, 1, true)?;
                if extent.gpa != gpa {
                    frames::get(extent.gpa);
                    entry.store(extent.gpa | PRESENT | USER | permission(vma.prot), SeqCst);
                    self.flush(page, page + PAGE_SIZE);
                    frames::put(gpa);
                    return Ok(());
                }
            }
            entry.store(gpa | PRESENT | USER | permission(vma.prot), SeqCst);
            return Ok(());
        }
        if value & ANONYMOUS != 0 && frames::references(gpa) == 1 {
            // The last one to hold the page: nobody needs the old content.
            entry.fetch_or(WRITE | DIRTY | ACCESSED, SeqCst);
            return Ok(());
        }
        let copy = frames::alloc(0).map_err(|_| FaultError::NoMemory)?;
        if !frames::copy_page(gpa, copy) {
            frames::put(copy);
            return Err(FaultError::PastEnd);
        }
        count(Counter::CowCopies);
        entry.store(copy | PRESENT | USER | ANONYMOUS | permission(vma.prot), SeqCst);
        self.flush(page, page + PAGE_SIZE);
        frames::put(gpa);
        Ok(())
    }
}

/// Entry bits of a protection. Writable entries are born dirty: nothing here looks for clean pages.
pub(super) fn permission(prot: Prot) -> u64 {
    ACCESSED | if prot.contains(Prot::WRITE) { WRITE | DIRTY } else { 0 } | no_execute(prot)
}

fn no_execute(prot: Prot) -> u64 {
    if prot.contains(Prot::EXEC) { 0 } else { NO_EXECUTE }
}

/// Window pages must not become writable before the object has heard of a write.
fn needs_write_notice(extent: &Extent) -> bool {
    !frames::is_user(extent.gpa)
}
