//! Host files that the gofer has handed over for the window: messages of a handle (8 bytes, little endian) with one descriptor
//! (SCM_RIGHTS) on a Unix socket (SOCK_SEQPACKET or SOCK_DGRAM). They are read when the sentry names a handle that is not
//! known yet: the gofer sends the descriptor before it answers the request, so by then it is there.

use std::{
    collections::HashMap,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

/// Most files held at a time: a host may give a process only 20,000 descriptors.
pub const MAX_FILES: usize = 8192;

pub struct WindowFiles {
    socket: Option<OwnedFd>,
    files: Mutex<HashMap<u64, Arc<OwnedFd>>>,
}

impl WindowFiles {
    pub fn new(socket: Option<OwnedFd>) -> WindowFiles {
        WindowFiles { socket, files: Mutex::new(HashMap::new()) }
    }

    /// The file of `handle`; none when the gofer has not sent it.
    pub fn get(&self, handle: u64) -> Result<Option<Arc<OwnedFd>>, Errno> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(&handle) {
            self.receive(&mut files)?;
        }
        Ok(files.get(&handle).cloned())
    }

    /// Drops the file. Mappings of it in the window stay until they are removed.
    pub fn forget(&self, handle: u64) -> Result<bool, Errno> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(&handle) {
            self.receive(&mut files)?;
        }
        Ok(files.remove(&handle).is_some())
    }

    /// Takes what the socket holds, without waiting.
    fn receive(&self, files: &mut HashMap<u64, Arc<OwnedFd>>) -> Result<(), Errno> {
        let Some(socket) = &self.socket else { return Ok(()) };
        loop {
            if files.len() >= MAX_FILES {
                return Err(Errno::NFILE);
            }
            let mut handle = [0; 8];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let message = match recvmsg(socket, &mut [IoSliceMut::new(&mut handle)], &mut control, flags) {
                Ok(message) if message.bytes > 0 => message,
                // The gofer is gone: what it sent before still counts.
                Ok(_) | Err(Errno::AGAIN | Errno::CONNRESET) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            let file = control.drain().find_map(|part| match part {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            match file {
                Some(file) if message.bytes == handle.len() => {
                    files.insert(u64::from_le_bytes(handle), Arc::new(file));
                }
                _ => log::warn!("window socket: a message of {} bytes or without a descriptor", message.bytes),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{io::IoSlice, os::fd::AsFd};

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
        socketpair,
    };

    use super::*;

    pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    pub(crate) fn send(socket: &OwnedFd, bytes: &[u8], file: Option<&OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = file.map(|file| [file.as_fd()]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    }

    #[test]
    fn handles_come_with_descriptors() {
        let (ours, theirs) = pair();
        let files = WindowFiles::new(Some(ours));
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(files.get(7).unwrap().is_none());
        send(&theirs, &7u64.to_le_bytes(), Some(&file));
        send(&theirs, &8u64.to_le_bytes(), None);
        send(&theirs, b"no", Some(&file));
        send(&theirs, &9u64.to_le_bytes(), Some(&file));
        drop(theirs);
        assert!(files.get(7).unwrap().is_some());
        assert!(files.get(8).unwrap().is_none());
        assert!(files.forget(9).unwrap() && !files.forget(9).unwrap());
    }
}
