//! Device memory on its way from the VMM to the gofer: the gofer is made before guest memory is, so that it maps none of
//! it.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

pub fn send(socket: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<()> {
    let fds = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        bail!("no room for a descriptor");
    }
    sendmsg(socket, &[IoSlice::new(b"m")], &mut control, SendFlags::NOSIGNAL).context("send device memory")?;
    Ok(())
}

pub fn receive(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result.context("receive device memory")?,
        }
    };
    if received.bytes == 0 {
        bail!("it has ended");
    }
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    file.context("no descriptor came")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_crosses() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("pair");
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        send(a.as_fd(), file.as_fd()).expect("send");
        let got = receive(b.as_fd()).expect("receive");
        assert_eq!(rustix::fs::fstat(&got).expect("stat").st_ino, rustix::fs::fstat(&file).expect("stat").st_ino);
        drop(a);
        assert!(receive(b.as_fd()).is_err());
    }
}
