//! New tasks: fork, vfork, clone and clone3 (clone(2)).

use alloc::sync::Arc;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use bitflags::bitflags;
use sentry_abi::layout::USER_TOP;

use super::{
    Current, Pid, Process, Resource, Resources, Task, VforkDone, cap,
    current::{self, NewTask},
    table::{self, INIT},
};
use crate::{
    counters::{Counter, count},
    errno::{EAGAIN, EINTR, EINVAL, EPERM, Error, Restart, Result},
    fs::OpenFlags,
    ipc::sem,
    mm::{
        kmem,
        user::{UserAddr, UserPtr},
    },
    sched,
    signal::set,
};

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct CloneFlags: u64 {
        const VM = 0x100;
        const FS = 0x200;
        const FILES = 0x400;
        const SIGHAND = 0x800;
        const PIDFD = 0x1000;
        const PTRACE = 0x2000;
        const VFORK = 0x4000;
        const PARENT = 0x8000;
        const THREAD = 0x1_0000;
        const NEWNS = 0x2_0000;
        const SYSVSEM = 0x4_0000;
        const SETTLS = 0x8_0000;
        const PARENT_SETTID = 0x10_0000;
        const CHILD_CLEARTID = 0x20_0000;
        const DETACHED = 0x40_0000;
        const UNTRACED = 0x80_0000;
        const CHILD_SETTID = 0x100_0000;
        const NEWCGROUP = 0x200_0000;
        const NEWUTS = 0x400_0000;
        const NEWIPC = 0x800_0000;
        const NEWUSER = 0x1000_0000;
        const NEWPID = 0x2000_0000;
        const NEWNET = 0x4000_0000;
        const IO = 0x8000_0000;
        const CLEAR_SIGHAND = 0x1_0000_0000;
        const INTO_CGROUP = 0x2_0000_0000;
    }
}

impl CloneFlags {
    /// What asks for a namespace of its own.
    pub const NAMESPACES: CloneFlags = CloneFlags::NEWNS
        .union(CloneFlags::NEWCGROUP)
        .union(CloneFlags::NEWUTS)
        .union(CloneFlags::NEWIPC)
        .union(CloneFlags::NEWUSER)
        .union(CloneFlags::NEWPID)
        .union(CloneFlags::NEWNET);
}

/// What clone(2) and clone3(2) ask for.
#[derive(Clone, Copy, Debug)]
pub struct CloneRequest {
    pub flags: CloneFlags,
    /// Signal for the parent at the child's end; 0: none.
    pub exit_signal: u32,
    /// The child's stack pointer; 0: as the parent's.
    pub stack: u64,
    pub tls: u64,
    pub parent_tid: UserPtr<Pid>,
    pub child_tid: UserPtr<Pid>,
    /// Where CLONE_PIDFD stores the descriptor.
    pub pidfd: UserPtr<i32>,
}

/// Creates the task and makes it run; gives its tid.
pub fn clone(cur: &mut Current, request: &CloneRequest) -> Result<Pid> {
    use CloneFlags as F;
    let flags = request.flags;
    let has = |f: F| flags.contains(f);
    check(cur, request)?;
    let task = cur.task.clone();
    let process = task.process.clone();
    if !has(F::THREAD) && task.sched.interrupted() {
        // A signal for the whole group must not miss the child: first the signal, then the fork.
        return Err(Error::Restart(Restart::Always));
    }
    if kmem::under_pressure() {
        return Err(EAGAIN);
    }
    check_process_count(&task)?;
    let pid = table::lock().allocate()?;
    let child = match create(cur, request, pid) {
        Ok(child) => child,
        Err(error) => {
            table::lock().release(pid);
            return Err(error);
        }
    };
    if has(F::PIDFD)
        && let Err(error) = give_pidfd(cur, request, &child)
    {
        child.abandon();
        table::lock().release(pid);
        return Err(error);
    }
    count(Counter::Forks);
    if has(F::PARENT_SETTID) {
        // As on Linux, a bad address is ignored: the child exists.
        let _ = cur.mm.write_value(request.parent_tid, &pid);
    }
    if has(F::CHILD_SETTID)
        && let Some(mm) = child.mm()
    {
        let _ = mm.write_value(request.child_tid, &pid);
    }
    let vfork = has(F::VFORK).then(|| {
        let done = Arc::new(VforkDone::default());
        *child.vfork.lock() = Some(done.clone());
        done
    });
    let published = publish(&process, &task, &child, has(F::THREAD));
    if let Err(error) = published {
        child.abandon();
        table::lock().release(pid);
        return Err(error);
    }
    sched::start(child);
    if let Some(done) = vfork {
        done.wait(&task);
    }
    Ok(pid)
}

fn check(cur: &Current, request: &CloneRequest) -> Result<()> {
    use CloneFlags as F;
    let flags = request.flags;
    let has = |f: F| flags.contains(f);
    if flags.intersects(F::NAMESPACES) {
        // As a kernel without these namespaces; who may not create any is told so first.
        let unprivileged = !flags.contains(F::NEWUSER) && !cur.task.capable(cap::SYS_ADMIN);
        return Err(if unprivileged { EPERM } else { EINVAL });
    }
    if has(F::SIGHAND) && !has(F::VM)
        || has(F::THREAD) && !has(F::SIGHAND)
        || has(F::SIGHAND) && has(F::CLEAR_SIGHAND)
        || has(F::PARENT) && cur.task.process.pid == INIT
        || has(F::INTO_CGROUP)
        || request.exit_signal >= set::SIGNALS
    {
        return Err(EINVAL);
    }
    if has(F::SETTLS) && request.tls >= USER_TOP {
        return Err(EPERM);
    }
    Ok(())
}

/// RLIMIT_NPROC, which binds who is neither root nor privileged.
fn check_process_count(task: &Task) -> Result<()> {
    if crate::mm::kmem::under_pressure() {
        return Err(EAGAIN);
    }
    let limit = task.process.limits.lock().soft(Resource::Nproc);
    if limit == super::limits::RLIM_INFINITY {
        return Ok(());
    }
    let creds = task.creds();
    if creds.uid == 0 || creds.capable(cap::SYS_RESOURCE) || creds.capable(cap::SYS_ADMIN) {
        return Ok(());
    }
    let count = table::lock().tasks().filter(|t| t.creds().uid == creds.uid).count() as u64;
    if count >= limit { Err(EAGAIN) } else { Ok(()) }
}

fn create(cur: &mut Current, request: &CloneRequest, pid: Pid) -> Result<Arc<Task>> {
    use CloneFlags as F;
    let has = |f: F| request.flags.contains(f);
    let task = cur.task.clone();
    let parent = &task.process;
    let mm = if has(F::VM) { cur.mm.clone() } else { cur.mm.fork()? };
    let files = if has(F::FILES) { task.files() } else { task.files().copy() };
    let fs = if has(F::FS) { task.fs() } else { task.fs().copy() };
    let process = if has(F::THREAD) {
        parent.clone()
    } else {
        let handlers = parent.handlers();
        let handlers = if has(F::SIGHAND) {
            handlers
        } else if has(F::CLEAR_SIGHAND) {
            handlers.cleared()
        } else {
            handlers.duplicate()
        };
        // With CLONE_PARENT the child is a sibling and reports like its creator does.
        let (ancestor, exit_signal) = if has(F::PARENT) {
            let ancestor = parent.parent().ok_or(EINVAL)?;
            (ancestor, parent.exit_signal.load(Relaxed))
        } else {
            (parent.clone(), request.exit_signal)
        };
        let child = Arc::new(parent.fork(pid, &ancestor, exit_signal, handlers));
        child.timers.watch_cpu_limit(&child);
        child
    };
    let mut registers = *cur.registers();
    registers.rax = 0;
    registers.orig_rax = u64::MAX;
    if request.stack != 0 {
        registers.rsp = request.stack;
    }
    if has(F::SETTLS) {
        registers.fs_base = request.tls;
    }
    // A thread on the same memory cannot use the same alternate stack.
    let keeps_altstack = !has(F::VM) || has(F::VFORK);
    let new = NewTask {
        tid: pid,
        process,
        mm,
        resources: Resources { files, fs, creds: task.creds() },
        registers,
        xsave: cur.xstate().duplicate()?,
        altstack: if keeps_altstack { cur.altstack } else { Default::default() },
    };
    let child = current::prepare(new)?;
    child.set_blocked(task.blocked());
    child.set_name(&task.name_bytes());
    child.nice.store(task.nice.load(Relaxed), Relaxed);
    child.policy.store(task.policy.load(Relaxed), Relaxed);
    child.priority.store(task.priority.load(Relaxed), Relaxed);
    child.io_priority.store(task.io_priority.load(Relaxed), Relaxed);
    child.affinity.store(task.affinity.load(Relaxed), Relaxed);
    if has(F::SYSVSEM) {
        *child.sem_undo.lock() = Some(sem::undo_list(&task));
    }
    if has(F::CHILD_CLEARTID) {
        child.clear_child_tid.store(request.child_tid.addr.0, SeqCst);
    }
    Ok(child)
}

/// CLONE_PIDFD.
fn give_pidfd(cur: &mut Current, request: &CloneRequest, child: &Task) -> Result<()> {
    let file = super::pidfd::open(&child.process, OpenFlags::empty(), &cur.task.creds());
    let fd = cur.install(file, true)?;
    let stored = cur.mm.write_value(request.pidfd, &fd);
    if stored.is_err() {
        drop(cur.task.files().remove(fd));
    }
    stored
}

/// Makes the child known, unless its process is ending.
fn publish(process: &Arc<Process>, task: &Task, child: &Arc<Task>, thread: bool) -> Result<()> {
    let mut table = table::lock();
    {
        let mut state = process.state.lock();
        if state.group_exit.is_some() || state.exec.is_some_and(|keep| keep != task.tid()) {
            return Err(EINTR);
        }
        if thread {
            state.threads.push(child.clone());
            // A stop that has begun holds for the new thread too.
            child.sched.set_interrupted(state.stop.is_some());
        } else {
            child.process.state.lock().threads.push(child.clone());
        }
    }
    if !thread {
        table.add_process(&child.process);
    }
    table.add_task(child);
    Ok(())
}

/// The arguments of clone3(2).
#[derive(Clone, Copy, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

/// Bytes of the first version of [`CloneArgs`].
pub const CLONE_ARGS_SIZE_VER0: usize = 64;

impl CloneArgs {
    pub fn to_request(self, cur: &Current) -> Result<CloneRequest> {
        let flags = CloneFlags::from_bits(self.flags).ok_or(EINVAL)?;
        if flags.contains(CloneFlags::PIDFD | CloneFlags::THREAD) {
            return Err(EINVAL);
        }
        if flags.intersects(CloneFlags::DETACHED) || self.flags & 0xff != 0 || self.exit_signal >= 0x100 {
            return Err(EINVAL);
        }
        if flags.intersects(CloneFlags::THREAD | CloneFlags::PARENT) && self.exit_signal != 0 {
            return Err(EINVAL);
        }
        if (self.stack == 0) != (self.stack_size == 0) {
            return Err(EINVAL);
        }
        let stack = self.stack.checked_add(self.stack_size).filter(|&top| top <= USER_TOP).ok_or(EINVAL)?;
        if self.set_tid_size != 0 {
            // Choosing the pid is for checkpoint tools with rights in the pid namespace.
            let malformed = self.set_tid == 0 || self.set_tid_size > 32;
            return Err(if malformed || cur.task.capable(cap::SYS_ADMIN) { EINVAL } else { EPERM });
        }
        Ok(CloneRequest {
            flags,
            exit_signal: self.exit_signal as u32,
            stack,
            tls: self.tls,
            parent_tid: UserPtr::new(UserAddr(self.parent_tid)),
            child_tid: UserPtr::new(UserAddr(self.child_tid)),
            pidfd: UserPtr::new(UserAddr(self.pidfd)),
        })
    }
}
