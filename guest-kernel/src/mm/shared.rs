//! Memory shared between address spaces: the content of tmpfs files, memfds, shared anonymous mappings, SysV segments.

use alloc::{
    collections::{BTreeMap, btree_map::Entry},
    string::String,
    sync::Arc,
};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use sentry_abi::layout::PAGE_SIZE;

use super::{
    Extent, FaultError, MappingList, Page, Pager, frames,
    io::{IoDst, IoSrc},
};
use crate::{
    errno::{ENOSPC, Result},
    sync::SpinLock,
};

/// Pages that a group of objects (a tmpfs) may hold together.
pub struct Quota {
    pub limit: u64,
    used: AtomicU64,
}

impl Quota {
    pub const fn new(limit: u64) -> Self {
        Quota { limit, used: AtomicU64::new(0) }
    }

    pub fn used(&self) -> u64 {
        self.used.load(SeqCst)
    }

    fn take(&self) -> bool {
        let taken = self.used.fetch_add(1, SeqCst) < self.limit;
        if !taken {
            self.give(1);
        }
        taken
    }

    fn give(&self, pages: u64) {
        self.used.fetch_sub(pages, SeqCst);
    }
}

/// Pages by number; what was never written is a hole that reads as zeros. Size in bytes bounds what may be mapped.
pub struct SharedPages {
    pages: SpinLock<BTreeMap<u64, Page>>,
    size: AtomicU64,
    mappings: MappingList,
    identity: SpinLock<(u64, u64, String)>,
    quota: Option<Arc<Quota>>,
}

impl SharedPages {
    pub fn new(device: u64, inode: u64, name: String, size: u64) -> Self {
        SharedPages {
            pages: SpinLock::new(BTreeMap::new()),
            size: AtomicU64::new(size),
            mappings: MappingList::new(),
            identity: SpinLock::new((device, inode, name)),
            quota: None,
        }
    }

    /// Counts its pages against `quota`; ENOSPC when that is used up.
    pub fn with_quota(mut self, quota: Arc<Quota>) -> Self {
        self.quota = Some(quota);
        self
    }

    pub fn size(&self) -> u64 {
        self.size.load(SeqCst)
    }

    /// Pages that hold memory.
    pub fn resident(&self) -> u64 {
        self.pages.lock().len() as u64
    }

    fn page(&self, index: u64, create: bool) -> Result<Option<Page>> {
        if let Some(page) = self.pages.lock().get(&index) {
            return Ok(Some(page.clone()));
        }
        if !create {
            return Ok(None);
        }
        if self.quota.as_ref().is_some_and(|q| !q.take()) {
            return Err(ENOSPC);
        }
        let page = match Page::new() {
            Ok(page) => page,
            Err(error) => {
                self.give_back(1);
                return Err(error);
            }
        };
        let (page, surplus) = match self.pages.lock().entry(index) {
            Entry::Occupied(found) => (found.get().clone(), Some(page)),
            Entry::Vacant(free) => (free.insert(page).clone(), None),
        };
        if surplus.is_some() {
            self.give_back(1);
        }
        Ok(Some(page))
    }

    fn give_back(&self, pages: u64) {
        if let Some(quota) = &self.quota {
            quota.give(pages);
        }
    }

    /// Makes pages for all of `[first, last)`, as fallocate(2) wants.
    pub fn populate(&self, first: u64, last: u64) -> Result<()> {
        (first..last).try_for_each(|index| self.page(index, true).map(drop))
    }

    /// Copies from `offset` to `dst` until it is full or the object ends.
    pub fn read(&self, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        let mut done = 0;
        while dst.remaining() > 0 {
            let at = offset + done as u64;
            let size = self.size();
            if at >= size {
                break;
            }
            let within = at % PAGE_SIZE;
            let len = (PAGE_SIZE - within).min(size - at).min(dst.remaining() as u64) as usize;
            let copied = match self.page(at / PAGE_SIZE, false)? {
                Some(page) => dst.put_physical(page.gpa() + within, len),
                None => dst.put_zeros(len),
            };
            match copied {
                Ok(n) => {
                    done += n;
                    if n < len {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Copies `src` to `offset`, growing the object.
    pub fn write(&self, src: &mut IoSrc<'_>, offset: u64) -> Result<usize> {
        let mut done = 0;
        while src.remaining() > 0 {
            let at = offset + done as u64;
            let within = at % PAGE_SIZE;
            let len = (PAGE_SIZE - within).min(src.remaining() as u64) as usize;
            let copied = match self.page(at / PAGE_SIZE, true) {
                Ok(Some(page)) => src.get_physical(page.gpa() + within, len),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            match copied {
                Ok(n) => {
                    done += n;
                    self.size.fetch_max(at + n as u64, SeqCst);
                    if n < len {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Sets the size; what lies beyond is given up and later reads as zeros.
    pub fn truncate(&self, size: u64) {
        let old = self.size.swap(size, SeqCst);
        if size >= old {
            return;
        }
        if !size.is_multiple_of(PAGE_SIZE)
            && let Some(page) = self.pages.lock().get(&(size / PAGE_SIZE))
        {
            page.zero((size % PAGE_SIZE) as usize, (PAGE_SIZE - size % PAGE_SIZE) as usize);
        }
        self.discard(size.div_ceil(PAGE_SIZE), u64::MAX);
    }

    /// Makes a hole of pages `[first, last)`.
    pub fn discard(&self, first: u64, last: u64) {
        let gone = {
            let mut pages = self.pages.lock();
            let mut gone = pages.split_off(&first);
            pages.append(&mut gone.split_off(&last));
            gone
        };
        self.mappings.revoke(self, first, last, true);
        self.give_back(gone.len() as u64);
        drop(gone);
    }

    /// Zeroes `[start, end)` bytes, giving whole pages back.
    pub fn punch(&self, start: u64, end: u64) {
        let (first, last) = (start.div_ceil(PAGE_SIZE), end / PAGE_SIZE);
        for (at, to) in [(start, end.min(first * PAGE_SIZE)), (start.max(last * PAGE_SIZE), end)] {
            if at < to
                && let Some(page) = self.pages.lock().get(&(at / PAGE_SIZE))
            {
                page.zero((at % PAGE_SIZE) as usize, (to - at) as usize);
            }
        }
        if first < last {
            self.discard(first, last);
        }
    }

    /// Next offset at or after `from` that holds data (or a hole); None beyond the end. As SEEK_DATA and SEEK_HOLE.
    pub fn seek(&self, from: u64, data: bool) -> Option<u64> {
        let size = self.size();
        if from >= size {
            return None;
        }
        let pages = self.pages.lock();
        let mut index = from / PAGE_SIZE;
        if data {
            let found = pages.range(index..).next().map(|(i, _)| (*i * PAGE_SIZE).max(from))?;
            return (found < size).then_some(found);
        }
        while pages.contains_key(&index) {
            index += 1;
        }
        Some((index * PAGE_SIZE).max(from).min(size))
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        let pages = self.pages.get_mut().len() as u64;
        self.give_back(pages);
    }
}

impl Pager for SharedPages {
    fn fault(&self, index: u64, max: u64, _write: bool) -> Result<Extent, FaultError> {
        if index >= self.size().div_ceil(PAGE_SIZE) {
            return Err(FaultError::PastEnd);
        }
        let page = self.page(index, true).map_err(|_| FaultError::NoMemory)?.ok_or(FaultError::NoMemory)?;
        // Neighbours that happen to follow in memory come along.
        let pages = self.pages.lock();
        let more = (1..max)
            .take_while(|i| pages.get(&(index + i)).is_some_and(|p| p.gpa() == page.gpa() + i * PAGE_SIZE))
            .count() as u64;
        // The mapping takes its own references while the address space is locked and these pages are in the map.
        debug_assert!(frames::references(page.gpa()) > 0);
        Ok(Extent { gpa: page.gpa(), pages: 1 + more })
    }

    fn mappings(&self) -> &MappingList {
        &self.mappings
    }

    fn identity(&self) -> (u64, u64, String) {
        self.identity.lock().clone()
    }

    fn punch(&self, start: u64, end: u64) -> Result<()> {
        self.discard(start / PAGE_SIZE, end / PAGE_SIZE);
        Ok(())
    }

    fn set_identity(&self, device: u64, inode: u64, path: String) {
        let old = core::mem::replace(&mut *self.identity.lock(), (device, inode, path));
        drop(old);
    }
}
