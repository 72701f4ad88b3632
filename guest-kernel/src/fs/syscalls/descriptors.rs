//! Closing and duplicating descriptors, positions, writing back, working directory.

use alloc::{sync::Arc, vec::Vec};

use crate::{
    errno::{EBADF, EINVAL, ENOENT, ENOTDIR, EPERM, ERANGE, Result},
    fs::{FileType, OpenFlags, closed, permission},
    mm::user::UserAddr,
    syscall::{Fd, Hex, Level::*, Syscall, UserPath},
    syscalls,
    task::{Current, creds::cap},
};

syscalls! { pub CALLS;
    3 close(fd: Fd) = close, Full, "", "file";
    436 close_range(first: u32, last: u32, flags: u32) = close_range, Full, "", "file";
    32 dup(fd: Fd) = dup, Full, "", "file";
    33 dup2(old: Fd, new: Fd) = dup2, Full, "", "file";
    292 dup3(old: Fd, new: Fd, flags: Hex) = dup3, Full, "", "file";
    8 lseek(fd: Fd, offset: i64, whence: u32) = lseek, Full, "", "file";
    16 ioctl(fd: Fd, command: Hex, argument: Hex) = ioctl, Full, "", "device";
    74 fsync(fd: Fd) = fsync, Full, "", "file";
    75 fdatasync(fd: Fd) = fdatasync, Full, "", "file";
    162 sync() = sync, Full, "", "file";
    306 syncfs(fd: Fd) = syncfs, Full, "", "file";
    277 sync_file_range(fd: Fd, offset: i64, bytes: i64, flags: u32) = sync_file_range, Full, "", "file";
    79 getcwd(buffer: UserAddr, size: usize) = getcwd, Full, "", "file";
    80 chdir(path: UserPath) = chdir, Full, "", "file";
    81 fchdir(fd: Fd) = fchdir, Full, "", "file";
    161 chroot(path: UserPath) = chroot, Full, "", "file";
    95 umask(mask: u32) = umask, Full, "", "file";
    221 fadvise64(fd: Fd, offset: i64, len: i64, advice: i32) = fadvise64, Full, "advice has no effect", "file";
    187 readahead(fd: Fd, offset: i64, count: usize) = readahead, Full, "has no effect", "file";
}

impl Current {
    /// Names this process as the owner of POSIX locks: its descriptor table.
    pub fn lock_owner(&self) -> usize {
        Arc::as_ptr(&self.task.files()) as usize
    }
}

fn close(cur: &mut Current, fd: Fd) -> Result<()> {
    let files = cur.task.files();
    let file = files.remove(fd.0)?;
    closed(Arc::as_ptr(&files) as usize, file)
}

fn close_range(cur: &mut Current, first: u32, last: u32, flags: u32) -> Result<()> {
    const UNSHARE: u32 = 2;
    const CLOEXEC: u32 = 4;
    if flags & !(UNSHARE | CLOEXEC) != 0 || first > last {
        return Err(EINVAL);
    }
    if flags & UNSHARE != 0 {
        let own = cur.task.files().copy();
        drop(cur.task.set_files(own));
    }
    let files = cur.task.files();
    if flags & CLOEXEC != 0 {
        files.set_range_close_on_exec(first, last);
        return Ok(());
    }
    for file in files.remove_range(first, last) {
        // Errors of a write-back have nobody to go to.
        let _ = closed(Arc::as_ptr(&files) as usize, file);
    }
    Ok(())
}

fn dup(cur: &mut Current, fd: Fd) -> Result<i32> {
    let file = cur.any_file(fd)?;
    cur.install(file, false)
}

fn dup2(cur: &mut Current, old: Fd, new: Fd) -> Result<i32> {
    if old == new {
        cur.any_file(old)?;
        return Ok(new.0);
    }
    replace(cur, old, new, false)
}

fn dup3(cur: &mut Current, old: Fd, new: Fd, flags: Hex) -> Result<i32> {
    let cloexec = u64::from(OpenFlags::CLOEXEC.bits());
    if flags.0 & !cloexec != 0 || old == new {
        return Err(EINVAL);
    }
    replace(cur, old, new, flags.0 != 0)
}

fn replace(cur: &mut Current, old: Fd, new: Fd, close_on_exec: bool) -> Result<i32> {
    let files = cur.task.files();
    let file = files.get(old.0)?;
    if let Some(gone) = files.replace(new.0, file, close_on_exec, cur.fd_limit())? {
        // dup2 does not report what closing the old file had to say.
        let _ = closed(Arc::as_ptr(&files) as usize, gone);
    }
    Ok(new.0)
}

fn lseek(cur: &mut Current, fd: Fd, offset: i64, whence: u32) -> Result<u64> {
    cur.any_file(fd)?.seek(offset, whence)
}

fn ioctl(cur: &mut Current, fd: Fd, command: Hex, argument: Hex) -> Result<u64> {
    const FIOCLEX: u32 = 0x5451;
    const FIONCLEX: u32 = 0x5450;
    const FIONBIO: u32 = 0x5421;
    const FIOASYNC: u32 = 0x5452;
    const FIOQSIZE: u32 = 0x5460;
    const FIONREAD: u32 = 0x541b;
    let file = cur.file(fd)?;
    let command = command.0 as u32;
    match command {
        FIOCLEX | FIONCLEX => {
            cur.task.files().set_close_on_exec(fd.0, command == FIOCLEX)?;
            Ok(0)
        }
        FIONBIO | FIOASYNC => {
            let flag = if command == FIONBIO { OpenFlags::NONBLOCK } else { OpenFlags::ASYNC };
            let on: i32 = cur.mm.read_value(crate::mm::user::UserPtr::new(UserAddr(argument.0)))?;
            let mut flags = file.flags();
            flags.set(flag, on != 0);
            file.set_status(flags)?;
            Ok(0)
        }
        FIOQSIZE if matches!(file.inode().file_type(), FileType::Regular | FileType::Directory) => {
            let size = file.stat()?.size as i64;
            cur.mm.write_value(crate::mm::user::UserPtr::new(UserAddr(argument.0)), &size)?;
            Ok(0)
        }
        FIONREAD if file.inode().file_type() == FileType::Regular && file.ops().seekable() => {
            let left = file.stat()?.size.saturating_sub(file.position()).min(i32::MAX as u64) as i32;
            cur.mm.write_value(crate::mm::user::UserPtr::new(UserAddr(argument.0)), &left)?;
            Ok(0)
        }
        _ => file.ops().clone().ioctl(cur, &file, command, argument.0),
    }
}

fn fsync(cur: &mut Current, fd: Fd) -> Result<()> {
    let file = cur.file(fd)?;
    file.ops().fsync(&file, false)
}

fn fdatasync(cur: &mut Current, fd: Fd) -> Result<()> {
    let file = cur.file(fd)?;
    file.ops().fsync(&file, true)
}

fn sync(_cur: &mut Current) -> Result<()> {
    if let Some(root) = crate::fs::namespace_root() {
        for mount in root.mount.tree() {
            // sync(2) cannot fail.
            let _ = mount.filesystem.sync();
        }
    }
    Ok(())
}

fn syncfs(cur: &mut Current, fd: Fd) -> Result<()> {
    cur.file(fd)?.path().mount.filesystem.sync()
}

fn sync_file_range(cur: &mut Current, fd: Fd, offset: i64, bytes: i64, flags: u32) -> Result<()> {
    let file = cur.file(fd)?;
    if flags & !7 != 0 || offset < 0 || bytes < 0 || offset.checked_add(bytes).is_none() {
        return Err(EINVAL);
    }
    match file.inode().file_type() {
        FileType::Regular | FileType::BlockDevice | FileType::Directory => file.ops().fsync(&file, true),
        _ => Err(crate::errno::ESPIPE),
    }
}

fn getcwd(cur: &mut Current, buffer: UserAddr, size: usize) -> Result<usize> {
    let fs = cur.task.fs();
    let (root, cwd) = (fs.root(), fs.cwd());
    if cwd.dentry.is_deleted() {
        return Err(ENOENT);
    }
    let (text, reachable) = cwd.text(&root);
    let mut shown: Vec<u8> = if reachable { Vec::new() } else { b"(unreachable)".to_vec() };
    shown.extend_from_slice(&text);
    shown.push(0);
    if shown.len() > size {
        return Err(ERANGE);
    }
    cur.mm.write(buffer, &shown)?;
    Ok(shown.len())
}

fn chdir(cur: &mut Current, path: UserPath) -> Result<()> {
    let text = cur.path(path)?;
    let caller = cur.caller();
    let found = caller.walk(None).resolve(&text, true)?;
    if !found.inode().is_dir() {
        return Err(ENOTDIR);
    }
    permission::check(&**found.inode(), &caller.creds, permission::EXECUTE)?;
    cur.task.fs().set_cwd(found);
    Ok(())
}

fn fchdir(cur: &mut Current, fd: Fd) -> Result<()> {
    let file = cur.any_file(fd)?;
    if !file.inode().is_dir() {
        return Err(ENOTDIR);
    }
    permission::check(&**file.inode(), &cur.task.creds(), permission::EXECUTE)?;
    cur.task.fs().set_cwd(file.path().clone());
    Ok(())
}

fn chroot(cur: &mut Current, path: UserPath) -> Result<()> {
    let text = cur.path(path)?;
    let caller = cur.caller();
    let found = caller.walk(None).resolve(&text, true)?;
    if !found.inode().is_dir() {
        return Err(ENOTDIR);
    }
    permission::check(&**found.inode(), &caller.creds, permission::EXECUTE)?;
    if !caller.creds.capable(cap::SYS_CHROOT) {
        return Err(EPERM);
    }
    cur.task.fs().set_root(found);
    Ok(())
}

fn umask(cur: &mut Current, mask: u32) -> Result<u32> {
    Ok(cur.task.fs().set_umask(mask))
}

fn fadvise64(cur: &mut Current, fd: Fd, _offset: i64, len: i64, advice: i32) -> Result<()> {
    let file = cur.file(fd)?;
    if file.inode().file_type() == FileType::Fifo {
        return Err(crate::errno::ESPIPE);
    }
    if len < 0 || !(0..=5).contains(&advice) { Err(EINVAL) } else { Ok(()) }
}

fn readahead(cur: &mut Current, fd: Fd, _offset: i64, _count: usize) -> Result<()> {
    let file = cur.file(fd)?;
    if !file.readable() {
        return Err(EBADF);
    }
    if file.inode().file_type() == FileType::Regular { Ok(()) } else { Err(EINVAL) }
}
