//! Directories of the overlay: names of their own, names that are gone, and the names below.

use alloc::{boxed::Box, sync::Arc, sync::Weak, vec::Vec};

use hashbrown::HashMap;

use super::node::Node;
use crate::{
    errno::{EEXIST, EINVAL, ENOENT, ENOTEMPTY, EPERM, EXDEV, Result},
    fs::{FileType, Inode, NewAttr, NewNode, RenameFlags, Timespec},
};

/// Names of a directory that are known here.
#[derive(Default)]
pub(super) struct Names(HashMap<Box<[u8]>, Entry>);

enum Entry {
    /// As below; the node may be forgotten.
    Below(Weak<Node>),
    /// A node of the overlay's own, or one that differs from below. `covers`: there is such a name below, too.
    Own { node: Arc<Node>, covers: bool },
    /// The name below is gone.
    Gone,
}

impl Entry {
    /// Whether the directory below has the name.
    fn covers(&self) -> bool {
        !matches!(self, Entry::Own { covers: false, .. })
    }
}

/// An entry of a listing.
pub(super) struct Listed {
    pub name: Box<[u8]>,
    pub ino: u64,
    pub kind: FileType,
}

impl Node {
    /// The node called `name`.
    pub(super) fn find(&self, name: &[u8]) -> Result<Arc<Node>> {
        let known = match self.names.lock().0.get(name) {
            Some(Entry::Own { node, .. }) => Some(node.clone()),
            Some(Entry::Gone) => return Err(ENOENT),
            Some(Entry::Below(weak)) => weak.upgrade(),
            None => None,
        };
        if let Some(node) = known {
            return Ok(node);
        }
        let lower = self.lower.as_ref().ok_or(ENOENT)?;
        let node = self.fs.over(lower.lookup_name(name)?)?;
        node.set_place(&self.strong()?, name);
        self.names.lock().0.insert(name.into(), Entry::Below(Arc::downgrade(&node)));
        Ok(node)
    }

    /// Makes sure that `name` goes on leading to `child`, which differs from below. False when it did already, or does not
    /// lead there.
    pub(super) fn keep_child(&self, name: &[u8], child: &Arc<Node>) -> bool {
        let mut names = self.names.lock();
        let Some(entry) = names.0.get_mut(name) else { return false };
        let leads_there = matches!(entry, Entry::Below(weak) if weak.ptr_eq(&child.this));
        if leads_there {
            *entry = Entry::Own { node: child.clone(), covers: true };
        }
        leads_there
    }

    /// `name` leads to `node` from now on.
    fn put(&self, name: &[u8], node: &Arc<Node>) -> Result<()> {
        let old = {
            let mut names = self.names.lock();
            let covers = names.0.get(name).is_some_and(Entry::covers);
            names.0.insert(name.into(), Entry::Own { node: node.clone(), covers })
        };
        drop(old);
        node.set_place(&self.strong()?, name);
        self.names_changed();
        Ok(())
    }

    /// `name` leads nowhere from now on.
    fn take(&self, name: &[u8]) {
        let old = {
            let mut names = self.names.lock();
            match names.0.remove(name) {
                // Without an entry it can only be a name below.
                Some(old) if !old.covers() => Some(old),
                old => {
                    names.0.insert(name.into(), Entry::Gone);
                    old
                }
            }
        };
        drop(old);
        self.names_changed();
    }

    fn names_changed(&self) {
        // The directory differs from below: `change` keeps it, too.
        let _ = self.change(|stat| stat.mtime = Timespec::now());
    }

    pub(super) fn make(&self, name: &[u8], what: NewNode<'_>, attr: NewAttr) -> Result<Arc<Node>> {
        if matches!(self.names.lock().0.get(name), Some(Entry::Own { .. })) {
            return Err(EEXIST);
        }
        let fs = &self.fs;
        let node = match what {
            NewNode::Regular => fs.new_node(FileType::Regular, attr, 0, b"", name),
            NewNode::Directory => fs.new_node(FileType::Directory, attr, 0, b"", name),
            NewNode::Symlink(target) => {
                fs.new_node(FileType::Symlink, NewAttr { mode: 0o777, ..attr }, 0, target, name)
            }
            NewNode::Device { kind, rdev } => fs.new_node(kind, attr, rdev, b"", name),
            NewNode::Fifo => fs.new_node(FileType::Fifo, attr, 0, b"", name),
            NewNode::Socket => fs.new_node(FileType::Socket, attr, 0, b"", name),
        };
        node.linked(1);
        self.put(name, &node)?;
        Ok(node)
    }

    pub(super) fn add_link(&self, name: &[u8], node: &Arc<Node>) -> Result<()> {
        if node.kind == FileType::Directory {
            return Err(EPERM);
        }
        node.linked(1);
        self.put(name, node)?;
        node.change(|_| {})
    }

    pub(super) fn remove_link(&self, name: &[u8], node: &Arc<Node>) -> Result<()> {
        // Before the name goes, so that what is known of a file that lives on (open, or by another name) is kept.
        let _ = node.change(|_| {});
        node.linked(-1);
        self.take(name);
        node.lost_name();
        Ok(())
    }

    pub(super) fn remove_dir(&self, name: &[u8], node: &Arc<Node>) -> Result<()> {
        if !node.listing()?.is_empty() {
            return Err(ENOTEMPTY);
        }
        self.take(name);
        node.clear_place();
        Ok(())
    }

    pub(super) fn move_to(&self, name: &[u8], new_dir: &Node, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        if !core::ptr::eq(Arc::as_ptr(&self.fs), Arc::as_ptr(&new_dir.fs)) {
            return Err(EXDEV);
        }
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(EINVAL);
        }
        let node = self.find(name)?;
        let target = match new_dir.find(new_name) {
            Ok(target) => Some(target),
            Err(ENOENT) => None,
            Err(error) => return Err(error),
        };
        if let Some(target) = &target
            && !flags.contains(RenameFlags::EXCHANGE)
        {
            if target.kind == FileType::Directory {
                new_dir.remove_dir(new_name, target)?;
            } else {
                new_dir.remove_link(new_name, target)?;
            }
        }
        match target {
            Some(target) if flags.contains(RenameFlags::EXCHANGE) => self.put(name, &target)?,
            _ => self.take(name),
        }
        new_dir.put(new_name, &node)?;
        // It keeps its place now; its ctime changes.
        node.change(|_| {})
    }

    /// Names of this directory, without "." and "..".
    pub(super) fn listing(&self) -> Result<Vec<Listed>> {
        let below = match &self.lower {
            Some(lower) => Some(lower.list()?),
            None => None,
        };
        let names = self.names.lock();
        let mut all = Vec::new();
        for entry in below.iter().flat_map(|listing| &listing.entries) {
            match names.0.get(&*entry.name) {
                None | Some(Entry::Below(_)) => all.push(Listed {
                    name: entry.name.clone(),
                    ino: entry.ino,
                    kind: FileType::from_mode(entry.kind).unwrap_or_default(),
                }),
                Some(_) => {}
            }
        }
        for (name, entry) in &names.0 {
            if let Entry::Own { node, .. } = entry {
                all.push(Listed { name: name.clone(), ino: node.ino, kind: node.kind });
            }
        }
        Ok(all)
    }

    /// Symbolic links: from here or from below.
    pub(super) fn link_text(&self) -> Result<Vec<u8>> {
        match &self.lower {
            _ if self.kind != FileType::Symlink => Err(EINVAL),
            Some(lower) => lower.readlink(),
            None => Ok(self.target.clone()),
        }
    }
}
