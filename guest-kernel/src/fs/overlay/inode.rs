//! Nodes and the file system as the VFS sees them.

use alloc::{sync::Arc, vec::Vec};

use super::{
    file::OverlayFile,
    node::{Node, OverlayFs},
};
use crate::{
    errno::{EINVAL, EISDIR, ENODATA, EXDEV, Result},
    fs::{
        FileOps, FileSystem, FileType, Inode, NewAttr, NewNode, OpenFlags, RenameFlags, SetAttr, Stat, StatFs,
        xattr::Xattrs,
    },
};

/// OVERLAYFS_SUPER_MAGIC.
const MAGIC: u64 = 0x794c_7630;

fn node(inode: &Arc<dyn Inode>) -> Result<Arc<Node>> {
    inode.downcast::<Node>().ok_or(EXDEV)?.strong()
}

impl Inode for Node {
    fn file_type(&self) -> FileType {
        self.kind
    }

    fn stat(&self) -> Result<Stat> {
        self.attributes()
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &*self.fs
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        Ok(self.find(name)?)
    }

    fn prefetch(&self, name: &[u8], rest: &[u8]) {
        if let Some(lower) = &self.lower {
            lower.prefetch(name, rest);
        }
    }

    fn create(&self, name: &[u8], what: NewNode<'_>, attr: NewAttr) -> Result<Arc<dyn Inode>> {
        Ok(self.make(name, what, attr)?)
    }

    fn tmpfile(&self, attr: NewAttr) -> Result<Arc<dyn Inode>> {
        Ok(self.fs.new_node(FileType::Regular, attr, 0, b"", b""))
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        self.add_link(name, &node(target)?)
    }

    fn unlink(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        self.remove_link(name, &node(child)?)
    }

    fn rmdir(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        self.remove_dir(name, &node(child)?)
    }

    fn rename(&self, name: &[u8], new_dir: &Arc<dyn Inode>, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        self.move_to(name, &*node(new_dir)?, new_name, flags)
    }

    fn readlink(&self) -> Result<Vec<u8>> {
        self.link_text()
    }

    fn set_attr(&self, attr: &SetAttr) -> Result<()> {
        if let Some(size) = attr.size {
            match self.kind {
                FileType::Regular => {}
                FileType::Directory => return Err(EISDIR),
                _ => return Err(EINVAL),
            }
            let _changing = self.changing.lock();
            let content = self.own_content_locked(size)?;
            content.truncate(size);
            self.modified();
        }
        self.change(|stat| {
            if let Some(mode) = attr.mode {
                stat.mode = (stat.mode & !0o7777) | (mode & 0o7777);
            }
            stat.uid = attr.uid.unwrap_or(stat.uid);
            stat.gid = attr.gid.unwrap_or(stat.gid);
            stat.atime = attr.atime.unwrap_or(stat.atime);
            stat.mtime = attr.mtime.unwrap_or(stat.mtime);
        })
    }

    fn open(self: Arc<Self>, flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        if let Some(lower) = &self.lower
            && self.content().is_none()
            && flags.readable()
        {
            lower.check_open(false)?;
        }
        Ok(Arc::new(OverlayFile::new(self)))
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        if let Some(own) = &*self.xattrs.lock() {
            return own.get(name);
        }
        self.lower.as_ref().map_or(Err(ENODATA), |lower| lower.get_xattr(name))
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        self.own_xattrs(|own| own.set(self.kind, name, value, flags))
    }

    fn list_xattr(&self) -> Result<Vec<u8>> {
        if let Some(own) = &*self.xattrs.lock() {
            return Ok(own.list());
        }
        self.lower.as_ref().map_or(Ok(Vec::new()), |lower| lower.list_xattr())
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.own_xattrs(|own| own.remove(name))
    }
}

impl Node {
    /// Changes the attributes of the overlay's own; copied up from below first.
    fn own_xattrs(&self, change: impl FnOnce(&mut Xattrs) -> Result<()>) -> Result<()> {
        let _changing = self.changing.lock();
        if self.xattrs.lock().is_none() {
            let mut own = Xattrs::default();
            if let Some(lower) = &self.lower {
                // A file system below without them has none to copy.
                let names = lower.list_xattr().unwrap_or_default();
                for name in names.split(|&b| b == 0).filter(|n| !n.is_empty()) {
                    own.adopt(name, lower.get_xattr(name)?);
                }
            }
            *self.xattrs.lock() = Some(own);
        }
        let result = match &mut *self.xattrs.lock() {
            Some(own) => change(own),
            None => Ok(()),
        };
        result?;
        self.change(|_| {})
    }
}

impl FileSystem for OverlayFs {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn device(&self) -> u64 {
        self.device
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: MAGIC, ..self.lower.filesystem().statfs()? })
    }

    fn has_xattrs(&self) -> bool {
        true
    }
}
