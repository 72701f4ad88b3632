//! Making processes that go on in this program: fork with namespaces, and closing what is not theirs.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use anyhow::{Context, Result, bail};
use rustix::process::Pid;

/// Of <linux/sched.h>; 33 bits wide.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Which side of a fork this is.
pub enum Fork {
    Parent(Pid),
    Child,
}

/// Forks into new namespaces (CLONE_NEW*). The child has only this thread.
pub fn fork(namespaces: libc::c_int) -> std::io::Result<Fork> {
    let flags = (namespaces | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the child has a copy of everything. The callers are
    // single-threaded (checked below), so no lock can be held by a thread that the child lacks.
    made(unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) })
}

/// As [`fork`], into a control group of version 2.
pub fn fork_into(namespaces: libc::c_int, group: BorrowedFd<'_>) -> std::io::Result<Fork> {
    // SAFETY: all fields of this structure are numbers, for which 0 means nothing special.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces as u64 | CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = group.as_raw_fd() as u64;
    // SAFETY: as in `fork`; the kernel reads the structure, which lives until the call returns.
    made(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })
}

fn made(pid: libc::c_long) -> std::io::Result<Fork> {
    match pid {
        -1 => Err(std::io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => match Pid::from_raw(pid as i32) {
            Some(pid) => Ok(Fork::Parent(pid)),
            None => Err(std::io::ErrorKind::InvalidData.into()),
        },
    }
}

/// Forking is only sound with one thread. One that has been joined may take a moment longer to be gone.
pub fn check_single_threaded() -> Result<()> {
    let mut threads = 0;
    for _ in 0..500 {
        threads = std::fs::read_dir("/proc/self/task").context("/proc/self/task")?.count();
        if threads == 1 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    bail!("{threads} threads run where a process is to be made");
}

/// Leaves a namespace.
pub fn unshare(namespace: rustix::thread::UnshareFlags) -> Result<()> {
    // SAFETY: unsharing a namespace of a process with one thread touches no memory and no descriptor table.
    unsafe { rustix::thread::unshare_unsafe(namespace) }.context("unshare")
}

/// Ends this process at once: no destructors, which belong to the process it was forked from.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) only ends the process.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor that is not listed.
pub fn close_all_but(keep: &[RawFd]) -> Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut from = 0;
    for fd in keep {
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = from.max(fd + 1);
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: closing descriptors of others is what this is for; the callers list all that are still owned.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("close_range");
    }
    Ok(())
}
