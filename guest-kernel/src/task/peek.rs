//! Reaching into other processes: process_vm_readv(2), pidfd_getfd(2), kcmp(2), for whom ptrace(2) would let.

use alloc::sync::Arc;

use super::{Current, Task, cap, pidfd, table};
use crate::{
    errno::{EBADF, EINVAL, EPERM, ESRCH, Result},
    fs::syscalls::rw::UserIoVec,
    mm::{
        io::{IoDst, IoSrc},
        user::UserPtr,
    },
    random,
    sync::Once,
    syscall::{Fd, Level::*, Syscall},
    syscalls,
};

syscalls! { pub CALLS;
    310 process_vm_readv(pid: i32, local: UserPtr<UserIoVec>, local_count: u64, remote: UserPtr<UserIoVec>, remote_count: u64, flags: u64) = process_vm_readv, Full, "", "peek";
    311 process_vm_writev(pid: i32, local: UserPtr<UserIoVec>, local_count: u64, remote: UserPtr<UserIoVec>, remote_count: u64, flags: u64) = process_vm_writev, Full, "", "peek";
    312 kcmp(first: i32, second: i32, kind: i32, index1: u64, index2: u64) = kcmp, Partial, "no KCMP_EPOLL_TFD", "peek";
    438 pidfd_getfd(pidfd: Fd, target: Fd, flags: u32) = pidfd_getfd, Full, "", "peek";
}

/// Bytes copied at a time.
const CHUNK: usize = 16 << 10;

/// EPERM unless the running task might attach to the other one (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS).
fn may_attach(cur: &Current, target: &Task) -> Result<()> {
    if Arc::ptr_eq(&cur.task.process, &target.process) {
        return Ok(());
    }
    let (mine, theirs) = (cur.task.creds(), target.creds());
    if mine.capable(cap::SYS_PTRACE) {
        return Ok(());
    }
    let user = [theirs.uid, theirs.euid, theirs.suid].iter().all(|id| *id == mine.uid);
    let group = [theirs.gid, theirs.egid, theirs.sgid].iter().all(|id| *id == mine.gid);
    let covered = theirs.caps.permitted & !mine.caps.permitted == 0;
    let dumpable = target.process.dumpable.load(core::sync::atomic::Ordering::Relaxed) == 1;
    if user && group && covered && dumpable { Ok(()) } else { Err(EPERM) }
}

fn target(cur: &Current, pid: i32) -> Result<Arc<Task>> {
    let task = table::task(pid).ok_or(ESRCH)?;
    may_attach(cur, &task)?;
    Ok(task)
}

fn process_vm_readv(
    cur: &mut Current,
    pid: i32,
    local: UserPtr<UserIoVec>,
    local_count: u64,
    remote: UserPtr<UserIoVec>,
    remote_count: u64,
    flags: u64,
) -> Result<usize> {
    copy(cur, pid, (local, local_count), (remote, remote_count), flags, false)
}

fn process_vm_writev(
    cur: &mut Current,
    pid: i32,
    local: UserPtr<UserIoVec>,
    local_count: u64,
    remote: UserPtr<UserIoVec>,
    remote_count: u64,
    flags: u64,
) -> Result<usize> {
    copy(cur, pid, (local, local_count), (remote, remote_count), flags, true)
}

/// Copies until one side is used up, or to the first bad address: an error only when nothing was copied.
fn copy(
    cur: &Current,
    pid: i32,
    local: (UserPtr<UserIoVec>, u64),
    remote: (UserPtr<UserIoVec>, u64),
    flags: u64,
    to_remote: bool,
) -> Result<usize> {
    if flags != 0 {
        return Err(EINVAL);
    }
    let count = |n: u64| i32::try_from(n).map_err(|_| EINVAL);
    let ours = cur.iovec(local.0, count(local.1)?)?;
    let theirs = cur.iovec(remote.0, count(remote.1)?)?;
    if ours.iter().all(|p| p.len == 0) || theirs.iter().all(|p| p.len == 0) {
        return Ok(0);
    }
    let space = target(cur, pid)?.mm().ok_or(ESRCH)?;
    let mut buffer = alloc::vec![0; CHUNK];
    let mut done = 0;
    let (from, to) =
        if to_remote { ((&*cur.mm, ours), (&*space, theirs)) } else { ((&*space, theirs), (&*cur.mm, ours)) };
    let (mut src, mut dst) = (IoSrc::user_vec(from.0, from.1)?, IoDst::user_vec(to.0, to.1)?);
    loop {
        let want = CHUNK.min(src.remaining()).min(dst.remaining());
        if want == 0 {
            return Ok(done);
        }
        let moved = src.get(&mut buffer[..want]).and_then(|got| Ok((got, dst.put(&buffer[..got])?)));
        match moved {
            Ok((_, put)) => {
                done += put;
                if put < want {
                    return Ok(done);
                }
            }
            Err(error) => return if done == 0 { Err(error) } else { Ok(done) },
        }
    }
}

fn pidfd_getfd(cur: &mut Current, pidfd: Fd, wanted: Fd, flags: u32) -> Result<i32> {
    if flags != 0 {
        return Err(EINVAL);
    }
    let process = pidfd::process_of(&*cur.task.files().get(pidfd.0)?)?;
    let task = process.main_thread().ok_or(ESRCH)?;
    may_attach(cur, &task)?;
    let file = task.files().get(wanted.0)?;
    cur.install(file, true)
}

/// Orders two addresses the same way each time without telling which is lower.
fn compare(a: usize, b: usize) -> i32 {
    static SECRET: Once<[u64; 2]> = Once::new();
    let [mask, odd] = *SECRET.call_once(|| {
        let mut bytes = [0; 16];
        random::fill(&mut bytes);
        let word = |at: usize| bytes[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        [word(0), word(8) | 1]
    });
    let hide = |address: usize| (address as u64 ^ mask).wrapping_mul(odd);
    match hide(a).cmp(&hide(b)) {
        core::cmp::Ordering::Equal => 0,
        core::cmp::Ordering::Less => 1,
        core::cmp::Ordering::Greater => 2,
    }
}

fn kcmp(cur: &mut Current, first: i32, second: i32, kind: i32, index1: u64, index2: u64) -> Result<i32> {
    const FILE: i32 = 0;
    const VM: i32 = 1;
    const FILES: i32 = 2;
    const FS: i32 = 3;
    const SIGHAND: i32 = 4;
    const IO: i32 = 5;
    const SYSVSEM: i32 = 6;
    let (a, b) = (target(cur, first)?, target(cur, second)?);
    let address = |task: &Task, index: u64| -> Result<usize> {
        Ok(match kind {
            FILE => {
                let fd = i32::try_from(index).map_err(|_| EBADF)?;
                Arc::as_ptr(&task.files().get(fd)?) as usize
            }
            VM => task.mm().map_or(0, |mm| Arc::as_ptr(&mm) as usize),
            FILES => Arc::as_ptr(&task.files()) as usize,
            FS => Arc::as_ptr(&task.fs()) as usize,
            SIGHAND => Arc::as_ptr(&task.process.handlers()) as usize,
            // Nobody has I/O contexts.
            IO => 0,
            SYSVSEM => task.sem_undo.lock().as_ref().map_or(0, |list| Arc::as_ptr(list) as usize),
            _ => return Err(EINVAL),
        })
    };
    Ok(compare(address(&a, index1)?, address(&b, index2)?))
}
