//! Open files: what a file does once open ([`FileOps`]), and the open file description descriptors refer to ([`File`]).

use alloc::{string::String, sync::Arc, vec::Vec};
use core::{
    any::Any,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};

use bitflags::bitflags;

use super::{
    FileType, Inode, MountFlags, Path, Stat,
    access::Mark,
    inotify::{event, notify},
    locks, tmpfs,
};
use crate::{
    errno::{EACCES, EBADF, EFBIG, EINVAL, EISDIR, ENODEV, ENOTDIR, ENOTTY, ENXIO, EPERM, ESPIPE, Result},
    mm::{
        Pager, Prot,
        io::{IoDst, IoSrc},
    },
    sync::{Mutex, PollTable, SpinLock},
    task::Current,
};

bitflags! {
    /// O_* of open(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct OpenFlags: u32 {
        const WRONLY = 0o1;
        const RDWR = 0o2;
        const CREAT = 0o100;
        const EXCL = 0o200;
        const NOCTTY = 0o400;
        const TRUNC = 0o1000;
        const APPEND = 0o2000;
        const NONBLOCK = 0o4000;
        const DSYNC = 0o10000;
        const ASYNC = 0o20000;
        const DIRECT = 0o40000;
        const LARGEFILE = 0o100000;
        const DIRECTORY = 0o200000;
        const NOFOLLOW = 0o400000;
        const NOATIME = 0o1000000;
        const CLOEXEC = 0o2000000;
        const SYNC = 0o4000000 | 0o10000;
        const PATH = 0o10000000;
        /// O_TMPFILE without its O_DIRECTORY.
        const TMPFILE = 0o20000000;
    }
}

impl OpenFlags {
    pub const ACCMODE: u32 = 3;
    /// What F_SETFL may change.
    pub const SETTABLE: OpenFlags = OpenFlags::APPEND
        .union(OpenFlags::NONBLOCK)
        .union(OpenFlags::ASYNC)
        .union(OpenFlags::DIRECT)
        .union(OpenFlags::NOATIME);

    pub fn readable(self) -> bool {
        !self.contains(OpenFlags::PATH) && self.bits() & Self::ACCMODE != 1
    }

    pub fn writable(self) -> bool {
        !self.contains(OpenFlags::PATH) && matches!(self.bits() & Self::ACCMODE, 1 | 2)
    }
}

/// POLL* of poll(2).
pub mod poll {
    pub const IN: u32 = 0x1;
    pub const PRI: u32 = 0x2;
    pub const OUT: u32 = 0x4;
    pub const ERR: u32 = 0x8;
    pub const HUP: u32 = 0x10;
    pub const NVAL: u32 = 0x20;
    pub const RDNORM: u32 = 0x40;
    pub const RDBAND: u32 = 0x80;
    pub const WRNORM: u32 = 0x100;
    pub const WRBAND: u32 = 0x200;
    pub const RDHUP: u32 = 0x2000;
    /// Always reported, asked for or not.
    pub const ALWAYS: u32 = ERR | HUP;
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    pub name: &'a [u8],
    pub ino: u64,
    pub file_type: FileType,
    /// Where reading continues after this entry: above 2.
    pub next: u64,
}

/// The offset that stands for a position kept elsewhere ([`FileOps::keeps_position`]).
pub const OWN_POSITION: u64 = u64::MAX;

/// What an open file can do. Offsets have been checked not to be negative; streams ignore them.
pub trait FileOps: Any + Send + Sync {
    /// Up to `dst.remaining()` bytes from `offset`; 0 at the end.
    fn read(&self, _file: &File, _dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        Err(EINVAL)
    }

    fn write(&self, _file: &File, _src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        Err(EINVAL)
    }

    /// Writes at the end, atomically to other appends; returns the count and the end offset after it.
    fn append(&self, file: &File, src: &mut IoSrc<'_>) -> Result<(usize, u64)> {
        let end = file.stat()?.size;
        let n = self.write(file, src, end)?;
        Ok((n, end + n as u64))
    }

    /// Whether the file has a position (regular files, directories): pread and lseek work.
    fn seekable(&self) -> bool {
        false
    }

    /// The position is kept elsewhere (by the host, for a file it shares with others): `read` and `write` at
    /// [`OWN_POSITION`] use and move it, `append` is not called, and `seek` is asked.
    fn keeps_position(&self) -> bool {
        false
    }

    /// lseek(2) where [`FileOps::keeps_position`].
    fn seek(&self, _offset: i64, _whence: u32) -> Result<u64> {
        Err(ESPIPE)
    }

    /// SEEK_DATA (`data`) and SEEK_HOLE from `offset`, which is below the end; None beyond the last data (ENXIO).
    fn seek_data(&self, file: &File, offset: u64, data: bool) -> Result<Option<u64>> {
        let size = file.stat()?.size;
        Ok(if data { (offset < size).then_some(offset) } else { Some(size) })
    }

    /// Entries from `cookie` on (2 is the beginning), without "." and "..", until `emit` returns false: that entry has not
    /// been taken. No lock that a page fault may need is held over `emit`.
    fn readdir(&self, _file: &File, _cookie: u64, _emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        Err(ENOTDIR)
    }

    /// POLL* bits that hold now; with a table, first registers with the queues its readiness depends on.
    fn poll(&self, _file: &File, _interest: u32, _table: Option<&mut PollTable>) -> u32 {
        poll::IN | poll::OUT | poll::RDNORM | poll::WRNORM
    }

    /// Whether a write that ends with EPIPE sends SIGPIPE.
    fn signals_broken_pipe(&self) -> bool {
        true
    }

    /// Whether epoll accepts it (EPERM otherwise).
    fn pollable(&self) -> bool {
        false
    }

    fn ioctl(&self, _cur: &mut Current, _file: &Arc<File>, _command: u32, _argument: u64) -> Result<u64> {
        Err(ENOTTY)
    }

    /// The object that supplies pages for mmap(2).
    fn mmap(&self, _file: &File) -> Result<Arc<dyn Pager>> {
        Err(ENODEV)
    }

    /// fsync(2); `data_only` for fdatasync(2).
    fn fsync(&self, _file: &File, _data_only: bool) -> Result<()> {
        Err(EINVAL)
    }

    /// fallocate(2) with FALLOC_FL_* `mode`.
    fn fallocate(&self, _file: &File, _mode: u32, _offset: u64, _len: u64) -> Result<()> {
        Err(ENODEV)
    }

    /// Attributes, when they are not the inode's.
    fn stat(&self, file: &File) -> Result<Stat> {
        file.inode().stat()
    }

    /// F_SETFL is about to set these flags.
    fn set_flags(&self, _flags: OpenFlags) -> Result<()> {
        Ok(())
    }

    /// A descriptor that refers to it was closed (by any task); others may remain.
    fn flush(&self, _file: &File) -> Result<()> {
        Ok(())
    }

    /// Extra lines for /proc/pid/fdinfo.
    fn fdinfo(&self, _out: &mut String) {}
}

impl dyn FileOps {
    pub fn downcast<T: FileOps>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// Who gets SIGIO and SIGURG (F_SETOWN), and which signal (F_SETSIG).
#[derive(Clone, Copy, Debug, Default)]
pub struct AsyncOwner {
    /// As F_GETOWN shows it: a process, or a process group when negative.
    pub pid: i32,
    pub signal: i32,
}

/// An open file description.
pub struct File {
    ops: Arc<dyn FileOps>,
    path: Path,
    flags: AtomicU32,
    position: Mutex<u64>,
    pub owner: SpinLock<AsyncOwner>,
    /// Of a regular file that open(2) opened for writing.
    _writer: Option<Mark>,
}

static OPEN: AtomicU64 = AtomicU64::new(0);

/// Open file descriptions there are.
pub fn open_files() -> u64 {
    OPEN.load(Relaxed)
}

/// Largest file offset.
const MAX_OFFSET: u64 = i64::MAX as u64;

impl File {
    pub fn new(ops: Arc<dyn FileOps>, path: Path, flags: OpenFlags) -> Arc<File> {
        Self::with_mark(ops, path, flags, None)
    }

    /// As [`File::new`], holding a writer's mark.
    pub fn with_mark(ops: Arc<dyn FileOps>, path: Path, flags: OpenFlags, writer: Option<Mark>) -> Arc<File> {
        // What only matters to open(2) is not kept.
        let kept = flags
            - (OpenFlags::CREAT
                | OpenFlags::EXCL
                | OpenFlags::NOCTTY
                | OpenFlags::TRUNC
                | OpenFlags::CLOEXEC
                | OpenFlags::TMPFILE);
        OPEN.fetch_add(1, Relaxed);
        Arc::new(File {
            ops,
            path,
            flags: AtomicU32::new(kept.bits()),
            position: Mutex::new(0),
            owner: SpinLock::new(AsyncOwner::default()),
            _writer: writer,
        })
    }

    pub fn ops(&self) -> &Arc<dyn FileOps> {
        &self.ops
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.path.inode()
    }

    pub fn flags(&self) -> OpenFlags {
        OpenFlags::from_bits_retain(self.flags.load(Relaxed))
    }

    pub fn nonblocking(&self) -> bool {
        self.flags().contains(OpenFlags::NONBLOCK)
    }

    pub fn readable(&self) -> bool {
        self.flags().readable()
    }

    pub fn writable(&self) -> bool {
        self.flags().writable()
    }

    /// F_SETFL.
    pub fn set_status(&self, wanted: OpenFlags) -> Result<()> {
        let wanted = wanted & OpenFlags::SETTABLE;
        self.ops.set_flags(wanted)?;
        let old = self.flags.load(SeqCst);
        self.flags.store(old & !OpenFlags::SETTABLE.bits() | wanted.bits(), SeqCst);
        Ok(())
    }

    pub fn stat(&self) -> Result<Stat> {
        self.ops.stat(self)
    }

    fn check_read(&self) -> Result<()> {
        if !self.readable() {
            return Err(EBADF);
        }
        if self.inode().is_dir() { Err(EISDIR) } else { Ok(()) }
    }

    fn check_write(&self) -> Result<()> {
        if self.writable() { Ok(()) } else { Err(EBADF) }
    }

    /// Tells watchers what was read or written, if anything was.
    #[inline]
    fn transferred(&self, result: Result<usize>, event: u32) -> Result<usize> {
        if matches!(result, Ok(n) if n > 0) {
            notify(&self.path.dentry, event);
        }
        result
    }

    /// read(2): at the position, which moves.
    pub fn read(&self, dst: &mut IoDst<'_>) -> Result<usize> {
        self.transferred(self.do_read(dst), event::ACCESS)
    }

    fn do_read(&self, dst: &mut IoDst<'_>) -> Result<usize> {
        self.check_read()?;
        if self.ops.keeps_position() {
            return self.ops.read(self, dst, OWN_POSITION);
        }
        if !self.ops.seekable() {
            return self.ops.read(self, dst, 0);
        }
        let mut position = self.position.lock();
        let n = self.ops.read(self, dst, *position)?;
        *position += n as u64;
        Ok(n)
    }

    /// write(2): at the position or the end (O_APPEND).
    pub fn write(&self, src: &mut IoSrc<'_>) -> Result<usize> {
        self.transferred(self.do_write(src), event::MODIFY)
    }

    fn do_write(&self, src: &mut IoSrc<'_>) -> Result<usize> {
        self.check_write()?;
        if self.ops.keeps_position() {
            return self.ops.write(self, src, OWN_POSITION);
        }
        if !self.ops.seekable() {
            return self.ops.write(self, src, 0);
        }
        let mut position = self.position.lock();
        if self.flags().contains(OpenFlags::APPEND) {
            let (n, end) = self.ops.append(self, src)?;
            *position = end;
            return Ok(n);
        }
        check_room(*position, src)?;
        let n = self.ops.write(self, src, *position)?;
        *position += n as u64;
        Ok(n)
    }

    /// pread(2).
    pub fn read_at(&self, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        if !self.ops.seekable() {
            return Err(ESPIPE);
        }
        self.check_read()?;
        if offset > MAX_OFFSET {
            return Err(EINVAL);
        }
        self.transferred(self.ops.read(self, dst, offset), event::ACCESS)
    }

    /// pwrite(2): O_APPEND wins over the offset, as on Linux.
    pub fn write_at(&self, src: &mut IoSrc<'_>, offset: u64) -> Result<usize> {
        if !self.ops.seekable() {
            return Err(ESPIPE);
        }
        self.check_write()?;
        if offset > MAX_OFFSET {
            return Err(EINVAL);
        }
        if self.flags().contains(OpenFlags::APPEND) && !self.ops.keeps_position() {
            return self.transferred(self.ops.append(self, src).map(|(n, _)| n), event::MODIFY);
        }
        check_room(offset, src)?;
        self.transferred(self.ops.write(self, src, offset), event::MODIFY)
    }

    /// Reads all of `buffer` from `offset`, for the sentry's own use (exec); short only at the end.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let n = self.ops.read(self, &mut IoDst::kernel(&mut buffer[done..]), offset + done as u64)?;
            if n == 0 {
                break;
            }
            done += n;
        }
        Ok(done)
    }

    /// lseek(2).
    pub fn seek(&self, offset: i64, whence: u32) -> Result<u64> {
        if self.flags().contains(OpenFlags::PATH) {
            return Err(EBADF);
        }
        if !self.ops.seekable() {
            return Err(ESPIPE);
        }
        if self.ops.keeps_position() {
            return self.ops.seek(offset, whence);
        }
        let mut position = self.position.lock();
        let base = match whence {
            0 => 0,
            1 => *position as i64,
            2 if self.inode().is_dir() => i64::MAX,
            2 => self.stat()?.size as i64,
            3 | 4 => {
                let size = self.stat()?.size;
                if offset < 0 || offset as u64 >= size {
                    return Err(ENXIO);
                }
                *position = self.ops.seek_data(self, offset as u64, whence == 3)?.ok_or(ENXIO)?;
                return Ok(*position);
            }
            _ => return Err(EINVAL),
        };
        let target = base.checked_add(offset).ok_or(if offset > 0 { crate::errno::EOVERFLOW } else { EINVAL })?;
        if target < 0 {
            return Err(EINVAL);
        }
        *position = target as u64;
        Ok(*position)
    }

    pub fn position(&self) -> u64 {
        *self.position.lock()
    }

    /// Entries from the position on; see [`FileOps::readdir`]. "." and ".." come first.
    pub fn read_entries(&self, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        if !self.readable() {
            return Err(EBADF);
        }
        if !self.inode().is_dir() {
            return Err(ENOTDIR);
        }
        let mut position = self.position.lock();
        for (cookie, name) in [(0, &b"."[..]), (1, &b".."[..])] {
            if *position > cookie {
                continue;
            }
            let dentry = self.path.dentry.clone();
            let target = if cookie == 0 { dentry } else { self.path.parent_dentry() };
            let ino = target.inode().stat().map_or(0, |s| s.ino);
            if !emit(DirEntry { name, ino, file_type: FileType::Directory, next: cookie + 1 }) {
                return Ok(());
            }
            *position = cookie + 1;
        }
        let start = *position;
        let position = &mut *position;
        notify(&self.path.dentry, event::ACCESS);
        self.ops.readdir(self, start, &mut |entry| {
            let taken = emit(entry);
            if taken {
                *position = entry.next;
            }
            taken
        })
    }

    pub fn poll(&self, interest: u32, table: Option<&mut PollTable>) -> u32 {
        self.ops.poll(self, interest, table) & (interest | poll::ALWAYS)
    }

    pub fn mmap(&self) -> Result<Arc<dyn Pager>> {
        let pager = self.ops.mmap(self)?;
        let root = super::namespace_root().unwrap_or_else(|| self.path.clone());
        let (device, inode) = self.inode().stat().map_or((0, 0), |stat| (stat.dev, stat.ino));
        pager.set_identity(device, inode, String::from_utf8_lossy(&self.path.display(&root)).into_owned());
        Ok(pager)
    }

    /// The whole content, at most `max` bytes (EFBIG beyond).
    pub fn read_to_end(&self, max: usize) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            let start = content.len();
            content.resize(start + 4096, 0);
            let n = self.read_exact_at(&mut content[start..], start as u64)?;
            content.truncate(start + n);
            if content.len() > max {
                return Err(EFBIG);
            }
            if n < 4096 {
                return Ok(content);
            }
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Relaxed);
        if !self.flags().contains(OpenFlags::PATH) {
            let how = if self.writable() { event::CLOSE_WRITE } else { event::CLOSE_NOWRITE };
            notify(&self.path.dentry, how);
        }
        locks::release_description(self.path.inode(), core::ptr::from_ref(self) as usize);
    }
}

/// What mmap(2) needs of a descriptor: the pages' source, and what mprotect(2) may give later.
pub fn mmap_pager(file: &File, prot: Prot, shared: bool) -> Result<(Arc<dyn Pager>, Prot)> {
    if !file.readable() || shared && prot.contains(Prot::WRITE) && !file.writable() {
        return Err(EACCES);
    }
    let mut max = Prot::all();
    if file.path().mount.flags().contains(MountFlags::NOEXEC) {
        if prot.contains(Prot::EXEC) {
            return Err(EPERM);
        }
        max.remove(Prot::EXEC);
    }
    if shared {
        if !file.writable() {
            max.remove(Prot::WRITE);
        }
        // Sealed memory: no writable mapping, now or later.
        if let Some(node) = file.ops().downcast::<tmpfs::Node>()
            && node.seals() & (tmpfs::seal::WRITE | tmpfs::seal::FUTURE_WRITE) != 0
        {
            if prot.contains(Prot::WRITE) {
                return Err(EPERM);
            }
            max.remove(Prot::WRITE);
        }
    }
    Ok((file.mmap()?, max))
}

fn check_room(offset: u64, src: &IoSrc<'_>) -> Result<()> {
    if src.remaining() > 0 && offset >= MAX_OFFSET { Err(EFBIG) } else { Ok(()) }
}
