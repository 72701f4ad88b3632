//! Vectored host I/O directly on device memory.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

use super::Chain;

/// Most buffers the kernel takes in one call.
const IOV_MAX: usize = 1024;

/// The descriptor of an event, for poll(2).
pub(crate) fn event_descriptor(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the event's own and open as long as the event is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

fn iovecs(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    slices
        .iter()
        .take(IOV_MAX)
        .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
        .collect()
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl Chain {
    /// Reads up to `count` bytes of `fd` into the chain's writable buffers; at `offset`, or at its own position for `None`.
    /// `flags` are RWF_*.
    pub fn read_from(
        &mut self,
        fd: BorrowedFd<'_>,
        count: usize,
        offset: Option<i64>,
        flags: i32,
    ) -> io::Result<usize> {
        let slices = self.writable_slices(count).map_err(io::Error::other)?;
        let iov = iovecs(&slices);
        // SAFETY: the vectors describe mapped device memory that `self.memory` keeps alive; other writers to it are expected
        // (it is shared with the sandbox) and nothing in this process holds a reference into it.
        let done = checked(unsafe {
            libc::preadv2(fd.as_raw_fd(), iov.as_ptr(), iov.len() as i32, offset.unwrap_or(-1), flags)
        })?;
        self.advance(done);
        Ok(done)
    }

    /// Writes up to `count` readable bytes of the chain to `fd`, as [`Chain::read_from`].
    pub fn write_to(&mut self, fd: BorrowedFd<'_>, count: usize, offset: Option<i64>, flags: i32) -> io::Result<usize> {
        let slices = self.readable_slices(count).map_err(io::Error::other)?;
        let iov = iovecs(&slices);
        // SAFETY: as in `read_from`; the kernel only reads.
        let done = checked(unsafe {
            libc::pwritev2(fd.as_raw_fd(), iov.as_ptr(), iov.len() as i32, offset.unwrap_or(-1), flags)
        })?;
        self.consume(done);
        Ok(done)
    }

    /// As [`Chain::write_to`] for a socket, never waiting and never raising SIGPIPE.
    pub fn send_to(&mut self, fd: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        let slices = self.readable_slices(count).map_err(io::Error::other)?;
        let mut iov = iovecs(&slices);
        // SAFETY: an all-zero msghdr is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iov.as_mut_ptr();
        message.msg_iovlen = iov.len();
        // SAFETY: as in `read_from`; `message` and `iov` outlive the call.
        let done =
            checked(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })?;
        self.consume(done);
        Ok(done)
    }

    /// As [`Chain::read_from`] for a socket, never waiting.
    pub fn receive_from(&mut self, fd: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        let slices = self.writable_slices(count).map_err(io::Error::other)?;
        let mut iov = iovecs(&slices);
        // SAFETY: an all-zero msghdr is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iov.as_mut_ptr();
        message.msg_iovlen = iov.len();
        // SAFETY: as in `read_from`; `message` and `iov` outlive the call.
        let done = checked(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })?;
        self.advance(done);
        Ok(done)
    }
}
