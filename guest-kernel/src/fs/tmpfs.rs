//! tmpfs: files whose content is shared pages, names in memory. Also what memfd_create(2) makes.

use alloc::{
    collections::BTreeMap,
    format,
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use sentry_abi::layout::PAGE_SIZE;

use super::{
    DirEntry, File, FileOps, FileSystem, FileType, Inode, NewAttr, NewNode, OpenFlags, RenameFlags, S_ISGID, S_ISUID,
    SetAttr, Stat, StatFs, Timespec, new_device, xattr::Xattrs,
};
use crate::{
    errno::{EEXIST, EINVAL, ENODEV, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, ENOTSUP, EPERM, Result},
    mm::{
        Pager, Quota, SharedPages,
        io::{IoDst, IoSrc},
    },
    sync::{Mutex, SpinLock},
};

const TMPFS_MAGIC: u64 = 0x0102_1994;

pub struct Tmpfs {
    device: u64,
    quota: Arc<Quota>,
    next_ino: AtomicU64,
    inodes: AtomicU64,
    inode_limit: u64,
    name: &'static str,
}

impl Tmpfs {
    /// At most `size` bytes of content. `name` is the file system type that /proc/mounts shows.
    pub fn new(size: u64, name: &'static str) -> Arc<Self> {
        let pages = size / PAGE_SIZE;
        Arc::new(Tmpfs {
            device: new_device(),
            quota: Arc::new(Quota::new(pages)),
            next_ino: AtomicU64::new(1),
            inodes: AtomicU64::new(0),
            inode_limit: pages.max(1024),
            name,
        })
    }

    fn new_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Relaxed)
    }

    /// A directory without a name: the root, to be made once.
    pub fn make_root(self: &Arc<Self>, attr: NewAttr) -> Arc<Node> {
        Node::make(self, self.new_ino(), Content::Directory(SpinLock::new(Directory::default())), attr)
    }

    /// A regular file without a name.
    pub fn make_file(self: &Arc<Self>, name: String, attr: NewAttr) -> Arc<Node> {
        let ino = self.new_ino();
        let pages = SharedPages::new(self.device, ino, name, 0).with_quota(self.quota.clone());
        Node::make(self, ino, Content::Regular { pages: Arc::new(pages), size_lock: Mutex::new(()) }, attr)
    }
}

impl FileSystem for Tmpfs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn device(&self) -> u64 {
        self.device
    }

    fn statfs(&self) -> Result<StatFs> {
        let free = self.quota.limit.saturating_sub(self.quota.used());
        Ok(StatFs {
            magic: TMPFS_MAGIC,
            block_size: PAGE_SIZE,
            blocks: self.quota.limit,
            free,
            available: free,
            files: self.inode_limit,
            files_free: self.inode_limit.saturating_sub(self.inodes.load(Relaxed)),
            name_max: 255,
        })
    }

    fn has_xattrs(&self) -> bool {
        true
    }

    fn options(&self) -> String {
        format!(",size={}k", self.quota.limit * (PAGE_SIZE / 1024))
    }
}

#[derive(Default)]
struct Directory {
    names: BTreeMap<Arc<[u8]>, Entry>,
    /// Names by their cookie, for readdir.
    order: BTreeMap<u64, Arc<[u8]>>,
    last_cookie: u64,
}

struct Entry {
    cookie: u64,
    node: Arc<Node>,
}

impl Directory {
    fn add(&mut self, name: &[u8], node: Arc<Node>) {
        let name: Arc<[u8]> = Arc::from(name);
        self.last_cookie = self.last_cookie.max(2) + 1;
        self.order.insert(self.last_cookie, name.clone());
        self.names.insert(name, Entry { cookie: self.last_cookie, node });
    }

    fn take(&mut self, name: &[u8]) -> Option<Arc<Node>> {
        let entry = self.names.remove(name)?;
        self.order.remove(&entry.cookie);
        Some(entry.node)
    }
}

enum Content {
    Regular {
        pages: Arc<SharedPages>,
        /// Held while the size changes or depends on what it was; not needed to serve a fault.
        size_lock: Mutex<()>,
    },
    Directory(SpinLock<Directory>),
    Symlink(Vec<u8>),
    Device {
        kind: FileType,
        rdev: u64,
    },
    Fifo,
    Socket,
}

#[derive(Clone, Copy)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    atime: Timespec,
    mtime: Timespec,
    ctime: Timespec,
}

pub struct Node {
    fs: Arc<Tmpfs>,
    me: Weak<Node>,
    ino: u64,
    content: Content,
    attributes: SpinLock<Attributes>,
    xattrs: SpinLock<Xattrs>,
    /// F_SEAL_* (memfd).
    seals: AtomicU64,
}

/// F_SEAL_* of fcntl(2).
pub mod seal {
    pub const SEAL: u64 = 1;
    pub const SHRINK: u64 = 2;
    pub const GROW: u64 = 4;
    pub const WRITE: u64 = 8;
    pub const FUTURE_WRITE: u64 = 16;
}

impl Node {
    fn make(fs: &Arc<Tmpfs>, ino: u64, content: Content, attr: NewAttr) -> Arc<Node> {
        let now = Timespec::now();
        fs.inodes.fetch_add(1, Relaxed);
        let nlink = if matches!(content, Content::Directory(_)) { 2 } else { 1 };
        Arc::new_cyclic(|me| Node {
            fs: fs.clone(),
            me: me.clone(),
            ino,
            content,
            attributes: SpinLock::new(Attributes {
                mode: attr.mode & 0o7777,
                uid: attr.uid,
                gid: attr.gid,
                nlink,
                atime: now,
                mtime: now,
                ctime: now,
            }),
            xattrs: SpinLock::new(Xattrs::default()),
            seals: AtomicU64::new(seal::SEAL),
        })
    }

    fn directory(&self) -> Result<&SpinLock<Directory>> {
        match &self.content {
            Content::Directory(directory) => Ok(directory),
            _ => Err(ENOTDIR),
        }
    }

    fn regular(&self) -> Result<(&Arc<SharedPages>, &Mutex<()>)> {
        match &self.content {
            Content::Regular { pages, size_lock } => Ok((pages, size_lock)),
            _ => Err(EINVAL),
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory(_))
    }

    fn change(&self, change: impl FnOnce(&mut Attributes)) {
        let now = Timespec::now();
        let mut attributes = self.attributes.lock();
        attributes.ctime = now;
        change(&mut attributes);
    }

    /// A directory's names have changed.
    fn touch(&self) {
        self.change(|a| a.mtime = a.ctime);
    }

    fn set_size(&self, size: u64) -> Result<()> {
        let (pages, size_lock) = self.regular()?;
        let _lock = size_lock.lock();
        let old = pages.size();
        let seals = self.seals();
        if size < old && seals & seal::SHRINK != 0 || size > old && seals & seal::GROW != 0 {
            return Err(EPERM);
        }
        pages.truncate(size);
        self.change(|a| {
            a.mtime = a.ctime;
        });
        Ok(())
    }

    /// Seals of a memfd.
    pub fn seals(&self) -> u64 {
        self.seals.load(SeqCst)
    }

    /// Lets seals be added (MFD_ALLOW_SEALING).
    pub fn allow_sealing(&self) {
        self.seals.store(0, SeqCst);
    }

    pub fn add_seals(&self, seals: u64) -> Result<()> {
        if seals & !0x1f != 0 {
            return Err(EINVAL);
        }
        if self.seals() & seal::SEAL != 0 {
            return Err(EPERM);
        }
        let (pages, _) = self.regular()?;
        if seals & seal::WRITE != 0 && !pages.mappings().is_empty() {
            return Err(crate::errno::EBUSY);
        }
        self.seals.fetch_or(seals, SeqCst);
        Ok(())
    }

    fn may_write(&self, end: Option<u64>) -> Result<()> {
        let seals = self.seals();
        if seals & (seal::WRITE | seal::FUTURE_WRITE) != 0 {
            return Err(EPERM);
        }
        let (pages, _) = self.regular()?;
        if seals & seal::GROW != 0 && end.is_some_and(|end| end > pages.size()) { Err(EPERM) } else { Ok(()) }
    }

    /// After a write: times, and the set-id bits go.
    fn written(&self) {
        self.change(|a| {
            a.mtime = a.ctime;
            if a.mode & 0o111 != 0 {
                a.mode &= !S_ISUID;
                if a.mode & 0o010 != 0 {
                    a.mode &= !S_ISGID;
                }
            }
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.fs.inodes.fetch_sub(1, Relaxed);
        // A deep tree must not be dropped by deep recursion on a kernel stack.
        if let Content::Directory(directory) = &mut self.content {
            let mut pending: Vec<Arc<Node>> =
                core::mem::take(&mut directory.get_mut().names).into_values().map(|e| e.node).collect();
            while let Some(node) = pending.pop() {
                if let Some(mut node) = Arc::into_inner(node)
                    && let Content::Directory(directory) = &mut node.content
                {
                    pending.extend(core::mem::take(&mut directory.get_mut().names).into_values().map(|e| e.node));
                }
            }
        }
    }
}

impl Inode for Node {
    fn file_type(&self) -> FileType {
        match &self.content {
            Content::Regular { .. } => FileType::Regular,
            Content::Directory(_) => FileType::Directory,
            Content::Symlink(_) => FileType::Symlink,
            Content::Device { kind, .. } => *kind,
            Content::Fifo => FileType::Fifo,
            Content::Socket => FileType::Socket,
        }
    }

    fn stat(&self) -> Result<Stat> {
        let (size, blocks, rdev) = match &self.content {
            Content::Regular { pages, .. } => (pages.size(), pages.resident() * (PAGE_SIZE / 512), 0),
            Content::Directory(directory) => ((directory.lock().names.len() as u64 + 2) * 20, 0, 0),
            Content::Symlink(text) => (text.len() as u64, 0, 0),
            Content::Device { rdev, .. } => (0, 0, *rdev),
            Content::Fifo | Content::Socket => (0, 0, 0),
        };
        let a = *self.attributes.lock();
        Ok(Stat {
            dev: self.fs.device,
            ino: self.ino,
            mode: self.file_type() as u32 | a.mode,
            nlink: a.nlink,
            uid: a.uid,
            gid: a.gid,
            rdev,
            size,
            blocks,
            blksize: PAGE_SIZE as u32,
            atime: a.atime,
            mtime: a.mtime,
            ctime: a.ctime,
        })
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &*self.fs
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        match self.directory()?.lock().names.get(name) {
            Some(entry) => Ok(entry.node.clone()),
            None => Err(ENOENT),
        }
    }

    fn create(&self, name: &[u8], node: NewNode<'_>, attr: NewAttr) -> Result<Arc<dyn Inode>> {
        let directory = self.directory()?;
        if self.fs.inodes.load(Relaxed) >= self.fs.inode_limit || crate::mm::kmem::under_pressure() {
            return Err(ENOSPC);
        }
        if self.attributes.lock().nlink == 0 {
            return Err(ENOENT);
        }
        let made = match node {
            NewNode::Regular => self.fs.make_file(String::new(), attr),
            NewNode::Directory => self.fs.make_root(attr),
            NewNode::Symlink(text) => Node::make(&self.fs, self.fs.new_ino(), Content::Symlink(text.to_vec()), attr),
            NewNode::Device { kind, rdev } => {
                Node::make(&self.fs, self.fs.new_ino(), Content::Device { kind, rdev }, attr)
            }
            NewNode::Fifo => Node::make(&self.fs, self.fs.new_ino(), Content::Fifo, attr),
            NewNode::Socket => Node::make(&self.fs, self.fs.new_ino(), Content::Socket, attr),
        };
        {
            let mut names = directory.lock();
            if names.names.contains_key(name) {
                return Err(EEXIST);
            }
            names.add(name, made.clone());
        }
        self.change(|a| {
            a.mtime = a.ctime;
            a.nlink += u32::from(made.is_directory());
        });
        Ok(made)
    }

    fn tmpfile(&self, attr: NewAttr) -> Result<Arc<dyn Inode>> {
        self.directory()?;
        let made = self.fs.make_file(String::new(), attr);
        made.attributes.lock().nlink = 0;
        Ok(made)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let node = target.downcast::<Node>().and_then(|n| n.me.upgrade()).ok_or(crate::errno::EXDEV)?;
        self.directory()?.lock().add(name, node.clone());
        node.change(|a| a.nlink += 1);
        self.touch();
        Ok(())
    }

    fn unlink(&self, name: &[u8], _child: &Arc<dyn Inode>) -> Result<()> {
        let node = self.directory()?.lock().take(name).ok_or(ENOENT)?;
        node.change(|a| a.nlink = a.nlink.saturating_sub(1));
        self.touch();
        Ok(())
    }

    fn rmdir(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        let child = child.downcast::<Node>().ok_or(ENOTDIR)?;
        if !child.directory()?.lock().names.is_empty() {
            return Err(ENOTEMPTY);
        }
        let node = self.directory()?.lock().take(name).ok_or(ENOENT)?;
        node.change(|a| a.nlink = 0);
        self.change(|a| {
            a.mtime = a.ctime;
            a.nlink -= 1;
        });
        Ok(())
    }

    fn rename(&self, name: &[u8], new_dir: &Arc<dyn Inode>, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(EINVAL);
        }
        let new_dir = new_dir.downcast::<Node>().ok_or(crate::errno::EXDEV)?;
        let (from, to) = (self.directory()?, new_dir.directory()?);
        let target = to.lock().names.get(new_name).map(|e| e.node.clone());
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if let (Some(target), false) = (&target, exchange)
            && let Content::Directory(directory) = &target.content
            && !directory.lock().names.is_empty()
        {
            return Err(ENOTEMPTY);
        }
        let node = from.lock().take(name).ok_or(ENOENT)?;
        let replaced = to.lock().take(new_name);
        to.lock().add(new_name, node.clone());
        // ".." of a directory counts as a link of its parent.
        let moved = |node: &Node, from: &Node, to: &Node| {
            if node.is_directory() && !core::ptr::eq(from, to) {
                from.change(|a| a.nlink -= 1);
                to.change(|a| a.nlink += 1);
            }
        };
        moved(&node, self, new_dir);
        match replaced {
            Some(other) if exchange => {
                from.lock().add(name, other.clone());
                moved(&other, new_dir, self);
                other.change(|_| {});
            }
            Some(gone) => {
                let dir = gone.is_directory();
                gone.change(|a| a.nlink = if dir { 0 } else { a.nlink.saturating_sub(1) });
                if dir {
                    new_dir.change(|a| a.nlink -= 1);
                }
            }
            None => {}
        }
        node.change(|_| {});
        self.touch();
        new_dir.touch();
        Ok(())
    }

    fn readlink(&self) -> Result<Vec<u8>> {
        match &self.content {
            Content::Symlink(text) => Ok(text.clone()),
            _ => Err(EINVAL),
        }
    }

    fn set_attr(&self, attr: &SetAttr) -> Result<()> {
        if let Some(size) = attr.size {
            self.set_size(size)?;
        }
        self.change(|a| {
            if let Some(mode) = attr.mode {
                a.mode = mode & 0o7777;
            }
            a.uid = attr.uid.unwrap_or(a.uid);
            a.gid = attr.gid.unwrap_or(a.gid);
            a.atime = attr.atime.unwrap_or(a.atime);
            a.mtime = attr.mtime.unwrap_or(a.mtime);
        });
        Ok(())
    }

    fn open(self: Arc<Self>, _flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        Ok(self)
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.xattrs.lock().get(name)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        self.xattrs.lock().set(self.file_type(), name, value, flags)?;
        self.change(|_| {});
        Ok(())
    }

    fn list_xattr(&self) -> Result<Vec<u8>> {
        Ok(self.xattrs.lock().list())
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.xattrs.lock().remove(name)?;
        self.change(|_| {});
        Ok(())
    }
}

/// Bits of fallocate(2)'s mode.
mod falloc {
    pub const KEEP_SIZE: u32 = 1;
    pub const PUNCH_HOLE: u32 = 2;
    pub const ZERO_RANGE: u32 = 16;
}

impl FileOps for Node {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        let (pages, _) = self.regular()?;
        let n = pages.read(dst, offset)?;
        if n > 0 && !file.flags().contains(OpenFlags::NOATIME) {
            // relatime: only the first read after a change moves it.
            let now = Timespec::now();
            let mut a = self.attributes.lock();
            if a.atime <= a.mtime {
                a.atime = now;
            }
        }
        Ok(n)
    }

    fn write(&self, _file: &File, src: &mut IoSrc<'_>, offset: u64) -> Result<usize> {
        let (pages, size_lock) = self.regular()?;
        let _lock = size_lock.lock();
        self.may_write(offset.checked_add(src.remaining() as u64))?;
        let n = pages.write(src, offset)?;
        if n > 0 {
            self.written();
        }
        Ok(n)
    }

    fn append(&self, _file: &File, src: &mut IoSrc<'_>) -> Result<(usize, u64)> {
        let (pages, size_lock) = self.regular()?;
        let _lock = size_lock.lock();
        let end = pages.size();
        self.may_write(end.checked_add(src.remaining() as u64))?;
        let n = pages.write(src, end)?;
        if n > 0 {
            self.written();
        }
        Ok((n, end + n as u64))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek_data(&self, _file: &File, offset: u64, data: bool) -> Result<Option<u64>> {
        Ok(self.regular()?.0.seek(offset, data))
    }

    fn readdir(&self, _file: &File, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let directory = self.directory()?;
        let mut at = cookie;
        loop {
            let found = {
                let directory = directory.lock();
                directory.order.range(at + 1..).next().and_then(|(cookie, name)| {
                    let node = &directory.names.get(name)?.node;
                    Some((*cookie, name.clone(), node.ino, node.file_type()))
                })
            };
            let Some((next, name, ino, file_type)) = found else { return Ok(()) };
            if !emit(DirEntry { name: &name, ino, file_type, next }) {
                return Ok(());
            }
            at = next;
        }
    }

    fn mmap(&self, _file: &File) -> Result<Arc<dyn Pager>> {
        let (pages, _) = self.regular().map_err(|_| ENODEV)?;
        Ok(pages.clone())
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn fallocate(&self, _file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        let (pages, size_lock) = self.regular().map_err(|_| ENODEV)?;
        let end = offset.checked_add(len).ok_or(crate::errno::EFBIG)?;
        let _lock = size_lock.lock();
        match mode {
            0 | falloc::KEEP_SIZE => {
                self.may_write(Some(end))?;
                if end.div_ceil(PAGE_SIZE) - offset / PAGE_SIZE > self.fs.quota.limit {
                    return Err(ENOSPC);
                }
                pages.populate(offset / PAGE_SIZE, end.div_ceil(PAGE_SIZE))?;
            }
            m if m == falloc::PUNCH_HOLE | falloc::KEEP_SIZE => {
                self.may_write(None)?;
                pages.punch(offset, end);
            }
            m if m & !falloc::KEEP_SIZE == falloc::ZERO_RANGE => {
                self.may_write(Some(end))?;
                pages.punch(offset, end);
            }
            _ => return Err(ENOTSUP),
        }
        if mode & falloc::KEEP_SIZE == 0 && end > pages.size() {
            pages.truncate(end);
        }
        self.written();
        Ok(())
    }
}
