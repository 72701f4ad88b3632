//! The dentry cache: names that were looked up, with what they stand for, also when that is nothing.
//!
//! Each directory's dentry has the names below it, so a look-up takes only that directory's lock. Changes of a directory
//! (create, unlink, rename) and look-ups that ask the file system are serialised by its `changes` lock.

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
};
use core::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Relaxed, SeqCst},
};

use hashbrown::HashMap;

use super::{
    FileType, Inode, NewAttr, NewNode, RenameFlags,
    inotify::{self, event},
};
use crate::{
    errno::{EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, Result},
    sync::{Mutex, MutexGuard, SpinLock},
};

/// Names the whole cache may hold before old unused ones go.
const CAPACITY: usize = 16_384;
/// Absent names remembered of one directory.
const MAX_ABSENT: usize = 256;

enum Child {
    Present(Arc<Dentry>),
    Absent,
}

#[derive(Default)]
struct Children {
    names: HashMap<Arc<[u8]>, Child>,
    absent: usize,
}

struct Directory {
    children: SpinLock<Children>,
    changes: Mutex<()>,
}

struct Place {
    name: Arc<[u8]>,
    parent: Option<Arc<Dentry>>,
}

/// A name and the inode it stands for.
pub struct Dentry {
    inode: Arc<dyn Inode>,
    place: SpinLock<Place>,
    directory: Option<alloc::boxed::Box<Directory>>,
    /// Mounts whose mount point it is.
    pub(super) mounts: AtomicU32,
    /// The name is gone; the inode lives on while it is open.
    deleted: AtomicBool,
    /// Used since the cache last looked.
    used: AtomicBool,
}

impl Dentry {
    fn make(name: &[u8], parent: Option<Arc<Dentry>>, inode: Arc<dyn Inode>) -> Arc<Self> {
        let directory = inode.is_dir().then(|| {
            alloc::boxed::Box::new(Directory { children: SpinLock::new(Children::default()), changes: Mutex::new(()) })
        });
        Arc::new(Dentry {
            inode,
            place: SpinLock::new(Place { name: Arc::from(name), parent }),
            directory,
            mounts: AtomicU32::new(0),
            deleted: AtomicBool::new(false),
            used: AtomicBool::new(true),
        })
    }

    /// The root of a file system, or an object without a place in one (`name` is what /proc shows, such as "pipe:[7]").
    pub fn root(name: &[u8], inode: Arc<dyn Inode>) -> Arc<Self> {
        Self::make(name, None, inode)
    }

    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    pub fn name(&self) -> Arc<[u8]> {
        self.place.lock().name.clone()
    }

    /// The directory that holds the name; None for a root.
    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.place.lock().parent.clone()
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted.load(SeqCst)
    }

    /// Name and parent at one moment.
    pub fn place(&self) -> (Arc<[u8]>, Option<Arc<Dentry>>) {
        let place = self.place.lock();
        (place.name.clone(), place.parent.clone())
    }

    fn directory(&self) -> Result<&Directory> {
        self.directory.as_deref().ok_or(ENOTDIR)
    }

    /// What `name` stands for in this directory, from the cache or the file system. ENOENT when there is nothing.
    pub fn lookup(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Dentry>> {
        self.lookup_ahead(name, b"")
    }

    /// As [`Dentry::lookup`], when the path `rest` is going to be walked from there.
    pub fn lookup_ahead(self: &Arc<Self>, name: &[u8], rest: &[u8]) -> Result<Arc<Dentry>> {
        let directory = self.directory()?;
        if let Some(found) = self.cached(directory, name) {
            return found;
        }
        if !rest.is_empty() {
            self.inode.prefetch(name, rest);
        }
        let _changes = directory.changes.lock();
        self.lookup_locked(directory, name)
    }

    fn lookup_locked(self: &Arc<Self>, directory: &Directory, name: &[u8]) -> Result<Arc<Dentry>> {
        if let Some(found) = self.cached(directory, name) {
            return found;
        }
        if self.is_deleted() {
            return Err(ENOENT);
        }
        match self.inode.lookup(name) {
            Ok(inode) => Ok(self.enter(directory, name, inode)),
            Err(ENOENT) => {
                if self.inode.revalidate(name, None) {
                    let mut children = directory.children.lock();
                    if children.absent >= MAX_ABSENT {
                        children.names.retain(|_, c| matches!(c, Child::Present(_)));
                        children.absent = 0;
                    }
                    if children.names.insert(Arc::from(name), Child::Absent).is_none() {
                        children.absent += 1;
                    }
                }
                Err(ENOENT)
            }
            Err(error) => Err(error),
        }
    }

    /// A result that the cache holds and the file system stands by.
    fn cached(&self, directory: &Directory, name: &[u8]) -> Option<Result<Arc<Dentry>>> {
        let found = match directory.children.lock().names.get(name)? {
            Child::Present(dentry) => Some(dentry.clone()),
            Child::Absent => None,
        };
        let Some(dentry) = found else {
            return self.inode.revalidate(name, None).then_some(Err(ENOENT));
        };
        if !dentry.used.load(Relaxed) {
            dentry.used.store(true, Relaxed);
        }
        // A mount point stays, whatever happens to the name below it.
        if dentry.mounts.load(Relaxed) > 0 || self.inode.revalidate(name, Some(&dentry.inode)) {
            return Some(Ok(dentry));
        }
        self.forget(directory, &dentry);
        None
    }

    /// Drops a name from the cache if it still stands for `dentry`.
    fn forget(&self, directory: &Directory, dentry: &Arc<Dentry>) {
        let name = dentry.name();
        let removed = {
            let mut children = directory.children.lock();
            match children.names.get(&name) {
                Some(Child::Present(d)) if Arc::ptr_eq(d, dentry) => children.names.remove(&name),
                _ => None,
            }
        };
        drop(removed);
    }

    /// Puts a name into the cache.
    fn enter(self: &Arc<Self>, directory: &Directory, name: &[u8], inode: Arc<dyn Inode>) -> Arc<Dentry> {
        let dentry = Dentry::make(name, Some(self.clone()), inode);
        let key = dentry.name();
        let old = {
            let mut children = directory.children.lock();
            let old = children.names.insert(key, Child::Present(dentry.clone()));
            if matches!(old, Some(Child::Absent)) {
                children.absent -= 1;
            }
            old
        };
        drop(old);
        remember(&dentry);
        dentry
    }

    /// The name is gone: the cache says so.
    fn remove_child(&self, directory: &Directory, name: &[u8]) {
        let gone = {
            let mut children = directory.children.lock();
            children.names.remove(name)
        };
        if let Some(Child::Present(dentry)) = gone {
            dentry.deleted.store(true, SeqCst);
        }
    }

    /// ENOENT once the directory itself has been removed.
    fn lock_changes<'a>(&self, directory: &'a Directory) -> Result<MutexGuard<'a, ()>> {
        let guard = directory.changes.lock();
        if self.is_deleted() { Err(ENOENT) } else { Ok(guard) }
    }

    /// Makes a new object; EEXIST when the name is taken.
    pub fn create(self: &Arc<Self>, name: &[u8], node: NewNode<'_>, attr: NewAttr) -> Result<Arc<Dentry>> {
        let directory = self.directory()?;
        let _changes = self.lock_changes(directory)?;
        match self.lookup_locked(directory, name) {
            Ok(_) => Err(EEXIST),
            Err(ENOENT) => {
                let inode = self.inode.create(name, node, attr)?;
                let made = self.enter(directory, name, inode);
                inotify::notify_entry(&self.inode, name, made.inode(), event::CREATE);
                Ok(made)
            }
            Err(error) => Err(error),
        }
    }

    pub fn link(self: &Arc<Self>, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let directory = self.directory()?;
        let _changes = self.lock_changes(directory)?;
        match self.lookup_locked(directory, name) {
            Ok(_) => Err(EEXIST),
            Err(ENOENT) => {
                self.inode.link(name, target)?;
                self.enter(directory, name, target.clone());
                inotify::notify_inode(target, event::ATTRIB);
                inotify::notify_entry(&self.inode, name, target, event::CREATE);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a name; `check` may refuse, given what it stands for. `dir`: whether a directory is to go (rmdir).
    pub fn remove(
        self: &Arc<Self>,
        name: &[u8],
        dir: bool,
        check: impl FnOnce(&Arc<Dentry>) -> Result<()>,
    ) -> Result<()> {
        let directory = self.directory()?;
        let _changes = self.lock_changes(directory)?;
        let child = self.lookup_locked(directory, name)?;
        check(&child)?;
        if child.mounts.load(SeqCst) > 0 {
            return Err(EBUSY);
        }
        if dir {
            let below = child.directory()?;
            // Nobody may add a name while it goes.
            let _below = below.changes.lock();
            self.inode.rmdir(name, &child.inode)?;
            child.deleted.store(true, SeqCst);
            self.remove_child(directory, name);
        } else {
            if child.inode.is_dir() {
                return Err(EISDIR);
            }
            self.inode.unlink(name, &child.inode)?;
            self.remove_child(directory, name);
        }
        inotify::notify_removed(&self.inode, name, &child.inode);
        Ok(())
    }

    fn is_below(self: &Arc<Self>, ancestor: &Arc<Dentry>) -> bool {
        let mut at = Some(self.clone());
        while let Some(dentry) = at {
            if Arc::ptr_eq(&dentry, ancestor) {
                return true;
            }
            at = dentry.parent();
        }
        false
    }
}

/// One rename at a time: the tree's shape is then steady while ancestors are compared.
static RENAME: Mutex<()> = Mutex::new(());

/// renameat2(2) within one file system. `check(source, target)` may refuse.
pub fn rename(
    from: (&Arc<Dentry>, &[u8]),
    to: (&Arc<Dentry>, &[u8]),
    flags: RenameFlags,
    check: impl FnOnce(&Arc<Dentry>, Option<&Arc<Dentry>>) -> Result<()>,
) -> Result<()> {
    let ((old_dir, old_name), (new_dir, new_name)) = (from, to);
    let (old_directory, new_directory) = (old_dir.directory()?, new_dir.directory()?);
    let _rename = RENAME.lock();
    let same = Arc::ptr_eq(old_dir, new_dir);
    let (first, second) = match (Arc::as_ptr(old_dir) < Arc::as_ptr(new_dir), old_dir.is_below(new_dir)) {
        // An ancestor is locked before what is below it, as rmdir does.
        (_, true) => ((new_dir, new_directory), (old_dir, old_directory)),
        _ if new_dir.is_below(old_dir) => ((old_dir, old_directory), (new_dir, new_directory)),
        (true, _) => ((old_dir, old_directory), (new_dir, new_directory)),
        (false, _) => ((new_dir, new_directory), (old_dir, old_directory)),
    };
    let _first = first.0.lock_changes(first.1)?;
    let _second = if same { None } else { Some(second.0.lock_changes(second.1)?) };

    let source = old_dir.lookup_locked(old_directory, old_name)?;
    if new_dir.is_below(&source) {
        return Err(EINVAL);
    }
    let target = match new_dir.lookup_locked(new_directory, new_name) {
        Ok(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(EEXIST),
        Ok(target) => Some(target),
        Err(ENOENT) if flags.contains(RenameFlags::EXCHANGE) => return Err(ENOENT),
        Err(ENOENT) => None,
        Err(error) => return Err(error),
    };
    if let Some(target) = &target {
        if old_dir.is_below(target) {
            return Err(if flags.contains(RenameFlags::EXCHANGE) { EINVAL } else { ENOTEMPTY });
        }
        // Two names of one file: nothing to do.
        if Arc::ptr_eq(&source.inode, &target.inode) {
            return Ok(());
        }
        if !flags.contains(RenameFlags::EXCHANGE) {
            match (source.inode.is_dir(), target.inode.is_dir()) {
                (true, false) => return Err(ENOTDIR),
                (false, true) => return Err(EISDIR),
                _ => {}
            }
        }
    }
    check(&source, target.as_ref())?;
    let busy = |d: &Arc<Dentry>| d.mounts.load(SeqCst) > 0;
    if busy(&source) || target.as_ref().is_some_and(busy) {
        return Err(EBUSY);
    }
    {
        let _below = match (&target, flags.contains(RenameFlags::EXCHANGE)) {
            (Some(target), false) => target.directory.as_deref().map(|d| d.changes.lock()),
            _ => None,
        };
        old_dir.inode.rename(old_name, &new_dir.inode, new_name, flags)?;
        if let (Some(target), false) = (&target, flags.contains(RenameFlags::EXCHANGE)) {
            target.deleted.store(true, SeqCst);
        }
    }
    // The cache follows.
    drop(old_directory.children.lock().names.remove(old_name));
    let replaced = new_directory.children.lock().names.remove(new_name);
    drop(replaced);
    place(&source, new_dir, new_directory, new_name);
    inotify::notify_moved((&old_dir.inode, old_name), (&new_dir.inode, new_name), &source.inode);
    match &target {
        Some(target) if flags.contains(RenameFlags::EXCHANGE) => {
            place(target, old_dir, old_directory, old_name);
            inotify::notify_moved((&new_dir.inode, new_name), (&old_dir.inode, old_name), &target.inode);
        }
        Some(target) => inotify::notify_replaced(&target.inode),
        None => {}
    }
    Ok(())
}

fn place(dentry: &Arc<Dentry>, dir: &Arc<Dentry>, directory: &Directory, name: &[u8]) {
    let name: Arc<[u8]> = Arc::from(name);
    let old = core::mem::replace(&mut *dentry.place.lock(), Place { name: name.clone(), parent: Some(dir.clone()) });
    drop(old);
    let replaced = {
        let mut children = directory.children.lock();
        let old = children.names.insert(name, Child::Present(dentry.clone()));
        if matches!(old, Some(Child::Absent)) {
            children.absent -= 1;
        }
        old
    };
    drop(replaced);
}

/// Cached dentries, oldest first.
static CACHE: SpinLock<VecDeque<Weak<Dentry>>> = SpinLock::new(VecDeque::new());

fn remember(dentry: &Arc<Dentry>) {
    CACHE.lock().push_back(Arc::downgrade(dentry));
    // Two at most for one that came, so that the queue shrinks back after pinned ones filled it.
    for _ in 0..2 {
        let oldest = {
            let mut cache = CACHE.lock();
            if cache.len() <= CAPACITY {
                return;
            }
            cache.pop_front()
        };
        let Some(oldest) = oldest.and_then(|weak| weak.upgrade()) else { continue };
        if !evict(&oldest) {
            CACHE.lock().push_back(Arc::downgrade(&oldest));
        }
    }
}

/// Drops an unused name from the cache; false when it is in use or was used since the last round.
fn evict(dentry: &Arc<Dentry>) -> bool {
    if dentry.is_deleted() {
        return true;
    }
    if dentry.used.swap(false, Relaxed) || dentry.mounts.load(Relaxed) > 0 {
        return false;
    }
    let (name, Some(parent)) = dentry.place() else { return false };
    let Ok(directory) = parent.directory() else { return false };
    let removed = {
        let mut children = directory.children.lock();
        // Ours and the cache's: nobody else can get a reference while the directory is locked.
        if Arc::strong_count(dentry) > 2 {
            return false;
        }
        match children.names.get(&name) {
            Some(Child::Present(d)) if Arc::ptr_eq(d, dentry) => children.names.remove(&name),
            _ => return false,
        }
    };
    drop(removed);
    true
}

/// Forgets every unused name below `root`: nobody can walk there any more.
pub(super) fn purge(root: &Arc<Dentry>) {
    let mut all = alloc::vec![root.clone()];
    let mut next = 0;
    while let Some(dentry) = all.get(next).cloned() {
        next += 1;
        if let Some(directory) = &dentry.directory {
            all.extend(directory.children.lock().names.values().filter_map(|child| match child {
                Child::Present(dentry) => Some(dentry.clone()),
                Child::Absent => None,
            }));
        }
        drop(dentry);
    }
    // What lies below goes first: it holds what it lies in.
    while let Some(dentry) = all.pop() {
        dentry.used.store(false, Relaxed);
        evict(&dentry);
    }
}

impl Drop for Dentry {
    /// A long chain of directories that are all removed must not be dropped by recursion on a kernel stack.
    fn drop(&mut self) {
        let mut next = self.place.get_mut().parent.take();
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut parent| parent.place.get_mut().parent.take());
        }
    }
}

/// Names in the cache, for tests and /proc/sys/fs/dentry-state.
pub fn cached_names() -> usize {
    CACHE.lock().len()
}

impl Dentry {
    pub fn file_type(&self) -> FileType {
        self.inode.file_type()
    }
}
