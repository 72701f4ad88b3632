//! Nodes as the VFS sees them.

use alloc::{sync::Arc, vec::Vec};

use sentry_abi::fuse::{self, Opcode, fattr};
use zerocopy::IntoBytes;

use super::{
    client::{Data, Owner},
    dir::Listing,
    node::{GoferFs, Node},
};
use crate::{
    errno::{EINVAL, ENODEV, ENOTSUP, EPERM, EXDEV, Result},
    fs::{
        DirEntry, File, FileOps, FileSystem, FileType, Inode, NewAttr, NewNode, OpenFlags, RenameFlags, SetAttr, Stat,
        StatFs, Timespec, new_device, overlay::OverlayFs,
    },
    mm::{
        Pager,
        dma::DmaBuffer,
        io::{IoDst, IoSrc},
    },
    sync::Mutex,
};

/// Largest extended attribute or list of them.
const XATTR_MAX: usize = 64 << 10;
/// FUSE_SUPER_MAGIC.
const MAGIC: u64 = 0x6573_5546;

fn owner(attr: &NewAttr) -> Owner {
    Owner { uid: attr.uid, gid: attr.gid }
}

fn node(inode: &Arc<dyn Inode>) -> Result<&Node> {
    inode.downcast::<Node>().ok_or(EXDEV)
}

impl Node {
    fn stat_of(&self, attr: &fuse::Attr) -> Stat {
        let time = |sec: u64, nsec: u32| Timespec { sec: sec as i64, nsec };
        Stat {
            dev: self.fs.device(),
            ino: attr.ino,
            mode: attr.mode,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev.into(),
            size: attr.size,
            blocks: attr.blocks,
            blksize: attr.blksize,
            atime: time(attr.atime, attr.atimensec),
            mtime: time(attr.mtime, attr.mtimensec),
            ctime: time(attr.ctime, attr.ctimensec),
        }
    }

    fn xattr_call(&self, opcode: Opcode, name: &[u8]) -> Result<Vec<u8>> {
        let data = DmaBuffer::new(XATTR_MAX)?;
        let arg = fuse::GetXattrIn { size: XATTR_MAX as u32, padding: 0 };
        let place = Data::In(&data, XATTR_MAX);
        let args: &[&[u8]] =
            if opcode == Opcode::ListXattr { &[arg.as_bytes()] } else { &[arg.as_bytes(), name, b"\0"] };
        let len = self.fs.client.call_with(opcode, self.id, Owner::default(), args, 0, place)?.len();
        let mut value = alloc::vec![0; len];
        data.read(0, &mut value);
        Ok(value)
    }
}

impl Inode for Node {
    fn file_type(&self) -> FileType {
        FileType::from_mode(self.kind()).unwrap_or_default()
    }

    fn stat(&self) -> Result<Stat> {
        Ok(self.stat_of(&self.attr()?))
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &*self.fs
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        Ok(self.lookup_name(name)?)
    }

    fn prefetch(&self, name: &[u8], rest: &[u8]) {
        let names = core::iter::once(name).chain(rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty()));
        let names: smallvec::SmallVec<[&[u8]; 8]> = names.take(fuse::MAX_WALK).collect();
        self.prefetch_names(&names);
    }

    fn revalidate(&self, name: &[u8], child: Option<&Arc<dyn Inode>>) -> bool {
        if self.fs.exclusive {
            return true;
        }
        match child {
            Some(child) => child.downcast::<Node>().is_some_and(|child| self.still(name, Some(child.id()))),
            None => self.still(name, None),
        }
    }

    fn create(&self, name: &[u8], kind: NewNode<'_>, attr: NewAttr) -> Result<Arc<dyn Inode>> {
        let (mode, owner) = (attr.mode & 0o7777, owner(&attr));
        Ok(match kind {
            NewNode::Regular => self.make_file(name, mode, owner)?,
            NewNode::Directory => self.make_dir(name, mode, owner)?,
            NewNode::Symlink(target) => self.make_symlink(name, target, owner)?,
            NewNode::Fifo => self.make_node(name, mode | FileType::Fifo as u32, owner)?,
            NewNode::Socket => self.make_node(name, mode | FileType::Socket as u32, owner)?,
            // A device node on the host could be opened by others there.
            NewNode::Device { .. } => return Err(EPERM),
        })
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        self.make_link(name, node(target)?)
    }

    fn unlink(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        self.remove(name, node(child)?, false)
    }

    fn rmdir(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        self.remove(name, node(child)?, true)
    }

    fn rename(&self, name: &[u8], new_dir: &Arc<dyn Inode>, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(EINVAL);
        }
        self.move_name(name, node(new_dir)?, new_name, flags.bits())
    }

    fn readlink(&self) -> Result<Vec<u8>> {
        if self.file_type() != FileType::Symlink {
            return Err(EINVAL);
        }
        self.link_target()
    }

    fn set_attr(&self, attr: &SetAttr) -> Result<()> {
        let mut change = fuse::SetAttrIn::default();
        let mut set = |bit: u32| change.valid |= bit;
        if attr.mode.is_some() {
            set(fattr::MODE);
        }
        if attr.uid.is_some() {
            set(fattr::UID);
        }
        if attr.gid.is_some() {
            set(fattr::GID);
        }
        if attr.size.is_some() {
            set(fattr::SIZE);
        }
        if attr.atime.is_some() {
            set(fattr::ATIME);
        }
        if attr.mtime.is_some() {
            set(fattr::MTIME);
        }
        change.mode = attr.mode.unwrap_or(0);
        change.uid = attr.uid.unwrap_or(0);
        change.gid = attr.gid.unwrap_or(0);
        change.size = attr.size.unwrap_or(0);
        let (atime, mtime) = (attr.atime.unwrap_or_default(), attr.mtime.unwrap_or_default());
        (change.atime, change.atimensec) = (atime.sec as u64, atime.nsec);
        (change.mtime, change.mtimensec) = (mtime.sec as u64, mtime.nsec);
        if change.valid == 0 { Ok(()) } else { Node::set_attr(self, change) }
    }

    fn open(self: Arc<Self>, flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        self.opened();
        let file = Arc::new(GoferFile { node: self, listing: Mutex::new(None) });
        file.node.check_open(flags.writable())?;
        Ok(file)
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.xattr_call(Opcode::GetXattr, name)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        // One request buffer holds it all; the host's file systems take little more.
        if value.len() > 4096 {
            return Err(ENOTSUP);
        }
        let arg = fuse::SetXattrIn { size: value.len() as u32, flags, ..Default::default() };
        self.call(Opcode::SetXattr, Owner::default(), &[arg.as_bytes(), name, b"\0", value]).map(drop)?;
        self.touched();
        Ok(())
    }

    fn list_xattr(&self) -> Result<Vec<u8>> {
        self.xattr_call(Opcode::ListXattr, b"")
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.call(Opcode::RemoveXattr, Owner::default(), &[name, b"\0"]).map(drop)?;
        self.touched();
        Ok(())
    }
}

impl FileSystem for GoferFs {
    fn name(&self) -> &'static str {
        "gofer"
    }

    fn device(&self) -> u64 {
        GoferFs::device(self)
    }

    fn statfs(&self) -> Result<StatFs> {
        let out: fuse::StatFsOut = self.client.call(Opcode::StatFs, self.root, Owner::default(), &[])?.object()?;
        Ok(StatFs {
            magic: MAGIC,
            block_size: out.bsize.into(),
            blocks: out.blocks,
            free: out.bfree,
            available: out.bavail,
            files: out.files,
            files_free: out.ffree,
            name_max: out.namelen.into(),
        })
    }

    fn has_xattrs(&self) -> bool {
        true
    }
}

/// An open file or directory.
struct GoferFile {
    node: Arc<Node>,
    /// What the directory held when reading it began: entries keep their places until it is rewound.
    listing: Mutex<Option<Arc<Listing>>>,
}

/// Where a listing begins (0 and 1 are "." and "..").
const FIRST: u64 = 2;

impl FileOps for GoferFile {
    fn read(&self, _file: &File, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        self.node.read_at(dst, offset)
    }

    fn write(&self, _file: &File, src: &mut IoSrc<'_>, offset: u64) -> Result<usize> {
        Ok(self.node.write_at(src, offset, false)?.0)
    }

    fn append(&self, _file: &File, src: &mut IoSrc<'_>) -> Result<(usize, u64)> {
        self.node.write_at(src, 0, true)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek_data(&self, _file: &File, offset: u64, data: bool) -> Result<Option<u64>> {
        self.node.seek_data(offset, data)
    }

    fn readdir(&self, _file: &File, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let listing = {
            let mut known = self.listing.lock();
            match &*known {
                Some(listing) if cookie > FIRST => listing.clone(),
                _ => {
                    let listing = self.node.list()?;
                    *known = Some(listing.clone());
                    listing
                }
            }
        };
        let start = usize::try_from(cookie.saturating_sub(FIRST)).unwrap_or(usize::MAX);
        for (at, entry) in listing.entries.iter().enumerate().skip(start) {
            let taken = emit(DirEntry {
                name: &entry.name,
                ino: entry.ino,
                file_type: FileType::from_mode(entry.kind).unwrap_or_default(),
                next: FIRST + at as u64 + 1,
            });
            if !taken {
                break;
            }
        }
        Ok(())
    }

    fn mmap(&self, _file: &File) -> Result<Arc<dyn Pager>> {
        Ok(self.node.clone())
    }

    fn fsync(&self, _file: &File, data_only: bool) -> Result<()> {
        self.node.fsync(data_only)
    }

    fn fallocate(&self, _file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.node.fallocate(mode, offset, len)
    }
}

impl Drop for GoferFile {
    fn drop(&mut self) {
        self.node.closed();
    }
}

/// The connection to the sandbox's gofer.
static CLIENT: Mutex<Option<Arc<super::Client>>> = Mutex::new(None);

/// Mounts root `index` of the sandbox's gofer, `overlay` keeping writes in memory; the file system and its root, a directory
/// or a file. ENODEV in a sandbox without a gofer.
pub fn mount(index: u32, exclusive: bool, overlay: bool) -> Result<(Arc<dyn FileSystem>, Arc<dyn Inode>)> {
    let client = {
        let mut known = CLIENT.lock();
        match &*known {
            Some(client) => client.clone(),
            None => {
                let client = super::Client::new(crate::drivers::gofer().ok_or(ENODEV)?.clone());
                client.init()?;
                known.insert(client).clone()
            }
        }
    };
    let (fs, root) = GoferFs::mount(client, index, exclusive, new_device())?;
    if overlay {
        let (fs, root) = OverlayFs::mount(root)?;
        return Ok((fs, root));
    }
    Ok((fs, root))
}
