//! The file protocol between the sentry (client) and the gofer (server): FUSE 7.38 as in <linux/fuse.h> and virtio 1.2
//! section 5.11, with extensions that save round trips.
//!
//! A request is one descriptor chain of the device's only queue: readable `InHeader`, arguments, names (NUL-terminated) and
//! write data, then writable `OutHeader`, result and read data. Differences from FUSE, all agreed on by both sides:
//!
//! - nodes `1..=roots` are the roots the gofer was started with; a node stands for one inode, however many names it has;
//! - `Create` is always exclusive (O_EXCL): the sentry has looked the name up before;
//! - `ReadDirPlus` and `ReadDir` take a node (`fh` 0), not an open directory, and resume at `offset`;
//! - `Read` and `Write` data may be up to [`MAX_DATA`];
//! - [`Opcode::Walk`] and [`Opcode::Share`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 38;
/// Node of the first root.
pub const ROOT: u64 = 1;
/// Largest payload of a read or write, bytes.
pub const MAX_DATA: u32 = 1 << 20;
/// NAME_MAX.
pub const MAX_NAME: usize = 255;
/// Components of a [`Opcode::Walk`].
pub const MAX_WALK: usize = 32;
/// Request bytes before write data: header, arguments and names.
pub const MAX_REQUEST: usize = 16 << 10;

/// Queue 0 carries requests; its size.
pub const QUEUE_SIZE: u16 = 128;

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Opcode { $($(#[$doc])* $name = $value,)* }
        impl Opcode {
            pub fn from_raw(raw: u32) -> Option<Self> {
                match raw { $($value => Some(Opcode::$name),)* _ => None }
            }
        }
    };
}

opcodes! {
    Lookup = 1,
    Forget = 2,
    GetAttr = 3,
    SetAttr = 4,
    ReadLink = 5,
    Symlink = 6,
    MkNod = 8,
    MkDir = 9,
    Unlink = 10,
    RmDir = 11,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    StatFs = 17,
    Release = 18,
    FSync = 20,
    SetXattr = 21,
    GetXattr = 22,
    ListXattr = 23,
    RemoveXattr = 24,
    Init = 26,
    ReadDir = 28,
    Create = 35,
    BatchForget = 42,
    FAllocate = 43,
    ReadDirPlus = 44,
    Rename2 = 45,
    LSeek = 46,
    /// [`WalkIn`] and names -> [`WalkOut`], entries, link target or data. Looks up several components, stopping at a symbolic
    /// link or at one that is missing, and may open the last, hand it over and read its beginning. With no names it
    /// opens the node itself.
    Walk = 0x5200,
    /// [`BatchForgetIn`] and that many `fh` -> nothing. Closes open files.
    BatchRelease = 0x5202,
    /// [`ShareIn`] -> [`ShareOut`]. Hands the open file to the VMM, so that `hostcall::Op::WindowMap` can place it.
    Share = 0x5201,
}

macro_rules! wire {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
            pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        )*
    };
}

wire! {
    pub struct InHeader {
        /// Of the whole request, write data included.
        pub len: u32,
        pub opcode: u32,
        pub unique: u64,
        pub nodeid: u64,
        /// Owner of what the request makes.
        pub uid: u32,
        pub gid: u32,
        pub pid: u32,
        pub total_extlen: u16,
        pub padding: u16,
    }
    pub struct OutHeader {
        pub len: u32,
        /// Zero or a negative errno.
        pub error: i32,
        pub unique: u64,
    }
    pub struct Attr {
        pub ino: u64,
        pub size: u64,
        pub blocks: u64,
        pub atime: u64,
        pub mtime: u64,
        pub ctime: u64,
        pub atimensec: u32,
        pub mtimensec: u32,
        pub ctimensec: u32,
        pub mode: u32,
        pub nlink: u32,
        pub uid: u32,
        pub gid: u32,
        pub rdev: u32,
        pub blksize: u32,
        pub flags: u32,
    }
    pub struct EntryOut {
        pub nodeid: u64,
        /// Counts uses of a node id; 0 for ids that are never reused, as here.
        pub generation: u64,
        pub entry_valid: u64,
        pub attr_valid: u64,
        pub entry_valid_nsec: u32,
        pub attr_valid_nsec: u32,
        pub attr: Attr,
    }
    pub struct AttrOut {
        pub attr_valid: u64,
        pub attr_valid_nsec: u32,
        pub dummy: u32,
        pub attr: Attr,
    }
    pub struct ForgetIn {
        pub nlookup: u64,
    }
    pub struct ForgetOne {
        pub nodeid: u64,
        pub nlookup: u64,
    }
    pub struct BatchForgetIn {
        pub count: u32,
        pub dummy: u32,
    }
    pub struct GetAttrIn {
        pub getattr_flags: u32,
        pub dummy: u32,
        pub fh: u64,
    }
    pub struct SetAttrIn {
        /// [`fattr`] bits.
        pub valid: u32,
        pub padding: u32,
        pub fh: u64,
        pub size: u64,
        pub lock_owner: u64,
        pub atime: u64,
        pub mtime: u64,
        pub ctime: u64,
        pub atimensec: u32,
        pub mtimensec: u32,
        pub ctimensec: u32,
        pub mode: u32,
        pub unused4: u32,
        pub uid: u32,
        pub gid: u32,
        pub unused5: u32,
    }
    pub struct MkNodIn {
        pub mode: u32,
        pub rdev: u32,
        pub umask: u32,
        pub padding: u32,
    }
    pub struct MkDirIn {
        pub mode: u32,
        pub umask: u32,
    }
    pub struct Rename2In {
        pub newdir: u64,
        /// RENAME_NOREPLACE, RENAME_EXCHANGE.
        pub flags: u32,
        pub padding: u32,
    }
    /// Result of `Rename2`, an addition to FUSE: known nodes whose attributes have changed; 0: none.
    pub struct RenameOut {
        pub moved: u64,
        /// What the new name stood for before; with RENAME_EXCHANGE, what the old one stands for now.
        pub replaced: u64,
    }
    pub struct LinkIn {
        pub oldnodeid: u64,
    }
    pub struct OpenIn {
        /// Access mode, O_TRUNC, O_APPEND; everything else is ignored.
        pub flags: u32,
        pub open_flags: u32,
    }
    pub struct OpenOut {
        pub fh: u64,
        pub open_flags: u32,
        pub padding: u32,
    }
    pub struct CreateIn {
        pub flags: u32,
        pub mode: u32,
        pub umask: u32,
        pub open_flags: u32,
    }
    /// Result of `Create`.
    pub struct CreateOut {
        pub entry: EntryOut,
        pub open: OpenOut,
    }
    pub struct ReleaseIn {
        pub fh: u64,
        pub flags: u32,
        pub release_flags: u32,
        pub lock_owner: u64,
    }
    pub struct ReadIn {
        pub fh: u64,
        pub offset: u64,
        pub size: u32,
        pub read_flags: u32,
        pub lock_owner: u64,
        pub flags: u32,
        pub padding: u32,
    }
    pub struct WriteIn {
        pub fh: u64,
        pub offset: u64,
        pub size: u32,
        /// [`write_flags`].
        pub write_flags: u32,
        pub lock_owner: u64,
        pub flags: u32,
        pub padding: u32,
    }
    /// `offset` is where the data went (an append decides it): an addition to FUSE's structure, which has padding there.
    pub struct WriteOut {
        pub size: u32,
        pub padding: u32,
        pub offset: u64,
    }
    pub struct StatFsOut {
        pub blocks: u64,
        pub bfree: u64,
        pub bavail: u64,
        pub files: u64,
        pub ffree: u64,
        pub bsize: u32,
        pub namelen: u32,
        pub frsize: u32,
        pub padding: u32,
        pub spare: [u32; 6],
    }
    pub struct FSyncIn {
        pub fh: u64,
        /// 1: fdatasync.
        pub fsync_flags: u32,
        pub padding: u32,
    }
    /// Followed by the name and the value.
    pub struct SetXattrIn {
        pub size: u32,
        pub flags: u32,
        pub setxattr_flags: u32,
        pub padding: u32,
    }
    /// Size 0 asks for the size.
    pub struct GetXattrIn {
        pub size: u32,
        pub padding: u32,
    }
    pub struct GetXattrOut {
        pub size: u32,
        pub padding: u32,
    }
    pub struct InitIn {
        pub major: u32,
        pub minor: u32,
        pub max_readahead: u32,
        pub flags: u32,
        pub flags2: u32,
        pub unused: [u32; 11],
    }
    pub struct InitOut {
        pub major: u32,
        pub minor: u32,
        pub max_readahead: u32,
        pub flags: u32,
        pub max_background: u16,
        pub congestion_threshold: u16,
        pub max_write: u32,
        pub time_gran: u32,
        pub max_pages: u16,
        pub map_alignment: u16,
        pub flags2: u32,
        pub unused: [u32; 7],
    }
    pub struct FAllocateIn {
        pub fh: u64,
        pub offset: u64,
        pub length: u64,
        pub mode: u32,
        pub padding: u32,
    }
    pub struct LSeekIn {
        pub fh: u64,
        pub offset: u64,
        pub whence: u32,
        pub padding: u32,
    }
    pub struct LSeekOut {
        pub offset: u64,
    }
    /// Followed by the name, padded to 8 bytes.
    pub struct Dirent {
        pub ino: u64,
        /// Where a later request resumes behind this entry.
        pub off: u64,
        pub namelen: u32,
        /// DT_*.
        pub kind: u32,
    }
    /// `entry.nodeid` is 0 for "." and "..", which are no look-ups.
    pub struct DirentPlus {
        pub entry: EntryOut,
        pub dirent: Dirent,
    }
    /// Followed by `count` NUL-terminated names.
    pub struct WalkIn {
        pub count: u32,
        /// [`walk`] bits.
        pub flags: u32,
        /// As [`OpenIn::flags`], with [`walk::OPEN`].
        pub open_flags: u32,
        pub padding: u32,
    }
    /// Followed by `found` [`EntryOut`], then `data_len` bytes: the link target when the last of them is a symbolic link, the
    /// file's beginning with [`walk::DATA`]. Every entry counts as a look-up.
    pub struct WalkOut {
        pub found: u32,
        /// Why component `found` was not reached: 0 (all found, or the last found is no directory) or a negative errno.
        pub stopped: i32,
        /// Zero, or why the last could not be opened (negative errno).
        pub open_error: i32,
        pub data_len: u32,
        /// Open file; 0: none.
        pub fh: u64,
        /// Handle for the window; 0: none.
        pub handle: u64,
    }
    pub struct ShareIn {
        pub fh: u64,
    }
    pub struct ShareOut {
        /// For `hostcall::Op::WindowMap`.
        pub handle: u64,
    }
}

/// [`SetAttrIn::valid`].
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// [`WalkIn::flags`].
pub mod walk {
    /// Open the last component if it is a regular file.
    pub const OPEN: u32 = 1;
    /// And hand it to the VMM.
    pub const SHARE: u32 = 2;
    /// And read its first bytes, as many as there is room for.
    pub const DATA: u32 = 4;
}

/// [`WriteIn::write_flags`].
pub mod write_flags {
    /// At the end of the file (O_APPEND), `offset` ignored: not in FUSE.
    pub const APPEND: u32 = 1 << 16;
}

/// Size of a directory entry with a name of `namelen` bytes.
pub const fn dirent_plus_size(namelen: usize) -> usize {
    (size_of::<DirentPlus>() + namelen).next_multiple_of(8)
}

pub const fn dirent_size(namelen: usize) -> usize {
    (size_of::<Dirent>() + namelen).next_multiple_of(8)
}
