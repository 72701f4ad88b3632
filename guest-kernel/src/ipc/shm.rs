//! Shared memory segments (shmget(2), shmat(2), shmctl(2)).
//!
//! A segment is the pager of its mappings. Once it is marked for removal, the table holds it only until the last mapping goes.

use alloc::{
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64,
    Ordering::{Relaxed, SeqCst},
};

use sentry_abi::layout::PAGE_SIZE;

use super::{Object, Perm, Registry, now};
use crate::{
    errno::{EINVAL, ENOMEM, Result},
    fs::proc::sysctl_number,
    mm::{Extent, FaultError, MappingList, Pager, SharedPages},
    sync::SpinLock,
    syscall::page_align,
    task::{Creds, Pid},
};

/// Bits of shm_perm.mode beside the permissions.
const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;
const SHM_HUGETLB: i32 = 0o4000;

/// The memory of a segment, which lives as long as the segment or a mapping.
pub struct Segment {
    pages: SharedPages,
    /// As asked for, bytes.
    pub size: u64,
}

impl Pager for Segment {
    fn fault(&self, index: u64, max: u64, write: bool) -> Result<Extent, FaultError> {
        self.pages.fault(index, max, write)
    }

    fn mappings(&self) -> &MappingList {
        self.pages.mappings()
    }

    fn identity(&self) -> (u64, u64, String) {
        self.pages.identity()
    }
}

pub struct Shm {
    perm: SpinLock<Perm>,
    /// None once marked for removal.
    held: SpinLock<Option<Arc<Segment>>>,
    segment: Weak<Segment>,
    pub size: u64,
    creator: Pid,
    last: AtomicI32,
    attached_at: AtomicI64,
    detached_at: AtomicI64,
    changed_at: AtomicI64,
    locked: AtomicBool,
}

impl Object for Shm {
    fn perm(&self) -> &SpinLock<Perm> {
        &self.perm
    }

    fn is_gone(&self) -> bool {
        self.segment.strong_count() == 0
    }

    fn has_lost_key(&self) -> bool {
        self.held.lock().is_none()
    }
}

pub static SEGMENTS: Registry<Shm> = Registry::new();

/// struct shmid64_ds.
#[derive(Clone, Copy, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct UserShm {
    pub perm: super::UserPerm,
    pub size: u64,
    pub attached_at: i64,
    pub detached_at: i64,
    pub changed_at: i64,
    pub creator: i32,
    pub last: i32,
    pub attached: u64,
    pub _unused: [u64; 2],
}

const _: () = assert!(size_of::<UserShm>() == 112);

/// shmmni: how many segments there may be.
pub fn max_segments() -> u64 {
    sysctl_number("kernel.shmmni", 0, 4096)
}

/// shmmax: bytes of one segment.
pub fn max_size() -> u64 {
    sysctl_number("kernel.shmmax", 0, 18_446_744_073_692_774_399)
}

/// shmall: pages of all segments.
pub fn max_pages() -> u64 {
    sysctl_number("kernel.shmall", 0, 18_446_744_073_692_774_399)
}

pub fn get(key: i32, size: u64, flags: i32, creds: &Creds, pid: Pid) -> Result<i32> {
    purge();
    let fits = |shm: &Shm| if size > shm.size { Err(EINVAL) } else { Ok(()) };
    SEGMENTS.get(key, flags, creds, max_segments(), fits, |perm| {
        if size == 0 || size > max_size() {
            return Err(EINVAL);
        }
        if flags & SHM_HUGETLB != 0 {
            return Err(ENOMEM);
        }
        let len = page_align(size).ok_or(EINVAL)?;
        let used: u64 = SEGMENTS.all().iter().map(|s| s.size.div_ceil(PAGE_SIZE)).sum();
        if used.saturating_add(len / PAGE_SIZE) > max_pages() {
            return Err(crate::errno::ENOSPC);
        }
        let name = alloc::format!("/SYSV{:08x} (deleted)", perm.key);
        let segment = Arc::new(Segment { pages: SharedPages::new(1, 0, name, len), size });
        Ok(Arc::new(Shm {
            perm: SpinLock::new(perm),
            segment: Arc::downgrade(&segment),
            held: SpinLock::new(Some(segment)),
            size,
            creator: pid,
            last: AtomicI32::new(0),
            attached_at: AtomicI64::new(0),
            detached_at: AtomicI64::new(0),
            changed_at: AtomicI64::new(now()),
            locked: AtomicBool::new(false),
        }))
    })
}

/// Forgets segments that were removed and are not mapped any more.
fn purge() {
    let gone: Vec<i32> = SEGMENTS.everything().iter().filter(|s| s.is_gone()).map(|s| s.id()).collect();
    for id in gone {
        drop(SEGMENTS.remove(id));
    }
}

/// The segment whose memory this is.
pub fn of(segment: &Segment) -> Option<Arc<Shm>> {
    SEGMENTS.all().into_iter().find(|s| core::ptr::eq(s.segment.as_ptr(), segment))
}

impl Shm {
    /// The memory, to be mapped.
    pub fn memory(&self) -> Result<Arc<Segment>> {
        self.segment.upgrade().ok_or(EINVAL)
    }

    pub fn attached(&self, pid: Pid) {
        self.last.store(pid, Relaxed);
        self.attached_at.store(now(), Relaxed);
    }

    pub fn detached(&self, pid: Pid) {
        self.last.store(pid, Relaxed);
        self.detached_at.store(now(), Relaxed);
    }

    pub fn changed(&self) {
        self.changed_at.store(now(), Relaxed);
    }

    /// SHM_LOCK and SHM_UNLOCK: memory is never swapped, so only the mark remains.
    pub fn set_locked(&self, locked: bool) {
        self.locked.store(locked, SeqCst);
    }

    /// IPC_RMID: gone when nothing maps it, else when the last mapping goes.
    pub fn remove(&self) {
        let held = self.held.lock().take();
        drop(held);
        if self.is_gone() {
            let id = self.id();
            drop(SEGMENTS.remove(id));
        }
    }

    /// Pages that hold memory.
    pub fn resident(&self) -> u64 {
        self.segment.upgrade().map_or(0, |s| s.pages.resident())
    }

    pub fn stat(&self) -> UserShm {
        let mut perm = self.perm.lock().to_user();
        if self.has_lost_key() {
            perm.mode |= SHM_DEST;
            perm.key = super::IPC_PRIVATE;
        }
        if self.locked.load(SeqCst) {
            perm.mode |= SHM_LOCKED;
        }
        UserShm {
            perm,
            size: self.size,
            attached_at: self.attached_at.load(Relaxed),
            detached_at: self.detached_at.load(Relaxed),
            changed_at: self.changed_at.load(Relaxed),
            creator: self.creator,
            last: self.last.load(Relaxed),
            attached: self.segment.upgrade().map_or(0, |s| s.mappings().count()),
            _unused: [0; 2],
        }
    }
}
