//! Changing mappings: mmap, munmap, mprotect, mremap, brk, fork.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering::SeqCst;

use sentry_abi::layout::{PAGE_SIZE, USER_MIN, USER_TOP};

use super::{
    AddressSpace, frames, kmem,
    page_table::{ACCESSED, ADDRESS, ANONYMOUS, DIRTY, NO_EXECUTE, WRITE},
    space::Inner,
    vma::{Prot, Vma, VmaFlags, VmaKind},
};
use crate::errno::{EACCES, EEXIST, EFAULT, EINVAL, ENOMEM, Result};

/// Mappings an address space may have (Linux's vm.max_map_count).
const MAX_MAPPINGS: usize = 65_530;

/// What mmap(2) asks for. `address` and `len` are page aligned, `len` above 0.
pub struct MapRequest {
    /// Hint, or the place itself when `fixed`.
    pub address: u64,
    pub len: u64,
    pub prot: Prot,
    pub max_prot: Prot,
    pub flags: VmaFlags,
    pub kind: VmaKind,
    /// MAP_FIXED: replaces what is there.
    pub fixed: bool,
    /// MAP_FIXED_NOREPLACE: EEXIST when something is there.
    pub no_replace: bool,
}

impl AddressSpace {
    /// Maps; returns the address.
    pub fn map(&self, request: MapRequest) -> Result<u64> {
        if kmem::under_pressure() {
            return Err(ENOMEM);
        }
        let mut inner = self.lock();
        let len = request.len;
        if len == 0 || len > USER_TOP {
            return Err(ENOMEM);
        }
        let in_range = |a: u64| a >= USER_MIN && a.checked_add(len).is_some_and(|end| end <= USER_TOP);
        let start = if request.fixed || request.no_replace {
            if !in_range(request.address) {
                return Err(if request.address < USER_MIN { crate::errno::EPERM } else { ENOMEM });
            }
            if request.no_replace && overlaps(&inner, request.address, request.address + len) {
                return Err(EEXIST);
            }
            request.address
        } else if in_range(request.address) && !overlaps(&inner, request.address, request.address + len) {
            request.address
        } else {
            find_gap(&mut inner, len)?
        };
        if inner.vmas.len() >= MAX_MAPPINGS {
            return Err(ENOMEM);
        }
        self.check_limit(&inner, len)?;
        self.remove(&mut inner, start, start + len);
        let vma = Vma {
            start,
            end: start + len,
            prot: request.prot,
            max_prot: request.max_prot,
            flags: request.flags,
            kind: request.kind,
        };
        self.insert(&mut inner, vma);
        Ok(start)
    }

    pub fn unmap(&self, start: u64, len: u64) -> Result<()> {
        let end = checked_range(start, len, EINVAL)?;
        let mut inner = self.lock();
        // Cutting a hole makes two of one.
        if inner.vmas.len() >= MAX_MAPPINGS && inner.vmas.range(..start).next_back().is_some_and(|(_, v)| v.end > end) {
            return Err(ENOMEM);
        }
        self.remove(&mut inner, start, end);
        Ok(())
    }

    pub fn protect(&self, start: u64, len: u64, prot: Prot) -> Result<()> {
        let end = checked_range(start, len, ENOMEM)?;
        let mut inner = self.lock();
        let pieces = covering(&inner, start, end)?;
        // Linux changes what comes before the first refusal; callers cannot tell, so refuse before changing anything.
        if pieces.iter().any(|v| !v.max_prot.contains(prot)) {
            return Err(EACCES);
        }
        for piece in pieces {
            if piece.prot == prot {
                continue;
            }
            self.split_out(&mut inner, piece.start, piece.end);
            let mut vma = piece.clone();
            vma.prot = prot;
            let mut narrowed = None;
            inner.table.for_each(piece.start, piece.end, |address, entry| {
                let old = entry.load(SeqCst);
                let mut new = old;
                if prot.is_empty() {
                    // Not accessible at all: the entry goes, its page stays known by refaulting. Private copies would be
                    // lost that way, so they keep their entry without the user bit.
                    new &= !super::page_table::USER;
                } else {
                    new |= super::page_table::USER;
                }
                if !prot.contains(Prot::WRITE) {
                    new &= !WRITE;
                }
                if prot.contains(Prot::EXEC) {
                    new &= !NO_EXECUTE;
                } else {
                    new |= NO_EXECUTE;
                }
                if new != old {
                    // The hardware or the backend may be setting accessed or dirty bits: keep them.
                    let marks = entry.swap(new, SeqCst) & (ACCESSED | DIRTY);
                    entry.fetch_or(marks, SeqCst);
                    let first = narrowed.map_or(address, |(a, _)| a);
                    narrowed = Some((first, address + PAGE_SIZE));
                }
            });
            inner.vmas.insert(vma.start, vma);
            if let Some((from, to)) = narrowed {
                self.flush(from, to);
            }
            self.merge_around(&mut inner, piece.start, piece.end);
        }
        Ok(())
    }

    /// Moves the break; returns the break in force (brk(2) never fails in the kernel ABI).
    pub fn set_brk(&self, wanted: u64) -> u64 {
        let mut inner = self.lock();
        let layout = inner.layout;
        if wanted < layout.start_brk || wanted - layout.start_brk > self.data_limit() || wanted > USER_TOP - (16 << 20)
        {
            return layout.brk;
        }
        let page = |a: u64| a.next_multiple_of(PAGE_SIZE);
        let (old, new) = (page(layout.brk), page(wanted));
        if new < old {
            self.remove(&mut inner, new, old);
        } else if new > old {
            if overlaps(&inner, old, new) || kmem::under_pressure() || self.check_limit(&inner, new - old).is_err() {
                return layout.brk;
            }
            let prot = Prot::READ | Prot::WRITE;
            let vma = Vma {
                start: old,
                end: new,
                prot,
                max_prot: Prot::all(),
                flags: VmaFlags::empty(),
                kind: VmaKind::Anonymous,
            };
            self.insert(&mut inner, vma);
        }
        inner.layout.brk = wanted;
        wanted
    }

    /// mremap(2). `fixed`: the new address with MREMAP_FIXED; `keep`: MREMAP_DONTUNMAP.
    pub fn remap(
        &self,
        old: u64,
        old_len: u64,
        new_len: u64,
        may_move: bool,
        fixed: Option<u64>,
        keep: bool,
    ) -> Result<u64> {
        let old_end = checked_range(old, old_len.max(PAGE_SIZE), EINVAL)?;
        let mut inner = self.lock();
        let vma = find(&inner, old).ok_or(EFAULT)?.clone();
        if old_len == 0 {
            // Duplicates a shared mapping.
            if vma.is_private() || !may_move {
                return Err(EINVAL);
            }
            let start = match fixed {
                Some(at) => at,
                None => find_gap(&mut inner, new_len)?,
            };
            let end = checked_range(start, new_len, EINVAL)?;
            self.remove(&mut inner, start, end);
            let mut copy = vma.slice(old, vma.end);
            (copy.start, copy.end) = (start, end);
            self.insert(&mut inner, copy);
            return Ok(start);
        }
        if vma.end < old_end {
            return Err(EFAULT);
        }
        if fixed.is_none() && !keep {
            if new_len <= old_len {
                if new_len < old_len {
                    self.remove(&mut inner, old + new_len, old_end);
                }
                return Ok(old);
            }
            let grown = old.checked_add(new_len).filter(|&e| e <= USER_TOP);
            if let Some(end) = grown
                && vma.end == old_end
                && !overlaps(&inner, old_end, end)
            {
                self.check_limit(&inner, new_len - old_len)?;
                let mut more = vma.slice(old, old_end);
                if let VmaKind::Object { offset, .. } = &mut more.kind {
                    *offset += old_len;
                }
                (more.start, more.end) = (old_end, end);
                self.insert(&mut inner, more);
                return Ok(old);
            }
        }
        if !may_move {
            return Err(ENOMEM);
        }
        let start = match fixed {
            Some(at) => {
                let end = checked_range(at, new_len, EINVAL)?;
                if at < old_end && old < end {
                    return Err(EINVAL);
                }
                self.remove(&mut inner, at, end);
                at
            }
            None => find_gap(&mut inner, new_len)?,
        };
        self.check_limit(&inner, new_len.saturating_sub(old_len))?;
        let mut moved = vma.slice(old, old_end);
        (moved.start, moved.end) = (start, start + new_len);
        // Entries move with their pages.
        let mut entries: Vec<(u64, u64)> = Vec::new();
        inner.table.for_each(old, old + old_len.min(new_len), |address, entry| {
            entries.push((address - old + start, entry.swap(0, SeqCst)));
        });
        let count = entries.len() as u64;
        for (i, (address, value)) in entries.iter().enumerate() {
            match inner.table.entry_or_create(*address) {
                Ok(entry) => entry.store(*value, SeqCst),
                Err(_) => {
                    // Tables ran out half-way: the rest of the content is lost with the old mapping.
                    for (_, value) in &entries[i..] {
                        frames::put(value & ADDRESS);
                    }
                    break;
                }
            }
        }
        if count > 0 {
            self.flush(old, old_end);
        }
        if !keep {
            self.remove(&mut inner, old, old_end);
        }
        self.insert(&mut inner, moved);
        Ok(start)
    }

    /// Gives up the pages of `[start, start + len)` (MADV_DONTNEED): anonymous memory reads as zeros again, private copies are
    /// dropped.
    pub fn discard(&self, start: u64, len: u64) -> Result<()> {
        let end = checked_range(start, len, ENOMEM)?;
        let inner = self.lock();
        let mut complete = true;
        let mut at = start;
        for vma in inner.vmas.values().filter(|v| v.start < end && v.end > start) {
            complete &= vma.start <= at;
            at = vma.end;
            if !matches!(vma.kind, VmaKind::Kernel { .. }) {
                self.clear(&inner, vma.start.max(start), vma.end.min(end));
            }
        }
        if complete && at >= end { Ok(()) } else { Err(ENOMEM) }
    }

    /// Sets or clears flags on the mappings of a range (madvise, mlock).
    pub fn set_flags(&self, start: u64, len: u64, set: VmaFlags, clear: VmaFlags) -> Result<()> {
        let end = checked_range(start, len, ENOMEM)?;
        let mut inner = self.lock();
        for piece in covering(&inner, start, end)? {
            self.split_out(&mut inner, piece.start, piece.end);
            let mut vma = piece.clone();
            vma.flags = (vma.flags | set) & !clear;
            inner.vmas.insert(vma.start, vma);
            self.merge_around(&mut inner, piece.start, piece.end);
        }
        Ok(())
    }

    /// The mapping at `address`, for those who ask (madvise, futex keys, /proc).
    pub fn find(&self, address: u64) -> Option<Vma> {
        find(&self.lock(), address).cloned()
    }

    /// ENOMEM unless all of a range is mapped.
    pub fn check_mapped(&self, start: u64, len: u64) -> Result<()> {
        let end = checked_range(start, len, ENOMEM)?;
        covering(&self.lock(), start, end).map(drop)
    }

    /// Pages of a range that are there.
    pub fn resident_in(&self, start: u64, end: u64) -> u64 {
        let mut count = 0;
        self.lock().table.for_each(start, end, |_, _| count += 1);
        count
    }

    /// madvise(MADV_REMOVE): holes in shared objects that may be written.
    pub fn punch(&self, start: u64, len: u64) -> Result<()> {
        let end = checked_range(start, len, EINVAL)?;
        let pieces = covering(&self.lock(), start, end)?;
        for piece in pieces {
            let VmaKind::Object { pager, offset } = &piece.kind else { return Err(EINVAL) };
            if piece.flags.contains(VmaFlags::LOCKED) {
                return Err(EINVAL);
            }
            if piece.is_private() || !piece.prot.contains(Prot::WRITE) {
                return Err(EACCES);
            }
            pager.punch(*offset, offset + piece.len())?;
        }
        Ok(())
    }

    /// Residency of each page of a range, for mincore(2); ENOMEM when something is not mapped. The caller bounds `len`.
    pub fn residency(&self, start: u64, len: u64) -> Result<Vec<u8>> {
        let end = checked_range(start, len, ENOMEM)?;
        let inner = self.lock();
        covering(&inner, start, end)?;
        let mut pages = alloc::vec![0u8; ((end - start) / PAGE_SIZE) as usize];
        inner.table.for_each(start, end, |address, _| pages[((address - start) / PAGE_SIZE) as usize] = 1);
        Ok(pages)
    }

    /// A copy for fork(2): private pages are shared read-only until one side writes.
    pub fn fork(&self) -> Result<Arc<AddressSpace>> {
        if kmem::under_pressure() {
            return Err(ENOMEM);
        }
        let child = AddressSpace::new()?;
        child.barriers.store(self.barriers.load(SeqCst), SeqCst);
        let inner = self.lock();
        let mut theirs = child.lock();
        theirs.layout = inner.layout;
        let mut failed = false;
        for vma in inner.vmas.values() {
            if vma.flags.contains(VmaFlags::DONT_FORK) {
                continue;
            }
            child.insert(&mut theirs, vma.clone());
            // Pages of objects come back by faults; what only this address space has must be copied.
            if !vma.is_private()
                || vma.flags.contains(VmaFlags::WIPE_ON_FORK)
                || matches!(vma.kind, VmaKind::Kernel { .. })
            {
                continue;
            }
            let mut count = 0;
            let mut protected = None;
            inner.table.for_each(vma.start, vma.end, |address, entry| {
                let mut value = entry.load(SeqCst);
                if value & (WRITE | ANONYMOUS) == WRITE | ANONYMOUS {
                    value = entry.fetch_and(!WRITE, SeqCst) & !WRITE;
                    let first = protected.map_or(address, |(a, _)| a);
                    protected = Some((first, address + PAGE_SIZE));
                }
                match theirs.table.entry_or_create(address) {
                    Ok(new) => {
                        frames::get(value & ADDRESS);
                        new.store(value & !WRITE, SeqCst);
                        count += 1;
                    }
                    Err(_) => failed = true,
                }
            });
            child.mapped(count);
            if let Some((from, to)) = protected {
                self.flush(from, to);
            }
        }
        drop(theirs);
        if failed { Err(ENOMEM) } else { Ok(child) }
    }

    /// Replaces whatever `[start, end)` holds with nothing.
    fn remove(&self, inner: &mut Inner, start: u64, end: u64) {
        if !overlaps(inner, start, end) {
            return;
        }
        self.split_out(inner, start, end);
        if inner.full_from != 0 {
            inner.full_from = inner.full_from.max(end.min(inner.layout.mmap_base));
        }
        let gone: Vec<Vma> = {
            let keys: Vec<u64> = inner.vmas.range(start..end).map(|(k, _)| *k).collect();
            keys.iter().filter_map(|k| inner.vmas.remove(k)).collect()
        };
        self.clear(inner, start, end);
        for vma in gone {
            inner.total -= vma.len();
            if let VmaKind::Object { pager, .. } = &vma.kind {
                pager.mappings().remove(&self.weak);
            }
        }
    }

    fn insert(&self, inner: &mut Inner, vma: Vma) {
        let (start, end) = (vma.start, vma.end);
        inner.total += vma.len();
        if let VmaKind::Object { pager, .. } = &vma.kind {
            pager.mappings().add(&self.weak);
        }
        inner.vmas.insert(start, vma);
        self.merge_around(inner, start, end);
    }

    /// Makes `start` and `end` boundaries of mappings.
    fn split_out(&self, inner: &mut Inner, start: u64, end: u64) {
        for at in [start, end] {
            let Some((&key, vma)) = inner.vmas.range(..at).next_back() else { continue };
            if vma.end <= at {
                continue;
            }
            let (low, high) = (vma.slice(vma.start, at), vma.slice(at, vma.end));
            if let VmaKind::Object { pager, .. } = &high.kind {
                pager.mappings().add(&self.weak);
            }
            inner.vmas.insert(key, low);
            inner.vmas.insert(at, high);
        }
    }

    /// Joins mappings that continue each other at the edges of and inside `[start, end)`.
    fn merge_around(&self, inner: &mut Inner, start: u64, end: u64) {
        let first = inner.vmas.range(..start).next_back().map_or(start, |(k, _)| *k);
        let mut at = first;
        while let Some(vma) = inner.vmas.get(&at) {
            let next = vma.end;
            if next > end {
                return;
            }
            let Some(following) = inner.vmas.get(&next) else {
                match inner.vmas.range(next..=end).next() {
                    Some((k, _)) => at = *k,
                    None => return,
                }
                continue;
            };
            if vma.continues(following) {
                let new_end = following.end;
                if let Some(gone) = inner.vmas.remove(&next)
                    && let VmaKind::Object { pager, .. } = &gone.kind
                {
                    pager.mappings().remove(&self.weak);
                }
                if let Some(vma) = inner.vmas.get_mut(&at) {
                    vma.end = new_end;
                }
            } else {
                at = next;
            }
        }
    }
}

fn find(inner: &Inner, address: u64) -> Option<&Vma> {
    inner.vmas.range(..=address).next_back().map(|(_, v)| v).filter(|v| address < v.end)
}

fn overlaps(inner: &Inner, start: u64, end: u64) -> bool {
    inner.vmas.range(..end).next_back().is_some_and(|(_, v)| v.end > start)
}

/// The parts of mappings in a range, which they must cover completely: ENOMEM otherwise.
fn covering(inner: &Inner, start: u64, end: u64) -> Result<Vec<Vma>> {
    let mut at = start;
    let mut pieces = Vec::new();
    while at < end {
        let vma = find(inner, at).ok_or(ENOMEM)?;
        pieces.push(vma.slice(start, end));
        at = vma.end;
    }
    Ok(pieces)
}

/// The highest gap of `len` bytes below the mmap base.
fn find_gap(inner: &mut Inner, len: u64) -> Result<u64> {
    let base = inner.layout.mmap_base;
    // What is known to be full is not looked at again: else many mappings would cost their number squared.
    let mut top = if inner.full_from == 0 { base } else { inner.full_from.min(base) };
    let mut full = true;
    for vma in inner.vmas.range(..top).rev().map(|(_, v)| v) {
        if vma.end < top {
            if full {
                inner.full_from = top;
                full = false;
            }
            if top - vma.end >= len {
                return Ok(top - len);
            }
        }
        top = top.min(vma.start);
    }
    if full {
        inner.full_from = top;
    }
    if top >= USER_MIN + len { Ok(top - len) } else { Err(ENOMEM) }
}

/// The end of a page-aligned range; `error` when it leaves the address space, EINVAL when unaligned.
fn checked_range(start: u64, len: u64, error: crate::errno::Error) -> Result<u64> {
    if !start.is_multiple_of(PAGE_SIZE) {
        return Err(EINVAL);
    }
    let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or(error)?;
    start.checked_add(len).filter(|&end| end <= USER_TOP).ok_or(error)
}
