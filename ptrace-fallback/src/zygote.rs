//! The zygote: an empty stub made before the VMM has threads. It makes one template a vCPU and then only waits; the vCPU's
//! thread traces its template and clones the stubs of address spaces from it.
//!
//! Where allowed the zygote is the init of a pid namespace, so that every stub ends with it, and it ends with the VMM.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sentry_abi::layout::USER_TOP;
use vmm::memory::GuestMemory;

use crate::{
    filter,
    host::{
        fork::{self, SHARED_FD},
        ptrace,
        shared::{Call, CommandPage, DATA, PAGE, SharedPages, TRAMPOLINE},
    },
    stub::StubThread,
};

/// One past the last address that can be mapped.
const TASK_TOP: u64 = 0x7fff_ffff_f000;

pub struct Zygote {
    pid: i32,
    pub pages: SharedPages,
    /// Our end of the socket whose other end is the stubs' `SOCKET_FD`.
    pub socket: OwnedFd,
    /// Process ids of the templates, by vCPU.
    pub templates: Vec<i32>,
}

impl Zygote {
    pub fn new(memory: &GuestMemory, cpus: u32) -> Result<Zygote> {
        let user = memory.user_fd().context("ptrace needs guest memory that is backed by a memfd")?;
        let pages = SharedPages::new()?;
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("socket pair for the stubs")?;
        let forked = fork::fork_zygote(user, theirs.as_fd(), pages.fd())?;
        if !forked.contained {
            log::warn!("stubs have no pid namespace that ends with the sandbox: the host refuses a new one");
        }
        // From here on dropping it ends the process.
        let mut zygote = Zygote { pid: forked.pid, pages, socket, templates: Vec::new() };
        let mut page = zygote.pages.command_page(0);
        let mut stub = StubThread::seize(forked.pid, forked.pid).context("tracing the zygote stub")?;
        scrub(&mut stub, &mut page, forked.pages).context("emptying the zygote stub")?;
        let program = filter::program();
        page.write_data(&filter::fprog(&program, page.stub_address));
        let install = filter::install_call(page.stub_address);
        stub.remote(&mut page, &[install]).context("the stubs' seccomp filter")?;
        for _ in 0..cpus {
            zygote.templates.push(stub.fork_waiting().context("cloning a template stub")?);
        }
        stub.release().context("releasing the zygote stub")?;
        Ok(zygote)
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        for &template in &self.templates {
            ptrace::kill_process(template);
        }
        ptrace::kill_process(self.pid);
        // Reaps our child, which ends when its own children have.
        ptrace::reap_within(vec![self.pid], Duration::from_millis(500));
    }
}

/// Leaves nothing in the child but the trampoline and the command pages.
fn scrub(stub: &mut StubThread, page: &mut CommandPage, pages: u64) -> Result<()> {
    let rseq = ptrace::rseq_configuration(stub.tid).unwrap_or_default();
    let mut calls = Vec::new();
    if rseq.pointer != 0 {
        const RSEQ_FLAG_UNREGISTER: u64 = 1;
        let (size, signature) = (u64::from(rseq.size), u64::from(rseq.signature));
        calls.push(Call::new(libc::SYS_rseq, [rseq.pointer, size, RSEQ_FLAG_UNREGISTER, signature]));
    }
    calls.push(Call::new(libc::SYS_set_robust_list, [0, 24]));
    calls.push(Call::new(libc::SYS_set_tid_address, [0]));
    // The command page is the second of the two pages that the child mapped.
    let list = pages + PAGE + DATA as u64;
    stub.remote_at(pages, list, page, &calls)?;

    ensure!(pages + 2 * PAGE <= USER_TOP, "the stub's first pages are at {pages:#x}");
    let empty = [
        Call::new(libc::SYS_munmap, [0, pages]),
        Call::new(libc::SYS_munmap, [pages + 2 * PAGE, TASK_TOP - pages - 2 * PAGE]),
    ];
    stub.remote_at(pages, list, page, &empty).context("unmapping (does the host seal mappings?)")?;
    stub.remote_at(pages, list, page, &SharedPages::map_calls(SHARED_FD))?;
    stub.remote(page, &[Call::new(libc::SYS_munmap, [pages, 2 * PAGE])])?;
    ensure!(stub.registers().is_ok() && TRAMPOLINE == USER_TOP, "stub lost");
    Ok(())
}
