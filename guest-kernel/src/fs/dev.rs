//! Character devices by number, and the container's /dev.

use alloc::{string::ToString, sync::Arc};

use super::{File, FileOps, NewNode, OpenFlags, make_device, poll, stdio, tmpfs::Tmpfs, tty};
use crate::{
    errno::{ENOSPC, ENXIO, Result},
    mm::{
        Pager, SharedPages,
        io::{IoDst, IoSrc},
    },
    random,
    sync::PollTable,
    task::Current,
};

/// Opens the device with this number.
pub fn open(rdev: u64, flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
    Ok(match super::split_device(rdev) {
        (1, 3) => Arc::new(Null),
        (1, 5) => Arc::new(Zero { full: false }),
        (1, 7) => Arc::new(Zero { full: true }),
        (1, 8) | (1, 9) => Arc::new(Random),
        (5, 0) => return tty::open_controlling(flags),
        (5, 1) => return stdio::open_console(),
        _ => return Err(ENXIO),
    })
}

struct Null;

impl FileOps for Null {
    fn read(&self, _file: &File, _dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        Ok(0)
    }

    fn write(&self, _file: &File, src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        Ok(src.remaining())
    }

    fn seekable(&self) -> bool {
        true
    }

    fn append(&self, _file: &File, src: &mut IoSrc<'_>) -> Result<(usize, u64)> {
        Ok((src.remaining(), 0))
    }
}

struct Zero {
    full: bool,
}

impl FileOps for Zero {
    fn read(&self, _file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        dst.put_zeros(dst.remaining())
    }

    fn write(&self, _file: &File, src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        if self.full && src.remaining() > 0 { Err(ENOSPC) } else { Ok(src.remaining()) }
    }

    fn seekable(&self) -> bool {
        true
    }

    fn append(&self, file: &File, src: &mut IoSrc<'_>) -> Result<(usize, u64)> {
        Ok((self.write(file, src, 0)?, 0))
    }

    fn mmap(&self, file: &File) -> Result<Arc<dyn Pager>> {
        if self.full {
            return Err(crate::errno::ENODEV);
        }
        // Each mapping is memory of its own.
        let stat = file.stat()?;
        Ok(Arc::new(SharedPages::new(stat.dev, stat.ino, "/dev/zero".to_string(), i64::MAX as u64)))
    }
}

struct Random;

impl FileOps for Random {
    fn read(&self, _file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        let mut done = 0;
        while dst.remaining() > 0 {
            let mut block = [0; 512];
            let len = block.len().min(dst.remaining());
            random::fill(&mut block[..len]);
            match dst.put(&block[..len]) {
                Ok(n) => {
                    done += n;
                    if n < len {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// What is written would only add entropy.
    fn write(&self, _file: &File, src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        Ok(src.remaining())
    }

    fn poll(&self, _file: &File, _interest: u32, _table: Option<&mut PollTable>) -> u32 {
        poll::IN | poll::OUT | poll::RDNORM | poll::WRNORM
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, cur: &mut Current, _file: &Arc<File>, command: u32, argument: u64) -> Result<u64> {
        const RNDGETENTCNT: u32 = 0x8004_5200;
        if command != RNDGETENTCNT {
            return Err(crate::errno::ENOTTY);
        }
        cur.mm.write_value(crate::mm::user::UserPtr::new(crate::mm::user::UserAddr(argument)), &256i32)?;
        Ok(0)
    }
}

/// Names, numbers and modes of the nodes in /dev.
const NODES: [(&str, u32, u32, u32); 7] = [
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
    ("console", 5, 1, 0o620),
];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// A file system with what a container finds in /dev.
pub fn filesystem() -> Result<(Arc<Tmpfs>, Arc<dyn super::Inode>)> {
    let fs = Tmpfs::new(64 << 20, "tmpfs");
    let owner = super::NewAttr { mode: 0o755, uid: 0, gid: 0 };
    let root: Arc<dyn super::Inode> = fs.make_root(owner);
    for (name, major, minor, mode) in NODES {
        let node = NewNode::Device { kind: super::FileType::CharDevice, rdev: make_device(major, minor) };
        root.create(name.as_bytes(), node, super::NewAttr { mode, ..owner })?;
    }
    for (name, target) in LINKS {
        root.create(name.as_bytes(), NewNode::Symlink(target.as_bytes()), super::NewAttr { mode: 0o777, ..owner })?;
    }
    for (name, mode) in [("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o1777)] {
        root.create(name.as_bytes(), NewNode::Directory, super::NewAttr { mode, ..owner })?;
    }
    Ok((fs, root))
}
