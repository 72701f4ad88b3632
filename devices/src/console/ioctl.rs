//! The ioctls that may reach a host descriptor. No TIOCSTI, nothing that changes sessions.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// `struct termios` of the kernel.
const TERMIOS: usize = 36;
/// `struct winsize`.
const WINSIZE: usize = 8;

/// Performs `request` on `fd`. `data` is the argument's bytes, in and out; returns how many of them come back.
pub(super) fn perform(fd: BorrowedFd<'_>, request: u64, value: i64, data: &mut [u8; TERMIOS]) -> Result<usize, Errno> {
    let number = u32::try_from(request).map_err(|_| Errno::NOTTY)?;
    match libc::c_ulong::from(number) {
        libc::TCGETS => by_pointer(fd, libc::TCGETS, data).map(|()| TERMIOS),
        // Draining could wait for ever for a terminal that is stopped; output has left our hands already.
        libc::TCSETS | libc::TCSETSW => by_pointer(fd, libc::TCSETS, data).map(|()| 0),
        libc::TCSETSF => {
            by_value(fd, libc::TCFLSH, libc::TCIFLUSH.into())?;
            by_pointer(fd, libc::TCSETS, data).map(|()| 0)
        }
        libc::TIOCGWINSZ => by_pointer(fd, libc::TIOCGWINSZ, data).map(|()| WINSIZE),
        libc::TIOCSWINSZ => by_pointer(fd, libc::TIOCSWINSZ, data).map(|()| 0),
        libc::FIONREAD => by_pointer(fd, libc::FIONREAD, data).map(|()| 4),
        libc::TCFLSH if (0..=2).contains(&value) => by_value(fd, libc::TCFLSH, value).map(|()| 0),
        libc::TCXONC if (0..=3).contains(&value) => by_value(fd, libc::TCXONC, value).map(|()| 0),
        // tcdrain(3): see above. A break is sent for 0 only.
        libc::TCSBRK if value != 0 => Ok(0),
        libc::TCSBRK => by_value(fd, libc::TCSBRK, 0).map(|()| 0),
        libc::TCFLSH | libc::TCXONC => Err(Errno::INVAL),
        _ => Err(Errno::NOTTY),
    }
}

fn by_pointer(fd: BorrowedFd<'_>, request: libc::Ioctl, data: &mut [u8; TERMIOS]) -> Result<(), Errno> {
    // SAFETY: every request passed here reads or writes at most `struct termios`, which is as large as `data`.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, data.as_mut_ptr()) })
}

fn by_value(fd: BorrowedFd<'_>, request: libc::Ioctl, value: i64) -> Result<(), Errno> {
    // SAFETY: every request passed here takes an integer.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })
}

fn checked(result: libc::c_int) -> Result<(), Errno> {
    if result >= 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
