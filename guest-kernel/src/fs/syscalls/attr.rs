//! Changing attributes: mode, owner, times, size; extended attributes.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, UserTimespec};
use crate::{
    errno::{E2BIG, EBADF, EFBIG, EINVAL, ENODEV, ENOTSUP, EPERM, ERANGE, ESPIPE, Result},
    fs::{
        FileType, Path, S_ISGID, S_ISUID, SetAttr, Timespec,
        inotify::{event, notify},
        namei, permission,
    },
    mm::user::{UserAddr, UserPtr},
    signal::set::SIGXFSZ,
    syscall::{Fd, Hex, Level::*, Syscall, UserPath},
    syscalls,
    task::{Current, creds::cap},
};

syscalls! { pub CALLS;
    90 chmod(path: UserPath, mode: Hex) = chmod, Full, "", "file";
    91 fchmod(fd: Fd, mode: Hex) = fchmod, Full, "", "file";
    268 fchmodat(dir: Fd, path: UserPath, mode: Hex) = fchmodat, Full, "", "file";
    92 chown(path: UserPath, uid: u32, gid: u32) = chown, Full, "", "file";
    93 fchown(fd: Fd, uid: u32, gid: u32) = fchown, Full, "", "file";
    94 lchown(path: UserPath, uid: u32, gid: u32) = lchown, Full, "", "file";
    260 fchownat(dir: Fd, path: UserPath, uid: u32, gid: u32, flags: u32) = fchownat, Full, "", "file";
    132 utime(path: UserPath, times: UserPtr<[i64; 2]>) = utime, Full, "", "file";
    235 utimes(path: UserPath, times: UserPtr<[[i64; 2]; 2]>) = utimes, Full, "", "file";
    261 futimesat(dir: Fd, path: UserPath, times: UserPtr<[[i64; 2]; 2]>) = futimesat, Full, "", "file";
    280 utimensat(dir: Fd, path: UserPath, times: UserPtr<TimesArg>, flags: u32) = utimensat, Full, "", "file";
    76 truncate(path: UserPath, length: i64) = truncate, Full, "", "file";
    77 ftruncate(fd: Fd, length: i64) = ftruncate, Full, "", "file";
    285 fallocate(fd: Fd, mode: u32, offset: i64, len: i64) = fallocate, Full, "", "file";
    188 setxattr(path: UserPath, name: UserPath, value: UserAddr, size: usize, flags: u32) = setxattr, Full, "", "file";
    189 lsetxattr(path: UserPath, name: UserPath, value: UserAddr, size: usize, flags: u32) = lsetxattr, Full, "", "file";
    190 fsetxattr(fd: Fd, name: UserPath, value: UserAddr, size: usize, flags: u32) = fsetxattr, Full, "", "file";
    191 getxattr(path: UserPath, name: UserPath, value: UserAddr, size: usize) = getxattr, Full, "", "file";
    192 lgetxattr(path: UserPath, name: UserPath, value: UserAddr, size: usize) = lgetxattr, Full, "", "file";
    193 fgetxattr(fd: Fd, name: UserPath, value: UserAddr, size: usize) = fgetxattr, Full, "", "file";
    194 listxattr(path: UserPath, list: UserAddr, size: usize) = listxattr, Full, "", "file";
    195 llistxattr(path: UserPath, list: UserAddr, size: usize) = llistxattr, Full, "", "file";
    196 flistxattr(fd: Fd, list: UserAddr, size: usize) = flistxattr, Full, "", "file";
    197 removexattr(path: UserPath, name: UserPath) = removexattr, Full, "", "file";
    198 lremovexattr(path: UserPath, name: UserPath) = lremovexattr, Full, "", "file";
    199 fremovexattr(fd: Fd, name: UserPath) = fremovexattr, Full, "", "file";
}

const CWD: Fd = Fd(AT_FDCWD);
const NOFOLLOW: u32 = AT_SYMLINK_NOFOLLOW;

fn set_mode(cur: &Current, path: &Path, mode: u32) -> Result<()> {
    namei::want_write(path)?;
    let creds = cur.task.creds();
    let inode = path.inode();
    if inode.file_type() == FileType::Symlink {
        return Err(ENOTSUP);
    }
    let stat = inode.stat()?;
    if !permission::is_owner(&stat, &creds) {
        return Err(EPERM);
    }
    let mut mode = mode & 0o7777;
    if mode & S_ISGID != 0 && !creds.in_group(stat.gid) && !creds.capable(cap::FSETID) {
        mode &= !S_ISGID;
    }
    inode.set_attr(&SetAttr { mode: Some(mode), ..SetAttr::default() })?;
    notify(&path.dentry, event::ATTRIB);
    Ok(())
}

fn chmod(cur: &mut Current, path: UserPath, mode: Hex) -> Result<()> {
    fchmodat(cur, CWD, path, mode)
}

fn fchmod(cur: &mut Current, fd: Fd, mode: Hex) -> Result<()> {
    let file = cur.file(fd)?;
    set_mode(cur, file.path(), mode.0 as u32)
}

fn fchmodat(cur: &mut Current, dir: Fd, path: UserPath, mode: Hex) -> Result<()> {
    let found = cur.resolve_at(&cur.caller(), dir, path, 0)?;
    set_mode(cur, &found, mode.0 as u32)
}

fn set_owner(cur: &Current, path: &Path, uid: u32, gid: u32) -> Result<()> {
    namei::want_write(path)?;
    let (uid, gid) = ((uid != u32::MAX).then_some(uid), (gid != u32::MAX).then_some(gid));
    let creds = cur.task.creds();
    let inode = path.inode();
    let stat = inode.stat()?;
    let owns = creds.fsuid == stat.uid;
    let may_uid = uid.is_none_or(|uid| owns && uid == stat.uid);
    let may_gid = gid.is_none_or(|gid| owns && (gid == stat.gid || creds.in_group(gid)));
    let allowed = (may_uid && may_gid) || creds.capable(cap::CHOWN);
    if !allowed {
        return Err(EPERM);
    }
    let mut attr = SetAttr { uid, gid, ..SetAttr::default() };
    if inode.file_type() == FileType::Regular {
        let mut mode = stat.mode & 0o7777 & !S_ISUID;
        if mode & 0o010 != 0 {
            mode &= !S_ISGID;
        }
        if mode != stat.mode & 0o7777 {
            attr.mode = Some(mode);
        }
    }
    inode.set_attr(&attr)?;
    notify(&path.dentry, event::ATTRIB);
    Ok(())
}

fn chown(cur: &mut Current, path: UserPath, uid: u32, gid: u32) -> Result<()> {
    fchownat(cur, CWD, path, uid, gid, 0)
}

fn lchown(cur: &mut Current, path: UserPath, uid: u32, gid: u32) -> Result<()> {
    fchownat(cur, CWD, path, uid, gid, AT_SYMLINK_NOFOLLOW)
}

fn fchown(cur: &mut Current, fd: Fd, uid: u32, gid: u32) -> Result<()> {
    let file = cur.file(fd)?;
    set_owner(cur, file.path(), uid, gid)
}

fn fchownat(cur: &mut Current, dir: Fd, path: UserPath, uid: u32, gid: u32, flags: u32) -> Result<()> {
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let found = cur.resolve_at(&cur.caller(), dir, path, flags)?;
    set_owner(cur, &found, uid, gid)
}

const UTIME_NOW: i64 = 0x3fff_ffff;
const UTIME_OMIT: i64 = 0x3fff_fffe;

/// The two times of utimensat(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct TimesArg {
    atime: UserTimespec,
    mtime: UserTimespec,
}

/// What to do with one time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Time {
    Now,
    Omit,
    At(Timespec),
}

impl Time {
    fn parse(t: UserTimespec) -> Result<Time> {
        match t.nsec {
            UTIME_NOW => Ok(Time::Now),
            UTIME_OMIT => Ok(Time::Omit),
            nsec @ 0..1_000_000_000 => Ok(Time::At(Timespec { sec: t.sec, nsec: nsec as u32 })),
            _ => Err(EINVAL),
        }
    }

    fn value(self, now: Timespec) -> Option<Timespec> {
        match self {
            Time::Now => Some(now),
            Time::Omit => None,
            Time::At(t) => Some(t),
        }
    }
}

fn set_times(cur: &Current, path: &Path, atime: Time, mtime: Time) -> Result<()> {
    if atime == Time::Omit && mtime == Time::Omit {
        return Ok(());
    }
    namei::want_write(path)?;
    let creds = cur.task.creds();
    let inode = path.inode();
    let stat = inode.stat()?;
    if !permission::is_owner(&stat, &creds) {
        // Whoever may write may set both to now.
        if atime != Time::Now || mtime != Time::Now {
            return Err(EPERM);
        }
        permission::check(&**inode, &creds, permission::WRITE)?;
    }
    let now = Timespec::now();
    inode.set_attr(&SetAttr { atime: atime.value(now), mtime: mtime.value(now), ..SetAttr::default() })?;
    notify(&path.dentry, event::ATTRIB);
    Ok(())
}

fn utimensat(cur: &mut Current, dir: Fd, path: UserPath, times: UserPtr<TimesArg>, flags: u32) -> Result<()> {
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let (atime, mtime) = if times.is_null() {
        (Time::Now, Time::Now)
    } else {
        let times = cur.mm.read_value(times)?;
        (Time::parse(times.atime)?, Time::parse(times.mtime)?)
    };
    if path.0.is_null() && dir.0 != AT_FDCWD {
        // futimens(3).
        if flags != 0 {
            return Err(EINVAL);
        }
        let file = cur.file(dir)?;
        return set_times(cur, file.path(), atime, mtime);
    }
    let found = cur.resolve_at(&cur.caller(), dir, path, flags)?;
    set_times(cur, &found, atime, mtime)
}

fn utime(cur: &mut Current, path: UserPath, times: UserPtr<[i64; 2]>) -> Result<()> {
    let at = |sec| Time::At(Timespec { sec, nsec: 0 });
    let (atime, mtime) = if times.is_null() {
        (Time::Now, Time::Now)
    } else {
        let [atime, mtime] = cur.mm.read_value(times)?;
        (at(atime), at(mtime))
    };
    let found = cur.resolve_at(&cur.caller(), CWD, path, 0)?;
    set_times(cur, &found, atime, mtime)
}

fn utimes(cur: &mut Current, path: UserPath, times: UserPtr<[[i64; 2]; 2]>) -> Result<()> {
    futimesat(cur, CWD, path, times)
}

fn futimesat(cur: &mut Current, dir: Fd, path: UserPath, times: UserPtr<[[i64; 2]; 2]>) -> Result<()> {
    let at = |[sec, usec]: [i64; 2]| match usec {
        0..1_000_000 => Ok(Time::At(Timespec { sec, nsec: usec as u32 * 1000 })),
        _ => Err(EINVAL),
    };
    let (atime, mtime) = if times.is_null() {
        (Time::Now, Time::Now)
    } else {
        let [atime, mtime] = cur.mm.read_value(times)?;
        (at(atime)?, at(mtime)?)
    };
    if path.0.is_null() && dir.0 != AT_FDCWD {
        let file = cur.file(dir)?;
        return set_times(cur, file.path(), atime, mtime);
    }
    let found = cur.resolve_at(&cur.caller(), dir, path, 0)?;
    set_times(cur, &found, atime, mtime)
}

impl Current {
    /// EFBIG and SIGXFSZ for a size beyond RLIMIT_FSIZE.
    fn check_size(&self, size: u64) -> Result<()> {
        if size > self.task.process.limits.lock().soft(crate::task::Resource::Fsize) {
            self.raise(SIGXFSZ);
            return Err(EFBIG);
        }
        Ok(())
    }
}

fn truncate(cur: &mut Current, path: UserPath, length: i64) -> Result<()> {
    let length = u64::try_from(length).map_err(|_| EINVAL)?;
    let caller = cur.caller();
    let found = cur.resolve_at(&caller, CWD, path, 0)?;
    cur.check_size(length)?;
    namei::truncate(&caller, &found, length)
}

fn ftruncate(cur: &mut Current, fd: Fd, length: i64) -> Result<()> {
    let length = u64::try_from(length).map_err(|_| EINVAL)?;
    let file = cur.file(fd)?;
    if file.inode().file_type() != FileType::Regular || !file.writable() {
        return Err(EINVAL);
    }
    cur.check_size(length)?;
    file.inode().set_attr(&SetAttr { size: Some(length), ..SetAttr::default() })?;
    notify(&file.path().dentry, event::MODIFY);
    Ok(())
}

fn fallocate(cur: &mut Current, fd: Fd, mode: u32, offset: i64, len: i64) -> Result<()> {
    let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else { return Err(EINVAL) };
    let file = cur.file(fd)?;
    if len == 0 {
        return Err(EINVAL);
    }
    if mode & !0x7b != 0 {
        return Err(ENOTSUP);
    }
    if !file.writable() {
        return Err(EBADF);
    }
    match file.inode().file_type() {
        FileType::Regular => {}
        FileType::Fifo => return Err(ESPIPE),
        FileType::Directory => return Err(crate::errno::EISDIR),
        _ => return Err(ENODEV),
    }
    let end = offset.checked_add(len).filter(|&e| e <= i64::MAX as u64).ok_or(EFBIG)?;
    if mode & 1 == 0 {
        cur.check_size(end)?;
    }
    file.ops().fallocate(&file, mode, offset, len)?;
    notify(&file.path().dentry, event::MODIFY);
    Ok(())
}

/// Longest name and value of an extended attribute.
const XATTR_NAME_MAX: usize = 255;
const XATTR_SIZE_MAX: usize = 65536;

fn xattr_name(cur: &Current, name: UserPath) -> Result<Vec<u8>> {
    let name = cur.mm.read_cstr(name.0, XATTR_NAME_MAX).map_err(|e| match e {
        crate::errno::ENAMETOOLONG => ERANGE,
        other => other,
    })?;
    if name.is_empty() { Err(ERANGE) } else { Ok(name) }
}

/// Permission for an attribute by its name space.
fn check_xattr(cur: &Current, path: &Path, name: &[u8], write: bool) -> Result<()> {
    if write {
        namei::want_write(path)?;
    }
    let creds = cur.task.creds();
    let inode = path.inode();
    if name.starts_with(b"trusted.") {
        let missing = if write { EPERM } else { crate::errno::ENODATA };
        return if creds.capable(cap::SYS_ADMIN) { Ok(()) } else { Err(missing) };
    }
    if name.starts_with(b"security.") {
        return if !write || creds.capable(cap::SYS_ADMIN) { Ok(()) } else { Err(EPERM) };
    }
    if name.starts_with(b"user.") {
        if !matches!(inode.file_type(), FileType::Regular | FileType::Directory) {
            return Err(if write { EPERM } else { crate::errno::ENODATA });
        }
        return permission::check(&**inode, &creds, if write { permission::WRITE } else { permission::READ });
    }
    Ok(())
}

fn set_xattr(cur: &Current, path: &Path, name: UserPath, value: UserAddr, size: usize, flags: u32) -> Result<()> {
    if flags & !3 != 0 {
        return Err(EINVAL);
    }
    let name = xattr_name(cur, name)?;
    if size > XATTR_SIZE_MAX {
        return Err(E2BIG);
    }
    let mut bytes = alloc::vec![0; size];
    cur.mm.read(value, &mut bytes)?;
    check_xattr(cur, path, &name, true)?;
    path.inode().set_xattr(&name, &bytes, flags)?;
    notify(&path.dentry, event::ATTRIB);
    Ok(())
}

fn setxattr(cur: &mut Current, path: UserPath, name: UserPath, value: UserAddr, size: usize, flags: u32) -> Result<()> {
    let found = cur.resolve_at(&cur.caller(), CWD, path, 0)?;
    set_xattr(cur, &found, name, value, size, flags)
}

fn lsetxattr(
    cur: &mut Current,
    path: UserPath,
    name: UserPath,
    value: UserAddr,
    size: usize,
    flags: u32,
) -> Result<()> {
    let found = cur.resolve_at(&cur.caller(), CWD, path, NOFOLLOW)?;
    set_xattr(cur, &found, name, value, size, flags)
}

fn fsetxattr(cur: &mut Current, fd: Fd, name: UserPath, value: UserAddr, size: usize, flags: u32) -> Result<()> {
    let file = cur.file(fd)?;
    set_xattr(cur, file.path(), name, value, size, flags)
}

/// Copies out what fits `size`; 0 asks for the length.
fn deliver(cur: &Current, bytes: &[u8], buffer: UserAddr, size: usize) -> Result<usize> {
    if size == 0 {
        return Ok(bytes.len());
    }
    if bytes.len() > size {
        return Err(ERANGE);
    }
    cur.mm.write(buffer, bytes)?;
    Ok(bytes.len())
}

fn get_xattr(cur: &Current, path: &Path, name: UserPath, value: UserAddr, size: usize) -> Result<usize> {
    let name = xattr_name(cur, name)?;
    check_xattr(cur, path, &name, false)?;
    deliver(cur, &path.inode().get_xattr(&name)?, value, size)
}

fn getxattr(cur: &mut Current, path: UserPath, name: UserPath, value: UserAddr, size: usize) -> Result<usize> {
    let found = cur.resolve_at(&cur.caller(), CWD, path, 0)?;
    get_xattr(cur, &found, name, value, size)
}

fn lgetxattr(cur: &mut Current, path: UserPath, name: UserPath, value: UserAddr, size: usize) -> Result<usize> {
    let found = cur.resolve_at(&cur.caller(), CWD, path, NOFOLLOW)?;
    get_xattr(cur, &found, name, value, size)
}

fn fgetxattr(cur: &mut Current, fd: Fd, name: UserPath, value: UserAddr, size: usize) -> Result<usize> {
    let file = cur.file(fd)?;
    get_xattr(cur, file.path(), name, value, size)
}

fn listxattr(cur: &mut Current, path: UserPath, list: UserAddr, size: usize) -> Result<usize> {
    let found = cur.resolve_at(&cur.caller(), CWD, path, 0)?;
    deliver(cur, &found.inode().list_xattr()?, list, size)
}

fn llistxattr(cur: &mut Current, path: UserPath, list: UserAddr, size: usize) -> Result<usize> {
    let found = cur.resolve_at(&cur.caller(), CWD, path, NOFOLLOW)?;
    deliver(cur, &found.inode().list_xattr()?, list, size)
}

fn flistxattr(cur: &mut Current, fd: Fd, list: UserAddr, size: usize) -> Result<usize> {
    let file = cur.file(fd)?;
    deliver(cur, &file.inode().list_xattr()?, list, size)
}

fn remove_xattr(cur: &Current, path: &Path, name: UserPath) -> Result<()> {
    let name = xattr_name(cur, name)?;
    check_xattr(cur, path, &name, true)?;
    path.inode().remove_xattr(&name)?;
    notify(&path.dentry, event::ATTRIB);
    Ok(())
}

fn removexattr(cur: &mut Current, path: UserPath, name: UserPath) -> Result<()> {
    let found = cur.resolve_at(&cur.caller(), CWD, path, 0)?;
    remove_xattr(cur, &found, name)
}

fn lremovexattr(cur: &mut Current, path: UserPath, name: UserPath) -> Result<()> {
    let found = cur.resolve_at(&cur.caller(), CWD, path, NOFOLLOW)?;
    remove_xattr(cur, &found, name)
}

fn fremovexattr(cur: &mut Current, fd: Fd, name: UserPath) -> Result<()> {
    let file = cur.file(fd)?;
    remove_xattr(cur, file.path(), name)
}
