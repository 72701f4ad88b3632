//! System calls of tasks and processes.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering::SeqCst;

use sentry_abi::layout::PAGE_SIZE;
use zerocopy::FromBytes;

use super::{
    Pid,
    clone::{self, CLONE_ARGS_SIZE_VER0, CloneArgs, CloneFlags, CloneRequest},
    exec::{self, ExecFile, Request},
    exit, pidfd, stack,
    times::Usage,
    wait::{self, WaitOptions, Which},
};
use crate::{
    errno::{E2BIG, EINVAL, ENOENT, ENOMEM, ESRCH, Result},
    fs::program,
    mm::{
        kmem,
        user::{UserAddr, UserPtr},
    },
    signal::{
        info::{SIGINFO_SIZE, SigInfo},
        set::SIGCHLD,
    },
    syscall::{Fd, Hex, Level::*, Syscall, UserPath},
    syscalls,
    task::Current,
    time::Timeval,
};

syscalls! { pub CALLS;
    39 getpid() = getpid, Full, "", "process";
    56 clone(flags: Hex, stack: Hex, parent_tid: UserPtr<Pid>, child_tid: UserPtr<Pid>, tls: Hex) = clone_call, Full, "no namespaces", "process";
    57 fork() = fork, Full, "", "process";
    58 vfork() = vfork, Full, "", "process";
    59 execve(path: UserPath, argv: UserPtr<u64>, envp: UserPtr<u64>) = execve, Full, "", "exec";
    60 exit(status: i32) = exit, Full, "", "process";
    61 wait4(pid: i32, status: UserPtr<u32>, options: Hex, usage: UserPtr<Rusage>) = wait4, Full, "", "process";
    110 getppid() = getppid, Full, "", "process";
    186 gettid() = gettid, Full, "", "process";
    218 set_tid_address(tidptr: UserAddr) = set_tid_address, Full, "", "process";
    231 exit_group(status: i32) = exit_group, Full, "", "process";
    247 waitid(which: u32, id: i32, info: UserPtr<SigInfo>, options: Hex, usage: UserPtr<Rusage>) = waitid, Full, "", "process";
    322 execveat(dirfd: Fd, path: UserPath, argv: UserPtr<u64>, envp: UserPtr<u64>, flags: Hex) = execveat, Full, "", "exec";
    435 clone3(args: UserPtr<CloneArgs>, size: usize) = clone3, Full, "no namespaces", "process";
}

/// struct rusage (getrusage(2)).
#[derive(Clone, Copy, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct Rusage {
    pub user: Timeval,
    pub system: Timeval,
    pub maxrss: i64,
    pub unused1: [i64; 3],
    pub minflt: i64,
    pub majflt: i64,
    pub nswap: i64,
    pub inblock: i64,
    pub oublock: i64,
    pub unused2: [i64; 3],
    pub nvcsw: i64,
    pub nivcsw: i64,
}

impl From<Usage> for Rusage {
    fn from(usage: Usage) -> Self {
        Rusage {
            user: Timeval::from_ns(usage.user),
            system: Timeval::from_ns(usage.system),
            maxrss: (usage.peak / 1024) as i64,
            minflt: usage.minor_faults as i64,
            nvcsw: usage.voluntary as i64,
            nivcsw: usage.involuntary as i64,
            ..Rusage::default()
        }
    }
}

fn clone_call(
    cur: &mut Current,
    flags: Hex,
    stack: Hex,
    parent_tid: UserPtr<Pid>,
    child_tid: UserPtr<Pid>,
    tls: Hex,
) -> Result<Pid> {
    // The low byte is the signal; bits that Linux does not know are ignored by this old call.
    let flags_only = CloneFlags::from_bits_truncate(flags.0 & 0xffff_ff00);
    // The descriptor goes where the tid would.
    if flags_only.contains(CloneFlags::PIDFD)
        && flags_only.intersects(CloneFlags::PARENT_SETTID | CloneFlags::DETACHED | CloneFlags::THREAD)
    {
        return Err(EINVAL);
    }
    let request = CloneRequest {
        flags: flags_only,
        exit_signal: (flags.0 & 0xff) as u32,
        stack: stack.0,
        tls: tls.0,
        parent_tid,
        child_tid,
        pidfd: UserPtr::new(parent_tid.addr),
    };
    clone::clone(cur, &request)
}

fn fork_with(cur: &mut Current, flags: CloneFlags) -> Result<Pid> {
    let null = UserPtr::new(UserAddr::NULL);
    let request = CloneRequest {
        flags,
        exit_signal: SIGCHLD,
        stack: 0,
        tls: 0,
        parent_tid: null,
        child_tid: null,
        pidfd: UserPtr::new(UserAddr::NULL),
    };
    clone::clone(cur, &request)
}

fn fork(cur: &mut Current) -> Result<Pid> {
    fork_with(cur, CloneFlags::empty())
}

fn vfork(cur: &mut Current) -> Result<Pid> {
    fork_with(cur, CloneFlags::VFORK | CloneFlags::VM)
}

fn clone3(cur: &mut Current, args: UserPtr<CloneArgs>, size: usize) -> Result<Pid> {
    if size > PAGE_SIZE as usize {
        return Err(E2BIG);
    }
    if size < CLONE_ARGS_SIZE_VER0 {
        return Err(EINVAL);
    }
    let mut bytes = alloc::vec![0u8; size.max(size_of::<CloneArgs>())];
    cur.mm.read(args.addr, &mut bytes[..size])?;
    let (args, rest) = CloneArgs::read_from_prefix(&bytes).map_err(|_| EINVAL)?;
    if rest.iter().any(|&b| b != 0) {
        return Err(E2BIG);
    }
    let request = args.to_request(cur)?;
    clone::clone(cur, &request)
}

fn wait4(cur: &mut Current, pid: i32, status: UserPtr<u32>, options: Hex, usage: UserPtr<Rusage>) -> Result<Pid> {
    let options = WaitOptions::from_bits(options.0 as u32).ok_or(EINVAL)?;
    if options.intersects(WaitOptions::EXITED | WaitOptions::NOWAIT) {
        return Err(EINVAL);
    }
    let which = match pid {
        -1 => Which::Any,
        0 => Which::Group(cur.task.process.pgid()),
        i32::MIN => return Err(ESRCH),
        p if p < 0 => Which::Group(-p),
        p => Which::Pid(p),
    };
    let process = cur.task.process.clone();
    let Some(report) = wait::wait(&process, which, options | WaitOptions::EXITED)? else { return Ok(0) };
    if !status.is_null() {
        cur.mm.write_value(status, &report.status)?;
    }
    if !usage.is_null() {
        cur.mm.write_value(usage, &Rusage::from(report.usage))?;
    }
    Ok(report.pid)
}

fn waitid(
    cur: &mut Current,
    which: u32,
    id: i32,
    info: UserPtr<SigInfo>,
    options: Hex,
    usage: UserPtr<Rusage>,
) -> Result<()> {
    const P_ALL: u32 = 0;
    const P_PID: u32 = 1;
    const P_PGID: u32 = 2;
    const P_PIDFD: u32 = 3;
    let options = WaitOptions::from_bits(options.0 as u32).ok_or(EINVAL)?;
    if !options.intersects(WaitOptions::EXITED | WaitOptions::STOPPED | WaitOptions::CONTINUED) {
        return Err(EINVAL);
    }
    let which = match which {
        P_ALL => Which::Any,
        P_PID if id > 0 => Which::Pid(id),
        P_PGID if id > 0 => Which::Group(id),
        P_PIDFD if id >= 0 => Which::Pid(pidfd::waited_pid(cur, id)?),
        P_PGID if id == 0 => Which::Group(cur.task.process.pgid()),
        _ => return Err(EINVAL),
    };
    let process = cur.task.process.clone();
    let report = wait::wait(&process, which, options)?;
    if let Some(report) = &report
        && !usage.is_null()
    {
        cur.mm.write_value(usage, &Rusage::from(report.usage))?;
    }
    if !info.is_null() {
        // Linux writes the common fields and the SIGCHLD ones, zeros when no child had anything to tell.
        let told = report.map_or([0; SIGINFO_SIZE], |r| SigInfo { fields: told_fields(&r.info), ..r.info }.to_user());
        cur.mm.write(info.addr, &told[..WAITID_INFO])?;
    }
    Ok(())
}

/// Bytes of a siginfo_t that waitid(2) writes.
const WAITID_INFO: usize = 28;

fn told_fields(info: &SigInfo) -> [u64; 4] {
    [info.fields[0], info.fields[1], 0, 0]
}

fn getpid(cur: &mut Current) -> Result<Pid> {
    Ok(cur.task.process.pid)
}

fn gettid(cur: &mut Current) -> Result<Pid> {
    Ok(cur.task.tid())
}

fn getppid(cur: &mut Current) -> Result<Pid> {
    Ok(cur.task.process.ppid())
}

fn exit(cur: &mut Current, status: i32) -> Result<()> {
    cur.exit_status = Some(exit::exited(status));
    Ok(())
}

fn exit_group(cur: &mut Current, status: i32) -> Result<()> {
    exit::end_process(&cur.task.process, exit::exited(status));
    Ok(())
}

fn set_tid_address(cur: &mut Current, tidptr: UserAddr) -> Result<Pid> {
    cur.task.clear_child_tid.store(tidptr.0, SeqCst);
    Ok(cur.task.tid())
}

fn execve(cur: &mut Current, path: UserPath, argv: UserPtr<u64>, envp: UserPtr<u64>) -> Result<()> {
    let path = cur.path(path)?;
    let file = program::open(&cur.caller(), None, &path, true)?;
    execute(cur, file, path, argv, envp)
}

const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
const AT_EMPTY_PATH: u64 = 0x1000;
const AT_FDCWD: i32 = -100;

fn execveat(
    cur: &mut Current,
    dirfd: Fd,
    path: UserPath,
    argv: UserPtr<u64>,
    envp: UserPtr<u64>,
    flags: Hex,
) -> Result<()> {
    if flags.0 & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let path = cur.path(path)?;
    let caller = cur.caller();
    let named = alloc::format!("/dev/fd/{}", dirfd.0).into_bytes();
    if path.is_empty() {
        if flags.0 & AT_EMPTY_PATH == 0 {
            return Err(ENOENT);
        }
        let file = program::of_file(&caller, &*cur.any_file(dirfd)?)?;
        return execute(cur, file, named, argv, envp);
    }
    let start = cur.start(dirfd, &path)?;
    let file = program::open(&caller, start, &path, flags.0 & AT_SYMLINK_NOFOLLOW == 0)?;
    let direct = path.starts_with(b"/") || dirfd.0 == AT_FDCWD;
    let name = if direct { path } else { [named, alloc::vec![b'/'], path].concat() };
    execute(cur, file, name, argv, envp)
}

fn execute(
    cur: &mut Current,
    file: Arc<dyn ExecFile>,
    path: Vec<u8>,
    argv: UserPtr<u64>,
    envp: UserPtr<u64>,
) -> Result<()> {
    let task = cur.task.clone();
    if kmem::under_pressure() {
        return Err(ENOMEM);
    }
    let limits = *task.process.limits.lock();
    let mut budget = stack::limit(limits.soft(super::Resource::Stack)) as usize;
    let argv = cur.mm.read_cstr_array(argv, &mut budget)?;
    let envp = cur.mm.read_cstr_array(envp, &mut budget)?;
    let personality = task.process.personality.load(SeqCst);
    let request = Request { file, path, argv, envp };
    let caller = cur.caller();
    let mut open = |path: &[u8]| program::open(&caller, None, path, true);
    let image = exec::load(request, &task.creds(), &limits, personality, &mut open)?;
    exec::commit(cur, image)
}
