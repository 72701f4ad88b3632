//! Files as programs: what execve(2) needs of an open file.

use alloc::{sync::Arc, vec::Vec};

use super::{
    File, FileType, MountFlags, OpenFlags, Path, Resolve,
    access::Mark,
    namei::{self, Caller},
    permission,
};
use crate::{
    errno::{EACCES, Result},
    mm::Pager,
    task::exec::{ExecFile, FileOwner},
};

struct Program {
    file: Arc<File>,
    /// Nobody may write to it.
    _mark: Mark,
    root: Path,
}

/// Opens `path` for execution: a regular file, executable for the caller, on a mount that allows it.
pub fn open(caller: &Caller, start: Option<Path>, path: &[u8], follow: bool) -> Result<Arc<dyn ExecFile>> {
    let mut flags = OpenFlags::empty();
    flags.set(OpenFlags::NOFOLLOW, !follow);
    // Found without read permission: executing asks for less.
    let found = namei::open(caller, start, path, flags | OpenFlags::PATH, 0, Resolve::empty())?;
    of_file(caller, &found)
}

/// As [`open`], for a file that a descriptor names already (execveat(2) with AT_EMPTY_PATH).
pub fn of_file(caller: &Caller, found: &File) -> Result<Arc<dyn ExecFile>> {
    let place = found.path();
    let inode = place.inode();
    if inode.file_type() != FileType::Regular || place.mount.flags().contains(MountFlags::NOEXEC) {
        return Err(EACCES);
    }
    permission::check(&**inode, &caller.creds, permission::EXECUTE)?;
    let mark = Mark::program(inode)?;
    let file = namei::open_checked(place, OpenFlags::empty())?;
    Ok(Arc::new(Program { file, _mark: mark, root: caller.root.clone() }))
}

impl ExecFile for Program {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.file.read_exact_at(buffer, offset)
    }

    fn pager(&self) -> Result<Arc<dyn Pager>> {
        self.file.mmap()
    }

    fn path(&self) -> Vec<u8> {
        self.file.path().display(&self.root)
    }

    fn place(&self) -> Option<Path> {
        Some(self.file.path().clone())
    }

    fn owner(&self) -> FileOwner {
        let nosuid = self.file.path().mount.flags().contains(MountFlags::NOSUID);
        match self.file.stat() {
            Ok(stat) => FileOwner { mode: stat.mode, uid: stat.uid, gid: stat.gid, nosuid },
            Err(_) => FileOwner { nosuid: true, ..FileOwner::default() },
        }
    }
}
