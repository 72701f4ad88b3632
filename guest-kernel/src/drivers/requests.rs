//! What the VMM's control requests do.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt::Write;

use sentry_abi::control::{Process as Info, Reply, Request, Target};

use crate::{
    counters, sched,
    signal::{
        info::{SigInfo, code},
        send::{Origin, to_group, to_process},
        set::{SIGNALS, SIGWINCH},
    },
    task::{Process, table},
    time,
};

const ESRCH: i32 = 3;
const EINVAL: i32 = 22;

/// The container's first process.
const INIT: i32 = 1;

/// Answers a request. Called in an interrupt: must not block.
pub(super) fn answer(request: &Request) -> Reply {
    match request {
        Request::Signal { target, signo, .. } => signal(*target, *signo),
        Request::Ps { .. } => Reply::Ps(table::processes().iter().map(describe).collect()),
        Request::Counters => Reply::Counters(counters::snapshot().collect()),
        Request::Stacks => Reply::Stacks(stacks()),
        Request::WindowChanged => {
            if let Some(group) = foreground() {
                to_group(group, SigInfo::kernel(SIGWINCH), Origin::Outside);
            }
            Reply::Done
        }
    }
}

/// The foreground process group of the container's terminal.
fn foreground() -> Option<i32> {
    let group = table::process(INIT)?.session().terminal()?.foreground();
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
        Target::Foreground => match foreground() {
            Some(group) => table::lock().group(group),
            None => table::process(INIT).into_iter().collect(),
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
