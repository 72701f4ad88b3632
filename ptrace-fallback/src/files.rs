//! Files of the window as descriptors of the stubs.
//!
//! All stubs share one descriptor table. A file goes there by a message on the socket they inherited, received by a template,
//! which never runs application code; it is closed there when the window has let go of it.

use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Weak},
};

use anyhow::{Context, Result, bail};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::{
    host::{
        fork::{SHARED_FD, SOCKET_FD},
        shared::{Call, CommandPage, PAGE},
    },
    stub::{StubError, StubThread},
};

struct Entry {
    file: Weak<OwnedFd>,
    fd: u64,
}

/// The files that stubs have.
#[derive(Default)]
pub struct StubFiles {
    by_file: HashMap<usize, Entry>,
    /// Table size at which stale entries are looked for next.
    sweep_at: usize,
}

impl StubFiles {
    /// The stubs' descriptor for `file`.
    pub fn descriptor(
        &mut self,
        file: &Arc<OwnedFd>,
        socket: &OwnedFd,
        template: &mut StubThread,
        page: &mut CommandPage,
    ) -> Result<u64> {
        let key = Arc::as_ptr(file) as usize;
        if let Some(entry) = self.by_file.get(&key) {
            if entry.file.strong_count() > 0 {
                return Ok(entry.fd);
            }
            self.close(&[key], template, page)?;
        }
        if self.by_file.len() >= self.sweep_at {
            let stale: Vec<usize> =
                self.by_file.iter().filter(|(_, entry)| entry.file.strong_count() == 0).map(|(&key, _)| key).collect();
            self.close(&stale, template, page)?;
            self.sweep_at = (self.by_file.len() * 2).max(64);
        }
        let fd = transfer(file, socket, template, page)?;
        self.by_file.insert(key, Entry { file: Arc::downgrade(file), fd });
        Ok(fd)
    }

    fn close(&mut self, keys: &[usize], template: &mut StubThread, page: &mut CommandPage) -> Result<(), StubError> {
        let calls: Vec<Call> = keys
            .iter()
            .filter_map(|key| self.by_file.remove(key))
            .map(|entry| Call::new(libc::SYS_close, [entry.fd]))
            .collect();
        if calls.is_empty() { Ok(()) } else { template.remote(page, &calls) }
    }
}

fn transfer(file: &Arc<OwnedFd>, socket: &OwnedFd, template: &mut StubThread, page: &mut CommandPage) -> Result<u64> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [file.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(socket, &[std::io::IoSlice::new(&[0])], &mut control, SendFlags::DONTWAIT)
        .context("sending a file to the stubs")?;

    // struct msghdr at 0, iovec at 64, data at 96, control buffer at 128.
    const IOV: usize = 64;
    const DATA: usize = 96;
    const CONTROL: usize = 128;
    const CONTROL_LEN: u64 = 24;
    let base = page.scratch_address;
    let scratch = page.scratch();
    scratch[..256].fill(0);
    let mut put = |at: usize, value: u64| scratch[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    put(16, base + IOV as u64);
    put(24, 1);
    put(32, base + CONTROL as u64);
    put(40, CONTROL_LEN);
    put(IOV, base + DATA as u64);
    put(IOV + 8, 1);
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
    let receive = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
    let calls = [
        Call::new(libc::SYS_mmap, [base, PAGE, prot, flags, SHARED_FD, page.scratch_offset]),
        Call::new(libc::SYS_recvmsg, [SOCKET_FD, base, receive]),
        Call::new(libc::SYS_munmap, [base, PAGE]),
    ];
    template.remote(page, &calls).context("receiving a file in the stubs")?;
    let scratch = page.scratch();
    let word = |at: usize| i32::from_ne_bytes(std::array::from_fn(|index| scratch[at + index]));
    if word(CONTROL + 8) != libc::SOL_SOCKET || word(CONTROL + 12) != libc::SCM_RIGHTS {
        bail!("the stubs received no file: at their limit of descriptors?");
    }
    u64::try_from(word(CONTROL + 16)).context("descriptor of a file in the stubs")
}
