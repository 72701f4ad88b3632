//! epoll_pwait2(2): a wait with a limit in nanoseconds.

use std::{io, os::fd::AsRawFd, ptr};

use vmm_sys_util::epoll::{Epoll, EpollEvent};

/// Waits for events, `limit` ns at most (`u64::MAX`: without limit; 0: not at all). Less exact where the host lacks the call
/// (before Linux 5.11).
pub fn wait(epoll: &Epoll, limit: u64, events: &mut [EpollEvent]) -> io::Result<usize> {
    match limit {
        0 => return epoll.wait(0, events),
        u64::MAX => return epoll.wait(-1, events),
        _ => {}
    }
    let time = libc::timespec { tv_sec: (limit / 1_000_000_000) as i64, tv_nsec: (limit % 1_000_000_000) as i64 };
    // SAFETY: the kernel writes at most as many events as the slice has; `EpollEvent` is `struct epoll_event`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.as_raw_fd(),
            events.as_mut_ptr(),
            events.len() as libc::c_int,
            &raw const time,
            ptr::null::<libc::sigset_t>(),
            8usize,
        )
    };
    if result >= 0 {
        return Ok(result as usize);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    epoll.wait(i32::try_from(limit.div_ceil(1_000_000)).unwrap_or(i32::MAX), events)
}

/// Makes reads of a descriptor return at once when there is nothing to read.
pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: changes a flag of an open descriptor.
    let result = unsafe {
        match libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) {
            flags if flags >= 0 => libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK),
            error => error,
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
