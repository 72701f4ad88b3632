//! Delivery: what happens to pending signals when a task is about to run user code.

use alloc::sync::Arc;

use super::{
    action::{Action, SA_NODEFER, SA_RESETHAND, SA_RESTART, SIG_DFL, SIG_IGN},
    frame,
    info::SigInfo,
    set::{DefaultAction, SIGSEGV, SIGSTOP, SigSet, default_action},
};
use crate::{
    errno::Restart,
    sched,
    task::{Current, Process, Task, exit, process::State, table},
};

/// What a task has to do next.
enum Next {
    Nothing,
    Die,
    Stop,
    Signal(SigInfo),
}

/// Does what signals, stops and ends ask for. True when the task ends.
pub fn handle(cur: &mut Current) -> bool {
    let task = cur.task.clone();
    loop {
        match next(&task) {
            Next::Die => return true,
            Next::Stop => stop(&task),
            Next::Signal(info) => {
                let action = task.process.handlers().get(info.signal());
                match action.handler {
                    SIG_IGN => {}
                    SIG_DFL => default(&task, info.signal()),
                    _ => handler(cur, &task, &info, &action),
                }
            }
            Next::Nothing => break,
        }
    }
    if let Some(restart) = cur.restart.take() {
        rewind(cur, restart);
    }
    if let Some(mask) = cur.saved_mask.take() {
        set_blocked(&task, mask);
        // The restored mask may let something through.
        return task.sched.interrupted() && handle(cur);
    }
    false
}

fn next(task: &Task) -> Next {
    let mut state = task.process.state.lock();
    if state.group_exit.is_some() || state.exec.is_some_and(|keep| keep != task.tid()) {
        return Next::Die;
    }
    if state.stop.is_some() {
        return Next::Stop;
    }
    let wanted = SigSet(!task.blocked().0);
    match take(task, &mut state, wanted) {
        Some(info) => Next::Signal(info),
        None => {
            task.sched.set_interrupted(false);
            Next::Nothing
        }
    }
}

/// Takes the next pending signal of `wanted`, the thread's own first.
pub fn take(task: &Task, state: &mut State, wanted: SigSet) -> Option<SigInfo> {
    let mut own = task.pending.lock();
    own.take(wanted).or_else(|| state.pending.take(wanted))
}

/// Whether a signal (or a stop, or the end) waits for the task.
fn must_look(task: &Task, state: &State) -> bool {
    state.group_exit.is_some()
        || state.exec.is_some_and(|keep| keep != task.tid())
        || state.stop.is_some()
        || task.pending.lock().set().union(state.pending.set()).0 & !task.blocked().0 != 0
}

/// Changes the blocked signals of the running task.
pub fn set_blocked(task: &Task, set: SigSet) {
    let state = task.process.state.lock();
    // Signals for the process that this thread now blocks may be for another one.
    let newly = set.without(task.blocked()).intersection(state.pending.set());
    task.set_blocked(set);
    task.sched.set_interrupted(must_look(task, &state));
    if !newly.is_empty() {
        for other in state.threads.iter().filter(|t| t.tid() != task.tid()) {
            if newly.0 & !other.blocked().0 != 0 {
                sched::interrupt(other);
            }
        }
    }
}

/// Looks again whether anything waits for the running task.
pub fn recalculate(task: &Task) {
    let state = task.process.state.lock();
    task.sched.set_interrupted(must_look(task, &state));
}

fn default(task: &Arc<Task>, signal: u32) {
    let process = &task.process;
    match default_action(signal) {
        DefaultAction::Ignore | DefaultAction::Continue => {}
        DefaultAction::Stop => begin_stop(process, signal),
        DefaultAction::Terminate | DefaultAction::Core => {
            if !process.is_unkillable() || signal == super::set::SIGKILL {
                exit::end_process(process, signal);
            }
        }
    }
}

fn begin_stop(process: &Arc<Process>, signal: u32) {
    if process.is_unkillable() && signal != SIGSTOP {
        return;
    }
    let continues = process.state.lock().continues;
    if signal != SIGSTOP && table::lock().is_orphaned(process.pgid(), None) {
        // Nobody could let it go on.
        return;
    }
    let mut state = process.state.lock();
    // A SIGCONT sent in between wins.
    if state.continues != continues || state.group_exit.is_some() || state.stop.is_some() {
        return;
    }
    state.stop = Some(signal);
    state.report_continue = false;
    for thread in &state.threads {
        sched::interrupt(thread);
    }
}

/// Waits until SIGCONT or the end; the last thread to arrive tells the parent.
fn stop(task: &Arc<Task>) {
    let process = &task.process;
    let report = {
        let mut state = process.state.lock();
        state.stopped_threads += 1;
        stop_complete(&mut state)
    };
    if let Some(signal) = report {
        exit::notify_stopped(process, signal);
    }
    process.continued.wait_uninterruptible(|| {
        let state = process.state.lock();
        let dying = state.group_exit.is_some() || state.exec.is_some_and(|keep| keep != task.tid());
        (state.stop.is_none() || dying).then_some(())
    });
    process.state.lock().stopped_threads -= 1;
}

/// Whether every thread has come to the stop, so that the parent must be told now.
pub fn stop_complete(state: &mut State) -> Option<u32> {
    let signal = state.stop?;
    if state.stopped_threads < state.threads.len() || state.threads.is_empty() || state.stop_reported {
        return None;
    }
    state.stop_reported = true;
    state.report_stop = Some(signal);
    Some(signal)
}

fn handler(cur: &mut Current, task: &Arc<Task>, info: &SigInfo, action: &Action) {
    let signal = info.signal();
    match cur.restart.take() {
        Some(Restart::Sys) if action.flags & SA_RESTART != 0 => rewind(cur, Restart::Sys),
        Some(Restart::Always) => rewind(cur, Restart::Always),
        // The return value is EINTR already.
        _ => {}
    }
    let blocked = task.blocked();
    let mask = cur.saved_mask.take().unwrap_or(blocked);
    if action.flags & SA_RESETHAND != 0 {
        task.process.handlers().set(signal, Action { handler: SIG_DFL, ..*action });
    }
    if frame::push(cur, info, action, mask).is_err() {
        let (ip, sp) = cur.ip_sp();
        crate::debug!("[{}] no room for the frame of signal {signal} at ip {ip:#x} sp {sp:#x}", task.tid());
        set_blocked(task, mask);
        return frame_failed(cur, signal);
    }
    let mut new = blocked.union(SigSet(action.mask));
    if action.flags & SA_NODEFER == 0 {
        new = new.with(signal);
    }
    set_blocked(task, new);
}

/// A frame cannot be written or read: SIGSEGV, whose own frame must not fail in turn.
pub fn frame_failed(cur: &mut Current, signal: u32) {
    if signal == SIGSEGV {
        exit::end_process(&cur.task.process, SIGSEGV);
    } else {
        force(cur, SigInfo::kernel(SIGSEGV));
    }
}

/// Goes back to the system call instruction.
fn rewind(cur: &mut Current, restart: Restart) {
    const RESTART_SYSCALL: u64 = 219;
    let regs = cur.registers_mut();
    regs.rax = if restart == Restart::Block { RESTART_SYSCALL } else { regs.orig_rax };
    regs.rip = regs.rip.wrapping_sub(2);
}

/// Raises a signal that the running task has caused itself and cannot go on without: blocked, ignored or without a handler
/// it ends the process, whoever that is.
pub fn force(cur: &mut Current, info: SigInfo) {
    let task = cur.task.clone();
    let signal = info.signal();
    let action = task.process.handlers().get(signal);
    if matches!(action.handler, SIG_DFL | SIG_IGN) || task.blocked().contains(signal) {
        return exit::end_process(&task.process, signal);
    }
    let _state = task.process.state.lock();
    task.pending.lock().push(info, usize::MAX);
    task.sched.set_interrupted(true);
}

impl Current {
    /// Blocks `mask` for the duration of a call that waits (sigsuspend, pselect, ppoll, epoll_pwait).
    pub fn set_temporary_mask(&mut self, mask: SigSet) {
        let task = self.task.clone();
        if self.saved_mask.is_none() {
            self.saved_mask = Some(task.blocked());
        }
        set_blocked(&task, mask);
    }

    /// Ends [`Current::set_temporary_mask`]: the old mask comes back now, or, when a signal has ended the call, after its
    /// delivery.
    pub fn end_temporary_mask<T>(&mut self, result: &crate::errno::Result<T>) {
        let interrupted = matches!(result, Err(crate::errno::Error::Restart(_)) | Err(crate::errno::EINTR));
        if interrupted && self.task.sched.interrupted() {
            return;
        }
        if let Some(mask) = self.saved_mask.take() {
            set_blocked(&self.task.clone(), mask);
        }
    }
}
