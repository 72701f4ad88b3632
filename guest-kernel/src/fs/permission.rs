//! Permission checks of the VFS: mode bits and capabilities (path_resolution(7), inode(7)).

use super::{FileType, Inode, S_ISVTX, Stat};
use crate::{
    errno::{EACCES, EPERM, Result},
    task::creds::{Creds, cap},
};

pub const EXECUTE: u32 = 1;
pub const WRITE: u32 = 2;
pub const READ: u32 = 4;

/// EACCES unless `creds` may do all of `mask` to the inode.
pub fn check(inode: &dyn Inode, creds: &Creds, mask: u32) -> Result<()> {
    if mask == 0 {
        return Ok(());
    }
    // The common case needs no attributes.
    if creds.capable(cap::DAC_OVERRIDE) && (mask & EXECUTE == 0 || inode.file_type() == FileType::Directory) {
        return Ok(());
    }
    check_stat(&inode.stat()?, creds, mask)
}

pub fn check_stat(stat: &Stat, creds: &Creds, mask: u32) -> Result<()> {
    let shift = if creds.fsuid == stat.uid {
        6
    } else if creds.in_group(stat.gid) {
        3
    } else {
        0
    };
    if stat.mode >> shift & mask == mask {
        return Ok(());
    }
    let dir = FileType::from_mode(stat.mode) == Some(FileType::Directory);
    if creds.capable(cap::DAC_OVERRIDE) && (mask & EXECUTE == 0 || dir || stat.mode & 0o111 != 0) {
        return Ok(());
    }
    let searching = if dir { READ | EXECUTE } else { READ };
    if creds.capable(cap::DAC_READ_SEARCH) && mask & !searching == 0 {
        return Ok(());
    }
    Err(EACCES)
}

/// Whether `creds` owns the inode or may act as if (CAP_FOWNER).
pub fn is_owner(stat: &Stat, creds: &Creds) -> bool {
    creds.fsuid == stat.uid || creds.capable(cap::FOWNER)
}

/// EACCES or EPERM unless a name of `child` may be removed from `dir` (write permission, sticky bit).
pub fn may_delete(dir: &dyn Inode, child: &dyn Inode, creds: &Creds) -> Result<()> {
    check(dir, creds, WRITE | EXECUTE)?;
    if creds.capable(cap::FOWNER) {
        return Ok(());
    }
    let stat = dir.stat()?;
    if stat.mode & S_ISVTX != 0 && stat.uid != creds.fsuid && child.stat()?.uid != creds.fsuid {
        return Err(EPERM);
    }
    Ok(())
}
