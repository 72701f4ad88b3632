//! Makes the zygote: a child of this process that drops everything it has but a few descriptors and waits to be traced.
//!
//! Called while this process has one thread. The child makes plain system calls only.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr,
};

use anyhow::{Context, Result, bail, ensure};

use super::ptrace::{self, AUDIT_ARCH_X86_64, Resume, Stop};

/// Descriptors of every stub.
pub const USER_FD: u64 = 3;
pub const SOCKET_FD: u64 = 4;
pub const SHARED_FD: u64 = 5;
const READY_FD: libc::c_int = 6;

pub struct Forked {
    pub pid: i32,
    /// Where the child has mapped the first two pages of the shared memfd, executable.
    pub pages: u64,
    /// The end of this process ends every stub: it, or the zygote, is the init process of a pid namespace.
    pub contained: bool,
}

/// Forks the zygote with `user` as [`USER_FD`] and so on.
pub fn fork_zygote(user: BorrowedFd<'_>, socket: BorrowedFd<'_>, shared: BorrowedFd<'_>) -> Result<Forked> {
    let (ready_read, ready_write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("pipe for the zygote")?;
    let fds = [user.as_raw_fd(), socket.as_raw_fd(), shared.as_raw_fd(), ready_write.as_raw_fd()];

    // The init of a pid namespace takes every stub with it when it ends: no need for another one. Otherwise the zygote is one;
    // a user namespace as well lets an unprivileged process have that.
    let init = rustix::process::getpid().is_init();
    let attempts = [libc::CLONE_NEWPID, libc::CLONE_NEWUSER | libc::CLONE_NEWPID, 0];
    for &flags in if init { &attempts[2..] } else { &attempts[..] } {
        // SAFETY: clone without CLONE_VM and with no stack is fork; the child runs `child`, which never returns and makes
        // only system calls.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0usize, 0usize, 0usize, 0usize) };
        match pid {
            0 => child(fds),
            pid if pid > 0 => {
                drop(ready_write);
                let mut pages = [0; 8];
                let mut got = 0;
                while got < pages.len() {
                    match rustix::io::read(&ready_read, &mut pages[got..]) {
                        Ok(0) => bail!("the zygote stub ended while starting"),
                        Ok(count) => got += count,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error).context("waiting for the zygote stub"),
                    }
                }
                return Ok(Forked { pid: pid as i32, pages: u64::from_ne_bytes(pages), contained: init || flags != 0 });
            }
            _ if flags != 0 => {}
            _ => return Err(io::Error::last_os_error()).context("forking the zygote stub"),
        }
    }
    bail!("forking the zygote stub")
}

/// The child. Anything that fails ends it, which the parent sees.
fn child(fds: [RawFd; 4]) -> ! {
    // SAFETY: system calls on this new process's own state; no memory of the parent's data structures is touched.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_DUMPABLE, 1);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"runsc-stub".as_ptr());
        // Keys of a terminal that controls the parent's session are not for stubs.
        libc::setsid();

        let mut action: libc::sigaction = mem::zeroed();
        for signal in 1..=64 {
            // Children that end are reaped without a parent's help.
            action.sa_sigaction = if signal == libc::SIGCHLD { libc::SIG_IGN } else { libc::SIG_DFL };
            libc::sigaction(signal, &action, ptr::null_mut());
        }
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        let mut off: libc::stack_t = mem::zeroed();
        off.ss_flags = libc::SS_DISABLE;
        libc::sigaltstack(&off, ptr::null_mut());

        let mut files: libc::rlimit = mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut files) == 0 {
            files.rlim_cur = files.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &files);
        }
        libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });

        // Out of the way first: the targets may be among the sources.
        let mut high = [0; 4];
        for (to, from) in high.iter_mut().zip(fds) {
            *to = libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 16);
            if *to < 0 {
                libc::_exit(1);
            }
        }
        let targets = [USER_FD as i32, SOCKET_FD as i32, SHARED_FD as i32, READY_FD];
        for (from, to) in high.into_iter().zip(targets) {
            if libc::dup2(from, to) < 0 {
                libc::_exit(1);
            }
        }
        libc::close_range(0, 2, 0);
        libc::close_range(READY_FD as u32 + 1, u32::MAX, 0);

        let pages = libc::mmap(
            ptr::null_mut(),
            2 * 4096,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_SHARED,
            SHARED_FD as i32,
            0,
        );
        let written = libc::write(READY_FD, (&raw const pages).cast(), 8);
        if pages == libc::MAP_FAILED || written != 8 {
            libc::_exit(1);
        }
        libc::close(READY_FD);
        loop {
            libc::pause();
        }
    }
}

/// A child that makes one system call under PTRACE_SYSEMU: whether the tracer saw it.
pub fn probe_child() -> Result<bool> {
    // SAFETY: as in `fork_zygote`; the child makes only system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0usize, 0usize, 0usize, 0usize) };
    if pid < 0 {
        return Err(io::Error::last_os_error()).context("fork");
    }
    if pid == 0 {
        loop {
            // SAFETY: system calls of this new process.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
            }
        }
    }
    let pid = pid as i32;
    let seen = probe_trace(pid);
    ptrace::kill_process(pid);
    while !matches!(ptrace::wait(pid), Ok(Stop::Exited) | Err(_)) {}
    seen
}

fn probe_trace(pid: i32) -> Result<bool> {
    ptrace::seize(pid, ptrace::O_SYSGOOD | ptrace::O_EXITKILL).context("PTRACE_SEIZE")?;
    ptrace::interrupt(pid).context("PTRACE_INTERRUPT")?;
    ensure!(matches!(ptrace::wait(pid).context("wait4")?, Stop::Event(_)), "PTRACE_INTERRUPT: no stop");
    ptrace::resume(pid, Resume::Emulate).context("PTRACE_SYSEMU")?;
    ensure!(ptrace::wait(pid).context("wait4")? == Stop::Syscall, "PTRACE_SYSEMU: no stop at a system call");
    Ok(ptrace::syscall_info(pid).context("PTRACE_GET_SYSCALL_INFO")?.is_some_and(|info| info.arch == AUDIT_ARCH_X86_64))
}
