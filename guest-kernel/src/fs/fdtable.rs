//! Descriptor tables.

use alloc::{sync::Arc, vec::Vec};

use super::{File, locks};
use crate::{
    errno::{EBADF, EINVAL, EMFILE, Result},
    sync::SpinLock,
};

#[derive(Clone)]
struct Slot {
    file: Arc<File>,
    close_on_exec: bool,
}

#[derive(Clone, Default)]
struct Inner {
    slots: Vec<Option<Slot>>,
    /// No free slot below this.
    lowest: usize,
}

/// Descriptors of a process, shared with CLONE_FILES. A look-up takes this table's own lock for a few instructions.
#[derive(Default)]
pub struct FdTable {
    inner: SpinLock<Inner>,
}

/// Upper bound of descriptor numbers, whatever RLIMIT_NOFILE says (fs.nr_open).
pub const MAX_FDS: usize = 1 << 20;

impl FdTable {
    pub fn new() -> Arc<Self> {
        Arc::new(FdTable::default())
    }

    /// A copy for fork(2): the same open files.
    pub fn copy(&self) -> Arc<Self> {
        Arc::new(FdTable { inner: SpinLock::new(self.inner.lock().clone()) })
    }

    #[inline]
    pub fn get(&self, fd: i32) -> Result<Arc<File>> {
        let inner = self.inner.lock();
        match inner.slots.get(fd as usize) {
            Some(Some(slot)) if fd >= 0 => Ok(slot.file.clone()),
            _ => Err(EBADF),
        }
    }

    /// Takes the lowest free number at or above `from`. `limit`: RLIMIT_NOFILE. EMFILE when there is none.
    pub fn insert(&self, file: Arc<File>, close_on_exec: bool, from: i32, limit: u64) -> Result<i32> {
        let limit = limit.min(MAX_FDS as u64) as usize;
        let from = usize::try_from(from).map_err(|_| EINVAL)?;
        let mut inner = self.inner.lock();
        let mut fd = from.max(inner.lowest);
        while inner.slots.get(fd).is_some_and(Option::is_some) {
            fd += 1;
        }
        if fd >= limit {
            return Err(EMFILE);
        }
        if fd >= inner.slots.len() {
            inner.slots.resize(fd + 1, None);
        }
        inner.slots[fd] = Some(Slot { file, close_on_exec });
        if from <= inner.lowest {
            inner.lowest = fd + 1;
        }
        Ok(fd as i32)
    }

    /// EMFILE when there is no free number below `limit` (RLIMIT_NOFILE).
    pub fn check_room(&self, limit: u64) -> Result<()> {
        let limit = limit.min(MAX_FDS as u64) as usize;
        let inner = self.inner.lock();
        let mut fd = inner.lowest;
        while inner.slots.get(fd).is_some_and(Option::is_some) {
            fd += 1;
        }
        if fd < limit { Ok(()) } else { Err(EMFILE) }
    }

    /// Puts a file under this number, whatever it held; returns what it held. EBADF beyond the limit.
    pub fn replace(&self, fd: i32, file: Arc<File>, close_on_exec: bool, limit: u64) -> Result<Option<Arc<File>>> {
        let fd = usize::try_from(fd).map_err(|_| EBADF)?;
        if fd as u64 >= limit.min(MAX_FDS as u64) {
            return Err(EBADF);
        }
        let mut inner = self.inner.lock();
        if fd >= inner.slots.len() {
            inner.slots.resize(fd + 1, None);
        }
        Ok(inner.slots[fd].replace(Slot { file, close_on_exec }).map(|slot| slot.file))
    }

    /// Takes the file out; the caller drops it where it may block.
    pub fn remove(&self, fd: i32) -> Result<Arc<File>> {
        let mut inner = self.inner.lock();
        let index = usize::try_from(fd).map_err(|_| EBADF)?;
        let slot = inner.slots.get_mut(index).and_then(Option::take).ok_or(EBADF)?;
        inner.lowest = inner.lowest.min(index);
        Ok(slot.file)
    }

    /// Takes out every file whose number and close-on-exec flag `which` selects.
    fn remove_if(&self, which: impl Fn(usize, bool) -> bool) -> Vec<Arc<File>> {
        let mut inner = self.inner.lock();
        let mut gone = Vec::new();
        for fd in 0..inner.slots.len() {
            if inner.slots[fd].as_ref().is_some_and(|s| which(fd, s.close_on_exec)) {
                gone.extend(inner.slots[fd].take().map(|s| s.file));
                inner.lowest = inner.lowest.min(fd);
            }
        }
        gone
    }

    /// Takes out the descriptors of `[first, last]` (close_range).
    pub fn remove_range(&self, first: u32, last: u32) -> Vec<Arc<File>> {
        self.remove_if(|fd, _| (first as usize..=last as usize).contains(&fd))
    }

    /// Closes what execve(2) closes.
    pub fn close_for_exec(self: &Arc<Self>) {
        for file in self.remove_if(|_, close| close) {
            // execve(2) does not report it.
            let _ = closed(Arc::as_ptr(self) as usize, file);
        }
    }

    /// Takes out everything.
    fn remove_all(&self) -> Vec<Arc<File>> {
        self.remove_if(|_, _| true)
    }

    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        let inner = self.inner.lock();
        let slot = inner.slots.get(usize::try_from(fd).map_err(|_| EBADF)?).and_then(Option::as_ref).ok_or(EBADF)?;
        Ok(slot.close_on_exec)
    }

    pub fn set_close_on_exec(&self, fd: i32, close: bool) -> Result<()> {
        let index = usize::try_from(fd).map_err(|_| EBADF)?;
        let mut inner = self.inner.lock();
        let slot = inner.slots.get_mut(index).and_then(Option::as_mut).ok_or(EBADF)?;
        slot.close_on_exec = close;
        Ok(())
    }

    /// Sets close-on-exec on every descriptor of `[first, last]`.
    pub fn set_range_close_on_exec(&self, first: u32, last: u32) {
        let mut inner = self.inner.lock();
        for slot in inner.slots.iter_mut().skip(first as usize).take((last - first) as usize + 1).flatten() {
            slot.close_on_exec = true;
        }
    }

    /// Open descriptor numbers, in order.
    pub fn open_fds(&self) -> Vec<i32> {
        let inner = self.inner.lock();
        inner.slots.iter().enumerate().filter_map(|(fd, slot)| slot.as_ref().map(|_| fd as i32)).collect()
    }

    /// Size of the table, for FDSize of /proc/pid/status.
    pub fn capacity(&self) -> usize {
        self.inner.lock().slots.len().next_multiple_of(64)
    }
}

/// What closing a descriptor does besides dropping it: POSIX locks on that file of the table's owner go, and the file system
/// may report an error of writing back.
pub fn closed(owner: usize, file: Arc<File>) -> Result<()> {
    locks::release_posix(file.inode(), owner);
    file.ops().flush(&file)
}

impl Drop for FdTable {
    fn drop(&mut self) {
        let owner = core::ptr::from_ref(self) as usize;
        for file in self.remove_all() {
            // Nobody is left to hear of an error.
            let _ = closed(owner, file);
        }
    }
}
