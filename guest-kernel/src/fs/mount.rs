//! Mounts: which file system, or part of one, is seen at which place.

use alloc::{
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use bitflags::bitflags;
use hashbrown::HashMap;

use super::{
    FileSystem, Inode, Path,
    dentry::{self, Dentry},
};
use crate::{
    errno::{EBUSY, EINVAL, ENOTDIR, Result},
    sync::{Mutex, SpinLock},
};

bitflags! {
    /// MS_* of mount(2) that a mount keeps.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct MountFlags: u64 {
        const RDONLY = 1;
        const NOSUID = 2;
        const NODEV = 4;
        const NOEXEC = 8;
        const NOATIME = 1024;
        const NODIRATIME = 2048;
        const RELATIME = 1 << 21;
    }
}

/// Where a mount is attached. The parent owns its children, so this side is weak.
struct Place {
    parent: Weak<Mount>,
    point: Arc<Dentry>,
}

pub struct Mount {
    pub id: u32,
    pub root: Arc<Dentry>,
    pub filesystem: Arc<dyn FileSystem>,
    /// What /proc/mounts shows as the device.
    pub source: String,
    flags: AtomicU64,
    place: SpinLock<Option<Place>>,
    /// Mounts on top of this one, by the address of the dentry they are on.
    children: SpinLock<HashMap<usize, Arc<Mount>>>,
}

/// One change of the tree at a time.
static CHANGES: Mutex<()> = Mutex::new(());
static NEXT_ID: AtomicU32 = AtomicU32::new(1);

impl Mount {
    /// A mount that is attached nowhere yet.
    pub fn new(filesystem: Arc<dyn FileSystem>, root: Arc<Dentry>, source: &str, flags: MountFlags) -> Arc<Self> {
        Arc::new(Mount {
            id: NEXT_ID.fetch_add(1, Relaxed),
            root,
            filesystem,
            source: String::from(source),
            flags: AtomicU64::new(flags.bits()),
            place: SpinLock::new(None),
            children: SpinLock::new(HashMap::new()),
        })
    }

    /// A whole file system.
    pub fn of(filesystem: Arc<dyn FileSystem>, root: Arc<dyn Inode>, source: &str, flags: MountFlags) -> Arc<Self> {
        Self::new(filesystem, Dentry::root(b"/", root), source, flags)
    }

    pub fn root_path(self: &Arc<Self>) -> Path {
        Path { mount: self.clone(), dentry: self.root.clone() }
    }

    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.flags.load(Relaxed))
    }

    pub fn set_flags(&self, flags: MountFlags) {
        self.flags.store(flags.bits(), Relaxed);
    }

    pub fn is_read_only(&self) -> bool {
        self.flags().contains(MountFlags::RDONLY)
    }

    /// What it is mounted on; None for the root of the tree and for what is not attached.
    pub fn point(&self) -> Option<Path> {
        let place = self.place.lock();
        let place = place.as_ref()?;
        Some(Path { mount: place.parent.upgrade()?, dentry: place.point.clone() })
    }

    /// The mount on a dentry of this mount.
    #[inline]
    pub fn child_at(&self, dentry: &Arc<Dentry>) -> Option<Arc<Mount>> {
        if dentry.mounts.load(Relaxed) == 0 {
            return None;
        }
        self.children.lock().get(&key(dentry)).cloned()
    }

    /// Puts `self` on top of what `at` shows. ENOTDIR when one is a directory and the other is not.
    pub fn attach(self: &Arc<Self>, at: &Path) -> Result<()> {
        let _changes = CHANGES.lock();
        let at = at.clone().top();
        if self.root.inode().is_dir() != at.inode().is_dir() {
            return Err(ENOTDIR);
        }
        *self.place.lock() = Some(Place { parent: Arc::downgrade(&at.mount), point: at.dentry.clone() });
        at.dentry.mounts.fetch_add(1, SeqCst);
        at.mount.children.lock().insert(key(&at.dentry), self.clone());
        Ok(())
    }

    /// Takes it out of the tree. EBUSY when something is mounted below or it is in use (unless `lazy`), EINVAL for the tree's
    /// root.
    pub fn detach(self: &Arc<Self>, lazy: bool) -> Result<()> {
        let _changes = CHANGES.lock();
        // Its parent and the caller have it; who else does, uses it.
        if !lazy && (!self.children.lock().is_empty() || Arc::strong_count(self) > 2) {
            return Err(EBUSY);
        }
        let place = self.place.lock().take().ok_or(EINVAL)?;
        place.point.mounts.fetch_sub(1, SeqCst);
        let gone = match place.parent.upgrade() {
            Some(parent) => parent.children.lock().remove(&key(&place.point)),
            None => None,
        };
        drop(gone);
        dentry::purge(&self.root);
        Ok(())
    }

    /// This mount and all above it, in the order they were made.
    pub fn tree(self: &Arc<Self>) -> Vec<Arc<Mount>> {
        let mut all = alloc::vec![self.clone()];
        let mut next = 0;
        while next < all.len() {
            let children: Vec<_> = all[next].children.lock().values().cloned().collect();
            all.extend(children);
            next += 1;
        }
        all.sort_by_key(|m| m.id);
        all
    }
}

fn key(dentry: &Arc<Dentry>) -> usize {
    Arc::as_ptr(dentry) as usize
}
