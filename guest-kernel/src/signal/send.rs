//! Sending: from "this signal for that process" to a pending entry and a thread that looks at it.

use alloc::sync::Arc;

use super::{
    action::SIG_DFL,
    info::SigInfo,
    set::{DefaultAction, SIGCONT, SIGKILL, SIGSTOP, SigSet, default_action},
};
use crate::{
    errno::{EAGAIN, Result},
    sched,
    task::{Process, Resource, Task, process::State, table},
};

/// Who sends. The container's init gets only what it handles, except from outside the container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Inside,
    Outside,
}

/// Sends to a process: any thread that does not block it may take it.
pub fn to_process(process: &Arc<Process>, info: SigInfo, origin: Origin) -> Result<()> {
    send(process, None, info, origin)
}

/// Sends to one thread.
pub fn to_task(task: &Arc<Task>, info: SigInfo, origin: Origin) -> Result<()> {
    send(&task.process, Some(task), info, origin)
}

/// Sends to every member of a process group; false when it has none.
pub fn to_group(pgid: i32, info: SigInfo, origin: Origin) -> bool {
    let members = table::lock().group(pgid);
    for process in &members {
        // Only a real-time signal can fail to queue, and the kernel sends none to groups.
        let _ = to_process(process, info, origin);
    }
    !members.is_empty()
}

fn send(process: &Arc<Process>, only: Option<&Arc<Task>>, info: SigInfo, origin: Origin) -> Result<()> {
    let signal = info.signal();
    let limit = process.limits.lock().soft(Resource::Sigpending).min(1 << 16) as usize;
    let mut report_continue = false;
    let result = {
        let mut state = process.state.lock();
        if state.zombie.is_some() || state.threads.is_empty() {
            return Ok(());
        }
        report_continue |= stop_and_continue(&mut state, signal);
        let Some(target) = only.or(state.threads.first()).cloned() else { return Ok(()) };
        if is_ignored(process, &target, signal, origin) {
            Ok(())
        } else {
            // What kill(2) sends is delivered without its information when the queue is full; sigqueue(3) is told.
            let queued = match only {
                Some(task) => task.pending.lock().push(info, limit),
                None => state.pending.push(info, limit),
            };
            if queued || info.code >= 0 {
                wake_one(process, &mut state, only, signal);
                Ok(())
            } else {
                Err(EAGAIN)
            }
        }
    };
    if report_continue {
        process.continued.wake_all();
        crate::task::exit::notify_continued(process);
    }
    process.signalled.wake_all();
    result
}

/// Job control happens when the signal is sent: a stop signal cancels SIGCONT and the reverse, and SIGCONT (or SIGKILL) lets
/// the process go on even if it is blocked or ignored. Returns whether the process was stopped.
fn stop_and_continue(state: &mut State, signal: u32) -> bool {
    let forget = if SigSet::STOPS.contains(signal) {
        SigSet::of(&[SIGCONT])
    } else if signal == SIGCONT {
        SigSet::STOPS
    } else {
        return false;
    };
    state.pending.remove(forget);
    for thread in &state.threads {
        thread.pending.lock().remove(forget);
    }
    if signal != SIGCONT {
        return false;
    }
    state.continues += 1;
    if state.stop.take().is_none() {
        return false;
    }
    state.report_stop = None;
    state.report_continue = core::mem::take(&mut state.stop_reported);
    true
}

/// Whether the signal would have no effect. Blocked signals are kept: the disposition may change before they are unblocked.
fn is_ignored(process: &Process, target: &Task, signal: u32, origin: Origin) -> bool {
    if target.blocked().contains(signal)
        || target.awaited.load(core::sync::atomic::Ordering::SeqCst) & 1 << (signal - 1) != 0
    {
        return false;
    }
    let action = process.handlers().get(signal);
    let kernel_only = signal == SIGKILL || signal == SIGSTOP;
    if process.is_unkillable() && action.handler == SIG_DFL && !(origin == Origin::Outside && kernel_only) {
        return true;
    }
    action.is_ignored(signal)
}

/// Gets the attention of a thread that can take the signal; a fatal one ends all of them at once.
fn wake_one(process: &Process, state: &mut State, only: Option<&Arc<Task>>, signal: u32) {
    // A stopped process looks at nothing but SIGKILL until it continues.
    if state.stop.is_some() && signal != SIGKILL {
        return;
    }
    let wants = |task: &Task| {
        !task.blocked().contains(signal)
            || task.awaited.load(core::sync::atomic::Ordering::SeqCst) & 1 << (signal - 1) != 0
    };
    let chosen = match only {
        Some(task) => wants(task).then(|| task.clone()),
        // One that is not busy with another signal, if there is one.
        None => {
            let free = state.threads.iter().find(|t| wants(t) && !t.sched.interrupted());
            free.or_else(|| state.threads.iter().find(|t| wants(t))).cloned()
        }
    };
    let Some(task) = chosen else { return };
    if signal == SIGKILL
        || (!task.blocked().contains(signal)
            && process.handlers().get(signal).handler == SIG_DFL
            && default_action(signal) == DefaultAction::Terminate)
    {
        return end_group(state, signal);
    }
    sched::interrupt(&task);
}

/// All threads end; `status` is the process's wait status unless one is set already.
pub fn end_group(state: &mut State, status: u32) {
    if state.group_exit.is_none() {
        state.group_exit = Some(status);
    }
    for thread in &state.threads {
        sched::interrupt(thread);
    }
}
