//! Open files and I/O on them.

use std::{
    collections::HashMap,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::{
    fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom},
    io::Errno,
};
use sentry_abi::fuse;

use super::{
    link::send_file,
    nodes::{BENEATH, check_name, stat_of},
    server::{Call, Outcome, Server, take_name},
};

/// Open files of the sandbox at a time; descriptors of nodes and our own have the rest of the host's limit.
const RESERVED_FDS: u64 = 2560;

struct Open {
    file: OwnedFd,
    /// O_APPEND is set.
    appending: bool,
}

pub(super) struct Files {
    open: HashMap<u64, Open>,
    next: u64,
    max: usize,
}

impl Files {
    pub fn new() -> Files {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
        Files { open: HashMap::new(), next: 1, max: limit.saturating_sub(RESERVED_FDS).max(limit / 2) as usize }
    }

    fn check_room(&self) -> Result<(), Errno> {
        if self.open.len() >= self.max { Err(Errno::NFILE) } else { Ok(()) }
    }

    fn insert(&mut self, file: OwnedFd) -> u64 {
        let fh = self.next;
        self.next += 1;
        self.open.insert(fh, Open { file, appending: false });
        fh
    }

    pub fn close(&mut self, fh: u64) {
        self.open.remove(&fh);
    }

    /// For a write at the end or at an offset. A flag of the description: overlayfs and others ignore RWF_APPEND.
    fn for_write(&mut self, fh: u64, append: bool) -> Result<&OwnedFd, Errno> {
        let open = self.open.get_mut(&fh).ok_or(Errno::BADF)?;
        if open.appending != append {
            let flags = rustix::fs::fcntl_getfl(&open.file)?;
            let flags = if append { flags | OFlags::APPEND } else { flags - OFlags::APPEND };
            rustix::fs::fcntl_setfl(&open.file, flags)?;
            open.appending = append;
        }
        Ok(&open.file)
    }

    pub fn get(&self, fh: u64) -> Result<&OwnedFd, Errno> {
        self.open.get(&fh).map(|open| &open.file).ok_or(Errno::BADF)
    }
}

fn offset(raw: u64) -> Result<i64, Errno> {
    i64::try_from(raw).map_err(|_| Errno::INVAL)
}

fn from_io(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Of open flags only what concerns the host: access mode and truncation. O_APPEND is a flag of each write.
fn open_flags(raw: u32) -> OFlags {
    OFlags::from_bits_retain(raw) & (OFlags::RWMODE | OFlags::TRUNC)
}

impl Server {
    pub fn open_node(&mut self, id: u64, raw_flags: u32) -> Result<u64, Errno> {
        let flags = open_flags(raw_flags);
        if self.nodes.kind(id)? != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        if flags != OFlags::RDONLY {
            self.nodes.check_writable(id)?;
        }
        self.files.check_room()?;
        // A write-only file could not be shown in the window; where the host allows it, it is open for both.
        let file = if flags & OFlags::RWMODE == OFlags::WRONLY {
            match self.nodes.open(id, (flags & !OFlags::RWMODE) | OFlags::RDWR) {
                Err(Errno::ACCESS | Errno::PERM) => self.nodes.open(id, flags)?,
                other => other?,
            }
        } else {
            self.nodes.open(id, flags)?
        };
        if flags != OFlags::RDONLY {
            self.nodes.changed(id, &stat_of(file.as_fd())?);
        }
        Ok(self.files.insert(file))
    }

    pub fn open(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::OpenIn = call.arg()?;
        let fh = self.open_node(call.header.nodeid, arg.flags)?;
        call.reply(&fuse::OpenOut { fh, ..Default::default() })
    }

    pub fn create(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::CreateIn = call.arg()?;
        let rest = call.rest()?;
        let name = check_name(take_name(&mut &rest[..])?)?;
        let parent = call.header.nodeid;
        self.nodes.check_writable(parent)?;
        self.files.check_room()?;
        let dir = self.nodes.fd(parent)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDWR;
        let mode = Mode::from_bits_truncate(arg.mode & 0o7777);
        let file = rustix::fs::openat2(&dir, name, flags, mode, BENEATH)?;
        if let Err(error) = self.give_to(file.as_fd(), dir.as_fd(), &call.header, arg.mode) {
            // It must not stay with the wrong owner.
            let _ = rustix::fs::unlinkat(&dir, name, rustix::fs::AtFlags::empty());
            return Err(error);
        }
        let stat = stat_of(file.as_fd())?;
        let id = self.nodes.enter(parent, name, &stat)?;
        let entry = self.nodes.entry(id, &stat);
        let open = fuse::OpenOut { fh: self.files.insert(file), ..Default::default() };
        call.reply(&fuse::CreateOut { entry, open })
    }

    pub fn release(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::ReleaseIn = call.arg()?;
        self.files.open.remove(&arg.fh).map(drop).ok_or(Errno::BADF)
    }

    pub fn read(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::ReadIn = call.arg()?;
        let count = arg.size.min(fuse::MAX_DATA) as usize;
        let file = self.files.get(arg.fh)?;
        let mut offset = offset(arg.offset)?;
        let mut left = count.min(call.chain.writable());
        while left > 0 {
            match call.chain.read_from(file.as_fd(), left, Some(offset), 0) {
                Ok(0) => break,
                Ok(done) => {
                    offset += done as i64;
                    left -= done;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) if left < count => break,
                Err(error) => return Err(from_io(error)),
            }
        }
        Ok(())
    }

    pub fn write(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::WriteIn = call.arg()?;
        let count = arg.size as usize;
        if arg.size > fuse::MAX_DATA || call.chain.readable() < count {
            return Err(Errno::INVAL);
        }
        let append = arg.write_flags & fuse::write_flags::APPEND != 0;
        let file = self.files.for_write(arg.fh, append)?;
        let start = offset(arg.offset)?;
        let mut done = 0;
        while done < count {
            match call.chain.write_to(file.as_fd(), count - done, Some(start.saturating_add(done as i64)), 0) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(from_io(error)),
            }
        }
        let at = if append { (stat_of(file.as_fd())?.st_size as u64).saturating_sub(done as u64) } else { arg.offset };
        call.reply(&fuse::WriteOut { size: done as u32, padding: 0, offset: at })
    }

    pub fn fsync(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::FSyncIn = call.arg()?;
        let opened;
        let file = if arg.fh == 0 {
            opened = self.nodes.open(call.header.nodeid, OFlags::RDONLY)?;
            &opened
        } else {
            self.files.get(arg.fh)?
        };
        if arg.fsync_flags & 1 != 0 { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    pub fn fallocate(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::FAllocateIn = call.arg()?;
        let file = self.files.get(arg.fh)?;
        let mode = FallocateFlags::from_bits(arg.mode).ok_or(Errno::OPNOTSUPP)?;
        rustix::fs::fallocate(file, mode, offset(arg.offset)? as u64, offset(arg.length)? as u64)
    }

    pub fn lseek(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::LSeekIn = call.arg()?;
        let file = self.files.get(arg.fh)?;
        let from = match arg.whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(arg.offset),
            libc::SEEK_HOLE => SeekFrom::Hole(arg.offset),
            _ => return Err(Errno::INVAL),
        };
        let offset = rustix::fs::seek(file, from)?;
        call.reply(&fuse::LSeekOut { offset })
    }

    pub fn share(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::ShareIn = call.arg()?;
        let handle = self.share_file(arg.fh)?;
        call.reply(&fuse::ShareOut { handle })
    }

    pub fn share_file(&mut self, fh: u64) -> Result<u64, Errno> {
        let file = self.files.get(fh)?;
        debug_assert!(file.as_raw_fd() >= 0);
        send_file(self.socket.as_fd(), self.next_handle, file.as_fd())?;
        self.next_handle += 1;
        Ok(self.next_handle - 1)
    }
}
