//! Descriptors that travel with messages on the control socket (SCM_RIGHTS, unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// SCM_MAX_FD.
const MAX_DESCRIPTORS: usize = 253;

/// Writes `bytes`, the descriptors with the first of them.
pub(super) fn write_with(stream: &mut UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = 0;
    if !fds.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if fds.len() > MAX_DESCRIPTORS || !control.push(SendAncillaryMessage::ScmRights(fds)) {
            let message = format!("{} descriptors, and a message carries {MAX_DESCRIPTORS}", fds.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        sent = sendmsg(&*stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    }
    stream.write_all(&bytes[sent..])
}

/// A stream whose reads collect the descriptors that come along.
pub(super) struct Collector<'a> {
    pub stream: &'a UnixStream,
    pub fds: Vec<OwnedFd>,
}

impl Read for Collector<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(self.stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors in a control message"));
        }
        Ok(received.bytes)
    }
}
