//! Nodes: the files of a mount as they are known here.

use alloc::{
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use hashbrown::HashMap;
use sentry_abi::fuse::{self, Opcode, fattr};
use zerocopy::IntoBytes;

use super::{
    attr::Cached,
    client::{Client, Owner},
    dir::{Listing, Prefetched},
    file::Handle,
    window::{Segment, Segments},
};
use crate::{
    errno::{EIO, Result},
    mm::MappingList,
    sync::{Mutex, Once, SpinLock},
    time,
};

/// How long the attributes that a look-up on a shared mount brought are good for the call it was made for, ns.
const LOOKUP_LIFE: u64 = 100_000;

/// One of the gofer's roots, mounted.
pub struct GoferFs {
    pub(super) client: Arc<Client>,
    /// Nobody else changes the files: what is known stays true.
    pub(super) exclusive: bool,
    device: u64,
    /// Id of the root node.
    pub(super) root: u64,
    nodes: SpinLock<HashMap<u64, Weak<Node>>>,
    pub(super) prefetched: SpinLock<Vec<Prefetched>>,
}

pub struct Node {
    pub(super) fs: Arc<GoferFs>,
    pub(super) id: u64,
    this: Weak<Node>,
    /// Type bits of the mode: they never change.
    kind: u32,
    /// Look-ups the gofer has counted for us.
    nlookup: AtomicU64,
    cached: SpinLock<Cached>,
    /// Shared mounts: when a look-up brought the attributes (CLOCK_MONOTONIC, ns), until they are used.
    looked_up: AtomicU64,
    /// The gofer's open file, shared by all open files here. Held over requests, never over a copy to or from user memory.
    pub(super) handle: Mutex<Handle>,
    /// Open files here.
    pub(super) opens: AtomicU32,
    /// Reads so far, up to the point where it matters.
    pub(super) reads: AtomicU32,
    /// Writes over what was there, up to the point where it matters.
    pub(super) overwrites: AtomicU32,
    /// Content was changed through the window since the host was last told.
    pub(super) written_in_place: AtomicBool,
    pub(super) segments: Segments,
    /// Segments that were replaced while something mapped them.
    pub(super) retired: SpinLock<Vec<Arc<Segment>>>,
    pub(super) mapped: MappingList,
    /// Path of the last mapping, for /proc.
    pub(super) mapped_as: SpinLock<(u64, u64, String)>,
    pub(super) listing: SpinLock<Option<Arc<Listing>>>,
    /// A symbolic link's text: it never changes.
    pub(super) target: Once<Vec<u8>>,
}

impl GoferFs {
    /// Mounts root `index` of the gofer; its file system and root node. `device` is st_dev of its files.
    pub fn mount(client: Arc<Client>, index: u32, exclusive: bool, device: u64) -> Result<(Arc<GoferFs>, Arc<Node>)> {
        let id = fuse::ROOT + u64::from(index);
        let fs = Arc::new(GoferFs {
            client,
            exclusive,
            device,
            root: id,
            nodes: SpinLock::new(HashMap::new()),
            prefetched: SpinLock::default(),
        });
        let arg = fuse::GetAttrIn::default();
        let out: fuse::AttrOut = fs.client.call(Opcode::GetAttr, id, Owner::default(), &[arg.as_bytes()])?.object()?;
        let root = fs.node(&fuse::EntryOut { nodeid: id, attr: out.attr, ..Default::default() })?;
        Ok((fs, root))
    }

    pub fn device(&self) -> u64 {
        self.device
    }

    /// The node's attributes have changed, if there is one with this id.
    pub(super) fn touch(&self, id: u64) {
        let node = self.nodes.lock().get(&id).and_then(Weak::upgrade);
        if let Some(node) = node {
            node.touched();
        }
    }

    /// The node of an entry the gofer has answered with, which counts as a look-up.
    pub(super) fn node(self: &Arc<Self>, entry: &fuse::EntryOut) -> Result<Arc<Node>> {
        if entry.nodeid == 0 {
            return Err(EIO);
        }
        let kind = entry.attr.mode & 0o170000;
        let mut nodes = self.nodes.lock();
        let known = nodes.get(&entry.nodeid).and_then(Weak::upgrade);
        if let Some(node) = &known
            && node.kind == kind
        {
            drop(nodes);
            node.nlookup.fetch_add(1, Relaxed);
            if !self.exclusive {
                node.cached.lock().set(entry.attr);
                node.looked_up.store(time::monotonic(), Relaxed);
            }
            return Ok(node.clone());
        }
        let node = Arc::new_cyclic(|this| Node {
            fs: self.clone(),
            id: entry.nodeid,
            this: this.clone(),
            kind,
            nlookup: AtomicU64::new(1),
            cached: SpinLock::new(Cached::new(entry.attr)),
            looked_up: AtomicU64::new(time::monotonic()),
            handle: Mutex::new(Handle::default()),
            opens: AtomicU32::new(0),
            reads: AtomicU32::new(0),
            overwrites: AtomicU32::new(0),
            written_in_place: AtomicBool::new(false),
            segments: Segments::default(),
            retired: SpinLock::default(),
            mapped: MappingList::new(),
            mapped_as: SpinLock::default(),
            listing: SpinLock::default(),
            target: Once::new(),
        });
        nodes.insert(entry.nodeid, Arc::downgrade(&node));
        // A node that goes takes the lock itself.
        drop(nodes);
        drop(known);
        Ok(node)
    }
}

impl Node {
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Type bits of the mode.
    pub fn kind(&self) -> u32 {
        self.kind
    }

    pub(super) fn strong(&self) -> Result<Arc<Node>> {
        self.this.upgrade().ok_or(EIO)
    }

    pub(super) fn call<'a>(&'a self, opcode: Opcode, owner: Owner, args: &[&[u8]]) -> Result<super::client::Reply<'a>> {
        self.fs.client.call(opcode, self.id, owner, args)
    }

    /// Something here has changed what the host's attributes are.
    pub(super) fn touched(&self) {
        self.cached.lock().touched();
    }

    pub(super) fn written(&self, end: u64) {
        self.cached.lock().written(end);
    }

    /// Attributes: from memory on an exclusive mount, unless something here has changed the file.
    pub fn attr(&self) -> Result<fuse::Attr> {
        let cached = *self.cached.lock();
        if !cached.stale && (self.fs.exclusive || self.just_looked_up()) { Ok(cached.attr) } else { self.refresh() }
    }

    /// Whether the attributes came with the look-up of the path that they are now asked for. Good once.
    fn just_looked_up(&self) -> bool {
        let at = self.looked_up.swap(0, Relaxed);
        at != 0 && time::monotonic().wrapping_sub(at) < LOOKUP_LIFE
    }

    /// Asks the gofer. Pages of a file that has become shorter are taken from who maps them: not for a page fault.
    pub(super) fn refresh(&self) -> Result<fuse::Attr> {
        let before = self.size();
        let attr = self.ask()?;
        if attr.size < before {
            self.forget_pages_from(attr.size);
        }
        Ok(attr)
    }

    /// Asks the gofer for the attributes.
    pub(super) fn ask(&self) -> Result<fuse::Attr> {
        let before = *self.cached.lock();
        let fh = self.handle.try_lock().map_or(0, |handle| handle.fh);
        let reply = match self.time_of_writes() {
            Some(change) => self.call(Opcode::SetAttr, Owner::default(), &[change.as_bytes()])?,
            None => {
                let arg = fuse::GetAttrIn { fh, ..Default::default() };
                self.call(Opcode::GetAttr, Owner::default(), &[arg.as_bytes()])?
            }
        };
        let out: fuse::AttrOut = reply.object()?;
        if out.attr.mode & 0o170000 != self.kind {
            return Err(EIO);
        }
        self.cached.lock().answered(out.attr, before.version());
        Ok(out.attr)
    }

    /// The host has not noticed every write through the window: what tells it when the last one was, if there was any.
    pub(super) fn time_of_writes(&self) -> Option<fuse::SetAttrIn> {
        if !self.written_in_place.swap(false, SeqCst) {
            return None;
        }
        let attr = self.cached.lock().attr;
        let (mtime, mtimensec) = (attr.mtime, attr.mtimensec);
        Some(fuse::SetAttrIn { valid: fattr::MTIME, mtime, mtimensec, ..Default::default() })
    }

    /// Size as last known.
    pub fn size(&self) -> u64 {
        self.cached.lock().attr.size
    }

    /// Changes attributes; `valid` and the values are FUSE's.
    pub fn set_attr(&self, mut change: fuse::SetAttrIn) -> Result<()> {
        if change.valid & fattr::SIZE != 0 {
            let handle = self.handle.lock();
            if handle.fh != 0 && handle.writable {
                change.valid |= fattr::FH;
                change.fh = handle.fh;
            }
        }
        let old = self.size();
        let out: fuse::AttrOut = self.call(Opcode::SetAttr, Owner::default(), &[change.as_bytes()])?.object()?;
        self.cached.lock().set(out.attr);
        if change.valid & fattr::SIZE != 0 && out.attr.size < old {
            self.forget_pages_from(out.attr.size);
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        {
            // Another node may have taken the place while this one was going.
            let mut nodes = self.fs.nodes.lock();
            if nodes.get(&self.id).is_some_and(|weak| weak.strong_count() == 0) {
                nodes.remove(&self.id);
            }
        }
        self.close_handle();
        self.fs.client.forget(self.id, self.nlookup.load(SeqCst));
    }
}
