//! What the VMM's control requests do.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt::Write;

use sentry_abi::control::{Process as Info, Reply, Request, Target};

use super::control::Ticket;
use crate::{
    counters, sched,
    signal::{
        info::{SigInfo, code},
        send::{Origin, to_group, to_process},
        set::{SIGNALS, SIGWINCH},
    },
    syscall,
    task::{Process, hosted, init, table},
    time,
};

const ESRCH: i32 = 3;
const EINVAL: i32 = 22;

/// The container's first process.
const INIT: i32 = 1;

/// Answers a request, now or later. Called in an interrupt: must not block.
pub(super) fn answer(request: Request, ticket: Ticket) {
    let reply = match request {
        Request::Exec { process } => return hosted::start(process, ticket),
        Request::Wait { pid } => return hosted::wait(pid, ticket),
        Request::Start if init::release() => Reply::Done,
        Request::Start => Reply::Error(ESRCH),
        Request::Signal { target, signo, .. } => signal(target, signo),
        Request::Ps { .. } => {
            Reply::Ps(table::processes().iter().filter(|p| p.zombie().is_none()).map(describe).collect())
        }
        Request::Counters => Reply::Counters(counters::snapshot().collect()),
        Request::Stacks => Reply::Stacks(stacks()),
        Request::WindowChanged { pid } => {
            if let Some(group) = foreground(pid) {
                to_group(group, SigInfo::kernel(SIGWINCH), Origin::Outside);
            }
            Reply::Done
        }
        Request::Pause => {
            sched::freeze();
            Reply::Done
        }
        Request::Resume => {
            sched::thaw();
            Reply::Done
        }
        Request::Strace(strace) => {
            syscall::configure_strace(&strace);
            Reply::Done
        }
    };
    ticket.reply(&reply);
}

/// The foreground process group of the terminal that controls the session of process `pid`.
fn foreground(pid: i32) -> Option<i32> {
    let group = table::process(pid)?.session().terminal()?.foreground();
    (group > 0).then_some(group)
}

fn signal(target: Target, signo: u32) -> Reply {
    if signo >= SIGNALS {
        return Reply::Error(EINVAL);
    }
    let processes: Vec<Arc<Process>> = match target {
        Target::Init => table::process(INIT).into_iter().collect(),
        Target::Pid(pid) => table::process(pid).into_iter().collect(),
        Target::All => table::processes(),
        Target::Foreground(pid) => match foreground(pid) {
            Some(group) => table::lock().group(group),
            None => table::process(pid).into_iter().collect(),
        },
    };
    let living: Vec<_> = processes.into_iter().filter(|process| process.zombie().is_none()).collect();
    if living.is_empty() {
        return Reply::Error(ESRCH);
    }
    if signo == 0 {
        return Reply::Done;
    }
    // From outside, as if from the container's own root.
    let info = SigInfo::user(signo, code::SI_USER, 0, 0);
    let mut failed = 0;
    for process in living {
        if let Err(error) = to_process(&process, info, Origin::Outside) {
            failed = error.errno().0.into();
        }
    }
    if failed == 0 { Reply::Done } else { Reply::Error(failed) }
}

fn describe(process: &Arc<Process>) -> Info {
    let usage = process.usage();
    Info {
        pid: process.pid,
        ppid: process.ppid(),
        uid: process.uid(),
        threads: process.threads().iter().map(|task| task.tid()).collect(),
        start: process.started.wrapping_add(time::realtime().wrapping_sub(time::monotonic())),
        cpu: usage.user + usage.system,
        tty: String::new(),
        command: process.name(),
    }
}

fn stacks() -> String {
    let mut text = sched::describe();
    for process in table::processes() {
        for task in process.threads() {
            let (tid, name) = (task.tid(), task.name());
            // Writing to a string cannot fail.
            let state = if task.sched.is_parked() { "waits" } else { "runs" };
            let cpu = task.sched.last_cpu();
            let _ = writeln!(text, "process {} task {tid} ({name}): {state}, cpu {cpu}", process.pid);
        }
    }
    text
}
