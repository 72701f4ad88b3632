//! Operations on names: open, create, remove, rename, link; with the checks the VFS makes for every file system.

use alloc::sync::Arc;

use super::{
    File, FileOps, FileType, Followed, Inode, Last, MountFlags, NewAttr, NewNode, OpenFlags, Path, RenameFlags,
    Resolve, S_ISGID, S_ISVTX, SetAttr, Walk,
    access::Mark,
    dentry, dev,
    inotify::{self, event},
    permission, pipe,
};
use crate::{
    errno::{
        EACCES, EBUSY, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY, ENXIO, EPERM, EROFS, EXDEV, Result,
    },
    task::creds::{Creds, cap},
};

/// Who asks, and where paths start.
#[derive(Clone)]
pub struct Caller {
    pub root: Path,
    pub cwd: Path,
    pub creds: Arc<Creds>,
    pub umask: u32,
}

impl Caller {
    /// A walk from `start` (the directory of a descriptor), or from the working directory.
    pub fn walk(&self, start: Option<Path>) -> Walk<'_> {
        Walk::new(self.root.clone(), start.unwrap_or_else(|| self.cwd.clone()), &self.creds)
    }

    fn new_attr(&self, dir: &Path, mode: u32, is_dir: bool) -> Result<NewAttr> {
        let stat = dir.inode().stat()?;
        let inherits = stat.mode & S_ISGID != 0;
        let gid = if inherits { stat.gid } else { self.creds.fsgid };
        let mut mode = mode & (0o777 | S_ISVTX | 0o6000) & !self.umask;
        if is_dir && inherits {
            mode |= S_ISGID;
        }
        Ok(NewAttr { mode, uid: self.creds.fsuid, gid })
    }
}

/// EROFS when the mount is read-only.
pub fn want_write(path: &Path) -> Result<()> {
    if path.mount.is_read_only() { Err(EROFS) } else { Ok(()) }
}

/// open(2), openat(2), openat2(2). `start`: the directory of a descriptor; None: the working directory.
pub fn open(
    caller: &Caller,
    start: Option<Path>,
    path: &[u8],
    mut flags: OpenFlags,
    mode: u32,
    resolve: Resolve,
) -> Result<Arc<File>> {
    if flags.contains(OpenFlags::PATH) {
        flags &= OpenFlags::PATH | OpenFlags::DIRECTORY | OpenFlags::NOFOLLOW | OpenFlags::CLOEXEC;
    }
    if flags.contains(OpenFlags::TMPFILE) {
        return open_tmpfile(caller, start, path, flags, mode, resolve);
    }
    let create = flags.contains(OpenFlags::CREAT);
    let exclusive = create && flags.contains(OpenFlags::EXCL);
    if create && flags.contains(OpenFlags::DIRECTORY) {
        return Err(EINVAL);
    }
    let mut walk = caller.walk(start).restricted(resolve);
    let mut parent = walk.parent(path)?;
    let found = loop {
        let found = match parent.last {
            Last::Name => match walk.child(&parent.dir, parent.name()) {
                Err(ENOENT) if create => {
                    if parent.trailing_slash {
                        return Err(EISDIR);
                    }
                    match create_file(caller, &parent.dir, parent.name(), mode) {
                        Ok(made) => return open_checked(&made, flags - OpenFlags::TRUNC),
                        // Somebody else was faster: open what they made.
                        Err(EEXIST) if !exclusive => continue,
                        Err(error) => return Err(error),
                    }
                }
                found => found?,
            },
            _ if exclusive => return Err(EEXIST),
            _ if create => return Err(EISDIR),
            Last::DotDot => walk.up(&parent.dir)?,
            Last::Dot | Last::Root => parent.dir.clone(),
        };
        if exclusive {
            return Err(EEXIST);
        }
        if found.dentry.file_type() != FileType::Symlink {
            if parent.trailing_slash && !found.inode().is_dir() {
                return Err(ENOTDIR);
            }
            break found;
        }
        if flags.contains(OpenFlags::NOFOLLOW) && !parent.trailing_slash {
            if flags.contains(OpenFlags::PATH) && !flags.contains(OpenFlags::DIRECTORY) {
                break found;
            }
            return Err(if flags.contains(OpenFlags::DIRECTORY) { ENOTDIR } else { ELOOP });
        }
        match walk.follow(&parent, &found)? {
            Followed::Object(path) => break path,
            Followed::Text(next) => parent = next,
        }
    };
    if create && found.inode().is_dir() {
        return Err(EISDIR);
    }
    if flags.contains(OpenFlags::DIRECTORY) && !found.inode().is_dir() {
        return Err(ENOTDIR);
    }
    open_found(caller, &found, flags)
}

/// Opens what has been found, after the permission checks of open(2).
pub fn open_found(caller: &Caller, found: &Path, flags: OpenFlags) -> Result<Arc<File>> {
    if flags.contains(OpenFlags::PATH) {
        return open_checked(found, flags);
    }
    let inode = found.inode();
    let mut mask = 0;
    if flags.readable() {
        mask |= permission::READ;
    }
    if flags.writable() || flags.contains(OpenFlags::TRUNC) {
        mask |= permission::WRITE;
    }
    match inode.file_type() {
        FileType::Directory if mask & permission::WRITE != 0 => return Err(EISDIR),
        FileType::Directory | FileType::Regular if mask & permission::WRITE != 0 => want_write(found)?,
        FileType::CharDevice | FileType::BlockDevice if found.mount.flags().contains(MountFlags::NODEV) => {
            return Err(EACCES);
        }
        FileType::Symlink => return Err(ELOOP),
        _ => {}
    }
    permission::check(&**inode, &caller.creds, mask)?;
    if flags.contains(OpenFlags::NOATIME) && !permission::is_owner(&inode.stat()?, &caller.creds) {
        return Err(EPERM);
    }
    let file = open_checked(found, flags)?;
    if flags.contains(OpenFlags::TRUNC) && inode.file_type() == FileType::Regular {
        inode.set_attr(&SetAttr { size: Some(0), ..SetAttr::default() })?;
        inotify::notify(&found.dentry, event::MODIFY);
    }
    Ok(file)
}

/// Opens without asking for permission.
pub fn open_checked(found: &Path, flags: OpenFlags) -> Result<Arc<File>> {
    let inode = found.inode();
    if flags.contains(OpenFlags::PATH) {
        return Ok(File::new(Arc::new(PathOnly), found.clone(), flags));
    }
    let writes = flags.writable() && inode.file_type() == FileType::Regular;
    let writer = if writes { Some(Mark::writer(inode)?) } else { None };
    let ops = match inode.file_type() {
        FileType::Regular | FileType::Directory => inode.clone().open(flags)?,
        FileType::Symlink => return Err(ELOOP),
        special => match (inode.clone().open_special(flags), special) {
            (Some(ops), _) => ops?,
            (None, FileType::CharDevice) => dev::open(inode.stat()?.rdev, flags)?,
            (None, FileType::Fifo) => pipe::open_fifo(inode, flags)?,
            _ => return Err(ENXIO),
        },
    };
    inotify::notify(&found.dentry, event::OPEN);
    Ok(File::with_mark(ops, found.clone(), flags, writer))
}

/// What O_PATH gives: a place, not an open file.
struct PathOnly;
impl FileOps for PathOnly {}

fn create_file(caller: &Caller, dir: &Path, name: &[u8], mode: u32) -> Result<Path> {
    want_write(dir)?;
    permission::check(&**dir.inode(), &caller.creds, permission::WRITE | permission::EXECUTE)?;
    let attr = caller.new_attr(dir, mode, false)?;
    let dentry = dir.dentry.create(name, NewNode::Regular, attr)?;
    Ok(Path { mount: dir.mount.clone(), dentry })
}

fn open_tmpfile(
    caller: &Caller,
    start: Option<Path>,
    path: &[u8],
    flags: OpenFlags,
    mode: u32,
    resolve: Resolve,
) -> Result<Arc<File>> {
    if !flags.contains(OpenFlags::DIRECTORY) || !flags.writable() {
        return Err(EINVAL);
    }
    let dir = caller.walk(start).restricted(resolve).resolve(path, true)?;
    if !dir.inode().is_dir() {
        return Err(ENOTDIR);
    }
    want_write(&dir)?;
    permission::check(&**dir.inode(), &caller.creds, permission::WRITE | permission::EXECUTE)?;
    let inode = dir.inode().tmpfile(caller.new_attr(&dir, mode, false)?)?;
    let ino = inode.stat()?.ino;
    let dentry = dentry::Dentry::root(alloc::format!("/#{ino} (deleted)").as_bytes(), inode);
    open_checked(&Path { mount: dir.mount.clone(), dentry }, flags - OpenFlags::DIRECTORY)
}

/// mkdir(2), mknod(2), symlink(2).
pub fn create(caller: &Caller, start: Option<Path>, path: &[u8], node: NewNode<'_>, mode: u32) -> Result<Path> {
    let mut walk = caller.walk(start);
    let parent = walk.parent(path)?;
    if parent.last != Last::Name {
        return Err(EEXIST);
    }
    let is_dir = matches!(node, NewNode::Directory);
    match walk.child(&parent.dir, parent.name()) {
        Ok(_) => return Err(EEXIST),
        Err(ENOENT) => {}
        Err(error) => return Err(error),
    }
    if parent.trailing_slash && !is_dir {
        return Err(ENOENT);
    }
    want_write(&parent.dir)?;
    permission::check(&**parent.dir.inode(), &caller.creds, permission::WRITE | permission::EXECUTE)?;
    if matches!(node, NewNode::Device { .. }) && !caller.creds.capable(cap::MKNOD) {
        return Err(EPERM);
    }
    let mut attr = caller.new_attr(&parent.dir, mode, is_dir)?;
    if matches!(node, NewNode::Symlink(_)) {
        attr.mode = 0o777;
    }
    let dentry = parent.dir.dentry.create(parent.name(), node, attr)?;
    Ok(Path { mount: parent.dir.mount.clone(), dentry })
}

/// unlink(2).
pub fn unlink(caller: &Caller, start: Option<Path>, path: &[u8]) -> Result<()> {
    let mut walk = caller.walk(start);
    let parent = walk.parent(path)?;
    if parent.last != Last::Name {
        return Err(EISDIR);
    }
    let found = walk.child(&parent.dir, parent.name())?;
    if parent.trailing_slash {
        return Err(if found.inode().is_dir() { EISDIR } else { ENOTDIR });
    }
    want_write(&parent.dir)?;
    parent.dir.dentry.remove(parent.name(), false, |child| {
        permission::may_delete(&**parent.dir.inode(), &**child.inode(), &caller.creds)
    })
}

/// rmdir(2).
pub fn rmdir(caller: &Caller, start: Option<Path>, path: &[u8]) -> Result<()> {
    let mut walk = caller.walk(start);
    let parent = walk.parent(path)?;
    match parent.last {
        Last::Name => {}
        Last::Dot => return Err(EINVAL),
        Last::DotDot => return Err(ENOTEMPTY),
        Last::Root => return Err(EBUSY),
    }
    walk.child(&parent.dir, parent.name())?;
    want_write(&parent.dir)?;
    parent.dir.dentry.remove(parent.name(), true, |child| {
        permission::may_delete(&**parent.dir.inode(), &**child.inode(), &caller.creds)?;
        if child.inode().is_dir() { Ok(()) } else { Err(ENOTDIR) }
    })
}

/// link(2): a name for what `source` shows.
pub fn link(caller: &Caller, source: &Path, start: Option<Path>, path: &[u8]) -> Result<()> {
    let mut walk = caller.walk(start);
    let parent = walk.parent(path)?;
    if parent.last != Last::Name {
        return Err(EEXIST);
    }
    match walk.child(&parent.dir, parent.name()) {
        Ok(_) => return Err(EEXIST),
        Err(ENOENT) => {}
        Err(error) => return Err(error),
    }
    if !Arc::ptr_eq(&source.mount, &parent.dir.mount) {
        return Err(EXDEV);
    }
    if parent.trailing_slash {
        return Err(ENOENT);
    }
    want_write(&parent.dir)?;
    permission::check(&**parent.dir.inode(), &caller.creds, permission::WRITE | permission::EXECUTE)?;
    if source.inode().is_dir() {
        return Err(EPERM);
    }
    parent.dir.dentry.link(parent.name(), source.inode())
}

/// renameat2(2).
pub fn rename(
    caller: &Caller,
    old: (Option<Path>, &[u8]),
    new: (Option<Path>, &[u8]),
    flags: RenameFlags,
) -> Result<()> {
    if flags.contains(RenameFlags::EXCHANGE) && flags.intersects(RenameFlags::NOREPLACE | RenameFlags::WHITEOUT) {
        return Err(EINVAL);
    }
    let mut old_walk = caller.walk(old.0);
    let from = old_walk.parent(old.1)?;
    let mut new_walk = caller.walk(new.0);
    let to = new_walk.parent(new.1)?;
    if !Arc::ptr_eq(&from.dir.mount, &to.dir.mount) {
        return Err(EXDEV);
    }
    if from.last != Last::Name {
        return Err(EBUSY);
    }
    if to.last != Last::Name {
        return Err(if flags.contains(RenameFlags::NOREPLACE) { EEXIST } else { EBUSY });
    }
    permission::check(&**from.dir.inode(), &caller.creds, permission::EXECUTE)?;
    permission::check(&**to.dir.inode(), &caller.creds, permission::EXECUTE)?;
    want_write(&from.dir)?;
    dentry::rename((&from.dir.dentry, from.name()), (&to.dir.dentry, to.name()), flags, |source, target| {
        if !source.inode().is_dir() && (from.trailing_slash || to.trailing_slash) {
            return Err(ENOTDIR);
        }
        permission::may_delete(&**from.dir.inode(), &**source.inode(), &caller.creds)?;
        match target {
            Some(target) => permission::may_delete(&**to.dir.inode(), &**target.inode(), &caller.creds)?,
            None => permission::check(&**to.dir.inode(), &caller.creds, permission::WRITE | permission::EXECUTE)?,
        }
        // Moving a directory changes its "..".
        if source.inode().is_dir() && !Arc::ptr_eq(&from.dir.dentry, &to.dir.dentry) {
            permission::check(&**source.inode(), &caller.creds, permission::WRITE)?;
        }
        Ok(())
    })
}

/// truncate(2).
pub fn truncate(caller: &Caller, path: &Path, size: u64) -> Result<()> {
    let inode: &Arc<dyn Inode> = path.inode();
    match inode.file_type() {
        FileType::Regular => {}
        FileType::Directory => return Err(EISDIR),
        _ => return Err(EINVAL),
    }
    want_write(path)?;
    permission::check(&**inode, &caller.creds, permission::WRITE)?;
    let _writer = Mark::writer(inode)?;
    inode.set_attr(&SetAttr { size: Some(size), ..SetAttr::default() })?;
    inotify::notify(&path.dentry, event::MODIFY);
    Ok(())
}
