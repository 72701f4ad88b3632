//! Places in the mounted tree, and walking there by name (path_resolution(7)).

use alloc::{borrow::Cow, sync::Arc, vec::Vec};
use core::ops::Range;

use bitflags::bitflags;

use super::{FileType, Inode, dentry::Dentry, mount::Mount, permission};
use crate::{
    errno::{ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EXDEV, Result},
    task::creds::Creds,
};

/// Longest path, without its NUL.
pub const PATH_MAX: usize = 4095;
/// Longest name.
pub const NAME_MAX: usize = 255;
const MAX_LINKS: u32 = 40;

/// A dentry as seen through a mount.
#[derive(Clone)]
pub struct Path {
    pub mount: Arc<Mount>,
    pub dentry: Arc<Dentry>,
}

impl Path {
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode()
    }

    pub fn same(&self, other: &Path) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mount, &other.mount)
    }

    /// What is mounted on top of it, if anything.
    pub fn top(mut self) -> Path {
        while let Some(mount) = self.mount.child_at(&self.dentry) {
            self = mount.root_path();
        }
        self
    }

    /// `..`, not above `root`.
    pub fn parent(&self, root: &Path) -> Path {
        let mut at = self.clone();
        loop {
            if at.same(root) {
                return at;
            }
            if !Arc::ptr_eq(&at.dentry, &at.mount.root) {
                break;
            }
            match at.mount.point() {
                Some(point) => at = point,
                None => return at,
            }
        }
        match at.dentry.parent() {
            Some(parent) => Path { mount: at.mount, dentry: parent }.top(),
            None => at,
        }
    }

    /// The dentry that ".." of this directory shows in a listing.
    pub(super) fn parent_dentry(&self) -> Arc<Dentry> {
        let mut at = self.clone();
        while Arc::ptr_eq(&at.dentry, &at.mount.root) {
            match at.mount.point() {
                Some(point) => at = point,
                None => return at.dentry,
            }
        }
        at.dentry.parent().unwrap_or(at.dentry)
    }

    /// Absolute path text as seen from `root`, and whether `root` was met on the way up.
    pub fn text(&self, root: &Path) -> (Vec<u8>, bool) {
        let mut names: Vec<Arc<[u8]>> = Vec::new();
        let mut at = self.clone();
        let reachable = loop {
            if at.same(root) {
                break true;
            }
            if Arc::ptr_eq(&at.dentry, &at.mount.root) {
                match at.mount.point() {
                    Some(point) => at = point,
                    None => break false,
                }
                continue;
            }
            let (name, parent) = at.dentry.place();
            names.push(name);
            match parent {
                Some(parent) => at.dentry = parent,
                None => break false,
            }
        };
        let mut text = Vec::new();
        for name in names.iter().rev() {
            text.push(b'/');
            text.extend_from_slice(name);
        }
        if text.is_empty() {
            text.push(b'/');
        }
        (text, reachable)
    }

    /// As /proc shows it: " (deleted)" behind names that are gone; objects without a place by their own name.
    pub fn display(&self, root: &Path) -> Vec<u8> {
        if self.dentry.parent().is_none() && self.mount.point().is_none() && !self.same(root) {
            return self.dentry.name().to_vec();
        }
        let (mut text, _) = self.text(root);
        if self.dentry.is_deleted() {
            text.extend_from_slice(b" (deleted)");
        }
        text
    }
}

bitflags! {
    /// RESOLVE_* of openat2(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Resolve: u64 {
        const NO_XDEV = 1;
        const NO_MAGICLINKS = 2;
        const NO_SYMLINKS = 4;
        const BENEATH = 8;
        const IN_ROOT = 16;
        const CACHED = 32;
    }
}

/// How the last component stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Last {
    Name,
    Dot,
    DotDot,
    /// The path was all slashes.
    Root,
}

/// A path up to its last component.
pub struct Parent<'p> {
    pub dir: Path,
    text: Cow<'p, [u8]>,
    name: Range<usize>,
    pub last: Last,
    pub trailing_slash: bool,
}

impl Parent<'_> {
    pub fn name(&self) -> &[u8] {
        &self.text[self.name.clone()]
    }
}

/// One walk: where it starts, as whom, and the links it has followed.
pub struct Walk<'a> {
    root: Path,
    start: Path,
    creds: &'a Creds,
    resolve: Resolve,
    links: u32,
}

impl<'a> Walk<'a> {
    pub fn new(root: Path, start: Path, creds: &'a Creds) -> Self {
        Walk { root, start, creds, resolve: Resolve::empty(), links: 0 }
    }

    pub fn restricted(mut self, resolve: Resolve) -> Self {
        self.resolve = resolve;
        if resolve.contains(Resolve::IN_ROOT) {
            self.root = self.start.clone();
        }
        self
    }

    pub fn creds(&self) -> &'a Creds {
        self.creds
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What a path names. `follow`: the last component may be a link.
    pub fn resolve(&mut self, path: &[u8], follow: bool) -> Result<Path> {
        let parent = self.parent(path)?;
        self.finish(parent, follow)
    }

    /// From a path's parent to what it names.
    pub fn finish(&mut self, mut parent: Parent<'_>, follow: bool) -> Result<Path> {
        loop {
            let found = match parent.last {
                Last::Dot | Last::Root => parent.dir.clone(),
                Last::DotDot => self.up(&parent.dir)?,
                Last::Name => self.child(&parent.dir, parent.name())?,
            };
            match found.dentry.file_type() {
                FileType::Symlink if follow || parent.trailing_slash => match self.follow(&parent, &found)? {
                    Followed::Object(path) => {
                        return if parent.trailing_slash && !path.inode().is_dir() { Err(ENOTDIR) } else { Ok(path) };
                    }
                    Followed::Text(next) => parent = next,
                },
                FileType::Directory => return Ok(found),
                _ if parent.trailing_slash => return Err(ENOTDIR),
                _ => return Ok(found),
            }
        }
    }

    /// Follows the link that `parent` ends in.
    pub fn follow(&mut self, parent: &Parent<'_>, link: &Path) -> Result<Followed> {
        if let Some(object) = self.magic(link)? {
            return Ok(Followed::Object(object));
        }
        let mut text = link.inode().readlink()?;
        if parent.trailing_slash {
            text.push(b'/');
        }
        Ok(Followed::Text(self.parent_from(parent.dir.clone(), Cow::Owned(text))?))
    }

    /// Walks to the last component without looking that up.
    pub fn parent<'p>(&mut self, path: &'p [u8]) -> Result<Parent<'p>> {
        self.parent_from(self.start.clone(), Cow::Borrowed(path))
    }

    fn parent_from<'p>(&mut self, start: Path, text: Cow<'p, [u8]>) -> Result<Parent<'p>> {
        if text.is_empty() {
            return Err(ENOENT);
        }
        if text.len() > PATH_MAX + 1 {
            return Err(ENAMETOOLONG);
        }
        let mut text = text;
        let mut at = start;
        if text[0] == b'/' {
            at = self.jump_to_root()?;
        }
        let mut position = 0;
        loop {
            position += text[position..].iter().take_while(|&&b| b == b'/').count();
            let len = text[position..].iter().take_while(|&&b| b != b'/').count();
            let name = position..position + len;
            position += len;
            let slashes = text[position..].iter().take_while(|&&b| b == b'/').count();
            if position + slashes == text.len() {
                let last = match &text[name.clone()] {
                    b"" => Last::Root,
                    b"." => Last::Dot,
                    b".." => Last::DotDot,
                    _ => Last::Name,
                };
                if len > NAME_MAX {
                    return Err(ENAMETOOLONG);
                }
                if !at.inode().is_dir() {
                    return Err(ENOTDIR);
                }
                return Ok(Parent { dir: at, text, name, last, trailing_slash: slashes > 0 });
            }
            match &text[name] {
                b"." => {}
                b".." => at = self.up(&at)?,
                component => {
                    let child = self.child_ahead(&at, component, &text[position..])?;
                    match child.dentry.file_type() {
                        FileType::Directory => at = child,
                        FileType::Symlink => {
                            if let Some(object) = self.magic(&child)? {
                                at = object;
                            } else {
                                let mut link = child.inode().readlink()?;
                                if link.is_empty() {
                                    return Err(ENOENT);
                                }
                                if link[0] == b'/' {
                                    at = self.jump_to_root()?;
                                }
                                link.extend_from_slice(&text[position..]);
                                if link.len() > 2 * PATH_MAX + 2 {
                                    return Err(ENAMETOOLONG);
                                }
                                text = Cow::Owned(link);
                                position = 0;
                            }
                        }
                        _ => return Err(ENOTDIR),
                    }
                }
            }
        }
    }

    fn jump_to_root(&self) -> Result<Path> {
        if self.resolve.contains(Resolve::BENEATH) { Err(EXDEV) } else { Ok(self.root.clone()) }
    }

    /// ".." of a directory.
    pub fn up(&self, at: &Path) -> Result<Path> {
        permission::check(&**at.inode(), self.creds, permission::EXECUTE)?;
        if self.resolve.contains(Resolve::BENEATH) && at.same(&self.start) {
            return Err(EXDEV);
        }
        let parent = at.parent(&self.root);
        if self.resolve.contains(Resolve::NO_XDEV) && !Arc::ptr_eq(&parent.mount, &at.mount) {
            return Err(EXDEV);
        }
        Ok(parent)
    }

    /// A name in a directory that the caller may search, with what is mounted there.
    pub fn child(&self, dir: &Path, name: &[u8]) -> Result<Path> {
        self.child_ahead(dir, name, b"")
    }

    fn child_ahead(&self, dir: &Path, name: &[u8], rest: &[u8]) -> Result<Path> {
        if name.len() > NAME_MAX {
            return Err(ENAMETOOLONG);
        }
        if !dir.inode().is_dir() {
            return Err(ENOTDIR);
        }
        permission::check(&**dir.inode(), self.creds, permission::EXECUTE)?;
        let dentry = dir.dentry.lookup_ahead(name, rest)?;
        let found = Path { mount: dir.mount.clone(), dentry }.top();
        if self.resolve.contains(Resolve::NO_XDEV) && !Arc::ptr_eq(&found.mount, &dir.mount) {
            return Err(EXDEV);
        }
        Ok(found)
    }

    /// Counts a link that is about to be followed; gives the object of a magic one.
    fn magic(&mut self, link: &Path) -> Result<Option<Path>> {
        self.links += 1;
        if self.links > MAX_LINKS || self.resolve.contains(Resolve::NO_SYMLINKS) {
            return Err(ELOOP);
        }
        let Some(object) = link.inode().magic() else { return Ok(None) };
        if self.resolve.intersects(Resolve::NO_MAGICLINKS) {
            return Err(ELOOP);
        }
        if self.resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT | Resolve::NO_XDEV) {
            return Err(EXDEV);
        }
        object.map(Some)
    }
}

/// Where following a link led.
pub enum Followed {
    Object(Path),
    /// To another path, whose last component is yet to be looked up.
    Text(Parent<'static>),
}
