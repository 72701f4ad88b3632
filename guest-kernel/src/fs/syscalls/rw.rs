//! Reading and writing.

use alloc::sync::Arc;

use smallvec::SmallVec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    errno::{EBADF, EFBIG, EINVAL, EISDIR, EOPNOTSUPP, EPIPE, ESPIPE, Result},
    fs::{File, FileType},
    mm::{
        io::{IoDst, IoSrc, IoVec},
        user::{UserAddr, UserPtr},
    },
    signal::{
        SigInfo,
        send::{self, Origin},
        set::{SIGPIPE, SIGXFSZ},
    },
    syscall::{Fd, Level::*, Syscall},
    syscalls,
    task::{Current, Resource},
};

syscalls! { pub CALLS;
    0 read(fd: Fd, buffer: UserAddr, count: usize) = read, Full, "", "file";
    1 write(fd: Fd, buffer: UserAddr, count: usize) = write, Full, "", "file";
    17 pread64(fd: Fd, buffer: UserAddr, count: usize, offset: i64) = pread64, Full, "", "file";
    18 pwrite64(fd: Fd, buffer: UserAddr, count: usize, offset: i64) = pwrite64, Full, "", "file";
    19 readv(fd: Fd, vec: UserPtr<UserIoVec>, count: i32) = readv, Full, "", "pipe";
    20 writev(fd: Fd, vec: UserPtr<UserIoVec>, count: i32) = writev, Full, "", "pipe";
    295 preadv(fd: Fd, vec: UserPtr<UserIoVec>, count: i32, offset: i64) = preadv, Full, "", "file";
    296 pwritev(fd: Fd, vec: UserPtr<UserIoVec>, count: i32, offset: i64) = pwritev, Full, "", "file";
    327 preadv2(fd: Fd, vec: UserPtr<UserIoVec>, count: i32, offset: i64, high: u64, flags: u32) = preadv2, Partial, "RWF_NOWAIT is refused", "file";
    328 pwritev2(fd: Fd, vec: UserPtr<UserIoVec>, count: i32, offset: i64, high: u64, flags: u32) = pwritev2, Partial, "RWF_NOWAIT is refused", "file";
}

/// struct iovec.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct UserIoVec {
    base: u64,
    len: u64,
}

const IOV_MAX: i32 = 1024;

impl Current {
    /// Checked pieces of an iovec array.
    pub fn iovec(&self, vec: UserPtr<UserIoVec>, count: i32) -> Result<SmallVec<[IoVec; 1]>> {
        if !(0..=IOV_MAX).contains(&count) {
            return Err(EINVAL);
        }
        let mut pieces = SmallVec::new();
        for piece in self.mm.read_array(vec, count as usize)? {
            let len = usize::try_from(piece.len).ok().filter(|&l| l <= isize::MAX as usize).ok_or(EINVAL)?;
            pieces.push(IoVec { addr: UserAddr(piece.base), len });
        }
        Ok(pieces)
    }

    /// A signal that the kernel sends to the running thread for what it did.
    pub fn raise(&self, signal: u32) {
        // Only a full queue can refuse it, and then one is pending already.
        let _ = send::to_task(&self.task, SigInfo::kernel(signal), Origin::Inside);
    }

    /// What a failed or stopped write means to its task: SIGPIPE.
    pub fn after_write(&self, file: &File, result: Result<usize>) -> Result<usize> {
        if result == Err(EPIPE) && file.ops().signals_broken_pipe() {
            self.raise(SIGPIPE);
        }
        result
    }

    /// Cuts a write of a regular file at RLIMIT_FSIZE: EFBIG and SIGXFSZ when it starts there. `None`: at the end.
    pub fn within_file_size(&self, file: &Arc<File>, offset: Option<u64>, len: usize) -> Result<usize> {
        let limit = self.task.process.limits.lock().soft(Resource::Fsize);
        if limit == u64::MAX || file.inode().file_type() != FileType::Regular || len == 0 {
            return Ok(len);
        }
        let append = file.flags().contains(crate::fs::OpenFlags::APPEND);
        let start = match offset {
            Some(offset) if !append => offset,
            _ if append => file.stat()?.size,
            _ => file.position(),
        };
        if start >= limit {
            self.raise(SIGXFSZ);
            return Err(EFBIG);
        }
        Ok(len.min(usize::try_from(limit - start).unwrap_or(usize::MAX)))
    }
}

fn offset(offset: i64) -> Result<u64> {
    u64::try_from(offset).map_err(|_| EINVAL)
}

fn read(cur: &mut Current, fd: Fd, buffer: UserAddr, count: usize) -> Result<usize> {
    let file = cur.file(fd)?;
    file.read(&mut IoDst::user(&cur.mm, buffer, count)?)
}

fn write(cur: &mut Current, fd: Fd, buffer: UserAddr, count: usize) -> Result<usize> {
    let file = cur.file(fd)?;
    if !file.writable() {
        return Err(EBADF);
    }
    let count = cur.within_file_size(&file, None, count)?;
    let result = file.write(&mut IoSrc::user(&cur.mm, buffer, count)?);
    cur.after_write(&file, result)
}

fn pread64(cur: &mut Current, fd: Fd, buffer: UserAddr, count: usize, at: i64) -> Result<usize> {
    let at = offset(at)?;
    let file = cur.file(fd)?;
    file.read_at(&mut IoDst::user(&cur.mm, buffer, count)?, at)
}

fn pwrite64(cur: &mut Current, fd: Fd, buffer: UserAddr, count: usize, at: i64) -> Result<usize> {
    let at = offset(at)?;
    let file = cur.file(fd)?;
    if !file.writable() {
        return Err(if file.ops().seekable() { EBADF } else { ESPIPE });
    }
    let count = cur.within_file_size(&file, Some(at), count)?;
    let result = file.write_at(&mut IoSrc::user(&cur.mm, buffer, count)?, at);
    cur.after_write(&file, result)
}

fn readv(cur: &mut Current, fd: Fd, vec: UserPtr<UserIoVec>, count: i32) -> Result<usize> {
    let file = cur.file(fd)?;
    if !file.readable() {
        return Err(EBADF);
    }
    let pieces = cur.iovec(vec, count)?;
    file.read(&mut IoDst::user_vec(&cur.mm, pieces)?)
}

fn writev(cur: &mut Current, fd: Fd, vec: UserPtr<UserIoVec>, count: i32) -> Result<usize> {
    let file = cur.file(fd)?;
    if !file.writable() {
        return Err(EBADF);
    }
    let pieces = cur.cut_pieces(&file, None, vec, count)?;
    let result = file.write(&mut IoSrc::user_vec(&cur.mm, pieces)?);
    cur.after_write(&file, result)
}

impl Current {
    /// An iovec for a write, cut at RLIMIT_FSIZE.
    fn cut_pieces(
        &self,
        file: &Arc<File>,
        at: Option<u64>,
        vec: UserPtr<UserIoVec>,
        count: i32,
    ) -> Result<SmallVec<[IoVec; 1]>> {
        let mut pieces = self.iovec(vec, count)?;
        let total = pieces.iter().fold(0usize, |sum, p| sum.saturating_add(p.len));
        let mut left = self.within_file_size(file, at, total)?;
        if left < total {
            for piece in &mut pieces {
                piece.len = piece.len.min(left);
                left -= piece.len;
            }
        }
        Ok(pieces)
    }
}

fn preadv(cur: &mut Current, fd: Fd, vec: UserPtr<UserIoVec>, count: i32, at: i64) -> Result<usize> {
    let at = offset(at)?;
    let file = cur.file(fd)?;
    if !file.ops().seekable() {
        return Err(ESPIPE);
    }
    let pieces = cur.iovec(vec, count)?;
    file.read_at(&mut IoDst::user_vec(&cur.mm, pieces)?, at)
}

fn pwritev(cur: &mut Current, fd: Fd, vec: UserPtr<UserIoVec>, count: i32, at: i64) -> Result<usize> {
    let at = offset(at)?;
    let file = cur.file(fd)?;
    if !file.ops().seekable() {
        return Err(ESPIPE);
    }
    if !file.writable() {
        return Err(EBADF);
    }
    let pieces = cur.cut_pieces(&file, Some(at), vec, count)?;
    let result = file.write_at(&mut IoSrc::user_vec(&cur.mm, pieces)?, at);
    cur.after_write(&file, result)
}

const RWF_HIPRI: u32 = 1;
const RWF_DSYNC: u32 = 2;
const RWF_SYNC: u32 = 4;
const RWF_APPEND: u32 = 16;

fn preadv2(
    cur: &mut Current,
    fd: Fd,
    vec: UserPtr<UserIoVec>,
    count: i32,
    at: i64,
    _high: u64,
    flags: u32,
) -> Result<usize> {
    if flags & !(RWF_HIPRI | RWF_DSYNC | RWF_SYNC) != 0 {
        return Err(EOPNOTSUPP);
    }
    if at == -1 { readv(cur, fd, vec, count) } else { preadv(cur, fd, vec, count, at) }
}

fn pwritev2(
    cur: &mut Current,
    fd: Fd,
    vec: UserPtr<UserIoVec>,
    count: i32,
    at: i64,
    _high: u64,
    flags: u32,
) -> Result<usize> {
    if flags & !(RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_APPEND) != 0 {
        return Err(EOPNOTSUPP);
    }
    let file = cur.file(fd)?;
    let done = if flags & RWF_APPEND != 0 && file.ops().seekable() {
        if !file.writable() {
            return Err(EBADF);
        }
        if file.inode().is_dir() {
            return Err(EISDIR);
        }
        let pieces = cur.iovec(vec, count)?;
        file.ops().append(&file, &mut IoSrc::user_vec(&cur.mm, pieces)?)?.0
    } else if at == -1 {
        writev(cur, fd, vec, count)?
    } else {
        pwritev(cur, fd, vec, count, at)?
    };
    if flags & (RWF_DSYNC | RWF_SYNC) != 0 {
        file.ops().fsync(&file, flags & RWF_SYNC == 0)?;
    }
    Ok(done)
}
