//! One host descriptor and how to use it without ever waiting.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FileType, Mode, OFlags, SeekFrom},
    io::Errno,
};
use sentry_abi::console;
use serde::{Deserialize, Serialize};

use crate::virtio::Chain;

/// A pipe that is writable takes this many bytes without waiting (PIPE_BUF).
const PIPE_BUF: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Files and devices that do not wait.
    Plain,
    /// A pipe or terminal through a non-blocking description of our own.
    Private,
    /// A pipe, terminal or other descriptor whose description others share: poll first.
    Shared,
    Socket,
}

pub struct Stream {
    fd: OwnedFd,
    kind: Kind,
    flags: OFlags,
    /// poll(2) bits the sentry waits for.
    pub interest: PollFlags,
    /// poll(2) bits it has not been told about yet, for want of a buffer.
    pub pending: PollFlags,
}

/// What is known of a descriptor that has been made ready for a [`Stream`] by another process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Prepared {
    /// The description is non-blocking and nobody else's.
    pub private: bool,
    /// What F_GETFL said of the one it was made from.
    pub flags: u32,
}

/// Prepares a descriptor for a sandbox that runs already and cannot open anything. Needs what [`Stream::new`] needs.
pub fn prepare(fd: OwnedFd) -> Result<(OwnedFd, Prepared), Errno> {
    let Stream { fd, kind, flags, .. } = Stream::new(fd)?;
    Ok((fd, Prepared { private: kind == Kind::Private, flags: flags.bits() }))
}

impl Stream {
    /// Needs nothing but the descriptor.
    pub fn prepared(fd: OwnedFd, how: Prepared) -> Result<Stream, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory | FileType::BlockDevice => Kind::Plain,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice if libc::major(stat.st_rdev) == 1 => Kind::Plain,
            _ if how.private && rustix::fs::fcntl_getfl(&fd)?.contains(OFlags::NONBLOCK) => Kind::Private,
            _ => Kind::Shared,
        };
        let flags = OFlags::from_bits_retain(how.flags);
        Ok(Stream { fd, kind, flags, interest: PollFlags::empty(), pending: PollFlags::empty() })
    }

    /// Needs /proc/self/fd, and the right to open what `fd` is.
    pub fn new(fd: OwnedFd) -> Result<Stream, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        let (kind, fd) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory | FileType::BlockDevice => (Kind::Plain, fd),
            FileType::Socket => (Kind::Socket, fd),
            FileType::CharacterDevice if rustix::termios::isatty(&fd) => reopened(fd, flags),
            FileType::Fifo => reopened(fd, flags),
            // /dev/null and its like.
            FileType::CharacterDevice if libc::major(stat.st_rdev) == 1 => (Kind::Plain, fd),
            _ => (Kind::Shared, fd),
        };
        Ok(Stream { fd, kind, flags, interest: PollFlags::empty(), pending: PollFlags::empty() })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn flags(&self) -> OFlags {
        self.flags
    }

    /// Which of `mask` hold now; errors and hang-ups always count.
    pub fn poll(&self, mask: PollFlags) -> Result<PollFlags, Errno> {
        if self.kind == Kind::Plain {
            return Ok(mask & (PollFlags::IN | PollFlags::OUT | PollFlags::RDNORM | PollFlags::WRNORM));
        }
        let mut fds = [PollFd::new(&self.fd, mask)];
        poll(&mut fds, Some(&Default::default()))?;
        Ok(fds[0].revents())
    }

    pub fn read(&self, chain: &mut Chain, len: usize, offset: Option<i64>) -> Result<usize, Errno> {
        let done = match self.kind {
            Kind::Socket if offset.is_none() => chain.receive_from(self.fd(), len),
            Kind::Shared if self.poll(PollFlags::IN)?.is_empty() => return Err(Errno::AGAIN),
            _ => chain.read_from(self.fd(), len, offset, 0),
        };
        done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    pub fn write(&self, chain: &mut Chain, len: usize, offset: Option<i64>) -> Result<usize, Errno> {
        let done = match self.kind {
            Kind::Socket if offset.is_none() => chain.send_to(self.fd(), len),
            Kind::Shared if self.poll(PollFlags::OUT)?.is_empty() => return Err(Errno::AGAIN),
            Kind::Shared => chain.write_to(self.fd(), len.min(PIPE_BUF), offset, 0),
            _ => chain.write_to(self.fd(), len, offset, 0),
        };
        done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    pub fn seek(&self, offset: i64, whence: u64) -> Result<u64, Errno> {
        let from = match i32::try_from(whence).map_err(|_| Errno::INVAL)? {
            libc::SEEK_SET => SeekFrom::Start(u64::try_from(offset).map_err(|_| Errno::INVAL)?),
            libc::SEEK_CUR => SeekFrom::Current(offset),
            libc::SEEK_END => SeekFrom::End(offset),
            libc::SEEK_DATA => SeekFrom::Data(u64::try_from(offset).map_err(|_| Errno::INVAL)?),
            libc::SEEK_HOLE => SeekFrom::Hole(u64::try_from(offset).map_err(|_| Errno::INVAL)?),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&self.fd, from)
    }

    pub fn stat(&self) -> Result<console::Stat, Errno> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok(console::Stat {
            ino: stat.st_ino,
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            rdev: stat.st_rdev,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            nlink: stat.st_nlink as u32,
            blksize: stat.st_blksize as u32,
            mtimensec: stat.st_mtime_nsec as u32,
            mtime: stat.st_mtime,
        })
    }
}

/// A non-blocking description of our own for a pipe or terminal, if the host lets us open it again.
fn reopened(fd: OwnedFd, flags: OFlags) -> (Kind, OwnedFd) {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = (flags & OFlags::RWMODE) | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(own) => (Kind::Private, own),
        Err(error) => {
            log::debug!("console: descriptor {} is used as it is: {error}", fd.as_raw_fd());
            (Kind::Shared, fd)
        }
    }
}
