//! The system calls of the gofer: a seccomp filter as data, each call with what it is for. Anything else is EPERM.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Number and reason.
const ALLOWED: &[(libc::c_long, &str)] = &[
    // Requests: the queue is shared memory; doorbells and the VMM's socket are descriptors.
    (libc::SYS_read, "doorbells; small reads"),
    (libc::SYS_write, "completions; the log"),
    (libc::SYS_poll, "sleep until a doorbell or the VMM"),
    (libc::SYS_ppoll, "as poll, where libc prefers it"),
    (libc::SYS_recvmsg, "queue addresses and device memory from the VMM"),
    (libc::SYS_recvfrom, "queue addresses from the VMM"),
    (libc::SYS_sendmsg, "hand an open file to the VMM for the window"),
    (libc::SYS_sendto, "answer the VMM"),
    // Files. Paths are single components below the roots.
    (libc::SYS_openat, "/proc/self/fd; reopen an O_PATH descriptor through it"),
    (libc::SYS_open, "as openat"),
    (libc::SYS_openat2, "look up a component beneath its directory"),
    (libc::SYS_close, "evict a descriptor"),
    (libc::SYS_newfstatat, "attributes"),
    (libc::SYS_fstat, "attributes"),
    (libc::SYS_stat, "attributes through /proc/self/fd"),
    (libc::SYS_statx, "attributes"),
    (libc::SYS_fstatfs, "statfs of a mount"),
    (libc::SYS_pread64, "read"),
    (libc::SYS_pwrite64, "write"),
    (libc::SYS_preadv, "read into the buffers of a request"),
    (libc::SYS_pwritev, "write from the buffers of a request"),
    (libc::SYS_preadv2, "as preadv, with flags"),
    (libc::SYS_pwritev2, "as pwritev, with RWF_APPEND"),
    (libc::SYS_readv, "as preadv"),
    (libc::SYS_writev, "as pwritev"),
    (libc::SYS_lseek, "SEEK_DATA and SEEK_HOLE; position of a directory"),
    (libc::SYS_getdents64, "list a directory"),
    (libc::SYS_readlinkat, "symbolic links, which the sentry follows itself"),
    (libc::SYS_mkdirat, "make a directory"),
    (libc::SYS_mknodat, "make a FIFO, socket or device node"),
    (libc::SYS_symlinkat, "make a symbolic link"),
    (libc::SYS_linkat, "make a hard link"),
    (libc::SYS_unlinkat, "remove a name"),
    (libc::SYS_renameat2, "rename"),
    (libc::SYS_renameat, "rename without flags"),
    (libc::SYS_fchmod, "mode"),
    (libc::SYS_fchmodat, "mode"),
    (libc::SYS_fchownat, "owner, which the sentry decides"),
    (libc::SYS_fchown, "owner"),
    (libc::SYS_utimensat, "times"),
    (libc::SYS_ftruncate, "size"),
    (libc::SYS_truncate, "size through /proc/self/fd"),
    (libc::SYS_fallocate, "room for a file"),
    (libc::SYS_copy_file_range, "copy between files of a mount"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_fgetxattr, "extended attributes"),
    (libc::SYS_fsetxattr, "extended attributes"),
    (libc::SYS_flistxattr, "extended attributes"),
    (libc::SYS_fremovexattr, "extended attributes"),
    (libc::SYS_getxattr, "extended attributes through /proc/self/fd"),
    (libc::SYS_setxattr, "extended attributes through /proc/self/fd"),
    (libc::SYS_listxattr, "extended attributes through /proc/self/fd"),
    (libc::SYS_removexattr, "extended attributes through /proc/self/fd"),
    (libc::SYS_umask, "modes are the sentry's to decide"),
    // The process itself.
    (libc::SYS_mmap, "device memory; the allocator"),
    (libc::SYS_munmap, "the allocator"),
    (libc::SYS_mremap, "the allocator"),
    (libc::SYS_mprotect, "the allocator"),
    (libc::SYS_madvise, "the allocator"),
    (libc::SYS_brk, "the allocator"),
    (libc::SYS_fcntl, "flags and copies of descriptors"),
    (libc::SYS_dup, "copies of descriptors"),
    (libc::SYS_prlimit64, "how many descriptors it may cache"),
    (libc::SYS_getrlimit, "how many descriptors it may cache"),
    (libc::SYS_eventfd2, "copies of doorbells"),
    (libc::SYS_shutdown, "end of the VMM's socket"),
    (libc::SYS_futex, "locks"),
    (libc::SYS_clock_gettime, "how long it slept; log lines"),
    (libc::SYS_clock_nanosleep, "a pause before it looks at the queue again"),
    (libc::SYS_sched_yield, "spinning politely"),
    (libc::SYS_getrandom, "seeds of hash maps"),
    (libc::SYS_getpid, "log lines"),
    (libc::SYS_gettid, "abort"),
    (libc::SYS_getuid, "what it may do"),
    (libc::SYS_getgid, "what it may do"),
    (libc::SYS_tgkill, "abort"),
    (libc::SYS_rt_sigaction, "abort"),
    (libc::SYS_rt_sigprocmask, "abort"),
    (libc::SYS_rt_sigreturn, "return from a signal"),
    (libc::SYS_sigaltstack, "the runtime's guard page"),
    (libc::SYS_restart_syscall, "poll after a stop"),
    (libc::SYS_exit, "end"),
    (libc::SYS_exit_group, "end"),
];

/// Installs the filter for this process's only thread.
pub fn install() -> Result<()> {
    let rules = ALLOWED.iter().map(|(number, _)| (*number, Vec::new())).collect::<BTreeMap<_, _>>();
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, TargetArch::x86_64).context("filter")?;
    let program: BpfProgram = filter.try_into().context("compile the filter")?;
    seccompiler::apply_filter(&program).context("apply the filter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_executes_or_makes_processes_or_sockets() {
        for number in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fork,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_ioctl,
        ] {
            assert!(ALLOWED.iter().all(|(n, _)| *n != number), "{number}");
        }
        for (i, (number, reason)) in ALLOWED.iter().enumerate() {
            assert!(!reason.is_empty() && ALLOWED[i + 1..].iter().all(|(n, _)| n != number), "{number} twice");
        }
    }
}
