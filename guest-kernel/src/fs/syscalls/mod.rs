//! System calls on files: decoding and checks; what they do is in the modules of `fs`.

pub mod attr;
pub mod descriptors;
pub mod fcntl;
pub mod inotify;
pub mod mount;
pub mod mqueue;
pub mod names;
pub mod open;
pub mod poll;
pub mod rw;
pub mod stat;
pub mod transfer;

use alloc::{sync::Arc, vec::Vec};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{File, PATH_MAX, Path, namei::Caller};
use crate::{
    errno::{EBADF, EINVAL, ENOENT, ENOTDIR, Result},
    mm::user::UserPtr,
    syscall::{Fd, UserPath},
    task::Current,
};

pub const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
const AT_EACCESS: u32 = 0x200;
const AT_REMOVEDIR: u32 = 0x200;
const AT_SYMLINK_FOLLOW: u32 = 0x400;
const AT_NO_AUTOMOUNT: u32 = 0x800;
const AT_EMPTY_PATH: u32 = 0x1000;

/// struct timespec as applications have it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct UserTimespec {
    pub sec: i64,
    pub nsec: i64,
}

impl Current {
    /// The file behind a descriptor; EBADF also for O_PATH ones.
    pub fn file(&self, fd: Fd) -> Result<Arc<File>> {
        let file = self.any_file(fd)?;
        if file.flags().contains(super::OpenFlags::PATH) { Err(EBADF) } else { Ok(file) }
    }

    /// The file behind a descriptor, O_PATH or not.
    #[inline]
    pub fn any_file(&self, fd: Fd) -> Result<Arc<File>> {
        self.task.files().get(fd.0)
    }

    /// Where this task's paths start, and as whom it walks.
    pub fn caller(&self) -> Caller {
        let fs = self.task.fs();
        Caller { root: fs.root(), cwd: fs.cwd(), creds: self.task.creds(), umask: fs.umask() }
    }

    /// A path argument: EFAULT, or ENAMETOOLONG beyond PATH_MAX.
    pub fn path(&self, path: UserPath) -> Result<Vec<u8>> {
        self.mm.read_cstr(path.0, PATH_MAX)
    }

    /// The directory that a relative `path` starts from; None: the working directory.
    pub fn start(&self, dir: Fd, path: &[u8]) -> Result<Option<Path>> {
        if dir.0 == AT_FDCWD || path.first() == Some(&b'/') {
            return Ok(None);
        }
        let file = self.any_file(dir)?;
        if !path.is_empty() && !file.inode().is_dir() {
            return Err(ENOTDIR);
        }
        Ok(Some(file.path().clone()))
    }

    /// What `path` names from `dir`, by AT_SYMLINK_NOFOLLOW and AT_EMPTY_PATH in `flags`.
    fn resolve_at(&self, caller: &Caller, dir: Fd, path: UserPath, flags: u32) -> Result<Path> {
        if flags & AT_EMPTY_PATH != 0 && path.0.is_null() {
            return self.empty_path(caller, dir);
        }
        let text = self.path(path)?;
        if text.is_empty() {
            return if flags & AT_EMPTY_PATH != 0 { self.empty_path(caller, dir) } else { Err(ENOENT) };
        }
        let start = self.start(dir, &text)?;
        caller.walk(start).resolve(&text, flags & AT_SYMLINK_NOFOLLOW == 0)
    }

    fn empty_path(&self, caller: &Caller, dir: Fd) -> Result<Path> {
        if dir.0 == AT_FDCWD { Ok(caller.cwd.clone()) } else { Ok(self.any_file(dir)?.path().clone()) }
    }

    fn read_timespec(&self, ptr: UserPtr<UserTimespec>) -> Result<UserTimespec> {
        self.mm.read_value(ptr)
    }

    /// A timeout: ns from now as a CLOCK_MONOTONIC deadline; EINVAL when malformed. `None` waits for ever.
    pub fn deadline(&self, timeout: UserPtr<UserTimespec>) -> Result<u64> {
        if timeout.is_null() {
            return Ok(u64::MAX);
        }
        let t = self.read_timespec(timeout)?;
        if t.sec < 0 || !(0..1_000_000_000).contains(&t.nsec) {
            return Err(EINVAL);
        }
        let ns = (t.sec as u64).saturating_mul(1_000_000_000).saturating_add(t.nsec as u64);
        Ok(crate::time::monotonic().saturating_add(ns).min(u64::MAX - 1))
    }

    /// RLIMIT_NOFILE.
    pub fn fd_limit(&self) -> u64 {
        self.task.process.limits.lock().soft(crate::task::Resource::Nofile)
    }
}
