//! System calls of signals.

use core::sync::atomic::Ordering::SeqCst;

use super::{
    action::Action,
    altstack::StackT,
    deliver, frame,
    info::{SIGINFO_SIZE, SigInfo, code},
    send::{self, Origin},
    set::{self, SIGCONT, SIGSEGV, SigSet},
};
use crate::{
    errno::{EAGAIN, EINTR, EINVAL, EPERM, ESRCH, Error, Restart, Result},
    mm::user::UserPtr,
    sched,
    syscall::{Level::*, Syscall},
    syscalls,
    task::{Current, Pid, Task, cap, table},
    time::{self, Timespec},
};

syscalls! { pub CALLS;
    13 rt_sigaction(signum: u32, act: UserPtr<Action>, oldact: UserPtr<Action>, size: usize) = rt_sigaction, Full, "", "signal";
    14 rt_sigprocmask(how: u32, set: UserPtr<u64>, oldset: UserPtr<u64>, size: usize) = rt_sigprocmask, Full, "", "signal";
    15 rt_sigreturn() = rt_sigreturn, Full, "", "signal";
    34 pause() = pause, Full, "", "signal";
    62 kill(pid: i32, sig: u32) = kill, Full, "", "signal";
    127 rt_sigpending(set: UserPtr<u64>, size: usize) = rt_sigpending, Full, "", "signal";
    128 rt_sigtimedwait(set: UserPtr<u64>, info: UserPtr<SigInfo>, timeout: UserPtr<Timespec>, size: usize) = rt_sigtimedwait, Full, "", "signal";
    129 rt_sigqueueinfo(pid: i32, sig: u32, info: UserPtr<SigInfo>) = rt_sigqueueinfo, Full, "", "signal";
    130 rt_sigsuspend(mask: UserPtr<u64>, size: usize) = rt_sigsuspend, Full, "", "signal";
    131 sigaltstack(ss: UserPtr<StackT>, old_ss: UserPtr<StackT>) = sigaltstack, Full, "", "signal";
    200 tkill(tid: i32, sig: u32) = tkill, Full, "", "signal";
    219 restart_syscall() = restart_syscall, Full, "", "signal";
    234 tgkill(tgid: i32, tid: i32, sig: u32) = tgkill, Full, "", "signal";
    297 rt_tgsigqueueinfo(tgid: i32, tid: i32, sig: u32, info: UserPtr<SigInfo>) = rt_tgsigqueueinfo, Full, "", "signal";
}

/// The only size of a signal set that the kernel knows.
pub fn check_size(size: usize) -> Result<()> {
    if size == size_of::<u64>() { Ok(()) } else { Err(EINVAL) }
}

fn rt_sigaction(
    cur: &mut Current,
    signum: u32,
    act: UserPtr<Action>,
    oldact: UserPtr<Action>,
    size: usize,
) -> Result<()> {
    check_size(size)?;
    let new = if act.is_null() { None } else { Some(cur.mm.read_value(act)?.cleaned()) };
    if !set::is_valid(signum) || (new.is_some() && SigSet::UNBLOCKABLE.contains(signum)) {
        return Err(EINVAL);
    }
    let process = &cur.task.process;
    let handlers = process.handlers();
    let old = match new {
        Some(action) => {
            let mut state = process.state.lock();
            let old = handlers.set(signum, action);
            if action.is_ignored(signum) {
                // What is pending is forgotten, blocked or not.
                let gone = SigSet::of(&[signum]);
                state.pending.remove(gone);
                for thread in &state.threads {
                    thread.pending.lock().remove(gone);
                }
            }
            old
        }
        None => handlers.get(signum),
    };
    if !oldact.is_null() {
        cur.mm.write_value(oldact, &old)?;
    }
    Ok(())
}

fn rt_sigprocmask(cur: &mut Current, how: u32, set: UserPtr<u64>, oldset: UserPtr<u64>, size: usize) -> Result<()> {
    check_size(size)?;
    let old = cur.task.blocked();
    if !set.is_null() {
        let given = SigSet(cur.mm.read_value(set)?);
        let new = match how {
            0 => old.union(given),
            1 => old.without(given),
            2 => given,
            _ => return Err(EINVAL),
        };
        deliver::set_blocked(&cur.task, new.without(SigSet::UNBLOCKABLE));
    }
    if !oldset.is_null() {
        cur.mm.write_value(oldset, &old.0)?;
    }
    Ok(())
}

fn rt_sigreturn(cur: &mut Current) -> Result<u64> {
    match frame::pop(cur) {
        Ok(mask) => {
            deliver::set_blocked(&cur.task, mask.without(SigSet::UNBLOCKABLE));
            Ok(cur.registers().rax)
        }
        Err(_) => {
            deliver::force(cur, SigInfo::kernel(SIGSEGV));
            Ok(0)
        }
    }
}

/// Blocks until a signal is there to be handled.
fn wait_for_signal() -> Error {
    while !sched::interrupted() {
        sched::park_until(u64::MAX);
    }
    Error::Restart(Restart::NoHandler)
}

fn pause(_cur: &mut Current) -> Result<()> {
    Err(wait_for_signal())
}

fn rt_sigsuspend(cur: &mut Current, mask: UserPtr<u64>, size: usize) -> Result<()> {
    check_size(size)?;
    let mask = SigSet(cur.mm.read_value(mask)?);
    cur.set_temporary_mask(mask.without(SigSet::UNBLOCKABLE));
    Err(wait_for_signal())
}

fn rt_sigpending(cur: &mut Current, set: UserPtr<u64>, size: usize) -> Result<()> {
    if size > size_of::<u64>() {
        return Err(EINVAL);
    }
    let pending = {
        let state = cur.task.process.state.lock();
        cur.task.pending.lock().set().union(state.pending.set()).intersection(cur.task.blocked())
    };
    cur.mm.write(set.addr, &pending.0.to_le_bytes()[..size])
}

fn rt_sigtimedwait(
    cur: &mut Current,
    set: UserPtr<u64>,
    info: UserPtr<SigInfo>,
    timeout: UserPtr<Timespec>,
    size: usize,
) -> Result<u32> {
    check_size(size)?;
    let wanted = SigSet(cur.mm.read_value(set)?).without(SigSet::UNBLOCKABLE);
    let deadline = match timeout.is_null() {
        true => u64::MAX,
        false => time::monotonic().saturating_add(cur.mm.read_value(timeout)?.to_ns()?),
    };
    let task = cur.task.clone();
    task.awaited.store(wanted.0, SeqCst);
    let result = loop {
        let taken = deliver::take(&task, &mut task.process.state.lock(), wanted);
        if let Some(info) = taken {
            break Ok(info);
        }
        deliver::recalculate(&task);
        if task.sched.interrupted() {
            break Err(EINTR);
        }
        if !sched::park_until(deadline) {
            // One that came with the deadline still counts.
            break deliver::take(&task, &mut task.process.state.lock(), wanted).ok_or(EAGAIN);
        }
    };
    task.awaited.store(0, SeqCst);
    deliver::recalculate(&task);
    let taken = result?;
    if !info.is_null() {
        cur.mm.write(info.addr, &taken.to_user())?;
    }
    Ok(taken.signal())
}

fn sigaltstack(cur: &mut Current, ss: UserPtr<StackT>, old_ss: UserPtr<StackT>) -> Result<()> {
    let (_, sp) = cur.ip_sp();
    let old = cur.altstack.to_user(sp);
    if !ss.is_null() {
        let new = cur.mm.read_value(ss)?;
        cur.altstack.set(&new, sp)?;
    }
    if !old_ss.is_null() {
        cur.mm.write_value(old_ss, &old)?;
    }
    Ok(())
}

/// Whether the caller may signal the target (kill(2)).
fn may_signal(cur: &Current, target: &Task, signal: u32) -> Result<()> {
    if target.process.pid == cur.task.process.pid {
        return Ok(());
    }
    let (ours, theirs) = (cur.task.creds(), target.creds());
    let same = [ours.euid, ours.uid].iter().any(|id| *id == theirs.suid || *id == theirs.uid);
    let session = signal == SIGCONT && target.process.session().sid == cur.task.process.session().sid;
    if same || session || ours.capable(cap::KILL) { Ok(()) } else { Err(EPERM) }
}

fn check_signal(signal: u32) -> Result<()> {
    if signal < set::SIGNALS { Ok(()) } else { Err(EINVAL) }
}

fn from_user(cur: &Current, signal: u32, how: i32) -> SigInfo {
    SigInfo::user(signal, how, cur.task.process.pid, cur.task.creds().uid)
}

/// The process that a pid or the tid of one of its threads names.
fn find_process(pid: Pid) -> Option<alloc::sync::Arc<crate::task::Process>> {
    table::process(pid).or_else(|| table::task(pid).map(|t| t.process.clone()))
}

fn kill(cur: &mut Current, pid: i32, sig: u32) -> Result<()> {
    check_signal(sig)?;
    let info = from_user(cur, sig, code::SI_USER);
    if pid > 0 {
        return kill_process(cur, &find_process(pid).ok_or(ESRCH)?, sig, info);
    }
    let me = cur.task.process.pid;
    let targets = match pid {
        0 => table::lock().group(cur.task.process.pgid()),
        -1 => table::processes().into_iter().filter(|p| p.pid != me && p.pid != table::INIT).collect(),
        i32::MIN => return Err(ESRCH),
        _ => table::lock().group(-pid),
    };
    let mut result = Err(ESRCH);
    for target in targets {
        match kill_process(cur, &target, sig, info) {
            Ok(()) => result = Ok(()),
            Err(error) if result == Err(ESRCH) => result = Err(error),
            Err(_) => {}
        }
    }
    result
}

fn kill_process(
    cur: &Current,
    process: &alloc::sync::Arc<crate::task::Process>,
    sig: u32,
    info: SigInfo,
) -> Result<()> {
    // A zombie can be signalled without effect.
    let Some(thread) = process.main_thread() else { return Ok(()) };
    may_signal(cur, &thread, sig)?;
    if sig == 0 { Ok(()) } else { send::to_process(process, info, Origin::Inside) }
}

/// For pidfd_send_signal(2): with the caller's siginfo, or the one of kill(2).
pub fn send_to_process(
    cur: &Current,
    process: &alloc::sync::Arc<crate::task::Process>,
    sig: u32,
    info: UserPtr<SigInfo>,
) -> Result<()> {
    check_signal(sig)?;
    let info = if info.is_null() {
        from_user(cur, sig, code::SI_USER)
    } else {
        let given = read_info(cur, info, sig, process.pid)?;
        if cur.mm.read_value(info)?.signo != sig as i32 {
            return Err(EINVAL);
        }
        given
    };
    kill_process(cur, process, sig, info)
}

fn find_thread(tgid: Option<i32>, tid: i32) -> Result<alloc::sync::Arc<Task>> {
    if tid <= 0 || tgid.is_some_and(|t| t <= 0) {
        return Err(EINVAL);
    }
    table::task(tid).filter(|t| tgid.is_none_or(|tgid| t.process.pid == tgid)).ok_or(ESRCH)
}

fn send_to_thread(cur: &Current, tgid: Option<i32>, tid: i32, sig: u32, info: SigInfo) -> Result<()> {
    let target = find_thread(tgid, tid)?;
    check_signal(sig)?;
    may_signal(cur, &target, sig)?;
    if sig == 0 { Ok(()) } else { send::to_task(&target, info, Origin::Inside) }
}

fn tkill(cur: &mut Current, tid: i32, sig: u32) -> Result<()> {
    send_to_thread(cur, None, tid, sig, from_user(cur, sig, code::SI_TKILL))
}

fn tgkill(cur: &mut Current, tgid: i32, tid: i32, sig: u32) -> Result<()> {
    send_to_thread(cur, Some(tgid), tid, sig, from_user(cur, sig, code::SI_TKILL))
}

/// A siginfo made by a program: it may not claim to come from the kernel or kill(2), except towards itself.
fn read_info(cur: &Current, ptr: UserPtr<SigInfo>, sig: u32, to: Pid) -> Result<SigInfo> {
    let mut bytes = [0u8; SIGINFO_SIZE];
    cur.mm.read(ptr.addr, &mut bytes)?;
    let (mut info, rest): (SigInfo, _) = zerocopy::FromBytes::read_from_prefix(&bytes).map_err(|_| EINVAL)?;
    if rest.iter().any(|&b| b != 0) {
        return Err(crate::errno::E2BIG);
    }
    info.signo = sig as i32;
    if (info.code >= 0 || info.code == code::SI_TKILL) && to != cur.task.process.pid {
        return Err(EPERM);
    }
    Ok(info)
}

fn rt_sigqueueinfo(cur: &mut Current, pid: i32, sig: u32, info: UserPtr<SigInfo>) -> Result<()> {
    let info = read_info(cur, info, sig, pid)?;
    check_signal(sig)?;
    let process = find_process(pid).ok_or(ESRCH)?;
    kill_process(cur, &process, sig, info)
}

fn rt_tgsigqueueinfo(cur: &mut Current, tgid: i32, tid: i32, sig: u32, info: UserPtr<SigInfo>) -> Result<()> {
    let info = read_info(cur, info, sig, tgid)?;
    send_to_thread(cur, Some(tgid), tid, sig, info)
}

fn restart_syscall(cur: &mut Current) -> Result<u64> {
    match cur.restart_with.take() {
        Some(call) => call(cur),
        None => Err(EINTR),
    }
}
