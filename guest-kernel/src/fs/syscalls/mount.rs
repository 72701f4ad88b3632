//! mount(2), umount2(2), and the calls on file handles that are not offered.

use alloc::{string::String, sync::Arc};

use super::AT_FDCWD;
use crate::{
    errno::{EBUSY, EINVAL, ENODEV, ENOTSUP, EPERM, Result},
    fs::{FileSystem, Inode, Mount, MountFlags, NewAttr, Path, mqueue, proc::ProcFs, tmpfs::Tmpfs, tty::PtsFs},
    mm::{
        frames,
        user::{UserAddr, UserPtr},
    },
    syscall::{Fd, Hex, Level::*, Syscall, UserPath},
    syscalls,
    task::{Current, cap},
};

syscalls! { pub CALLS;
    165 mount(source: UserPath, target: UserPath, fstype: UserPath, flags: Hex, data: UserAddr) = mount, Partial, "tmpfs, proc, sysfs, devpts, mqueue, bind and remount; propagation is accepted", "mount";
    166 umount2(target: UserPath, flags: u32) = umount2, Full, "", "mount";
    303 name_to_handle_at(dir: Fd, path: UserPath, handle: UserAddr, mount: UserPtr<i32>, flags: u32) = name_to_handle_at, Unsupported, "EOPNOTSUPP, as on file systems without handles", "";
    304 open_by_handle_at(mount: Fd, handle: UserAddr, flags: u32) = open_by_handle_at, Unsupported, "EPERM, as without CAP_DAC_READ_SEARCH", "";
}

const MS_REMOUNT: u64 = 32;
const MS_BIND: u64 = 4096;
const MS_MOVE: u64 = 8192;
const MS_REC: u64 = 16384;
/// MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED.
const PROPAGATION: u64 = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20;

fn resolve(cur: &Current, path: UserPath, follow: bool) -> Result<Path> {
    let text = cur.path(path)?;
    cur.caller().walk(None).resolve(&text, follow)
}

/// A string argument that may be missing.
fn optional(cur: &Current, text: UserPath) -> Result<String> {
    if text.0.is_null() {
        return Ok(String::new());
    }
    Ok(String::from_utf8_lossy(&cur.path(text)?).into_owned())
}

fn mount(
    cur: &mut Current,
    source: UserPath,
    target: UserPath,
    fstype: UserPath,
    flags: Hex,
    data: UserAddr,
) -> Result<()> {
    let flags = flags.0;
    let at = resolve(cur, target, true)?;
    if !cur.task.capable(cap::SYS_ADMIN) {
        return Err(EPERM);
    }
    let wanted = MountFlags::from_bits_truncate(flags);
    if flags & MS_REMOUNT != 0 {
        if !Arc::ptr_eq(&at.dentry, &at.mount.root) {
            return Err(EINVAL);
        }
        at.mount.set_flags(wanted);
        return Ok(());
    }
    if flags & MS_BIND != 0 {
        return bind(&resolve(cur, source, true)?, &at, flags & MS_REC != 0);
    }
    if flags & PROPAGATION != 0 {
        // There is one mount name space: nothing propagates anywhere.
        return Ok(());
    }
    if flags & MS_MOVE != 0 {
        return Err(EINVAL);
    }
    let kind = optional(cur, fstype)?;
    let options = optional(cur, UserPath(data))?;
    let (fs, root): (Arc<dyn FileSystem>, Arc<dyn Inode>) = match kind.as_str() {
        "tmpfs" | "ramfs" => tmpfs(&options)?,
        "proc" => ProcFs::mount(),
        "sysfs" => ProcFs::mount_sysfs(),
        "mqueue" => mqueue::mount(),
        "devpts" => PtsFs::mount(),
        _ => return Err(ENODEV),
    };
    let shown = optional(cur, source)?;
    Mount::of(fs, root, if shown.is_empty() { "none" } else { &shown }, wanted).attach(&at)
}

/// A tmpfs with size=, mode=, uid= and gid=; other options are ignored.
fn tmpfs(options: &str) -> Result<(Arc<dyn FileSystem>, Arc<dyn Inode>)> {
    let total = frames::usage().0;
    let mut size = total / 2;
    let mut attr = NewAttr { mode: 0o1777, uid: 0, gid: 0 };
    for option in options.split(',') {
        let Some((key, value)) = option.split_once('=') else { continue };
        match key {
            "size" => size = parse_size(value, total).ok_or(EINVAL)?,
            "mode" => attr.mode = u32::from_str_radix(value, 8).map_err(|_| EINVAL)? & 0o7777,
            "uid" => attr.uid = value.parse().map_err(|_| EINVAL)?,
            "gid" => attr.gid = value.parse().map_err(|_| EINVAL)?,
            _ => {}
        }
    }
    let fs = Tmpfs::new(size, "tmpfs");
    let root = fs.make_root(attr);
    Ok((fs, root))
}

/// Bytes with an optional k, m, g, or a share of memory in %.
fn parse_size(text: &str, total: u64) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().ok()?;
    match unit {
        "" => Some(number),
        "%" => Some(total / 100 * number.min(100)),
        "k" | "K" => number.checked_mul(1 << 10),
        "m" | "M" => number.checked_mul(1 << 20),
        "g" | "G" => number.checked_mul(1 << 30),
        _ => None,
    }
}

fn bind(source: &Path, at: &Path, recursive: bool) -> Result<()> {
    let copy = |mount: &Arc<Mount>, root| Mount::new(mount.filesystem.clone(), root, &mount.source, mount.flags());
    let top = copy(&source.mount, source.dentry.clone());
    // What is mounted below, before the copy itself may lie there.
    let below = if recursive { source.mount.tree() } else { Default::default() };
    top.attach(at)?;
    for mount in below {
        let Some(point) = mount.point() else { continue };
        if Arc::ptr_eq(&point.mount, &source.mount) && !Arc::ptr_eq(&mount, &top) {
            let place = Path { mount: top.clone(), dentry: point.dentry };
            copy(&mount, mount.root.clone()).attach(&place)?;
        }
    }
    Ok(())
}

fn umount2(cur: &mut Current, target: UserPath, flags: u32) -> Result<()> {
    const DETACH: u32 = 2;
    const NOFOLLOW: u32 = 8;
    if flags & !0xf != 0 {
        return Err(EINVAL);
    }
    let at = resolve(cur, target, flags & NOFOLLOW == 0)?;
    if !cur.task.capable(cap::SYS_ADMIN) {
        return Err(EPERM);
    }
    if !Arc::ptr_eq(&at.dentry, &at.mount.root) {
        return Err(EINVAL);
    }
    let in_use =
        Arc::ptr_eq(&at.mount, &cur.task.fs().cwd().mount) || Arc::ptr_eq(&at.mount, &cur.task.fs().root().mount);
    if in_use && flags & DETACH == 0 {
        return Err(EBUSY);
    }
    at.mount.detach(flags & DETACH != 0)
}

fn name_to_handle_at(
    cur: &mut Current,
    dir: Fd,
    path: UserPath,
    _handle: UserAddr,
    _mount: UserPtr<i32>,
    _flags: u32,
) -> Result<()> {
    let text = cur.path(path)?;
    if dir.0 != AT_FDCWD {
        cur.any_file(dir)?;
    }
    let start = cur.start(dir, &text)?;
    if !text.is_empty() {
        cur.caller().walk(start).resolve(&text, false)?;
    }
    Err(ENOTSUP)
}

fn open_by_handle_at(_cur: &mut Current, _mount: Fd, _handle: UserAddr, _flags: u32) -> Result<()> {
    Err(EPERM)
}
