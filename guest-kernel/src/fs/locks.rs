//! Advisory locks: POSIX record locks and open-file-description locks (fcntl(2)), and flock(2).
//!
//! Locks of all files are in one table by (device, inode); an entry goes with its last lock. POSIX locks belong to a
//! descriptor table (which is what closing a descriptor of it ends), the others to an open file description.

use alloc::{sync::Arc, vec::Vec};

use hashbrown::HashMap;

use super::Inode;
use crate::{
    errno::{EAGAIN, ENOLCK, Result},
    mm::kmem,
    sync::{SpinLock, WaitQueue},
};

/// Who holds a lock. Locks of one kind of owner never conflict with flock's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A descriptor table, and the pid that F_GETLK shows.
    Posix(usize, i32),
    /// An open file description.
    Description(usize),
}

impl Owner {
    fn same(self, other: Owner) -> bool {
        match (self, other) {
            (Owner::Posix(a, _), Owner::Posix(b, _)) | (Owner::Description(a), Owner::Description(b)) => a == b,
            _ => false,
        }
    }
}

/// A locked range `[start, end)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lock {
    pub owner: Owner,
    pub start: u64,
    pub end: u64,
    pub exclusive: bool,
}

#[derive(Default)]
struct FileLocks {
    ranges: Vec<Lock>,
    /// flock(2): owner and whether it is exclusive.
    whole: Vec<(usize, bool)>,
    /// Those who wait for one of them to go.
    changed: Arc<WaitQueue>,
    waiters: usize,
}

impl FileLocks {
    fn conflict(&self, wanted: &Lock) -> Option<Lock> {
        self.ranges
            .iter()
            .find(|l| {
                !l.owner.same(wanted.owner)
                    && l.start < wanted.end
                    && wanted.start < l.end
                    && (l.exclusive || wanted.exclusive)
            })
            .copied()
    }

    /// Takes `range` out of what `owner` holds.
    fn clear(&mut self, owner: Owner, start: u64, end: u64) {
        let mut kept = Vec::with_capacity(self.ranges.len() + 1);
        for lock in self.ranges.drain(..) {
            if !lock.owner.same(owner) || lock.end <= start || end <= lock.start {
                kept.push(lock);
                continue;
            }
            if lock.start < start {
                kept.push(Lock { end: start, ..lock });
            }
            if end < lock.end {
                kept.push(Lock { start: end, ..lock });
            }
        }
        self.ranges = kept;
    }

    /// Adds a lock, joining it with neighbours of its kind.
    fn add(&mut self, mut lock: Lock) {
        self.clear(lock.owner, lock.start, lock.end);
        self.ranges.retain(|l| {
            let joins = l.owner.same(lock.owner)
                && l.exclusive == lock.exclusive
                && (l.end == lock.start || l.start == lock.end);
            if joins {
                lock.start = lock.start.min(l.start);
                lock.end = lock.end.max(l.end);
            }
            !joins
        });
        self.ranges.push(lock);
    }

    fn is_unused(&self) -> bool {
        self.ranges.is_empty() && self.whole.is_empty() && self.waiters == 0
    }
}

type Key = (u64, u64);
static LOCKS: SpinLock<Option<HashMap<Key, FileLocks>>> = SpinLock::new(None);

fn key(inode: &Arc<dyn Inode>) -> Result<Key> {
    inode.stat().map(|s| (s.dev, s.ino))
}

/// Runs `work` on a file's locks and forgets them if none is left.
fn with<R>(key: Key, work: impl FnOnce(&mut FileLocks) -> R) -> R {
    let mut locks = LOCKS.lock();
    let locks = locks.get_or_insert_default();
    let file = locks.entry(key).or_default();
    let result = work(file);
    if file.is_unused() {
        locks.remove(&key);
    }
    result
}

/// Whether any file has locks: the cheap answer for close.
fn any() -> bool {
    LOCKS.lock().as_ref().is_some_and(|l| !l.is_empty())
}

/// Waits until `attempt` succeeds, or gives EAGAIN at once when not to `wait`.
fn acquire(key: Key, wait: bool, mut attempt: impl FnMut(&mut FileLocks) -> bool) -> Result<()> {
    if with(key, &mut attempt) {
        return Ok(());
    }
    if !wait {
        return Err(EAGAIN);
    }
    let queue = with(key, |file| {
        file.waiters += 1;
        file.changed.clone()
    });
    let result = queue.wait_until(|| with(key, &mut attempt).then_some(()));
    with(key, |file| file.waiters -= 1);
    result
}

fn wake(queue: Option<Arc<WaitQueue>>) {
    if let Some(queue) = queue {
        queue.wake_all();
    }
}

/// F_SETLK, F_SETLKW and their F_OFD_ kin.
pub fn set(inode: &Arc<dyn Inode>, lock: Lock, wait: bool) -> Result<()> {
    if kmem::under_pressure() {
        return Err(ENOLCK);
    }
    let key = key(inode)?;
    acquire(key, wait, |file| {
        let free = file.conflict(&lock).is_none();
        if free {
            file.add(lock);
        }
        free
    })?;
    // An exclusive lock may have become a shared one.
    if !lock.exclusive {
        wake(with(key, |file| (file.waiters > 0).then(|| file.changed.clone())));
    }
    Ok(())
}

/// F_UNLCK.
pub fn clear(inode: &Arc<dyn Inode>, owner: Owner, start: u64, end: u64) -> Result<()> {
    let key = key(inode)?;
    wake(with(key, |file| {
        file.clear(owner, start, end);
        (file.waiters > 0).then(|| file.changed.clone())
    }));
    Ok(())
}

/// F_GETLK: what would be in the way.
pub fn test(inode: &Arc<dyn Inode>, wanted: Lock) -> Result<Option<Lock>> {
    Ok(with(key(inode)?, |file| file.conflict(&wanted)))
}

/// A descriptor of the table `owner` was closed: its POSIX locks on that file go.
pub fn release_posix(inode: &Arc<dyn Inode>, owner: usize) {
    if any() {
        // A file whose attributes cannot be had has no locks.
        let _ = clear(inode, Owner::Posix(owner, 0), 0, u64::MAX);
    }
}

/// An open file description is gone, with its locks of both kinds.
pub fn release_description(inode: &Arc<dyn Inode>, owner: usize) {
    if any() {
        let _ = clear(inode, Owner::Description(owner), 0, u64::MAX);
        let _ = unlock_whole(inode, owner);
    }
}

/// flock(2) LOCK_SH and LOCK_EX.
pub fn lock_whole(inode: &Arc<dyn Inode>, owner: usize, exclusive: bool, wait: bool) -> Result<()> {
    // A conversion gives the old lock up first, as flock(2) does.
    unlock_whole(inode, owner)?;
    acquire(key(inode)?, wait, |file| {
        let free = !file.whole.iter().any(|&(other, held)| other != owner && (held || exclusive));
        if free {
            file.whole.push((owner, exclusive));
        }
        free
    })
}

/// flock(2) LOCK_UN.
pub fn unlock_whole(inode: &Arc<dyn Inode>, owner: usize) -> Result<()> {
    let key = key(inode)?;
    wake(with(key, |file| {
        file.whole.retain(|&(o, _)| o != owner);
        (file.waiters > 0).then(|| file.changed.clone())
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(owner: usize, start: u64, end: u64, exclusive: bool) -> Lock {
        Lock { owner: Owner::Posix(owner, 1), start, end, exclusive }
    }

    #[test]
    fn ranges_split_and_join() {
        let mut file = FileLocks::default();
        file.add(lock(1, 0, 100, true));
        file.clear(Owner::Posix(1, 1), 40, 60);
        assert_eq!(file.ranges, [lock(1, 0, 40, true), lock(1, 60, 100, true)]);
        assert!(file.conflict(&lock(2, 40, 60, true)).is_none());
        assert_eq!(file.conflict(&lock(2, 30, 45, false)), Some(lock(1, 0, 40, true)));
        file.add(lock(1, 40, 60, true));
        assert_eq!(file.ranges, [lock(1, 0, 100, true)]);
        file.add(lock(1, 10, 20, false));
        assert!(file.conflict(&lock(2, 10, 20, false)).is_none());
        assert!(file.conflict(&lock(2, 9, 20, false)).is_some());
    }
}
