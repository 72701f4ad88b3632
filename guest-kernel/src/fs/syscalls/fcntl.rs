//! fcntl(2) and flock(2).

use alloc::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    errno::{EBADF, EINVAL, EOVERFLOW, ESRCH, Result},
    fs::{
        File, OpenFlags,
        locks::{self, Lock, Owner},
        pipe::PipeEnd,
        tmpfs,
    },
    mm::user::{UserAddr, UserPtr},
    syscall::{Fd, Hex, Level::*, Syscall},
    syscalls,
    task::{Current, creds::cap, table},
};

syscalls! { pub CALLS;
    72 fcntl(fd: Fd, command: i32, argument: Hex) = fcntl, Partial, "leases and directory notification are EINVAL", "file";
    73 flock(fd: Fd, operation: u32) = flock, Full, "", "file";
}

/// struct flock of x86-64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
struct UserFlock {
    kind: i16,
    whence: i16,
    pad: i32,
    start: i64,
    len: i64,
    pid: i32,
    pad2: i32,
}

const F_RDLCK: i16 = 0;
const F_WRLCK: i16 = 1;
const F_UNLCK: i16 = 2;

/// struct f_owner_ex.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
struct OwnerEx {
    kind: i32,
    pid: i32,
}

const F_DUPFD: i32 = 0;
const F_GETFD: i32 = 1;
const F_SETFD: i32 = 2;
const F_GETFL: i32 = 3;
const F_SETFL: i32 = 4;
const F_GETLK: i32 = 5;
const F_SETLK: i32 = 6;
const F_SETLKW: i32 = 7;
const F_SETOWN: i32 = 8;
const F_GETOWN: i32 = 9;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_OFD_GETLK: i32 = 36;
const F_OFD_SETLK: i32 = 37;
const F_OFD_SETLKW: i32 = 38;
const F_DUPFD_CLOEXEC: i32 = 1030;
const F_SETPIPE_SZ: i32 = 1031;
const F_GETPIPE_SZ: i32 = 1032;
const F_ADD_SEALS: i32 = 1033;
const F_GET_SEALS: i32 = 1034;

fn fcntl(cur: &mut Current, fd: Fd, command: i32, argument: Hex) -> Result<u64> {
    let file = cur.any_file(fd)?;
    let arg = argument.0;
    match command {
        F_DUPFD | F_DUPFD_CLOEXEC => {
            let from = arg as i32;
            let limit = cur.fd_limit();
            if from < 0 || from as u64 >= limit {
                return Err(EINVAL);
            }
            let new = cur.task.files().insert(file, command == F_DUPFD_CLOEXEC, from, limit)?;
            return Ok(new as u64);
        }
        F_GETFD => return Ok(cur.task.files().close_on_exec(fd.0)?.into()),
        F_SETFD => {
            cur.task.files().set_close_on_exec(fd.0, arg & 1 != 0)?;
            return Ok(0);
        }
        F_GETFL => return Ok(file.flags().bits().into()),
        _ if file.flags().contains(OpenFlags::PATH) => return Err(EBADF),
        _ => {}
    }
    match command {
        F_SETFL => {
            file.set_status(OpenFlags::from_bits_truncate(arg as u32))?;
            Ok(0)
        }
        F_GETLK | F_OFD_GETLK => get_lock(cur, &file, UserPtr::new(UserAddr(arg)), command == F_OFD_GETLK),
        F_SETLK | F_SETLKW | F_OFD_SETLK | F_OFD_SETLKW => {
            let wait = matches!(command, F_SETLKW | F_OFD_SETLKW);
            let description = matches!(command, F_OFD_SETLK | F_OFD_SETLKW);
            set_lock(cur, fd, &file, UserPtr::new(UserAddr(arg)), wait, description)
        }
        F_SETOWN => {
            let pid = arg as i32;
            if pid == i32::MIN {
                return Err(EINVAL);
            }
            if pid != 0 && !exists(pid) {
                return Err(ESRCH);
            }
            file.owner.lock().pid = pid;
            Ok(0)
        }
        F_GETOWN => Ok(i64::from(file.owner.lock().pid) as u64),
        F_SETOWN_EX => {
            let owner: OwnerEx = cur.mm.read_value(UserPtr::new(UserAddr(arg)))?;
            let pid = match owner.kind {
                0 | 1 => owner.pid,
                2 => owner.pid.checked_neg().ok_or(EINVAL)?,
                _ => return Err(EINVAL),
            };
            if pid != 0 && !exists(pid) {
                return Err(ESRCH);
            }
            file.owner.lock().pid = pid;
            Ok(0)
        }
        F_GETOWN_EX => {
            let pid = file.owner.lock().pid;
            let owner = if pid < 0 { OwnerEx { kind: 2, pid: -pid } } else { OwnerEx { kind: 1, pid } };
            cur.mm.write_value(UserPtr::new(UserAddr(arg)), &owner)?;
            Ok(0)
        }
        F_SETSIG => {
            if arg > 64 {
                return Err(EINVAL);
            }
            file.owner.lock().signal = arg as i32;
            Ok(0)
        }
        F_GETSIG => Ok(file.owner.lock().signal as u64),
        F_GETPIPE_SZ | F_SETPIPE_SZ => {
            let end = file.ops().downcast::<PipeEnd>().ok_or(EBADF)?;
            if command == F_GETPIPE_SZ {
                return Ok(end.pipe().capacity() as u64);
            }
            let wanted = usize::try_from(arg as i32).map_err(|_| EINVAL)?;
            end.pipe().set_capacity(wanted, cur.task.capable(cap::SYS_RESOURCE)).map(|n| n as u64)
        }
        F_ADD_SEALS | F_GET_SEALS => {
            let node = file.ops().downcast::<tmpfs::Node>().ok_or(EINVAL)?;
            if command == F_GET_SEALS {
                return Ok(node.seals());
            }
            if !file.writable() {
                return Err(crate::errno::EPERM);
            }
            node.add_seals(arg)?;
            Ok(0)
        }
        _ => Err(EINVAL),
    }
}

/// Whether a process (or, negative, a process group) is there.
fn exists(pid: i32) -> bool {
    if pid < 0 {
        !table::lock().group(-pid).is_empty()
    } else {
        table::process(pid).is_some() || table::task(pid).is_some()
    }
}

/// The byte range of a struct flock.
fn range(file: &File, lock: &UserFlock) -> Result<(u64, u64)> {
    let base = match lock.whence {
        0 => 0,
        1 => file.position() as i64,
        2 => file.stat()?.size as i64,
        _ => return Err(EINVAL),
    };
    let start = base.checked_add(lock.start).ok_or(EOVERFLOW)?;
    let (start, end) = match lock.len {
        0 => (start, i64::MAX),
        len if len > 0 => (start, start.checked_add(len).ok_or(EOVERFLOW)?),
        len => (start.checked_add(len).ok_or(EINVAL)?, start),
    };
    if start < 0 {
        return Err(EINVAL);
    }
    // A length of 0 reaches to the end of every file.
    let end = if lock.len == 0 { u64::MAX } else { end as u64 };
    Ok((start as u64, end))
}

fn owner(cur: &Current, file: &Arc<File>, description: bool) -> Owner {
    if description {
        Owner::Description(Arc::as_ptr(file) as usize)
    } else {
        Owner::Posix(cur.lock_owner(), cur.task.process.pid)
    }
}

fn get_lock(cur: &Current, file: &Arc<File>, ptr: UserPtr<UserFlock>, description: bool) -> Result<u64> {
    let mut lock = cur.mm.read_value(ptr)?;
    if !matches!(lock.kind, F_RDLCK | F_WRLCK) || description && lock.pid != 0 {
        return Err(EINVAL);
    }
    let (start, end) = range(file, &lock)?;
    let wanted = Lock { owner: owner(cur, file, description), start, end, exclusive: lock.kind == F_WRLCK };
    match locks::test(file.inode(), wanted)? {
        None => lock.kind = F_UNLCK,
        Some(found) => {
            lock.kind = if found.exclusive { F_WRLCK } else { F_RDLCK };
            lock.whence = 0;
            lock.start = found.start as i64;
            lock.len = if found.end == u64::MAX { 0 } else { (found.end - found.start) as i64 };
            lock.pid = match found.owner {
                Owner::Posix(_, pid) => pid,
                Owner::Description(_) => -1,
            };
        }
    }
    cur.mm.write_value(ptr, &lock)?;
    Ok(0)
}

fn set_lock(
    cur: &Current,
    fd: Fd,
    file: &Arc<File>,
    ptr: UserPtr<UserFlock>,
    wait: bool,
    description: bool,
) -> Result<u64> {
    let lock = cur.mm.read_value(ptr)?;
    if description && lock.pid != 0 {
        return Err(EINVAL);
    }
    let (start, end) = range(file, &lock)?;
    let owner = owner(cur, file, description);
    match lock.kind {
        F_UNLCK => locks::clear(file.inode(), owner, start, end)?,
        F_RDLCK if !file.readable() => return Err(EBADF),
        F_WRLCK if !file.writable() => return Err(EBADF),
        F_RDLCK | F_WRLCK => {
            let exclusive = lock.kind == F_WRLCK;
            locks::set(file.inode(), Lock { owner, start, end, exclusive }, wait)?;
            // Another thread may have closed the descriptor meanwhile: nobody would ever release the lock.
            if !description && !cur.any_file(fd).is_ok_and(|now| Arc::ptr_eq(&now, file)) {
                locks::clear(file.inode(), owner, start, end)?;
                return Err(EBADF);
            }
        }
        _ => return Err(EINVAL),
    }
    Ok(0)
}

fn flock(cur: &mut Current, fd: Fd, operation: u32) -> Result<()> {
    const SH: u32 = 1;
    const EX: u32 = 2;
    const NB: u32 = 4;
    const UN: u32 = 8;
    let file = cur.file(fd)?;
    let owner = Arc::as_ptr(&file) as usize;
    let wait = operation & NB == 0;
    match operation & !NB {
        SH => locks::lock_whole(file.inode(), owner, false, wait),
        EX => locks::lock_whole(file.inode(), owner, true, wait),
        UN => locks::unlock_whole(file.inode(), owner),
        _ => Err(EINVAL),
    }
}
