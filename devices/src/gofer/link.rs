//! What passes between VMM and gofer beside the queue, on one SOCK_SEQPACKET pair: queue addresses towards the gofer, open
//! files (a handle with SCM_RIGHTS) towards the VMM, sent before the request that names the handle is completed. The socket's end ends the other side's use of it.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

use anyhow::{Context, Result};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};
use sentry_abi::{fuse, virtio::device_id};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::virtio::{Backend, QueueSetup};

/// VMM to gofer: serve this queue; size 0: stop serving.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
struct Activate {
    desc: u64,
    avail: u64,
    used: u64,
    features: u64,
    size: u64,
}

/// The VMM's end behind the register page: the gofer serves the queue.
pub struct GoferBackend {
    socket: Arc<OwnedFd>,
}

impl GoferBackend {
    pub fn new(socket: Arc<OwnedFd>) -> GoferBackend {
        GoferBackend { socket }
    }

    fn send(&self, message: Activate) -> Result<()> {
        rustix::net::send(&self.socket, message.as_bytes(), SendFlags::NOSIGNAL).context("the gofer is gone")?;
        Ok(())
    }
}

impl Backend for GoferBackend {
    fn device_id(&self) -> u32 {
        device_id::FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &[fuse::QUEUE_SIZE]
    }

    fn activate(&mut self, queues: &[QueueSetup], features: u64) -> Result<()> {
        let queue = queues.first().copied().unwrap_or_default();
        self.send(Activate {
            desc: queue.desc,
            avail: queue.avail,
            used: queue.used,
            features,
            size: queue.size.into(),
        })
    }

    fn reset(&mut self) {
        // A gofer that is gone serves no queue either.
        let _ = self.send(Activate::default());
    }
}

/// The next file handed over: what the VMM does when the sentry names a handle it has not seen.
#[cfg(test)]
pub(super) fn receive_file(socket: BorrowedFd<'_>) -> Option<(u64, OwnedFd)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage};
    let mut handle = [0u8; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received =
        rustix::net::recvmsg(socket, &mut [std::io::IoSliceMut::new(&mut handle)], &mut control, flags).ok()?;
    if received.bytes != handle.len() {
        return None;
    }
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })?;
    Some((u64::from_le_bytes(handle), file))
}

/// Gofer: hands a file to the VMM.
pub(super) fn send_file(socket: BorrowedFd<'_>, handle: u64, file: BorrowedFd<'_>) -> Result<(), Errno> {
    let fds = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(&handle.to_le_bytes())], &mut control, flags)?;
    Ok(())
}

/// What the VMM has told the gofer.
pub(super) enum Message {
    Activate(QueueSetup, u64),
    Reset,
    /// The VMM is gone.
    End,
    None,
}

pub(super) fn receive(socket: BorrowedFd<'_>) -> Message {
    let mut message = Activate::default();
    match rustix::net::recv(socket, message.as_mut_bytes(), RecvFlags::DONTWAIT) {
        Ok((_, 0)) => Message::End,
        Ok((_, n)) if n == size_of::<Activate>() => match u16::try_from(message.size) {
            Ok(0) | Err(_) => Message::Reset,
            Ok(size) => {
                let setup = QueueSetup { size, desc: message.desc, avail: message.avail, used: message.used };
                Message::Activate(setup, message.features)
            }
        },
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Message::None,
        Err(_) => Message::End,
    }
}
