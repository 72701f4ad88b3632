//! Attributes of files and file systems, access checks, directory entries.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{AT_EACCESS, AT_EMPTY_PATH, AT_FDCWD, AT_NO_AUTOMOUNT, AT_SYMLINK_NOFOLLOW};
use crate::{
    errno::{EINVAL, EROFS, Result},
    fs::{FileType, MountFlags, Path, Stat, StatFs, Timespec, permission, split_device},
    mm::user::{UserAddr, UserPtr},
    syscall::{Fd, Level::*, Syscall, UserPath},
    syscalls,
    task::Current,
};

syscalls! { pub CALLS;
    4 stat(path: UserPath, statbuf: UserPtr<UserStat>) = stat, Full, "", "file";
    5 fstat(fd: Fd, statbuf: UserPtr<UserStat>) = fstat, Full, "", "file";
    6 lstat(path: UserPath, statbuf: UserPtr<UserStat>) = lstat, Full, "", "file";
    262 newfstatat(dir: Fd, path: UserPath, statbuf: UserPtr<UserStat>, flags: u32) = newfstatat, Full, "", "file";
    332 statx(dir: Fd, path: UserPath, flags: u32, mask: u32, statxbuf: UserPtr<UserStatx>) = statx, Full, "", "file";
    137 statfs(path: UserPath, buffer: UserPtr<UserStatFs>) = statfs, Full, "", "file";
    138 fstatfs(fd: Fd, buffer: UserPtr<UserStatFs>) = fstatfs, Full, "", "file";
    21 access(path: UserPath, mode: u32) = access, Full, "", "file";
    269 faccessat(dir: Fd, path: UserPath, mode: u32) = faccessat, Full, "", "file";
    439 faccessat2(dir: Fd, path: UserPath, mode: u32, flags: u32) = faccessat2, Full, "", "file";
    78 getdents(fd: Fd, buffer: UserAddr, count: u32) = getdents, Full, "", "file";
    217 getdents64(fd: Fd, buffer: UserAddr, count: u32) = getdents64, Full, "", "file";
}

/// struct stat of x86-64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct UserStat {
    dev: u64,
    ino: u64,
    nlink: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    rdev: u64,
    size: i64,
    blksize: i64,
    blocks: i64,
    atime: [i64; 2],
    mtime: [i64; 2],
    ctime: [i64; 2],
    unused: [i64; 3],
}

fn pair(t: Timespec) -> [i64; 2] {
    [t.sec, i64::from(t.nsec)]
}

impl From<Stat> for UserStat {
    fn from(s: Stat) -> Self {
        UserStat {
            dev: s.dev,
            ino: s.ino,
            nlink: s.nlink.into(),
            mode: s.mode,
            uid: s.uid,
            gid: s.gid,
            pad: 0,
            rdev: s.rdev,
            size: s.size as i64,
            blksize: s.blksize.into(),
            blocks: s.blocks as i64,
            atime: pair(s.atime),
            mtime: pair(s.mtime),
            ctime: pair(s.ctime),
            unused: [0; 3],
        }
    }
}

fn stat(cur: &mut Current, path: UserPath, statbuf: UserPtr<UserStat>) -> Result<()> {
    newfstatat(cur, Fd(AT_FDCWD), path, statbuf, 0)
}

fn lstat(cur: &mut Current, path: UserPath, statbuf: UserPtr<UserStat>) -> Result<()> {
    newfstatat(cur, Fd(AT_FDCWD), path, statbuf, AT_SYMLINK_NOFOLLOW)
}

fn fstat(cur: &mut Current, fd: Fd, statbuf: UserPtr<UserStat>) -> Result<()> {
    let stat = cur.any_file(fd)?.stat()?;
    cur.mm.write_value(statbuf, &stat.into())
}

/// Attributes by descriptor and path, of the open file itself for an empty path.
fn stat_at(cur: &Current, dir: Fd, path: UserPath, flags: u32) -> Result<(Stat, Path)> {
    if flags & AT_EMPTY_PATH != 0 && dir.0 != AT_FDCWD && (path.0.is_null() || cur.path(path)?.is_empty()) {
        let file = cur.any_file(dir)?;
        return Ok((file.stat()?, file.path().clone()));
    }
    let found = cur.resolve_at(&cur.caller(), dir, path, flags)?;
    Ok((found.inode().stat()?, found))
}

fn newfstatat(cur: &mut Current, dir: Fd, path: UserPath, statbuf: UserPtr<UserStat>, flags: u32) -> Result<()> {
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let (stat, _) = stat_at(cur, dir, path, flags)?;
    cur.mm.write_value(statbuf, &stat.into())
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
struct StatxTime {
    sec: i64,
    nsec: u32,
    pad: i32,
}

impl From<Timespec> for StatxTime {
    fn from(t: Timespec) -> Self {
        StatxTime { sec: t.sec, nsec: t.nsec, pad: 0 }
    }
}

/// struct statx.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct UserStatx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: StatxTime,
    btime: StatxTime,
    ctime: StatxTime,
    mtime: StatxTime,
    rdev: [u32; 2],
    dev: [u32; 2],
    mnt_id: u64,
    dio: [u32; 2],
    spare: [u64; 12],
}

const STATX_BASIC_STATS: u32 = 0x7ff;
const STATX_MNT_ID: u32 = 0x1000;
const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;

fn statx(
    cur: &mut Current,
    dir: Fd,
    path: UserPath,
    flags: u32,
    mask: u32,
    statxbuf: UserPtr<UserStatx>,
) -> Result<()> {
    // AT_STATX_SYNC_TYPE: what is cached is right in any case, or revalidated.
    const SYNC_TYPE: u32 = 0x6000;
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | SYNC_TYPE) != 0
        || flags & SYNC_TYPE == SYNC_TYPE
        || mask & 0x8000_0000 != 0
    {
        return Err(EINVAL);
    }
    let (stat, found) = stat_at(cur, dir, path, flags)?;
    let (major, minor) = split_device(stat.dev);
    let (rmajor, rminor) = split_device(stat.rdev);
    let mount_root = alloc::sync::Arc::ptr_eq(&found.mount.root, &found.dentry);
    let value = UserStatx {
        mask: STATX_BASIC_STATS | STATX_MNT_ID,
        blksize: stat.blksize,
        attributes: if mount_root { STATX_ATTR_MOUNT_ROOT } else { 0 },
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        mode: stat.mode as u16,
        ino: stat.ino,
        size: stat.size,
        blocks: stat.blocks,
        attributes_mask: STATX_ATTR_MOUNT_ROOT,
        atime: stat.atime.into(),
        ctime: stat.ctime.into(),
        mtime: stat.mtime.into(),
        rdev: [rmajor, rminor],
        dev: [major, minor],
        mnt_id: found.mount.id.into(),
        ..UserStatx::default()
    };
    cur.mm.write_value(statxbuf, &value)
}

/// struct statfs of x86-64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct UserStatFs {
    magic: u64,
    bsize: u64,
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    fsid: [u32; 2],
    namelen: u64,
    frsize: u64,
    flags: u64,
    spare: [u64; 4],
}

fn statfs_of(path: &Path) -> Result<UserStatFs> {
    let s: StatFs = path.mount.filesystem.statfs()?;
    let device = path.mount.filesystem.device();
    let mut flags = 0x20; // ST_VALID
    for (flag, bit) in [
        (MountFlags::RDONLY, 1),
        (MountFlags::NOSUID, 2),
        (MountFlags::NODEV, 4),
        (MountFlags::NOEXEC, 8),
        (MountFlags::NOATIME, 1024),
        (MountFlags::NODIRATIME, 2048),
        (MountFlags::RELATIME, 4096),
    ] {
        if path.mount.flags().contains(flag) {
            flags |= bit;
        }
    }
    Ok(UserStatFs {
        magic: s.magic,
        bsize: s.block_size,
        blocks: s.blocks,
        bfree: s.free,
        bavail: s.available,
        files: s.files,
        ffree: s.files_free,
        fsid: [device as u32, (device >> 32) as u32],
        namelen: s.name_max,
        frsize: s.block_size,
        flags,
        spare: [0; 4],
    })
}

fn statfs(cur: &mut Current, path: UserPath, buffer: UserPtr<UserStatFs>) -> Result<()> {
    let found = cur.resolve_at(&cur.caller(), Fd(AT_FDCWD), path, 0)?;
    cur.mm.write_value(buffer, &statfs_of(&found)?)
}

fn fstatfs(cur: &mut Current, fd: Fd, buffer: UserPtr<UserStatFs>) -> Result<()> {
    let file = cur.any_file(fd)?;
    cur.mm.write_value(buffer, &statfs_of(file.path())?)
}

fn access(cur: &mut Current, path: UserPath, mode: u32) -> Result<()> {
    faccessat2(cur, Fd(AT_FDCWD), path, mode, 0)
}

fn faccessat(cur: &mut Current, dir: Fd, path: UserPath, mode: u32) -> Result<()> {
    faccessat2(cur, dir, path, mode, 0)
}

fn faccessat2(cur: &mut Current, dir: Fd, path: UserPath, mode: u32, flags: u32) -> Result<()> {
    if mode & !7 != 0 || flags & !(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let mut caller = cur.caller();
    if flags & AT_EACCESS == 0 {
        caller.creds = alloc::sync::Arc::new(caller.creds.for_access());
    }
    let found = cur.resolve_at(&caller, dir, path, flags)?;
    let inode = found.inode();
    let regular = inode.file_type() == FileType::Regular;
    if mode & permission::EXECUTE != 0 && regular && found.mount.flags().contains(MountFlags::NOEXEC) {
        return Err(crate::errno::EACCES);
    }
    permission::check(&**inode, &caller.creds, mode)?;
    let special =
        matches!(inode.file_type(), FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket);
    if mode & permission::WRITE != 0 && !special && found.mount.is_read_only() {
        return Err(EROFS);
    }
    Ok(())
}

/// Kernel memory for the entries of one call.
const MAX_ENTRIES: usize = 64 << 10;

/// Collects entries with `encode(name, ino, next, type)` and copies them out.
fn entries(
    cur: &mut Current,
    fd: Fd,
    buffer: UserAddr,
    count: u32,
    encode: impl Fn(&mut Vec<u8>, &[u8], u64, u64, u8),
) -> Result<usize> {
    let file = cur.file(fd)?;
    let limit = (count as usize).min(MAX_ENTRIES);
    let start = file.position();
    let mut out: Vec<u8> = Vec::new();
    let mut too_small = false;
    file.read_entries(&mut |entry| {
        let before = out.len();
        encode(&mut out, entry.name, entry.ino, entry.next, entry.file_type.dirent());
        if out.len() > limit {
            out.truncate(before);
            too_small = before == 0;
            return false;
        }
        true
    })?;
    if too_small {
        return Err(EINVAL);
    }
    if let Err(error) = cur.mm.write(buffer, &out) {
        // Nothing was delivered: they are still to come.
        file.seek(start as i64, 0)?;
        return Err(error);
    }
    Ok(out.len())
}

fn getdents64(cur: &mut Current, fd: Fd, buffer: UserAddr, count: u32) -> Result<usize> {
    entries(cur, fd, buffer, count, |out, name, ino, next, kind| {
        let len = (19 + name.len() + 1).next_multiple_of(8);
        let start = out.len();
        out.extend_from_slice(&ino.to_ne_bytes());
        out.extend_from_slice(&next.to_ne_bytes());
        out.extend_from_slice(&(len as u16).to_ne_bytes());
        out.push(kind);
        out.extend_from_slice(name);
        out.resize(start + len, 0);
    })
}

fn getdents(cur: &mut Current, fd: Fd, buffer: UserAddr, count: u32) -> Result<usize> {
    entries(cur, fd, buffer, count, |out, name, ino, next, kind| {
        let len = (18 + name.len() + 2).next_multiple_of(8);
        let start = out.len();
        out.extend_from_slice(&ino.to_ne_bytes());
        out.extend_from_slice(&next.to_ne_bytes());
        out.extend_from_slice(&(len as u16).to_ne_bytes());
        out.extend_from_slice(name);
        out.resize(start + len, 0);
        out[start + len - 1] = kind;
    })
}
