//! Directories: look-ups, listings, and changes of names.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use hashbrown::HashMap;
use sentry_abi::fuse::{self, Opcode};
use zerocopy::IntoBytes;

use super::{
    client::{Data, Owner, Reply},
    file::Handle,
    node::Node,
};
use crate::{
    errno::{EIO, ENOENT, ENOTDIR, Result},
    mm::dma::DmaBuffer,
    time,
};

/// Bytes of one piece of a listing.
const PIECE: usize = 64 << 10;
/// Entries of a listing that keep their nodes: a larger directory is only names.
const MAX_NODES: usize = 4096;
/// Entries a listing may have at all.
const MAX_ENTRIES: usize = 1 << 20;
/// How long a prefetched result of a shared mount is good, ns: the walk it was asked for is under way.
const PREFETCH_LIFE: u64 = 1_000_000;
/// Prefetched results kept.
const MAX_PREFETCHED: usize = 2 * fuse::MAX_WALK;

/// What a directory held at one moment, without "." and "..".
pub struct Listing {
    pub entries: Vec<Entry>,
    by_name: HashMap<Box<[u8]>, u32>,
}

pub struct Entry {
    pub name: Box<[u8]>,
    pub ino: u64,
    /// Type bits of a mode.
    pub kind: u32,
    pub node: Option<Arc<Node>>,
}

/// A look-up that came along with another one.
pub(super) struct Prefetched {
    parent: u64,
    name: Box<[u8]>,
    node: Result<Arc<Node>>,
    /// On a shared mount it counts only until then (CLOCK_MONOTONIC, ns).
    until: u64,
}

fn entry_at(reply: &Reply<'_>, at: usize) -> Result<fuse::EntryOut> {
    reply.object_at(at)
}

impl Node {
    fn check_dir(&self) -> Result<()> {
        if self.kind() == 0o040000 { Ok(()) } else { Err(ENOTDIR) }
    }

    /// The node called `name`.
    pub fn lookup_name(&self, name: &[u8]) -> Result<Arc<Node>> {
        self.check_dir()?;
        if let Some(result) = self.take_prefetched(name) {
            return result;
        }
        if self.fs.exclusive {
            let listing = self.listing.lock().clone();
            if let Some(listing) = listing {
                match listing.by_name.get(name) {
                    None => return Err(ENOENT),
                    Some(&at) => {
                        if let Some(node) = &listing.entries[at as usize].node {
                            return Ok(node.clone());
                        }
                    }
                }
            }
        }
        let entry = entry_at(&self.call(Opcode::Lookup, Owner::default(), &[name, b"\0"])?, 0)?;
        self.fs.node(&entry)
    }

    fn take_prefetched(&self, name: &[u8]) -> Option<Result<Arc<Node>>> {
        let mut prefetched = self.fs.prefetched.lock();
        let at = prefetched.iter().position(|p| p.parent == self.id && *p.name == *name)?;
        let found = prefetched.swap_remove(at);
        drop(prefetched);
        (self.fs.exclusive || time::monotonic() <= found.until).then_some(found.node)
    }

    /// The names are about to be looked up, each in what the one before leads to: asks for all of them at once.
    pub fn prefetch_names(&self, names: &[&[u8]]) {
        if names.len() < 2 || self.kind() != 0o040000 {
            return;
        }
        let mut packed = Vec::new();
        let mut count = 0;
        for name in names.iter().take(fuse::MAX_WALK) {
            // Dots and names that are too long are for the one who looks them up.
            if name.is_empty() || name.len() > fuse::MAX_NAME || matches!(*name, b"." | b"..") {
                break;
            }
            packed.extend_from_slice(name);
            packed.push(0);
            count += 1;
        }
        if count < 2 || packed.len() > 4096 {
            return;
        }
        let arg = fuse::WalkIn { count, ..Default::default() };
        // A failure shows again when the names are looked up.
        let Ok(reply) = self.call(Opcode::Walk, Owner::default(), &[arg.as_bytes(), &packed]) else { return };
        let Ok(out) = reply.object::<fuse::WalkOut>() else { return };
        let until = time::monotonic() + PREFETCH_LIFE;
        let mut parent = self.id;
        let mut results = Vec::new();
        for (i, name) in names.iter().enumerate().take((out.found as usize).min(count as usize)) {
            let at = size_of::<fuse::WalkOut>() + i * size_of::<fuse::EntryOut>();
            let Ok(node) = entry_at(&reply, at).and_then(|entry| self.fs.node(&entry)) else { return };
            if i + 1 == out.found as usize
                && out.data_len > 0
                && let Ok(target) = reply.bytes(at + size_of::<fuse::EntryOut>(), out.data_len as usize)
            {
                node.target.call_once(|| target);
            }
            results.push(Prefetched { parent, name: (*name).into(), node: Ok(node.clone()), until });
            parent = node.id;
        }
        if out.stopped == -2
            && let Some(name) = names.get(out.found as usize)
        {
            results.push(Prefetched { parent, name: (*name).into(), node: Err(ENOENT), until });
        }
        let old = {
            let mut prefetched = self.fs.prefetched.lock();
            let excess = (prefetched.len() + results.len()).saturating_sub(MAX_PREFETCHED).min(prefetched.len());
            let old: Vec<Prefetched> = prefetched.drain(..excess).collect();
            prefetched.append(&mut results);
            old
        };
        drop(old);
    }

    /// Whether `name` still stands for `child` (None: for nothing).
    pub fn still(&self, name: &[u8], child: Option<u64>) -> bool {
        if self.fs.exclusive {
            return true;
        }
        match (self.lookup_name(name), child) {
            (Ok(node), Some(id)) => node.id == id,
            (Err(ENOENT), None) => true,
            _ => false,
        }
    }

    /// What the directory holds; kept on an exclusive mount until something here changes it.
    pub fn list(&self) -> Result<Arc<Listing>> {
        self.check_dir()?;
        let known = self.listing.lock().clone();
        if let Some(listing) = known {
            return Ok(listing);
        }
        let listing = Arc::new(self.read_listing()?);
        if self.fs.exclusive {
            let old = self.listing.lock().replace(listing.clone());
            drop(old);
        }
        Ok(listing)
    }

    fn read_listing(&self) -> Result<Listing> {
        let data = DmaBuffer::new(PIECE)?;
        let mut listing = Listing { entries: Vec::new(), by_name: HashMap::new() };
        let mut offset = 0;
        loop {
            let plus = self.fs.exclusive && listing.entries.len() < MAX_NODES;
            let opcode = if plus { Opcode::ReadDirPlus } else { Opcode::ReadDir };
            let arg = fuse::ReadIn { offset, size: PIECE as u32, ..Default::default() };
            let place = Data::In(&data, PIECE);
            let client = &self.fs.client;
            let len = client.call_with(opcode, self.id, Owner::default(), &[arg.as_bytes()], 0, place)?.len();
            if len == 0 {
                return Ok(listing);
            }
            let before = offset;
            let mut at = 0;
            while at < len {
                let fixed = if plus { size_of::<fuse::DirentPlus>() } else { size_of::<fuse::Dirent>() };
                if at + fixed > len {
                    return Err(EIO);
                }
                let entry: fuse::DirentPlus = if plus {
                    data.read_object(at)
                } else {
                    fuse::DirentPlus { dirent: data.read_object(at), ..Default::default() }
                };
                let namelen = entry.dirent.namelen as usize;
                if namelen > fuse::MAX_NAME || at + fixed + namelen > len || listing.entries.len() >= MAX_ENTRIES {
                    return Err(EIO);
                }
                let mut name = alloc::vec![0; namelen].into_boxed_slice();
                data.read(at + fixed, &mut name);
                at += (fixed + namelen).next_multiple_of(8);
                offset = entry.dirent.off;
                let node = if entry.entry.nodeid != 0 { Some(self.fs.node(&entry.entry)?) } else { None };
                if matches!(&*name, b"." | b"..") {
                    continue;
                }
                listing.by_name.insert(name.clone(), listing.entries.len() as u32);
                listing.entries.push(Entry { name, ino: entry.dirent.ino, kind: entry.dirent.kind << 12, node });
            }
            if offset == before {
                return Err(EIO);
            }
        }
    }

    /// A name in the directory has changed.
    fn changed(&self) {
        let listing = self.listing.lock().take();
        drop(listing);
        self.touched();
        let gone: Vec<Prefetched> = {
            let mut prefetched = self.fs.prefetched.lock();
            core::mem::take(&mut *prefetched)
        };
        drop(gone);
    }

    /// A new node from an answer that starts with its entry.
    fn made(&self, reply: &Reply<'_>) -> Result<Arc<Node>> {
        let node = self.fs.node(&entry_at(reply, 0)?);
        self.changed();
        node
    }

    pub fn make_file(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<Node>> {
        let arg = fuse::CreateIn { flags: 2, mode, ..Default::default() };
        let reply = self.call(Opcode::Create, owner, &[arg.as_bytes(), name, b"\0"])?;
        let out: fuse::CreateOut = reply.object()?;
        let node = self.made(&reply)?;
        node.replace_handle(&mut node.handle.lock(), Handle { fh: out.open.fh, writable: true, window: 0 });
        Ok(node)
    }

    pub fn make_dir(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<Node>> {
        let arg = fuse::MkDirIn { mode, umask: 0 };
        let reply = self.call(Opcode::MkDir, owner, &[arg.as_bytes(), name, b"\0"])?;
        let node = self.made(&reply);
        drop(reply);
        node
    }

    /// `mode` with the type: a FIFO, a socket or a regular file.
    pub fn make_node(&self, name: &[u8], mode: u32, owner: Owner) -> Result<Arc<Node>> {
        let arg = fuse::MkNodIn { mode, ..Default::default() };
        let reply = self.call(Opcode::MkNod, owner, &[arg.as_bytes(), name, b"\0"])?;
        let node = self.made(&reply);
        drop(reply);
        node
    }

    pub fn make_symlink(&self, name: &[u8], target: &[u8], owner: Owner) -> Result<Arc<Node>> {
        let reply = self.call(Opcode::Symlink, owner, &[name, b"\0", target, b"\0"])?;
        let node = self.made(&reply);
        drop(reply);
        node
    }

    pub fn make_link(&self, name: &[u8], target: &Node) -> Result<()> {
        let arg = fuse::LinkIn { oldnodeid: target.id };
        let reply = self.call(Opcode::Link, Owner::default(), &[arg.as_bytes(), name, b"\0"])?;
        self.made(&reply)?;
        target.touched();
        Ok(())
    }

    pub fn remove(&self, name: &[u8], child: &Node, directory: bool) -> Result<()> {
        let opcode = if directory { Opcode::RmDir } else { Opcode::Unlink };
        let done = self.call(opcode, Owner::default(), &[name, b"\0"]).map(drop);
        self.changed();
        child.touched();
        done
    }

    pub fn move_name(&self, name: &[u8], new_dir: &Node, new_name: &[u8], flags: u32) -> Result<()> {
        let arg = fuse::Rename2In { newdir: new_dir.id, flags, padding: 0 };
        let args: &[&[u8]] = &[arg.as_bytes(), name, b"\0", new_name, b"\0"];
        let out =
            self.call(Opcode::Rename2, Owner::default(), args).and_then(|reply| reply.object::<fuse::RenameOut>());
        self.changed();
        new_dir.changed();
        let out = out?;
        self.fs.touch(out.moved);
        self.fs.touch(out.replaced);
        Ok(())
    }

    pub fn link_target(&self) -> Result<Vec<u8>> {
        if let Some(target) = self.target.get() {
            return Ok(target.clone());
        }
        let reply = self.call(Opcode::ReadLink, Owner::default(), &[])?;
        let target = reply.bytes(0, reply.len())?;
        Ok(self.target.call_once(|| target).clone())
    }
}
