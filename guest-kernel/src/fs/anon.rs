//! Objects without a place in the tree: pipes, eventfds, epoll instances, memfds.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{
    Dentry, FileOps, FileSystem, FileType, Inode, Mount, MountFlags, OpenFlags, Path, Stat, StatFs, Timespec,
    new_device,
};
use crate::{errno::Result, sync::Once, task::creds::Creds};

struct AnonFs {
    device: u64,
}

const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;

impl FileSystem for AnonFs {
    fn name(&self) -> &'static str {
        "anon_inodefs"
    }
    fn device(&self) -> u64 {
        self.device
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: ANON_INODE_FS_MAGIC, block_size: 4096, name_max: 255, ..StatFs::default() })
    }
}

struct Anon {
    fs: Arc<AnonFs>,
    mount: Arc<Mount>,
}

fn anon() -> &'static Anon {
    static ANON: Once<Anon> = Once::new();
    ANON.call_once(|| {
        let fs = Arc::new(AnonFs { device: new_device() });
        let root = Arc::new(AnonInode::new(fs.clone(), FileType::Directory, 0, &Creds::default()));
        let mount = Mount::of(fs.clone(), root, "none", MountFlags::empty());
        Anon { fs, mount }
    })
}

/// Opens what an anonymous inode stands for once more (through /proc/self/fd).
pub type Reopen = alloc::boxed::Box<dyn Fn(OpenFlags) -> Result<Arc<dyn FileOps>> + Send + Sync>;

pub struct AnonInode {
    fs: Arc<AnonFs>,
    ino: u64,
    file_type: FileType,
    mode: u32,
    owner: (u32, u32),
    time: Timespec,
    reopen: Once<Reopen>,
}

impl AnonInode {
    fn new(fs: Arc<AnonFs>, file_type: FileType, mode: u32, creds: &Creds) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        AnonInode {
            fs,
            ino: NEXT.fetch_add(1, Relaxed),
            file_type,
            mode,
            owner: (creds.fsuid, creds.fsgid),
            time: Timespec::now(),
            reopen: Once::new(),
        }
    }
}

impl Inode for AnonInode {
    fn file_type(&self) -> FileType {
        self.file_type
    }

    fn stat(&self) -> Result<Stat> {
        Ok(Stat {
            dev: self.fs.device,
            ino: self.ino,
            mode: self.file_type as u32 | self.mode,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            blksize: 4096,
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            ..Stat::default()
        })
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &*self.fs
    }

    fn open_special(self: Arc<Self>, flags: OpenFlags) -> Option<Result<Arc<dyn FileOps>>> {
        self.reopen.get().map(|reopen| reopen(flags))
    }
}

/// A place for an object of this kind: `name(ino)` is what /proc shows of it.
pub fn path(
    file_type: FileType,
    mode: u32,
    creds: &Creds,
    name: impl FnOnce(u64) -> alloc::string::String,
    reopen: Option<Reopen>,
) -> Path {
    let anon = anon();
    let inode = AnonInode::new(anon.fs.clone(), file_type, mode, creds);
    if let Some(reopen) = reopen {
        inode.reopen.call_once(|| reopen);
    }
    let name = name(inode.ino);
    place(name.as_bytes(), Arc::new(inode))
}

/// A place for an inode of any file system that has no name.
pub fn place(name: &[u8], inode: Arc<dyn Inode>) -> Path {
    Path { mount: anon().mount.clone(), dentry: Dentry::root(name, inode) }
}
