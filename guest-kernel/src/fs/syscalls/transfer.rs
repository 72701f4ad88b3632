//! Moving bytes between descriptors: sendfile(2), copy_file_range(2), splice(2), tee(2), vmsplice(2).

use alloc::sync::Arc;

use super::rw::UserIoVec;
use crate::{
    errno::{EAGAIN, EBADF, EINVAL, EISDIR, EOVERFLOW, ESPIPE, Result},
    fs::{File, FileType, OpenFlags, pipe::PipeEnd},
    mm::{
        io::{IoDst, IoSrc, MAX_TRANSFER},
        user::UserPtr,
    },
    sched,
    syscall::{Fd, Level::*, Syscall},
    syscalls,
    task::Current,
};

syscalls! { pub CALLS;
    40 sendfile(out: Fd, input: Fd, offset: UserPtr<i64>, count: usize) = sendfile, Full, "", "file";
    326 copy_file_range(input: Fd, off_in: UserPtr<i64>, out: Fd, off_out: UserPtr<i64>, len: usize, flags: u32) = copy_file_range, Full, "", "file";
    275 splice(input: Fd, off_in: UserPtr<i64>, out: Fd, off_out: UserPtr<i64>, len: usize, flags: u32) = splice, Partial, "pages are copied", "pipe";
    276 tee(input: Fd, out: Fd, len: usize, flags: u32) = tee, Full, "", "pipe";
    278 vmsplice(fd: Fd, vec: UserPtr<UserIoVec>, count: u64, flags: u32) = vmsplice, Partial, "pages are copied", "pipe";
}

/// Bytes moved at a time.
const CHUNK: usize = 32 << 10;

/// Where one side's bytes are: at the file's own position, or at an offset that the caller keeps.
struct Side {
    file: Arc<File>,
    offset: Option<u64>,
}

impl Side {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let dst = &mut IoDst::kernel(buffer);
        match &mut self.offset {
            None => self.file.read(dst),
            Some(offset) => {
                let n = self.file.read_at(dst, *offset)?;
                *offset += n as u64;
                Ok(n)
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let src = &mut IoSrc::kernel(bytes);
        match &mut self.offset {
            None => self.file.write(src),
            Some(offset) => {
                let n = self.file.write_at(src, *offset)?;
                *offset += n as u64;
                Ok(n)
            }
        }
    }

    /// Bytes that were read but found no taker go back to where they came from, if that has a position.
    fn unread(&mut self, count: usize) {
        match &mut self.offset {
            Some(offset) => *offset -= count as u64,
            None => {
                // A stream keeps nothing; a file's position moves back.
                let _ = self.file.seek(-(count as i64), 1);
            }
        }
    }
}

/// Moves up to `count` bytes. What was moved before an error counts.
fn transfer(from: &mut Side, to: &mut Side, count: usize) -> Result<usize> {
    let count = count.min(MAX_TRANSFER);
    let mut buffer = alloc::vec![0; CHUNK.min(count)];
    let mut done = 0;
    while done < count {
        if done > 0 && sched::interrupted() {
            break;
        }
        let want = buffer.len().min(count - done);
        let got = match from.read(&mut buffer[..want]) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        match to.write(&buffer[..got]) {
            Ok(n) => {
                done += n;
                if n < got {
                    from.unread(got - n);
                    break;
                }
            }
            Err(error) => {
                from.unread(got);
                return if done == 0 { Err(error) } else { Ok(done) };
            }
        }
        // A stream gives what it has; waiting for more is the caller's choice.
        if got < want && !from.file.ops().seekable() {
            break;
        }
    }
    Ok(done)
}

fn read_offset(cur: &Current, ptr: UserPtr<i64>) -> Result<Option<u64>> {
    if ptr.is_null() {
        return Ok(None);
    }
    u64::try_from(cur.mm.read_value(ptr)?).map(Some).map_err(|_| EINVAL)
}

fn write_offset(cur: &Current, ptr: UserPtr<i64>, offset: Option<u64>) -> Result<()> {
    match offset {
        Some(offset) => cur.mm.write_value(ptr, &(offset as i64)),
        None => Ok(()),
    }
}

fn sendfile(cur: &mut Current, out: Fd, input: Fd, offset: UserPtr<i64>, count: usize) -> Result<usize> {
    let source = cur.file(input)?;
    let target = cur.file(out)?;
    if !source.readable() || !target.writable() {
        return Err(EBADF);
    }
    let at = read_offset(cur, offset)?;
    if at.is_some() && !source.ops().seekable() {
        return Err(ESPIPE);
    }
    if !matches!(source.inode().file_type(), FileType::Regular | FileType::BlockDevice | FileType::CharDevice)
        || target.flags().contains(OpenFlags::APPEND)
    {
        return Err(EINVAL);
    }
    let count = cur.within_file_size(&target, None, count)?;
    let (mut from, mut to) = (Side { file: source, offset: at }, Side { file: target, offset: None });
    let result = transfer(&mut from, &mut to, count);
    write_offset(cur, offset, from.offset)?;
    cur.after_write(&to.file, result)
}

fn copy_file_range(
    cur: &mut Current,
    input: Fd,
    off_in: UserPtr<i64>,
    out: Fd,
    off_out: UserPtr<i64>,
    len: usize,
    flags: u32,
) -> Result<usize> {
    let source = cur.file(input)?;
    let target = cur.file(out)?;
    if flags != 0 {
        return Err(EINVAL);
    }
    if source.inode().is_dir() || target.inode().is_dir() {
        return Err(EISDIR);
    }
    if !source.readable() || !target.writable() || target.flags().contains(OpenFlags::APPEND) {
        return Err(EBADF);
    }
    let regular = |f: &Arc<File>| f.inode().file_type() == FileType::Regular;
    if !regular(&source) || !regular(&target) {
        return Err(EINVAL);
    }
    let (at_in, at_out) = (read_offset(cur, off_in)?, read_offset(cur, off_out)?);
    let start_in = at_in.unwrap_or_else(|| source.position());
    let start_out = at_out.unwrap_or_else(|| target.position());
    let ends = |start: u64| start.checked_add(len as u64).filter(|&e| e <= i64::MAX as u64).ok_or(EOVERFLOW);
    let (end_in, end_out) = (ends(start_in)?, ends(start_out)?);
    let (a, b) = (source.stat()?, target.stat()?);
    if (a.dev, a.ino) == (b.dev, b.ino) && start_in < end_out && start_out < end_in && len > 0 {
        return Err(EINVAL);
    }
    let len = cur.within_file_size(&target, at_out, len)?;
    let (mut from, mut to) = (Side { file: source, offset: at_in }, Side { file: target, offset: at_out });
    let result = transfer(&mut from, &mut to, len);
    write_offset(cur, off_in, from.offset)?;
    write_offset(cur, off_out, to.offset)?;
    result
}

fn splice(
    cur: &mut Current,
    input: Fd,
    off_in: UserPtr<i64>,
    out: Fd,
    off_out: UserPtr<i64>,
    len: usize,
    flags: u32,
) -> Result<usize> {
    if flags & !0xf != 0 {
        return Err(EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let source = cur.file(input)?;
    let target = cur.file(out)?;
    if !source.readable() || !target.writable() {
        return Err(EBADF);
    }
    let from_pipe = source.ops().downcast::<PipeEnd>().is_some();
    let to_pipe = target.ops().downcast::<PipeEnd>();
    if !from_pipe && to_pipe.is_none() || target.flags().contains(OpenFlags::APPEND) {
        return Err(EINVAL);
    }
    if from_pipe && !off_in.is_null() || to_pipe.is_some() && !off_out.is_null() {
        return Err(ESPIPE);
    }
    // What is read must find room: reading more than fits would lose bytes of a stream.
    let room = to_pipe.map(|end| end.pipe().capacity() - end.pipe().len().min(end.pipe().capacity()));
    let len = match room {
        Some(0) if flags & SPLICE_NONBLOCK != 0 || target.nonblocking() => return Err(EAGAIN),
        Some(0) => 1,
        Some(room) => len.min(room),
        None => len,
    };
    if from_pipe && flags & SPLICE_NONBLOCK != 0 && source.poll(crate::fs::poll::IN, None) == 0 {
        return Err(EAGAIN);
    }
    let (at_in, at_out) = (read_offset(cur, off_in)?, read_offset(cur, off_out)?);
    let (mut from, mut to) = (Side { file: source, offset: at_in }, Side { file: target, offset: at_out });
    let result = transfer(&mut from, &mut to, len.min(CHUNK));
    write_offset(cur, off_in, from.offset)?;
    write_offset(cur, off_out, to.offset)?;
    cur.after_write(&to.file, result)
}

const SPLICE_NONBLOCK: u32 = 2;

/// Copies what one pipe holds to another; it stays in the first.
fn tee(cur: &mut Current, input: Fd, out: Fd, len: usize, flags: u32) -> Result<usize> {
    if flags & !0xf != 0 {
        return Err(EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let (source, target) = (cur.file(input)?, cur.file(out)?);
    if !source.readable() || !target.writable() {
        return Err(EBADF);
    }
    let (Some(from), Some(to)) = (source.ops().downcast::<PipeEnd>(), target.ops().downcast::<PipeEnd>()) else {
        return Err(EINVAL);
    };
    if Arc::ptr_eq(from.pipe(), to.pipe()) {
        return Err(EINVAL);
    }
    let nonblock = flags & SPLICE_NONBLOCK != 0;
    let len = len.min(CHUNK);
    let bytes = match from.pipe().try_peek(len) {
        Some(bytes) => bytes?,
        None if nonblock || source.nonblocking() => return Err(EAGAIN),
        None => from.pipe().wait_peek(len)?,
    };
    if bytes.is_empty() {
        return Ok(0);
    }
    let result = to.write_now(&bytes, nonblock || target.nonblocking());
    cur.after_write(&target, result)
}

fn vmsplice(cur: &mut Current, fd: Fd, vec: UserPtr<UserIoVec>, count: u64, flags: u32) -> Result<usize> {
    if flags & !0xf != 0 || count > 1024 {
        return Err(EINVAL);
    }
    let file = cur.file(fd)?;
    if file.ops().downcast::<PipeEnd>().is_none() {
        return Err(EBADF);
    }
    let pieces = cur.iovec(vec, count as i32)?;
    if file.writable() {
        let result = file.write(&mut IoSrc::user_vec(&cur.mm, pieces)?);
        return cur.after_write(&file, result);
    }
    file.read(&mut IoDst::user_vec(&cur.mm, pieces)?)
}
