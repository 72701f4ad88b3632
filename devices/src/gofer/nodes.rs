//! Nodes: the inodes the sentry knows, each with one path by which it can be opened again, and the bounded cache of their
//! O_PATH descriptors.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use sentry_abi::fuse;

/// O_PATH descriptors kept open for nodes that can be opened again.
const CACHED: usize = 2048;
/// Nodes the sentry may know at a time.
const MAX_NODES: usize = 1 << 20;
/// Components above a node when it is opened again.
const MAX_DEPTH: usize = 4096;

pub(super) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An inode as seen below one root: the same file below a read-only and a writable root is two nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Identity {
    root: u64,
    dev: u64,
    ino: u64,
}

impl Identity {
    fn of(root: u64, stat: &Stat) -> Identity {
        Identity { root, dev: stat.st_dev, ino: stat.st_ino }
    }
}

struct Node {
    parent: u64,
    name: Box<[u8]>,
    identity: Identity,
    kind: FileType,
    readonly: bool,
    nlookup: u64,
    fd: Option<Rc<OwnedFd>>,
    /// It has no path any more (or is a root): the descriptor stays open.
    pinned: bool,
    /// Second chance in the cache's sweep.
    used: bool,
}

pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    by_identity: HashMap<Identity, u64>,
    next: u64,
    roots: u64,
    /// Nodes with a cached descriptor, oldest first.
    cached: VecDeque<u64>,
    /// Host devices in the order they were met: they tell apart equal inode numbers.
    devices: Vec<u64>,
    /// /proc/self/fd: through it an O_PATH descriptor is opened for I/O.
    proc_fds: OwnedFd,
}

/// Whether `name` is one component that may be looked up or made.
pub(super) fn check_name(name: &[u8]) -> Result<&[u8], Errno> {
    match name {
        b"" => Err(Errno::NOENT),
        b"." | b".." => Err(Errno::INVAL),
        _ if name.len() > fuse::MAX_NAME => Err(Errno::NAMETOOLONG),
        _ if name.contains(&b'/') || name.contains(&0) => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
}

pub(super) fn stat_of(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
}

impl Nodes {
    pub fn new(roots: impl Iterator<Item = (OwnedFd, bool)>) -> Result<Nodes, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc_fds = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
        let mut nodes = Nodes {
            nodes: HashMap::new(),
            by_identity: HashMap::new(),
            next: fuse::ROOT,
            roots: 0,
            cached: VecDeque::new(),
            devices: Vec::new(),
            proc_fds,
        };
        for (fd, readonly) in roots {
            let stat = stat_of(fd.as_fd())?;
            let node = Node {
                parent: 0,
                name: Box::default(),
                identity: Identity::of(nodes.next, &stat),
                kind: FileType::from_raw_mode(stat.st_mode),
                readonly,
                nlookup: 1,
                fd: Some(Rc::new(fd)),
                pinned: true,
                used: true,
            };
            nodes.nodes.insert(nodes.next, node);
            nodes.next += 1;
            nodes.roots += 1;
        }
        Ok(nodes)
    }

    fn get(&self, id: u64) -> Result<&Node, Errno> {
        self.nodes.get(&id).ok_or(Errno::STALE)
    }

    pub fn kind(&self, id: u64) -> Result<FileType, Errno> {
        Ok(self.get(id)?.kind)
    }

    /// EROFS below a read-only root.
    pub fn check_writable(&self, id: u64) -> Result<(), Errno> {
        if self.get(id)?.readonly { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// EXDEV for nodes of two roots: they are two mounts, which may have different rights to the same files.
    pub fn check_same_root(&self, a: u64, b: u64) -> Result<(), Errno> {
        if self.get(a)?.identity.root == self.get(b)?.identity.root { Ok(()) } else { Err(Errno::XDEV) }
    }

    /// The node's O_PATH descriptor, opened again if it was dropped.
    pub fn fd(&mut self, id: u64) -> Result<Rc<OwnedFd>, Errno> {
        self.fd_at_depth(id, 0)
    }

    fn fd_at_depth(&mut self, id: u64, depth: usize) -> Result<Rc<OwnedFd>, Errno> {
        let node = self.nodes.get_mut(&id).ok_or(Errno::STALE)?;
        if let Some(fd) = &node.fd {
            node.used = true;
            return Ok(fd.clone());
        }
        if depth == MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        let parent = node.parent;
        let parent = self.fd_at_depth(parent, depth + 1)?;
        let node = self.get(id)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = node.name.clone();
        let fd = match rustix::fs::openat2(&parent, &*name, flags, Mode::empty(), BENEATH) {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.shrink(0);
                rustix::fs::openat2(&parent, &*name, flags, Mode::empty(), BENEATH)
            }
            other => other,
        };
        let fd = fd.map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Errno::STALE,
            other => other,
        })?;
        let stat = stat_of(fd.as_fd())?;
        let node = self.nodes.get_mut(&id).ok_or(Errno::STALE)?;
        if Identity::of(node.identity.root, &stat) != node.identity
            || FileType::from_raw_mode(stat.st_mode) != node.kind
        {
            return Err(Errno::STALE);
        }
        let fd = Rc::new(fd);
        node.fd = Some(fd.clone());
        node.used = true;
        self.cached.push_back(id);
        self.shrink(CACHED);
        Ok(fd)
    }

    /// Closes cached descriptors until at most `limit` are left.
    pub fn shrink(&mut self, limit: usize) {
        let mut chances = self.cached.len();
        while self.cached.len() > limit {
            let Some(id) = self.cached.pop_front() else { return };
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            if node.pinned {
                continue;
            }
            if node.used && chances > 0 {
                chances -= 1;
                node.used = false;
                self.cached.push_back(id);
            } else {
                node.fd = None;
            }
        }
    }

    /// Looks `name` up below `parent` and counts the look-up.
    pub fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<(u64, Stat), Errno> {
        check_name(name)?;
        if self.kind(parent)? != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let dir = self.fd(parent)?;
        let stat = stat_at(dir.as_fd(), name)?;
        Ok((self.enter(parent, name, &stat)?, stat))
    }

    /// The node of an inode that was just seen as `name` below `parent`; counts as a look-up.
    pub fn enter(&mut self, parent: u64, name: &[u8], stat: &Stat) -> Result<u64, Errno> {
        let above = self.get(parent)?;
        let (identity, readonly) = (Identity::of(above.identity.root, stat), above.readonly);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if let Some(&id) = self.by_identity.get(&identity)
            && let Some(node) = self.nodes.get_mut(&id)
            && node.kind == kind
            && node.nlookup > 0
        {
            node.nlookup += 1;
            if !(node.parent == parent && *node.name == *name) {
                (node.parent, node.name) = (parent, name.into());
            }
            return Ok(id);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(Errno::NOMEM);
        }
        let id = self.next;
        self.next += 1;
        let (name, fd) = (name.into(), None);
        let node = Node { parent, name, identity, kind, readonly, nlookup: 1, fd, pinned: false, used: false };
        self.nodes.insert(id, node);
        self.by_identity.insert(identity, id);
        Ok(id)
    }

    pub fn forget(&mut self, id: u64, count: u64) {
        if id <= self.roots {
            return;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.nlookup = node.nlookup.saturating_sub(count);
        if node.nlookup == 0 {
            let identity = node.identity;
            self.nodes.remove(&id);
            if self.by_identity.get(&identity) == Some(&id) {
                self.by_identity.remove(&identity);
            }
        }
    }

    /// `name` below `parent` is about to lose its inode: keep that open if the sentry still knows it; its node, or 0.
    pub fn pin(&mut self, parent: u64, name: &[u8]) -> Result<u64, Errno> {
        let dir = self.fd(parent)?;
        let root = self.get(parent)?.identity.root;
        let Ok(stat) = stat_at(dir.as_fd(), name) else { return Ok(0) };
        let Some(&id) = self.by_identity.get(&Identity::of(root, &stat)) else { return Ok(0) };
        self.fd(id)?;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.pinned = true;
        }
        Ok(id)
    }

    /// The node of what is called `name` below `parent`, if the sentry knows it; else 0.
    pub fn known(&mut self, parent: u64, name: &[u8]) -> u64 {
        let Ok(dir) = self.fd(parent) else { return 0 };
        let Some(root) = self.nodes.get(&parent).map(|node| node.identity.root) else { return 0 };
        let Ok(stat) = stat_at(dir.as_fd(), name) else { return 0 };
        self.by_identity.get(&Identity::of(root, &stat)).copied().unwrap_or(0)
    }

    /// The node is reached by that path from now on.
    pub fn moved(&mut self, id: u64, parent: u64, name: &[u8]) {
        if let Some(node) = self.nodes.get_mut(&id) {
            (node.parent, node.name) = (parent, name.into());
        }
        if let Ok(dir) = self.fd(parent)
            && let Ok(stat) = stat_at(dir.as_fd(), name)
        {
            self.changed(id, &stat);
        }
    }

    /// The node was changed and looks like this now. On overlayfs the change may have copied it up, which can give it
    /// another device and inode number.
    pub fn changed(&mut self, id: u64, stat: &Stat) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let identity = Identity::of(node.identity.root, stat);
        if identity == node.identity || FileType::from_raw_mode(stat.st_mode) != node.kind {
            return;
        }
        let old = std::mem::replace(&mut node.identity, identity);
        if self.by_identity.get(&old) == Some(&id) {
            self.by_identity.remove(&old);
        }
        self.by_identity.insert(identity, id);
    }

    /// Opens a node's file for I/O. Only regular files and directories: opening anything else can block, or do something.
    pub fn open(&mut self, id: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        match self.kind(id)? {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let fd = self.fd(id)?;
        let name = proc_name(fd.as_fd());
        let flags = (flags & !(OFlags::CREATE | OFlags::NOFOLLOW)) | OFlags::CLOEXEC | OFlags::NOCTTY;
        match rustix::fs::openat(&self.proc_fds, &name, flags, Mode::empty()) {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.shrink(0);
                rustix::fs::openat(&self.proc_fds, &name, flags, Mode::empty())
            }
            other => other,
        }
    }

    /// For calls that take a path and follow links: `(directory, name)` that lead to the node itself.
    pub fn path(&mut self, id: u64) -> Result<(BorrowedFd<'_>, String, Rc<OwnedFd>), Errno> {
        let fd = self.fd(id)?;
        Ok((self.proc_fds.as_fd(), proc_name(fd.as_fd()), fd))
    }

    pub fn attr(&mut self, stat: &Stat) -> fuse::Attr {
        let device = match self.devices.iter().position(|dev| *dev == stat.st_dev) {
            Some(index) => index,
            None if self.devices.len() < 1 << 15 => {
                self.devices.push(stat.st_dev);
                self.devices.len() - 1
            }
            None => 0,
        };
        fuse::Attr {
            // Inode numbers of the first device are the host's.
            ino: stat.st_ino ^ ((device as u64) << 48),
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: stat.st_atime as u64,
            mtime: stat.st_mtime as u64,
            ctime: stat.st_ctime as u64,
            atimensec: stat.st_atime_nsec as u32,
            mtimensec: stat.st_mtime_nsec as u32,
            ctimensec: stat.st_ctime_nsec as u32,
            mode: stat.st_mode,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev as u32,
            blksize: stat.st_blksize as u32,
            flags: 0,
        }
    }

    pub fn entry(&mut self, nodeid: u64, stat: &Stat) -> fuse::EntryOut {
        fuse::EntryOut { nodeid, attr: self.attr(stat), ..Default::default() }
    }
}

fn proc_name(fd: BorrowedFd<'_>) -> String {
    fd.as_raw_fd().to_string()
}
