//! Calls of inotify(7).

use crate::{
    errno::{EINVAL, ENOTDIR, Result},
    fs::{
        OpenFlags,
        inotify::{Inotify, event},
        permission,
    },
    syscall::{Fd, Hex, Level::*, Syscall, UserPath},
    syscalls,
    task::Current,
};

syscalls! { pub CALLS;
    253 inotify_init() = inotify_init, Full, "", "inotify";
    254 inotify_add_watch(fd: Fd, path: UserPath, mask: Hex) = inotify_add_watch, Full, "", "inotify";
    255 inotify_rm_watch(fd: Fd, wd: i32) = inotify_rm_watch, Full, "", "inotify";
    294 inotify_init1(flags: Hex) = inotify_init1, Full, "", "inotify";
}

fn inotify_init(cur: &mut Current) -> Result<i32> {
    inotify_init1(cur, Hex(0))
}

fn inotify_init1(cur: &mut Current, flags: Hex) -> Result<i32> {
    let known = OpenFlags::NONBLOCK | OpenFlags::CLOEXEC;
    let flags = OpenFlags::from_bits(flags.0 as u32).filter(|f| known.contains(*f)).ok_or(EINVAL)?;
    let file = Inotify::open(flags, &cur.task.creds())?;
    cur.install(file, flags.contains(OpenFlags::CLOEXEC))
}

fn inotify_add_watch(cur: &mut Current, fd: Fd, path: UserPath, mask: Hex) -> Result<i32> {
    let mask = mask.0 as u32;
    let options = event::ONLYDIR
        | event::DONT_FOLLOW
        | event::EXCL_UNLINK
        | event::MASK_CREATE
        | event::MASK_ADD
        | event::ISDIR
        | event::ONESHOT;
    // IN_UNMOUNT, IN_Q_OVERFLOW and IN_IGNORED may be asked for: they come anyway.
    let reported = 0x2000 | event::OVERFLOW | event::IGNORED;
    if mask & (event::ALL | options | reported) == 0
        || mask & !(event::ALL | options | reported) != 0
        || mask & event::MASK_ADD != 0 && mask & event::MASK_CREATE != 0
    {
        return Err(EINVAL);
    }
    let file = cur.file(fd)?;
    let instance = file.ops().downcast::<Inotify>().ok_or(EINVAL)?;
    let text = cur.path(path)?;
    let caller = cur.caller();
    let found = caller.walk(None).resolve(&text, mask & event::DONT_FOLLOW == 0)?;
    if mask & event::ONLYDIR != 0 && !found.inode().is_dir() {
        return Err(ENOTDIR);
    }
    permission::check(&**found.inode(), &caller.creds, permission::READ)?;
    instance.add(found.inode(), mask)
}

fn inotify_rm_watch(cur: &mut Current, fd: Fd, wd: i32) -> Result<()> {
    let file = cur.file(fd)?;
    file.ops().downcast::<Inotify>().ok_or(EINVAL)?.remove(wd)
}
