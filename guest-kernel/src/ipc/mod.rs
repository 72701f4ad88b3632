//! System V IPC (sysvipc(7)): shared memory, semaphores, message queues; objects named by keys and identifiers.

pub mod msg;
pub mod proc;
pub mod sem;
pub mod shm;
pub mod syscalls;

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};

use crate::{
    errno::{EACCES, EEXIST, EIDRM, EINVAL, ENOENT, ENOSPC, EPERM, Result},
    mm::kmem,
    sync::SpinLock,
    task::creds::{Creds, cap},
};

pub const IPC_PRIVATE: i32 = 0;
pub const IPC_CREAT: i32 = 0o1000;
pub const IPC_EXCL: i32 = 0o2000;
pub const IPC_NOWAIT: i32 = 0o4000;

pub const IPC_RMID: i32 = 0;
pub const IPC_SET: i32 = 1;
pub const IPC_STAT: i32 = 2;
pub const IPC_INFO: i32 = 3;

pub const READ: i32 = 0o4;
pub const WRITE: i32 = 0o2;

/// An identifier is a place in the table and how often places have been given away.
const PLACES: i32 = 1 << 15;

/// struct ipc64_perm.
#[derive(Clone, Copy, Debug, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct UserPerm {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    pub mode: u32,
    pub seq: u16,
    pub _pad: [u16; 3],
    pub _unused: [u64; 2],
}

const _: () = assert!(size_of::<UserPerm>() == 48);

/// Who made and who owns an object, and what others may do.
#[derive(Clone, Copy, Debug)]
pub struct Perm {
    pub key: i32,
    pub id: i32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    pub mode: u32,
}

impl Perm {
    fn new(key: i32, flags: i32, creds: &Creds) -> Self {
        let (uid, gid) = (creds.euid, creds.egid);
        Perm { key, id: 0, uid, gid, cuid: uid, cgid: gid, mode: flags as u32 & 0o777 }
    }

    /// EACCES unless the caller may do what the permission bits in `flags` ask for, in whichever of the three places.
    pub fn check(&self, creds: &Creds, flags: i32) -> Result<()> {
        let wanted = (flags >> 6 | flags >> 3 | flags) as u32 & 0o7;
        let shift = if creds.euid == self.cuid || creds.euid == self.uid {
            6
        } else if creds.in_effective_group(self.cgid) || creds.in_effective_group(self.gid) {
            3
        } else {
            0
        };
        let granted = self.mode >> shift;
        if wanted & !granted & 0o7 != 0 && !creds.capable(cap::IPC_OWNER) { Err(EACCES) } else { Ok(()) }
    }

    /// EPERM unless the caller may change or remove the object.
    pub fn check_owner(&self, creds: &Creds) -> Result<()> {
        let owner = creds.euid == self.cuid || creds.euid == self.uid;
        if owner || creds.capable(cap::SYS_ADMIN) { Ok(()) } else { Err(EPERM) }
    }

    /// IPC_SET.
    pub fn set(&mut self, wanted: &UserPerm) -> Result<()> {
        if wanted.uid == u32::MAX || wanted.gid == u32::MAX {
            return Err(EINVAL);
        }
        self.uid = wanted.uid;
        self.gid = wanted.gid;
        self.mode = self.mode & !0o777 | wanted.mode & 0o777;
        Ok(())
    }

    pub fn to_user(self) -> UserPerm {
        UserPerm {
            key: self.key,
            uid: self.uid,
            gid: self.gid,
            cuid: self.cuid,
            cgid: self.cgid,
            mode: self.mode,
            seq: (self.id / PLACES) as u16,
            ..UserPerm::default()
        }
    }
}

/// What a [`Registry`] holds. Its permissions are locked last.
pub trait Object: Send + Sync {
    fn perm(&self) -> &SpinLock<Perm>;

    fn id(&self) -> i32 {
        self.perm().lock().id
    }

    /// Not to be found any more (its last user is gone, or it waits for that).
    fn is_gone(&self) -> bool {
        false
    }

    /// Goes by its identifier only: its key is free for others.
    fn has_lost_key(&self) -> bool {
        false
    }
}

/// All objects of a kind, by place.
pub struct Registry<T> {
    inner: SpinLock<Inner<T>>,
}

struct Inner<T> {
    objects: BTreeMap<i32, Arc<T>>,
    sequence: i32,
}

impl<T: Object> Registry<T> {
    pub const fn new() -> Self {
        Registry { inner: SpinLock::new(Inner { objects: BTreeMap::new(), sequence: 0 }) }
    }

    /// shmget(2), semget(2), msgget(2): finds what has the key (which `check` must accept) or makes it, at most `limit` objects.
    pub fn get(
        &self,
        key: i32,
        flags: i32,
        creds: &Creds,
        limit: u64,
        check: impl FnOnce(&T) -> Result<()>,
        make: impl FnOnce(Perm) -> Result<Arc<T>>,
    ) -> Result<i32> {
        if key != IPC_PRIVATE
            && let Some(found) = self.by_key(key)
        {
            return Self::found(&found, flags, creds, check);
        }
        if key != IPC_PRIVATE && flags & IPC_CREAT == 0 {
            return Err(ENOENT);
        }
        if kmem::under_pressure() {
            return Err(ENOSPC);
        }
        let new = make(Perm::new(key, flags, creds))?;
        let mut inner = self.inner.lock();
        if inner.objects.len() as u64 >= limit.min(PLACES as u64) {
            return Err(ENOSPC);
        }
        let raced = key != IPC_PRIVATE
            && inner.objects.values().any(|o| !o.is_gone() && !o.has_lost_key() && o.perm().lock().key == key);
        if raced {
            drop(inner);
            let found = self.by_key(key).ok_or(ENOENT)?;
            return Self::found(&found, flags, creds, check);
        }
        let place = (0..PLACES).find(|place| !inner.objects.contains_key(place)).ok_or(ENOSPC)?;
        let id = inner.sequence * PLACES + place;
        inner.sequence = (inner.sequence + 1) % (i32::MAX / PLACES);
        new.perm().lock().id = id;
        inner.objects.insert(place, new);
        Ok(id)
    }

    fn found(found: &Arc<T>, flags: i32, creds: &Creds, check: impl FnOnce(&T) -> Result<()>) -> Result<i32> {
        if flags & (IPC_CREAT | IPC_EXCL) == IPC_CREAT | IPC_EXCL {
            return Err(EEXIST);
        }
        check(found)?;
        let perm = *found.perm().lock();
        perm.check(creds, flags)?;
        Ok(perm.id)
    }

    fn by_key(&self, key: i32) -> Option<Arc<T>> {
        let alive = |o: &&Arc<T>| !o.is_gone() && !o.has_lost_key() && o.perm().lock().key == key;
        self.inner.lock().objects.values().find(alive).cloned()
    }

    /// By identifier: EINVAL when there is none, EIDRM when its place has another by now.
    pub fn by_id(&self, id: i32) -> Result<Arc<T>> {
        if id < 0 {
            return Err(EINVAL);
        }
        let found = self.inner.lock().objects.get(&(id % PLACES)).cloned().ok_or(EINVAL)?;
        if found.id() != id {
            return Err(EIDRM);
        }
        if found.is_gone() { Err(EINVAL) } else { Ok(found) }
    }

    /// By place, for the *_STAT commands; with the identifier.
    pub fn by_place(&self, place: i32) -> Result<(i32, Arc<T>)> {
        let found = self.inner.lock().objects.get(&place).cloned().ok_or(EINVAL)?;
        let id = found.id();
        if found.is_gone() { Err(EINVAL) } else { Ok((id, found)) }
    }

    /// Takes it out of the table; the caller drops it.
    pub fn remove(&self, id: i32) -> Option<Arc<T>> {
        let mut inner = self.inner.lock();
        let place = id % PLACES;
        let same = inner.objects.get(&place).is_some_and(|o| o.id() == id);
        if same { inner.objects.remove(&place) } else { None }
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.inner.lock().objects.values().filter(|o| !o.is_gone()).cloned().collect()
    }

    /// With those that are gone.
    fn everything(&self) -> Vec<Arc<T>> {
        self.inner.lock().objects.values().cloned().collect()
    }

    /// Highest place in use, for the *_INFO commands.
    pub fn highest(&self) -> i32 {
        self.inner.lock().objects.keys().next_back().copied().unwrap_or(0)
    }
}

impl<T: Object> Default for Registry<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// CLOCK_REALTIME in seconds.
fn now() -> i64 {
    (crate::time::realtime() / crate::time::NSEC_PER_SEC) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_of_owner_group_and_others() {
        let mut creds = Creds { euid: 5, egid: 7, groups: alloc::vec![9], ..Creds::default() };
        let perm = Perm { key: 1, id: 0, uid: 5, gid: 9, cuid: 1, cgid: 2, mode: 0o640 };
        assert!(perm.check(&creds, 0o600).is_ok());
        creds.euid = 6;
        assert!(perm.check(&creds, 0o400).is_ok());
        assert_eq!(perm.check(&creds, 0o200), Err(EACCES));
        creds.groups.clear();
        assert_eq!(perm.check(&creds, READ), Err(EACCES));
        assert!(perm.check(&Creds::root(), 0o666).is_ok());
        assert_eq!(perm.check_owner(&creds), Err(EPERM));
    }
}
