//! Calls of POSIX message queues (mq_overview(7)).

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::UserTimespec;
use crate::{
    errno::{EACCES, EBADF, EEXIST, EINVAL, EMSGSIZE, ENAMETOOLONG, ENOENT, Result},
    fs::{
        NAME_MAX, OpenFlags, Path,
        mqueue::{self, Shape},
        namei, permission,
    },
    mm::user::{UserAddr, UserPtr},
    signal::set::SIGNALS,
    syscall::{Fd, Hex, Level::*, Syscall, UserPath},
    syscalls,
    task::Current,
    time::{self, Timespec},
};

syscalls! { pub CALLS;
    240 mq_open(name: UserPath, flags: Hex, mode: Hex, attr: UserPtr<UserAttr>) = mq_open, Full, "", "mqueue";
    241 mq_unlink(name: UserPath) = mq_unlink, Full, "", "mqueue";
    242 mq_timedsend(queue: Fd, text: UserAddr, len: usize, priority: u32, timeout: UserPtr<UserTimespec>) = mq_timedsend, Full, "", "mqueue";
    243 mq_timedreceive(queue: Fd, text: UserAddr, len: usize, priority: UserPtr<u32>, timeout: UserPtr<UserTimespec>) = mq_timedreceive, Full, "", "mqueue";
    244 mq_notify(queue: Fd, event: UserPtr<Event>) = mq_notify, Partial, "no SIGEV_THREAD", "mqueue";
    245 mq_getsetattr(queue: Fd, new: UserPtr<UserAttr>, old: UserPtr<UserAttr>) = mq_getsetattr, Full, "", "mqueue";
}

/// Priorities are below this.
const MQ_PRIO_MAX: u32 = 32768;

/// struct mq_attr.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct UserAttr {
    flags: i64,
    messages: i64,
    size: i64,
    count: i64,
    reserved: [i64; 4],
}

/// The part of struct sigevent that matters.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Event {
    value: u64,
    signal: i32,
    notify: i32,
}

fn queue_name(cur: &Current, name: UserPath) -> Result<alloc::vec::Vec<u8>> {
    let name = cur.path(name)?;
    if name.is_empty() {
        return Err(ENOENT);
    }
    if name.len() > NAME_MAX {
        return Err(ENAMETOOLONG);
    }
    if name.contains(&b'/') || name == b"." || name == b".." { Err(EACCES) } else { Ok(name) }
}

fn mq_open(cur: &mut Current, name: UserPath, flags: Hex, mode: Hex, attr: UserPtr<UserAttr>) -> Result<i32> {
    let known = OpenFlags::WRONLY
        | OpenFlags::RDWR
        | OpenFlags::CREAT
        | OpenFlags::EXCL
        | OpenFlags::NONBLOCK
        | OpenFlags::CLOEXEC;
    let flags = OpenFlags::from_bits_truncate(flags.0 as u32) & known;
    if flags.contains(OpenFlags::WRONLY | OpenFlags::RDWR) {
        return Err(EINVAL);
    }
    let create = flags.contains(OpenFlags::CREAT);
    let attr = if create && !attr.is_null() { Some(cur.mm.read_value(attr)?) } else { None };
    let name = queue_name(cur, name)?;
    let root = mqueue::root();
    let caller = cur.caller();
    loop {
        let dentry = match root.dentry.lookup(&name) {
            Ok(_) if create && flags.contains(OpenFlags::EXCL) => return Err(EEXIST),
            Ok(dentry) => {
                let read = if flags.readable() { permission::READ } else { 0 };
                let write = if flags.writable() { permission::WRITE } else { 0 };
                permission::check(&**dentry.inode(), &caller.creds, read | write)?;
                dentry
            }
            Err(ENOENT) if create => {
                permission::check(&**root.inode(), &caller.creds, permission::WRITE | permission::EXECUTE)?;
                let shape = attr.map(|a| Shape { messages: a.messages, size: a.size });
                let limits = *cur.task.process.limits.lock();
                match mqueue::create(&name, shape, mode.0 as u32 & !caller.umask, &caller.creds, &limits) {
                    // Whoever was faster made it.
                    Ok(()) | Err(EEXIST) => {}
                    Err(error) => return Err(error),
                }
                match root.dentry.lookup(&name) {
                    Ok(dentry) => dentry,
                    // And gone again.
                    Err(ENOENT) => continue,
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        let path = Path { mount: root.mount.clone(), dentry };
        let file = namei::open_checked(&path, flags - OpenFlags::CREAT - OpenFlags::EXCL)?;
        // Queues are closed on exec whatever O_CLOEXEC says.
        return cur.install(file, true);
    }
}

fn mq_unlink(cur: &mut Current, name: UserPath) -> Result<()> {
    let name = queue_name(cur, name)?;
    let root = mqueue::root();
    let creds = cur.task.creds();
    root.dentry.remove(&name, false, |child| permission::may_delete(&**root.inode(), &**child.inode(), &creds))
}

/// An absolute CLOCK_REALTIME time as a CLOCK_MONOTONIC deadline.
fn deadline(cur: &Current, timeout: UserPtr<UserTimespec>) -> Result<u64> {
    if timeout.is_null() {
        return Ok(u64::MAX);
    }
    let t = cur.mm.read_value(timeout)?;
    Ok(time::realtime_deadline(Timespec { sec: t.sec, nsec: t.nsec }.to_ns()?))
}

fn mq_timedsend(
    cur: &mut Current,
    queue: Fd,
    text: UserAddr,
    len: usize,
    priority: u32,
    timeout: UserPtr<UserTimespec>,
) -> Result<()> {
    let deadline = deadline(cur, timeout)?;
    if priority >= MQ_PRIO_MAX {
        return Err(EINVAL);
    }
    let file = cur.file(queue)?;
    let queue = mqueue::of(&file)?;
    if !file.writable() {
        return Err(EBADF);
    }
    if len as u64 > queue.shape.size as u64 {
        return Err(EMSGSIZE);
    }
    let mut bytes = alloc::vec![0; len];
    cur.mm.read(text, &mut bytes)?;
    queue.send(bytes, priority, file.nonblocking(), deadline)
}

fn mq_timedreceive(
    cur: &mut Current,
    queue: Fd,
    text: UserAddr,
    len: usize,
    priority: UserPtr<u32>,
    timeout: UserPtr<UserTimespec>,
) -> Result<usize> {
    let deadline = deadline(cur, timeout)?;
    let file = cur.file(queue)?;
    let queue = mqueue::of(&file)?;
    if !file.readable() {
        return Err(EBADF);
    }
    if (len as u64) < queue.shape.size as u64 {
        return Err(EMSGSIZE);
    }
    let (bytes, of) = queue.receive(file.nonblocking(), deadline)?;
    if !priority.is_null() {
        cur.mm.write_value(priority, &of)?;
    }
    cur.mm.write(text, &bytes)?;
    Ok(bytes.len())
}

fn mq_notify(cur: &mut Current, queue: Fd, event: UserPtr<Event>) -> Result<()> {
    const SIGEV_SIGNAL: i32 = 0;
    const SIGEV_NONE: i32 = 1;
    let event = if event.is_null() { None } else { Some(cur.mm.read_value(event)?) };
    let signal = match event {
        None => None,
        Some(Event { notify: SIGEV_NONE, .. }) => Some(None),
        Some(Event { value, signal, notify: SIGEV_SIGNAL }) => {
            Some(Some((u32::try_from(signal).ok().filter(|s| (1..SIGNALS).contains(s)).ok_or(EINVAL)?, value)))
        }
        Some(_) => return Err(EINVAL),
    };
    let file = cur.file(queue)?;
    let queue = mqueue::of(&file)?;
    let process = &cur.task.process;
    match signal {
        Some(signal) => queue.register(process, signal),
        None => {
            queue.unregister(process.pid);
            Ok(())
        }
    }
}

fn mq_getsetattr(cur: &mut Current, queue: Fd, new: UserPtr<UserAttr>, old: UserPtr<UserAttr>) -> Result<()> {
    let wanted = if new.is_null() { None } else { Some(cur.mm.read_value(new)?.flags) };
    let nonblock = i64::from(OpenFlags::NONBLOCK.bits());
    if wanted.is_some_and(|flags| flags & !nonblock != 0) {
        return Err(EINVAL);
    }
    let file = cur.file(queue)?;
    let queue = mqueue::of(&file)?;
    let before = UserAttr {
        flags: if file.nonblocking() { nonblock } else { 0 },
        messages: queue.shape.messages,
        size: queue.shape.size,
        count: queue.count(),
        ..UserAttr::default()
    };
    if let Some(flags) = wanted {
        let mut status = file.flags();
        status.set(OpenFlags::NONBLOCK, flags & nonblock != 0);
        file.set_status(status)?;
    }
    if old.is_null() { Ok(()) } else { cur.mm.write_value(old, &before) }
}
