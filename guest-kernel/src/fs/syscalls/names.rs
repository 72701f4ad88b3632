//! Making, removing and renaming names.

use zerocopy::IntoBytes;

use super::{AT_EMPTY_PATH, AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW};
use crate::{
    errno::{EINVAL, ENOENT, EPERM, Result},
    fs::{FileType, NewNode, RenameFlags, namei, split_device},
    mm::user::UserAddr,
    syscall::{Fd, Hex, Level::*, Syscall, UserPath},
    syscalls,
    task::{Current, creds::cap},
};

syscalls! { pub CALLS;
    83 mkdir(path: UserPath, mode: Hex) = mkdir, Full, "", "file";
    258 mkdirat(dir: Fd, path: UserPath, mode: Hex) = mkdirat, Full, "", "file";
    84 rmdir(path: UserPath) = rmdir, Full, "", "file";
    87 unlink(path: UserPath) = unlink, Full, "", "file";
    263 unlinkat(dir: Fd, path: UserPath, flags: u32) = unlinkat, Full, "", "file";
    82 rename(old: UserPath, new: UserPath) = rename, Full, "", "file";
    264 renameat(old_dir: Fd, old: UserPath, new_dir: Fd, new: UserPath) = renameat, Full, "", "file";
    316 renameat2(old_dir: Fd, old: UserPath, new_dir: Fd, new: UserPath, flags: u32) = renameat2, Partial, "RENAME_WHITEOUT is refused", "file";
    86 link(old: UserPath, new: UserPath) = link, Full, "", "file";
    265 linkat(old_dir: Fd, old: UserPath, new_dir: Fd, new: UserPath, flags: u32) = linkat, Full, "", "file";
    88 symlink(target: UserPath, path: UserPath) = symlink, Full, "", "file";
    266 symlinkat(target: UserPath, dir: Fd, path: UserPath) = symlinkat, Full, "", "file";
    89 readlink(path: UserPath, buffer: UserAddr, size: i32) = readlink, Full, "", "file";
    267 readlinkat(dir: Fd, path: UserPath, buffer: UserAddr, size: i32) = readlinkat, Full, "", "file";
    133 mknod(path: UserPath, mode: Hex, dev: u64) = mknod, Full, "", "file";
    259 mknodat(dir: Fd, path: UserPath, mode: Hex, dev: u64) = mknodat, Full, "", "file";
}

const CWD: Fd = Fd(AT_FDCWD);

fn mkdir(cur: &mut Current, path: UserPath, mode: Hex) -> Result<()> {
    mkdirat(cur, CWD, path, mode)
}

fn mkdirat(cur: &mut Current, dir: Fd, path: UserPath, mode: Hex) -> Result<()> {
    let text = cur.path(path)?;
    let start = cur.start(dir, &text)?;
    // mkdir(2) honours the sticky bit, not set-id.
    namei::create(&cur.caller(), start, &text, NewNode::Directory, mode.0 as u32 & 0o1777).map(drop)
}

fn rmdir(cur: &mut Current, path: UserPath) -> Result<()> {
    unlinkat(cur, CWD, path, AT_REMOVEDIR)
}

fn unlink(cur: &mut Current, path: UserPath) -> Result<()> {
    unlinkat(cur, CWD, path, 0)
}

fn unlinkat(cur: &mut Current, dir: Fd, path: UserPath, flags: u32) -> Result<()> {
    if flags & !AT_REMOVEDIR != 0 {
        return Err(EINVAL);
    }
    let text = cur.path(path)?;
    let start = cur.start(dir, &text)?;
    let caller = cur.caller();
    if flags & AT_REMOVEDIR != 0 { namei::rmdir(&caller, start, &text) } else { namei::unlink(&caller, start, &text) }
}

fn rename(cur: &mut Current, old: UserPath, new: UserPath) -> Result<()> {
    renameat2(cur, CWD, old, CWD, new, 0)
}

fn renameat(cur: &mut Current, old_dir: Fd, old: UserPath, new_dir: Fd, new: UserPath) -> Result<()> {
    renameat2(cur, old_dir, old, new_dir, new, 0)
}

fn renameat2(cur: &mut Current, old_dir: Fd, old: UserPath, new_dir: Fd, new: UserPath, flags: u32) -> Result<()> {
    let flags = RenameFlags::from_bits(flags).ok_or(EINVAL)?;
    let (old, new) = (cur.path(old)?, cur.path(new)?);
    let (from, to) = (cur.start(old_dir, &old)?, cur.start(new_dir, &new)?);
    namei::rename(&cur.caller(), (from, &old), (to, &new), flags)
}

fn link(cur: &mut Current, old: UserPath, new: UserPath) -> Result<()> {
    linkat(cur, CWD, old, CWD, new, 0)
}

fn linkat(cur: &mut Current, old_dir: Fd, old: UserPath, new_dir: Fd, new: UserPath, flags: u32) -> Result<()> {
    if flags & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let caller = cur.caller();
    if flags & AT_EMPTY_PATH != 0 && !caller.creds.capable(cap::DAC_READ_SEARCH) {
        return Err(ENOENT);
    }
    let nofollow = if flags & AT_SYMLINK_FOLLOW == 0 { AT_SYMLINK_NOFOLLOW } else { 0 };
    let source = cur.resolve_at(&caller, old_dir, old, flags & AT_EMPTY_PATH | nofollow)?;
    let text = cur.path(new)?;
    let start = cur.start(new_dir, &text)?;
    namei::link(&caller, &source, start, &text)
}

fn symlink(cur: &mut Current, target: UserPath, path: UserPath) -> Result<()> {
    symlinkat(cur, target, CWD, path)
}

fn symlinkat(cur: &mut Current, target: UserPath, dir: Fd, path: UserPath) -> Result<()> {
    let target = cur.path(target)?;
    if target.is_empty() {
        return Err(ENOENT);
    }
    let text = cur.path(path)?;
    let start = cur.start(dir, &text)?;
    namei::create(&cur.caller(), start, &text, NewNode::Symlink(&target), 0o777).map(drop)
}

fn readlink(cur: &mut Current, path: UserPath, buffer: UserAddr, size: i32) -> Result<usize> {
    readlinkat(cur, CWD, path, buffer, size)
}

fn readlinkat(cur: &mut Current, dir: Fd, path: UserPath, buffer: UserAddr, size: i32) -> Result<usize> {
    if size <= 0 {
        return Err(EINVAL);
    }
    let empty = dir.0 != AT_FDCWD && cur.path(path)?.is_empty();
    let flags = AT_SYMLINK_NOFOLLOW | if empty { AT_EMPTY_PATH } else { 0 };
    let found = cur.resolve_at(&cur.caller(), dir, path, flags)?;
    if found.inode().file_type() != FileType::Symlink {
        return Err(if empty { ENOENT } else { EINVAL });
    }
    let text = found.inode().readlink()?;
    let n = text.len().min(size as usize);
    cur.mm.write(buffer, text[..n].as_bytes())?;
    Ok(n)
}

fn mknod(cur: &mut Current, path: UserPath, mode: Hex, dev: u64) -> Result<()> {
    mknodat(cur, CWD, path, mode, dev)
}

fn mknodat(cur: &mut Current, dir: Fd, path: UserPath, mode: Hex, dev: u64) -> Result<()> {
    let mode = mode.0 as u32;
    let node = match mode & crate::fs::S_IFMT {
        0 => NewNode::Regular,
        kind => match FileType::from_mode(kind).ok_or(EINVAL)? {
            FileType::Regular => NewNode::Regular,
            FileType::Fifo => NewNode::Fifo,
            FileType::Socket => NewNode::Socket,
            FileType::Directory => return Err(EPERM),
            FileType::Symlink => return Err(EINVAL),
            // The ABI's dev_t is 32 bits wide here.
            kind @ (FileType::CharDevice | FileType::BlockDevice) => {
                let (major, minor) = split_device(dev & 0xffff_ffff);
                NewNode::Device { kind, rdev: crate::fs::make_device(major, minor) }
            }
        },
    };
    let text = cur.path(path)?;
    let start = cur.start(dir, &text)?;
    namei::create(&cur.caller(), start, &text, node, mode & 0o7777).map(drop)
}
