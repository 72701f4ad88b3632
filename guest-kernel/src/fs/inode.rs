//! What a file system implements: inodes, their attributes, and the operations on names in a directory.
//!
//! The VFS has checked permissions, read-only mounts, name lengths and that both ends of a rename are on one file system
//! before it calls; defaults answer with the errno Linux gives when an inode has no such operation.

use alloc::{sync::Arc, vec::Vec};
use core::any::Any;

use super::{FileOps, OpenFlags, Path};
use crate::{
    errno::{EINVAL, ENODATA, ENOTDIR, ENOTSUP, EPERM, Result},
    time,
};

/// Type bits of st_mode.
pub const S_IFMT: u32 = 0o170000;
pub const S_ISUID: u32 = 0o4000;
pub const S_ISGID: u32 = 0o2000;
pub const S_ISVTX: u32 = 0o1000;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum FileType {
    #[default]
    Regular = 0o100000,
    Directory = 0o040000,
    Symlink = 0o120000,
    CharDevice = 0o020000,
    BlockDevice = 0o060000,
    Fifo = 0o010000,
    Socket = 0o140000,
}

impl FileType {
    /// From the type bits of a mode; None when they name no type.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & S_IFMT {
            0o100000 => FileType::Regular,
            0o040000 => FileType::Directory,
            0o120000 => FileType::Symlink,
            0o020000 => FileType::CharDevice,
            0o060000 => FileType::BlockDevice,
            0o010000 => FileType::Fifo,
            0o140000 => FileType::Socket,
            _ => return None,
        })
    }

    /// DT_* of getdents64(2).
    pub fn dirent(self) -> u8 {
        (self as u32 >> 12) as u8
    }
}

/// A point in time, as struct timespec.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timespec {
    pub sec: i64,
    pub nsec: u32,
}

impl Timespec {
    /// CLOCK_REALTIME now.
    pub fn now() -> Self {
        let ns = time::realtime();
        Timespec { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 }
    }
}

/// An inode's attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    pub blksize: u32,
    pub atime: Timespec,
    pub mtime: Timespec,
    pub ctime: Timespec,
}

/// What to change of an inode's attributes; ctime follows by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Timespec>,
    pub mtime: Option<Timespec>,
}

/// What to make under a new name.
#[derive(Clone, Copy, Debug)]
pub enum NewNode<'a> {
    Regular,
    Directory,
    Symlink(&'a [u8]),
    Device { kind: FileType, rdev: u64 },
    Fifo,
    Socket,
}

/// Owner and permission bits (umask applied) of a new inode.
#[derive(Clone, Copy, Debug)]
pub struct NewAttr {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

bitflags::bitflags! {
    /// RENAME_* of renameat2(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RenameFlags: u32 {
        const NOREPLACE = 1;
        const EXCHANGE = 2;
        const WHITEOUT = 4;
    }
}

/// An object of a file system. Calls may block (on a gofer), except `file_type`, which never changes.
pub trait Inode: Any + Send + Sync {
    fn file_type(&self) -> FileType;

    /// Attributes; from memory whenever they are known.
    fn stat(&self) -> Result<Stat>;

    /// The file system it belongs to.
    fn filesystem(&self) -> &dyn FileSystem;

    // Names in a directory. The VFS serialises changes of one directory.

    /// ENOENT when there is no such name. The same object gives the same `Arc` while anyone holds it.
    fn lookup(&self, _name: &[u8]) -> Result<Arc<dyn Inode>> {
        Err(ENOTDIR)
    }

    /// `name` is about to be looked up, and then the components of `rest`, a path: a file system that is far away may ask for
    /// all of them at once.
    fn prefetch(&self, _name: &[u8], _rest: &[u8]) {}

    /// Whether a cached result for `name` (None: it did not exist) still holds. Asked on each use of the cache.
    fn revalidate(&self, _name: &[u8], _child: Option<&Arc<dyn Inode>>) -> bool {
        true
    }

    /// Makes an object under a name that does not exist (EEXIST if it does after all).
    fn create(&self, _name: &[u8], _node: NewNode<'_>, _attr: NewAttr) -> Result<Arc<dyn Inode>> {
        Err(EPERM)
    }

    /// An unnamed regular file (O_TMPFILE).
    fn tmpfile(&self, _attr: NewAttr) -> Result<Arc<dyn Inode>> {
        Err(ENOTSUP)
    }

    fn link(&self, _name: &[u8], _target: &Arc<dyn Inode>) -> Result<()> {
        Err(EPERM)
    }

    /// `child` is what the name stands for, not a directory.
    fn unlink(&self, _name: &[u8], _child: &Arc<dyn Inode>) -> Result<()> {
        Err(EPERM)
    }

    /// ENOTEMPTY when `child` holds names.
    fn rmdir(&self, _name: &[u8], _child: &Arc<dyn Inode>) -> Result<()> {
        Err(EPERM)
    }

    /// Moves `name` to `new_name` in `new_dir`, replacing what is there; types have been checked, emptiness has not.
    fn rename(&self, _name: &[u8], _new_dir: &Arc<dyn Inode>, _new_name: &[u8], _flags: RenameFlags) -> Result<()> {
        Err(EPERM)
    }

    /// A symbolic link's text.
    fn readlink(&self) -> Result<Vec<u8>> {
        Err(EINVAL)
    }

    /// Where a link leads that names an object rather than a path (/proc/self/fd/0, /proc/self/cwd).
    fn magic(&self) -> Option<Result<Path>> {
        None
    }

    fn set_attr(&self, _attr: &SetAttr) -> Result<()> {
        Err(EPERM)
    }

    /// Opens a regular file or directory; devices and FIFOs are opened by the VFS. Permissions have been checked;
    /// O_TRUNC is done by the VFS through `set_attr`.
    fn open(self: Arc<Self>, _flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        Err(ENOTSUP)
    }

    /// Opens a device, FIFO or socket that has its own way to be opened (streams of the host, anonymous pipes). None: by
    /// device number, or by inode for a FIFO.
    fn open_special(self: Arc<Self>, _flags: OpenFlags) -> Option<Result<Arc<dyn FileOps>>> {
        None
    }

    // Extended attributes: names with their prefix ("user.x").

    fn get_xattr(&self, _name: &[u8]) -> Result<Vec<u8>> {
        Err(if self.filesystem().has_xattrs() { ENODATA } else { ENOTSUP })
    }

    /// `flags`: XATTR_CREATE 1, XATTR_REPLACE 2.
    fn set_xattr(&self, _name: &[u8], _value: &[u8], _flags: u32) -> Result<()> {
        Err(ENOTSUP)
    }

    /// Names, each ended by NUL.
    fn list_xattr(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn remove_xattr(&self, _name: &[u8]) -> Result<()> {
        Err(if self.filesystem().has_xattrs() { ENODATA } else { ENOTSUP })
    }
}

impl dyn Inode {
    /// The concrete type, for a file system that gets its own inodes back.
    pub fn downcast<T: Inode>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }

    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }
}

/// statfs(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// *_MAGIC of <linux/magic.h>.
    pub magic: u64,
    pub block_size: u64,
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
    pub name_max: u64,
}

/// A mounted instance (superblock).
pub trait FileSystem: Send + Sync {
    /// As in /proc/filesystems.
    fn name(&self) -> &'static str;

    /// st_dev of its inodes.
    fn device(&self) -> u64;

    fn statfs(&self) -> Result<StatFs>;

    fn has_xattrs(&self) -> bool {
        false
    }

    /// Options for /proc/mounts, with a leading comma ("" if none).
    fn options(&self) -> alloc::string::String {
        alloc::string::String::new()
    }

    /// Writes back what is cached (syncfs).
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// A device number for a file system without a device (major 0).
pub fn new_device() -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    static NEXT: AtomicU64 = AtomicU64::new(20);
    make_device(0, NEXT.fetch_add(1, Relaxed) as u32)
}

/// Linux's 64-bit dev_t encoding, as stat(2) shows it.
pub const fn make_device(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
}

/// Major and minor of a dev_t.
pub const fn split_device(dev: u64) -> (u32, u32) {
    (((dev >> 8 & 0xfff) | (dev >> 32 & !0xfff)) as u32, ((dev & 0xff) | (dev >> 12 & 0xffff_ff00)) as u32)
}
