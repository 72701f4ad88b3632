//! Nodes: what a file of the overlay is made of.

use alloc::{
    boxed::Box,
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicI32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use hashbrown::HashMap;

use super::dir::Names;
use crate::{
    errno::{EIO, ENOTDIR, Result},
    fs::{FileType, Inode, NewAttr, Stat, Timespec, gofer, new_device, xattr::Xattrs},
    mm::SharedPages,
    sync::{Mutex, SpinLock},
};

/// Inode numbers of nodes that are not below, out of the way of the host's.
const FIRST_INO: u64 = 1 << 56;

pub struct OverlayFs {
    pub(super) device: u64,
    next_ino: AtomicU64,
    /// Nodes by the node below them, so that two names of a file stay one file.
    by_lower: SpinLock<HashMap<u64, Weak<Node>>>,
    /// Nodes that have lost a name and have others below: what is known of them here must not be forgotten.
    unnamed: SpinLock<HashMap<u64, Arc<Node>>>,
    pub(super) lower: Arc<dyn Inode>,
}

/// A directory and a name in it.
type Place = (Arc<Node>, Box<[u8]>);

pub struct Node {
    pub(super) fs: Arc<OverlayFs>,
    pub(super) this: Weak<Node>,
    pub(super) kind: FileType,
    pub(super) ino: u64,
    /// What lies below: content and attributes, as far as there are none here.
    pub(super) lower: Option<Arc<gofer::Node>>,
    /// Attributes, once they differ. `size` and `blocks` are those of `content` once there is one.
    attr: SpinLock<Option<Stat>>,
    /// A regular file's content, once it differs.
    content: SpinLock<Option<Arc<SharedPages>>>,
    /// Held while content is copied up and over appends and changes of size. No page fault takes it.
    pub(super) changing: Mutex<()>,
    /// Extended attributes, once they differ.
    pub(super) xattrs: SpinLock<Option<Xattrs>>,
    /// Names made here minus names removed.
    links: AtomicI32,
    /// Where it can be found, to keep it there once it differs.
    place: SpinLock<Option<Place>>,
    pub(super) names: SpinLock<Names>,
    pub(super) target: Vec<u8>,
}

impl OverlayFs {
    /// An overlay over `lower`, a directory of the gofer; its root.
    pub fn mount(lower: Arc<gofer::Node>) -> Result<(Arc<OverlayFs>, Arc<Node>)> {
        if lower.file_type() != FileType::Directory {
            return Err(ENOTDIR);
        }
        let fs = Arc::new(OverlayFs {
            device: new_device(),
            next_ino: AtomicU64::new(FIRST_INO),
            by_lower: SpinLock::new(HashMap::new()),
            unnamed: SpinLock::new(HashMap::new()),
            lower: lower.clone(),
        });
        let root = fs.over(lower)?;
        Ok((fs, root))
    }

    fn make(self: &Arc<Self>, kind: FileType, ino: u64, attr: Option<Stat>, lower: Option<Arc<gofer::Node>>) -> Node {
        Node {
            fs: self.clone(),
            this: Weak::new(),
            kind,
            ino,
            lower,
            attr: SpinLock::new(attr),
            content: SpinLock::new(None),
            changing: Mutex::new(()),
            links: AtomicI32::new(0),
            xattrs: SpinLock::new(None),
            place: SpinLock::new(None),
            names: SpinLock::default(),
            target: Vec::new(),
        }
    }

    /// The node over `lower`.
    pub(super) fn over(self: &Arc<Self>, lower: Arc<gofer::Node>) -> Result<Arc<Node>> {
        let ino = lower.stat()?.ino;
        let mut nodes = self.by_lower.lock();
        let known = nodes.get(&lower.id()).and_then(Weak::upgrade);
        if let Some(node) = known {
            return Ok(node);
        }
        let id = lower.id();
        let mut node = self.make(lower.file_type(), ino, None, Some(lower));
        let node = Arc::new_cyclic(|this| {
            node.this = this.clone();
            node
        });
        nodes.insert(id, Arc::downgrade(&node));
        Ok(node)
    }

    /// A node with nothing below it. Symbolic links have a target.
    pub(super) fn new_node(
        self: &Arc<Self>,
        kind: FileType,
        attr: NewAttr,
        rdev: u64,
        target: &[u8],
        name: &[u8],
    ) -> Arc<Node> {
        let ino = self.next_ino.fetch_add(1, Relaxed);
        let now = Timespec::now();
        let stat = Stat {
            dev: self.device,
            ino,
            mode: kind as u32 | (attr.mode & 0o7777),
            nlink: if kind == FileType::Directory { 2 } else { 0 },
            uid: attr.uid,
            gid: attr.gid,
            rdev,
            size: target.len() as u64,
            blksize: 4096,
            atime: now,
            mtime: now,
            ctime: now,
            ..Stat::default()
        };
        let mut node = self.make(kind, ino, Some(stat), None);
        node.target = target.to_vec();
        if kind == FileType::Regular {
            let name = String::from_utf8_lossy(name).into_owned();
            node.content = SpinLock::new(Some(Arc::new(SharedPages::new(self.device, ino, name, 0))));
        }
        Arc::new_cyclic(|this| {
            node.this = this.clone();
            node
        })
    }
}

impl Node {
    pub(super) fn strong(&self) -> Result<Arc<Node>> {
        self.this.upgrade().ok_or(EIO)
    }

    pub(super) fn content(&self) -> Option<Arc<SharedPages>> {
        self.content.lock().clone()
    }

    pub(super) fn attributes(&self) -> Result<Stat> {
        let own = *self.attr.lock();
        let mut stat = match (own, &self.lower) {
            (Some(stat), _) => stat,
            (None, Some(lower)) => lower.stat()?,
            (None, None) => return Err(EIO),
        };
        stat.dev = self.fs.device;
        stat.ino = self.ino;
        if self.kind != FileType::Directory {
            stat.nlink = stat.nlink.saturating_add_signed(self.links.load(Relaxed));
        }
        if let Some(content) = self.content() {
            stat.size = content.size();
            stat.blocks = content.resident() * 8;
        }
        Ok(stat)
    }

    /// Changes attributes, which are the node's own from then on.
    pub(super) fn change(&self, change: impl FnOnce(&mut Stat)) -> Result<()> {
        let below = match (&self.lower, self.attr.lock().is_none()) {
            (Some(lower), true) => Some(lower.stat()?),
            _ => None,
        };
        {
            let mut attr = self.attr.lock();
            let stat = attr.get_or_insert_with(|| below.unwrap_or_default());
            change(stat);
            stat.ctime = Timespec::now();
        }
        self.keep();
        Ok(())
    }

    /// The content has changed.
    pub(super) fn modified(&self) {
        // Fails only where the gofer does, and then the times stay what they are.
        let _ = self.change(|stat| stat.mtime = Timespec::now());
    }

    /// One name more or less.
    pub(super) fn linked(&self, by: i32) {
        self.links.fetch_add(by, SeqCst);
    }

    /// A name is gone. While other names lead here from below, the node stays known.
    pub(super) fn lost_name(&self) {
        self.clear_place();
        let Some(lower) = &self.lower else { return };
        let remain = self.attributes().map_or(0, |stat| stat.nlink);
        let old = match (remain, self.this.upgrade()) {
            (1.., Some(node)) => self.fs.unnamed.lock().insert(lower.id(), node),
            _ => self.fs.unnamed.lock().remove(&lower.id()),
        };
        drop(old);
    }

    pub(super) fn set_place(&self, parent: &Arc<Node>, name: &[u8]) {
        let old = self.place.lock().replace((parent.clone(), name.into()));
        drop(old);
    }

    pub(super) fn clear_place(&self) {
        let old = self.place.lock().take();
        drop(old);
    }

    /// The node differs from what is below: its directory must not forget it, nor must those above.
    pub(super) fn keep(&self) {
        let mut node = self.this.upgrade();
        while let Some(at) = node {
            let place = at.place.lock().clone();
            let Some((parent, name)) = place else { return };
            if !parent.keep_child(&name, &at) {
                return;
            }
            node = Some(parent);
        }
    }

    /// The regular file's own content; copied up from below, at most `limit` bytes, if there is none yet.
    pub(super) fn own_content(&self, limit: u64) -> Result<Arc<SharedPages>> {
        if let Some(content) = self.content() {
            return Ok(content);
        }
        let _changing = self.changing.lock();
        self.own_content_locked(limit)
    }

    /// As [`Node::own_content`] for who holds `changing`.
    pub(super) fn own_content_locked(&self, limit: u64) -> Result<Arc<SharedPages>> {
        if let Some(content) = self.content() {
            return Ok(content);
        }
        let lower = self.lower.as_ref().ok_or(EIO)?;
        let content = Arc::new(SharedPages::new(self.fs.device, self.ino, String::new(), 0));
        super::file::copy_up(lower, &content, limit)?;
        *self.content.lock() = Some(content.clone());
        self.change(|_| {})?;
        Ok(content)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(lower) = &self.lower else { return };
        let mut nodes = self.fs.by_lower.lock();
        if nodes.get(&lower.id()).is_some_and(|weak| weak.strong_count() == 0) {
            nodes.remove(&lower.id());
        }
    }
}
