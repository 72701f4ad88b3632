//! The end of threads and processes: _exit(2), exit_group(2), and what the parent and the children are told.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use sentry_abi::control::Reply;

use super::{
    Current, Pid, Process, Task, hosted,
    table::{self, INIT, Table},
    times::to_ticks,
};
use crate::{
    arch,
    drivers::control::Ticket,
    fs::FdTable,
    mm::user::{UserAddr, UserPtr},
    signal::{
        action::{SA_NOCLDSTOP, SA_NOCLDWAIT, SIG_IGN},
        info::{SigInfo, code},
        send::{self, Origin},
        set::{SIGCHLD, SIGCONT, SIGHUP},
    },
};

/// Wait status of a normal end.
pub const fn exited(code: i32) -> u32 {
    ((code & 0xff) as u32) << 8
}

/// Ends every thread of the process with this wait status.
pub fn end_process(process: &Process, status: u32) {
    send::end_group(&mut process.state.lock(), status);
}

/// What the other threads of a process must be gone for: exec. `None` when the process ends instead.
pub fn end_other_threads(task: &Arc<Task>) -> Option<()> {
    let process = &task.process;
    {
        let mut state = process.state.lock();
        if state.group_exit.is_some() || state.exec.is_some() {
            return None;
        }
        if state.threads.len() == 1 {
            return Some(());
        }
        state.exec = Some(task.tid());
        for thread in state.threads.iter().filter(|t| !Arc::ptr_eq(t, task)) {
            crate::sched::interrupt(thread);
        }
    }
    process.thread_gone.wait_uninterruptible(|| {
        let state = process.state.lock();
        (state.threads.len() == 1 || state.group_exit.is_some()).then_some(())
    });
    let mut state = process.state.lock();
    state.exec = None;
    if state.group_exit.is_some() {
        return None;
    }
    Some(())
}

/// The memory is given up (at the end or by exec): robust futexes are released, the thread id is cleared, a vfork parent goes
/// on.
pub fn release_memory(cur: &mut Current) {
    crate::futex::robust::release(cur);
    let clear = cur.task.clear_child_tid.swap(0, SeqCst);
    // Without another user of the memory nobody could see it.
    if clear != 0 && Arc::strong_count(&cur.mm) > 2 {
        let addr = UserAddr(clear);
        if cur.mm.write_value(UserPtr::new(addr), &0u32).is_ok() {
            let _ = crate::futex::wake(&cur.mm, addr, false, 1, u32::MAX);
        }
    }
    let vfork = cur.task.vfork.lock().take();
    if let Some(done) = vfork {
        done.set();
    }
}

/// The task's end: everything it held is given up.
pub fn finish(mut cur: Box<Current>) {
    let task = cur.task.clone();
    let process = task.process.clone();
    let own_status = cur.exit_status.unwrap_or(0);
    let usage = task.usage();
    release_memory(&mut cur);
    crate::ipc::sem::leave(&task);
    arch::leave_user_space();
    let mm = task.mm.lock().take();
    drop(mm);
    drop(cur);
    // Closing the last descriptor may block on a file's server, and so may the rest: nothing of it may be left for a time
    // when a spin lock is held.
    drop(task.set_files(FdTable::new()));
    if let Some(origin) = super::init::origin() {
        drop(task.set_fs(origin));
    }
    process.dead_threads.lock().add(&usage);
    process.last_uid.store(task.creds().uid, Relaxed);
    let mut after = After::default();
    {
        let mut table = table::lock();
        table.remove_task(task.tid());
        let last = {
            let mut state = process.state.lock();
            state.threads.retain(|t| !Arc::ptr_eq(t, &task));
            state.exit_status = own_status;
            after.stopped = crate::signal::deliver::stop_complete(&mut state);
            state.threads.is_empty()
        };
        if last {
            let status = {
                let state = process.state.lock();
                state.group_exit.unwrap_or(state.exit_status)
            };
            after.program = process.exe.lock().take();
            after.status = status;
            end(&mut table, &process, status, &mut after);
        }
    }
    process.thread_gone.wake_all();
    drop(after.program);
    if let Some(signal) = after.stopped {
        notify_stopped(&process, signal);
    }
    if let Some(terminal) = after.terminal {
        terminal.disassociate();
    }
    for ticket in after.waits {
        ticket.reply(&Reply::Exited(after.status));
    }
    if let Some(status) = after.sandbox {
        arch::host::exit(status);
    }
}

/// What must wait until the process table is unlocked.
#[derive(Default)]
struct After {
    terminal: Option<Arc<dyn super::Terminal>>,
    /// Init has ended with this status.
    sandbox: Option<u32>,
    program: Option<Arc<dyn super::ExecFile>>,
    /// The threads that are left have all come to a stop.
    stopped: Option<u32>,
    /// The host's waits for the process.
    waits: Vec<Ticket>,
    /// The wait status of the process.
    status: u32,
}

/// The last thread of a process is gone.
fn end(table: &mut Table, process: &Arc<Process>, status: u32, after: &mut After) {
    if process.pid == INIT {
        after.sandbox = Some(status);
        return;
    }
    process.timers.delete_all();
    let session = process.session();
    if session.sid == process.pid {
        if let Some(terminal) = session.terminal() {
            let foreground = terminal.foreground();
            for member in table.group(foreground) {
                let _ = send::to_process(&member, SigInfo::kernel(SIGHUP), Origin::Inside);
                let _ = send::to_process(&member, SigInfo::kernel(SIGCONT), Origin::Inside);
            }
            after.terminal = Some(terminal);
        }
        session.set_terminal(None);
    }
    let children = table.children(process.pid);
    let mut groups: Vec<Pid> = alloc::vec![process.pgid()];
    groups.extend(children.iter().map(|c| c.pgid()));
    groups.sort_unstable();
    groups.dedup();
    let orphaned_before: Vec<bool> = groups.iter().map(|&g| table.is_orphaned(g, None)).collect();
    process.state.lock().zombie = Some(status);
    table.add_zombie();
    let reaper = reaper(table, process);
    for child in children {
        table.adopt(&child, reaper);
        for thread in child.threads() {
            let signal = thread.parent_death_signal.load(Relaxed);
            if signal != 0 {
                let _ = send::to_task(&thread, SigInfo::user(signal, code::SI_USER, process.pid, 0), Origin::Inside);
            }
        }
        child.exit_signal.store(SIGCHLD, Relaxed);
        if child.zombie().is_some() {
            notify_end(table, &child);
        }
    }
    for (group, before) in groups.into_iter().zip(orphaned_before) {
        if !before && table.is_orphaned(group, Some(process.pid)) {
            let members = table.group(group);
            if members.iter().any(|m| m.state.lock().stop.is_some()) {
                for member in members {
                    let _ = send::to_process(&member, SigInfo::kernel(SIGHUP), Origin::Inside);
                    let _ = send::to_process(&member, SigInfo::kernel(SIGCONT), Origin::Inside);
                }
            }
        }
    }
    notify_end(table, process);
    after.waits = hosted::ended(table, process);
    process.ended.wake_all();
}

/// Who adopts the children: the nearest ancestor that is a subreaper, else init.
fn reaper(table: &Table, process: &Process) -> Pid {
    let mut at = process.ppid();
    while let Some(ancestor) = table.process(at) {
        if at == INIT || (ancestor.subreaper.load(Relaxed) && ancestor.zombie().is_none()) {
            return at;
        }
        at = ancestor.ppid();
    }
    INIT
}

/// Tells the parent of a zombie; reaps it when the parent does not want to know.
fn notify_end(table: &mut Table, process: &Arc<Process>) {
    let Some(parent) = table.process(process.ppid()) else { return };
    let action = parent.handlers().get(SIGCHLD);
    let signal = process.exit_signal.load(Relaxed);
    let unwanted = signal == SIGCHLD && (action.handler == SIG_IGN || action.flags & SA_NOCLDWAIT != 0);
    if signal != 0 && !(unwanted && action.handler == SIG_IGN) {
        let mut info = child_info(process, process.zombie().unwrap_or(0));
        info.signo = signal as i32;
        let _ = send::to_process(&parent, info, Origin::Inside);
    }
    if unwanted {
        table.remove_process(process);
    }
    parent.child_event.wake_all();
}

/// The siginfo for a wait status.
pub fn child_info(process: &Process, status: u32) -> SigInfo {
    let usage = process.usage();
    let (how, value) =
        if status & 0x7f == 0 { (code::CLD_EXITED, status >> 8 & 0xff) } else { (code::CLD_KILLED, status & 0x7f) };
    let uid = process.uid();
    SigInfo::child(how, process.pid, uid, value as i32, to_ticks(usage.user), to_ticks(usage.system))
}

/// Tells the parent that job control has stopped the process.
pub fn notify_stopped(process: &Process, signal: u32) {
    notify_job_control(process, code::CLD_STOPPED, signal);
}

/// Tells the parent that the process goes on.
pub fn notify_continued(process: &Process) {
    notify_job_control(process, code::CLD_CONTINUED, SIGCONT);
}

fn notify_job_control(process: &Process, how: i32, status: u32) {
    // The table may be locked by the caller's caller (orphaned groups): take what can be had without it.
    let Some(parent) = process.parent() else { return };
    let action = parent.handlers().get(SIGCHLD);
    if action.handler != SIG_IGN && action.flags & SA_NOCLDSTOP == 0 {
        let usage = process.usage();
        let info = SigInfo::child(
            how,
            process.pid,
            process.uid(),
            status as i32,
            to_ticks(usage.user),
            to_ticks(usage.system),
        );
        let _ = send::to_process(&parent, info, Origin::Inside);
    }
    parent.child_event.wake_all();
}
