//! Programs in the container's files: from a path to an [`ExecFile`].

use alloc::{sync::Arc, vec::Vec};

use super::{
    Creds, Task,
    exec::{ExecFile, FileOwner},
};
use crate::{
    errno::{EACCES, Result},
    fs::{self, File, FileType, MountFlags, OpenFlags, Path, Walk, permission},
    mm::Pager,
};

struct FileProgram {
    file: Arc<File>,
    root: Path,
}

impl ExecFile for FileProgram {
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

/// Opens what `path` names, seen from `start` below `root`, for execution.
pub fn open(root: &Path, start: &Path, creds: &Creds, path: &[u8], follow: bool) -> Result<Arc<dyn ExecFile>> {
    let found = Walk::new(root.clone(), start.clone(), creds).resolve(path, follow)?;
    if found.dentry.file_type() == FileType::Symlink {
        return Err(crate::errno::ELOOP);
    }
    open_place(root, found, creds)
}

/// As the task: its root, working directory and credentials.
pub fn open_as(task: &Task, path: &[u8]) -> Result<Arc<dyn ExecFile>> {
    let fs = task.fs();
    open(&fs.root(), &fs.cwd(), &task.creds(), path, true)
}

/// Opens a file that has been found, for execution.
pub fn open_place(root: &Path, found: Path, creds: &Creds) -> Result<Arc<dyn ExecFile>> {
    let inode = found.inode();
    if inode.file_type() != FileType::Regular || found.mount.flags().contains(MountFlags::NOEXEC) {
        return Err(EACCES);
    }
    permission::check(&**inode, creds, fs::permission::EXECUTE)?;
    let flags = OpenFlags::empty();
    let ops = inode.clone().open(flags)?;
    Ok(Arc::new(FileProgram { file: File::new(ops, found, flags), root: root.clone() }))
}
