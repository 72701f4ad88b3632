//! devpts: /dev/pts with its ptmx and a node for each pseudo-terminal there is.

use alloc::{collections::BTreeMap, format, sync::Arc, vec::Vec};

use super::pty::Pty;
use crate::{
    errno::{ENOENT, ENOSPC, ENOTDIR, EPERM, Result},
    fs::{
        DirEntry, File, FileOps, FileSystem, FileType, Inode, OpenFlags, SetAttr, Stat, StatFs, Timespec, make_device,
        new_device,
    },
    sched,
    sync::SpinLock,
};

const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
/// Pseudo-terminals of one mount.
const MAX: u32 = 1024;
/// Inode number of the first slave; the root is 1 and ptmx 2, as on Linux.
const FIRST_INO: u64 = 3;
/// Group of terminals.
const TTY_GROUP: u32 = 5;

pub struct PtsFs {
    device: u64,
    /// Slaves by number. A node holds the file system in turn, until its master goes.
    nodes: SpinLock<BTreeMap<u32, Arc<Node>>>,
}

impl PtsFs {
    pub fn mount() -> (Arc<dyn FileSystem>, Arc<dyn Inode>) {
        let fs = Arc::new(PtsFs { device: new_device(), nodes: SpinLock::new(BTreeMap::new()) });
        let root = Node::make(&fs, Kind::Root, 0o755, 0, 0);
        (fs, root)
    }

    /// A new pair, with its node.
    fn create(self: &Arc<Self>) -> Result<Arc<Pty>> {
        let creds = sched::current().map(|t| t.creds());
        let owner = creds.map_or(0, |c| c.fsuid);
        let mut nodes = self.nodes.lock();
        let number = (0..MAX).find(|n| !nodes.contains_key(n)).ok_or(ENOSPC)?;
        let pty = Pty::new(self, number);
        nodes.insert(number, Node::make(self, Kind::Slave(pty.clone()), 0o620, owner, TTY_GROUP));
        Ok(pty)
    }

    /// The master is gone, and the name with it.
    pub(super) fn remove(&self, number: u32) {
        let gone = self.nodes.lock().remove(&number);
        drop(gone);
    }
}

impl FileSystem for PtsFs {
    fn name(&self) -> &'static str {
        "devpts"
    }

    fn device(&self) -> u64 {
        self.device
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: DEVPTS_SUPER_MAGIC, block_size: 4096, name_max: 255, ..StatFs::default() })
    }

    fn options(&self) -> alloc::string::String {
        format!(",gid={TTY_GROUP},mode=620,ptmxmode=666")
    }
}

enum Kind {
    Root,
    Ptmx,
    Slave(Arc<Pty>),
}

struct Node {
    fs: Arc<PtsFs>,
    kind: Kind,
    attributes: SpinLock<Attributes>,
}

#[derive(Clone, Copy)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    time: Timespec,
}

impl Node {
    fn make(fs: &Arc<PtsFs>, kind: Kind, mode: u32, uid: u32, gid: u32) -> Arc<Node> {
        let attributes = SpinLock::new(Attributes { mode, uid, gid, time: Timespec::now() });
        Arc::new(Node { fs: fs.clone(), kind, attributes })
    }

    fn ino(&self) -> u64 {
        match &self.kind {
            Kind::Root => 1,
            Kind::Ptmx => 2,
            Kind::Slave(pty) => FIRST_INO + u64::from(pty.number),
        }
    }
}

fn number(name: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(name).ok()?;
    text.parse().ok().filter(|n: &u32| format!("{n}") == text)
}

impl Inode for Node {
    fn file_type(&self) -> FileType {
        match &self.kind {
            Kind::Root => FileType::Directory,
            Kind::Ptmx | Kind::Slave(_) => FileType::CharDevice,
        }
    }

    fn stat(&self) -> Result<Stat> {
        let a = *self.attributes.lock();
        let rdev = match &self.kind {
            Kind::Root => 0,
            Kind::Ptmx => make_device(5, 2),
            Kind::Slave(pty) => pty.rdev(),
        };
        Ok(Stat {
            dev: self.fs.device,
            ino: self.ino(),
            mode: self.file_type() as u32 | a.mode,
            nlink: if matches!(self.kind, Kind::Root) { 2 } else { 1 },
            uid: a.uid,
            gid: a.gid,
            rdev,
            blksize: 1024,
            atime: a.time,
            mtime: a.time,
            ctime: a.time,
            ..Stat::default()
        })
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &*self.fs
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if !matches!(self.kind, Kind::Root) {
            return Err(ENOTDIR);
        }
        if name == b"ptmx" {
            return Ok(Node::make(&self.fs, Kind::Ptmx, 0o666, 0, 0));
        }
        match number(name).and_then(|n| self.fs.nodes.lock().get(&n).cloned()) {
            Some(node) => Ok(node),
            None => Err(ENOENT),
        }
    }

    fn revalidate(&self, name: &[u8], child: Option<&Arc<dyn Inode>>) -> bool {
        let Some(number) = number(name) else { return true };
        let now = self.fs.nodes.lock().get(&number).cloned();
        match (child, now) {
            (Some(child), Some(now)) => child.downcast::<Node>().is_some_and(|c| core::ptr::eq(c, &*now)),
            (None, None) => true,
            _ => false,
        }
    }

    fn set_attr(&self, attr: &SetAttr) -> Result<()> {
        if attr.size.is_some() {
            return Err(EPERM);
        }
        let mut a = self.attributes.lock();
        a.mode = attr.mode.unwrap_or(a.mode) & 0o7777;
        a.uid = attr.uid.unwrap_or(a.uid);
        a.gid = attr.gid.unwrap_or(a.gid);
        a.time = attr.mtime.unwrap_or(a.time);
        Ok(())
    }

    fn open(self: Arc<Self>, _flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing(self.fs.clone())))
    }

    fn open_special(self: Arc<Self>, flags: OpenFlags) -> Option<Result<Arc<dyn FileOps>>> {
        match &self.kind {
            Kind::Root => None,
            Kind::Ptmx => Some(self.fs.create().map(|pty| pty.open_master())),
            Kind::Slave(pty) => Some(pty.open_slave(flags)),
        }
    }
}

struct Listing(Arc<PtsFs>);

impl FileOps for Listing {
    fn seekable(&self) -> bool {
        true
    }

    fn readdir(&self, _file: &File, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let file_type = FileType::CharDevice;
        if cookie <= 2 && !emit(DirEntry { name: b"ptmx", ino: 2, file_type, next: 3 }) {
            return Ok(());
        }
        // Slave n has the cookie n + 4 behind it.
        let numbers: Vec<u32> =
            self.0.nodes.lock().keys().copied().filter(|n| u64::from(*n) + 4 > cookie.max(3)).collect();
        for n in numbers {
            let name = format!("{n}");
            let next = u64::from(n) + 4;
            if !emit(DirEntry { name: name.as_bytes(), ino: FIRST_INO + u64::from(n), file_type, next }) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> Result<()> {
        Ok(())
    }
}
