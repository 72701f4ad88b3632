//! Calls of Linux 6.1 that are refused, with the errno of a kernel that was built without them, or of one that does not
//! allow them to an unprivileged caller. Each use is counted, and logged once.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Fd, Hex, Level::*, Syscall};
use crate::{
    counters::{Counter, count},
    errno::{EINVAL, ENOSYS, EPERM, Result},
    ipc::sem,
    syscalls,
    task::{Current, clone::CloneFlags, creds::cap},
};

syscalls! { pub CALLS;
    101 ptrace() = forbidden, Unsupported, "as under Yama's strictest scope", "";
    134 uselib() = absent, Unsupported, "not built in", "";
    153 vhangup() = forbidden, Unsupported, "", "";
    155 pivot_root() = forbidden, Unsupported, "", "";
    156 _sysctl() = absent, Unsupported, "removed in Linux 5.5", "";
    163 acct() = absent, Unsupported, "not built in", "";
    167 swapon() = forbidden, Unsupported, "", "";
    168 swapoff() = forbidden, Unsupported, "", "";
    169 reboot() = forbidden, Unsupported, "", "";
    172 iopl() = forbidden, Unsupported, "", "";
    173 ioperm() = forbidden, Unsupported, "", "";
    175 init_module() = forbidden, Unsupported, "", "";
    176 delete_module() = forbidden, Unsupported, "", "";
    179 quotactl() = absent, Unsupported, "not built in", "";
    180 nfsservctl() = absent, Unsupported, "removed in Linux 3.1", "";
    212 lookup_dcookie() = absent, Unsupported, "not built in", "";
    246 kexec_load() = forbidden, Unsupported, "", "";
    248 add_key() = absent, Unsupported, "not built in", "";
    249 request_key() = absent, Unsupported, "not built in", "";
    250 keyctl() = absent, Unsupported, "not built in", "";
    272 unshare(flags: Hex) = unshare, Partial, "no namespaces", "ident";
    298 perf_event_open() = absent, Unsupported, "not built in", "";
    300 fanotify_init() = absent, Unsupported, "not built in", "";
    301 fanotify_mark() = absent, Unsupported, "not built in", "";
    308 setns(fd: Fd, kind: Hex) = setns, Unsupported, "no namespaces", "process";
    313 finit_module() = forbidden, Unsupported, "", "";
    317 seccomp() = absent, Unsupported, "not built in", "";
    320 kexec_file_load() = forbidden, Unsupported, "", "";
    321 bpf() = absent, Unsupported, "not built in", "";
    323 userfaultfd() = absent, Unsupported, "not built in", "";
    206 io_setup() = absent, Unsupported, "not built in", "";
    207 io_destroy() = absent, Unsupported, "not built in", "";
    208 io_getevents() = absent, Unsupported, "not built in", "";
    209 io_submit() = absent, Unsupported, "not built in", "";
    210 io_cancel() = absent, Unsupported, "not built in", "";
    154 modify_ldt() = absent, Unsupported, "not built in", "";
    237 mbind() = absent, Unsupported, "as without NUMA", "";
    238 set_mempolicy() = absent, Unsupported, "as without NUMA", "";
    239 get_mempolicy() = absent, Unsupported, "as without NUMA", "";
    256 migrate_pages() = absent, Unsupported, "as without NUMA", "";
    279 move_pages() = absent, Unsupported, "as without NUMA", "";
    333 io_pgetevents() = absent, Unsupported, "not built in", "";
    334 rseq() = absent, Unsupported, "not built in; the C library goes without", "";
    425 io_uring_setup() = absent, Unsupported, "not built in", "";
    426 io_uring_enter() = absent, Unsupported, "not built in", "";
    427 io_uring_register() = absent, Unsupported, "not built in", "";
    440 process_madvise() = forbidden, Unsupported, "as ptrace", "";
    444 landlock_create_ruleset() = absent, Unsupported, "not built in", "";
    445 landlock_add_rule() = absent, Unsupported, "not built in", "";
    446 landlock_restrict_self() = absent, Unsupported, "not built in", "";
    447 memfd_secret() = absent, Unsupported, "not built in", "";
}

/// Numbers that have been logged.
static LOGGED: [AtomicU64; super::LIMIT.div_ceil(64)] = [const { AtomicU64::new(0) }; super::LIMIT.div_ceil(64)];

/// Counts the call and logs its first use.
fn note(cur: &Current) {
    count(Counter::UnknownSyscalls);
    let number = cur.syscall_number() as usize;
    let Some(word) = LOGGED.get(number / 64) else { return };
    if word.fetch_or(1 << (number % 64), Relaxed) & 1 << (number % 64) == 0 {
        let name = super::TABLE.get(number).copied().flatten().map_or("?", |c| c.name);
        crate::info!("[{}] {} uses {name}, which is not there", cur.task.tid(), cur.task.name());
    }
}

/// As a kernel built without it.
fn absent(cur: &mut Current) -> Result<()> {
    note(cur);
    Err(ENOSYS)
}

/// As a kernel that keeps it from the caller.
fn forbidden(cur: &mut Current) -> Result<()> {
    note(cur);
    Err(EPERM)
}

fn unshare(cur: &mut Current, flags: Hex) -> Result<()> {
    use CloneFlags as F;
    let known = F::NAMESPACES | F::FS | F::FILES | F::SYSVSEM | F::VM | F::SIGHAND | F::THREAD;
    let flags = F::from_bits(flags.0).filter(|f| known.contains(*f)).ok_or(EINVAL)?;
    if flags.intersects(F::NAMESPACES) {
        note(cur);
        let unprivileged = !flags.contains(F::NEWUSER) && !cur.task.capable(cap::SYS_ADMIN);
        return Err(if unprivileged { EPERM } else { EINVAL });
    }
    let alone = cur.task.process.state.lock().threads.len() == 1;
    if flags.intersects(F::VM | F::SIGHAND | F::THREAD) && !alone {
        return Err(EINVAL);
    }
    if flags.contains(F::SYSVSEM) {
        sem::leave(&cur.task);
    }
    if flags.contains(F::FS) {
        drop(cur.task.set_fs(cur.task.fs().copy()));
    }
    if flags.contains(F::FILES) {
        drop(cur.task.set_files(cur.task.files().copy()));
    }
    Ok(())
}

fn setns(cur: &mut Current, fd: Fd, _kind: Hex) -> Result<()> {
    note(cur);
    cur.any_file(fd)?;
    Err(if cur.task.capable(cap::SYS_ADMIN) { EINVAL } else { EPERM })
}
