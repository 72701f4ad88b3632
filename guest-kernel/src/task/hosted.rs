//! Processes that the host starts in a running container, and the host's waits for processes.
//!
//! Such a process has no parent inside (its ppid is 0, as in a pid namespace on Linux) and a session of its own. When it has
//! ended it stays a zombie until the host has waited for it.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};

use sentry_abi::{config::ProcessConfig, control::Reply};

use super::{
    Creds, Current, Limits, Pid, Process, Resources, Session, Task,
    current::{self, NewTask},
    exec,
    exit::{self, exited},
    init, launch,
    table::{self, INIT, Table},
};
use crate::{
    arch::xstate::XsaveArea,
    drivers::control::Ticket,
    errno::{EAGAIN, EINVAL, ESRCH, Error, Result, text},
    fs::{FdTable, FsContext, program, stdio},
    mm::kmem,
    sched,
    sync::SpinLock,
};

/// More waits than processes and their callers could need.
const MAX_WAITS: usize = 4096;

static WAITS: SpinLock<Vec<(Pid, Ticket)>> = SpinLock::new(Vec::new());

/// Makes the process; its task then loads the program and answers. Does not block.
pub fn start(config: ProcessConfig, ticket: Ticket) {
    match prepare(&config) {
        Ok((task, mut current)) => {
            current.first = Some(Box::new(move |cur| begin(cur, &config, ticket)));
            task.set_start(current);
            publish(&task);
            sched::start(task);
        }
        Err(error) => ticket.reply(&Reply::Error(error.errno().0.into())),
    }
}

fn prepare(config: &ProcessConfig) -> Result<(Arc<Task>, Box<Current>)> {
    if kmem::under_pressure() {
        return Err(EAGAIN);
    }
    let origin = init::origin().ok_or(ESRCH)?;
    // Until it has a program it borrows the memory of init and does not touch it.
    let mm = table::process(INIT).and_then(|init| init.main_thread()?.mm()).ok_or(ESRCH)?;
    let fs = FsContext::new(origin.root(), config.umask.unwrap_or(0o022) & 0o777);
    let creds = Arc::new(Creds::from_config(config));
    let pid = table::lock().allocate()?;
    let process = Arc::new(Process::first(pid, Session::new(pid), Limits::new(&config.rlimits)));
    if let Some(score) = config.oom_score_adj {
        process.oom_score_adj.store(score, core::sync::atomic::Ordering::Relaxed);
    }
    let made = XsaveArea::new().and_then(|xsave| {
        current::make(NewTask {
            tid: pid,
            process,
            mm,
            resources: Resources { files: FdTable::new(), fs, creds },
            registers: Default::default(),
            xsave,
            altstack: Default::default(),
        })
    });
    if made.is_err() {
        table::lock().release(pid);
    }
    made
}

fn publish(task: &Arc<Task>) {
    let mut table = table::lock();
    task.process.state.lock().threads.push(task.clone());
    table.add_process(&task.process);
    table.add_task(task);
}

/// The first thing the process does.
fn begin(cur: &mut Current, config: &ProcessConfig, ticket: Ticket) {
    let task = cur.task.clone();
    match load(cur, config) {
        Ok(()) => ticket.reply(&Reply::Started { pid: task.process.pid }),
        Err((error, message)) => {
            crate::debug!("exec: {message}");
            ticket.reply(&Reply::Failed { errno: error.errno().0.into(), message });
            // Nobody waits for what did not begin.
            abandon(&task);
        }
    }
}

fn load(cur: &mut Current, config: &ProcessConfig) -> Result<(), (Error, String)> {
    let task = cur.task.clone();
    let named = |what: &str, error: Error| (error, format!("{what}: {}", text(error.errno())));
    // First, because the descriptors are closed with the process.
    stdio::install(config, &task.files(), &task.process).map_err(|e| named("standard streams", e))?;
    let caller = launch::enter(&task.fs(), task.creds(), config).map_err(|(error, what)| named(&what, error))?;
    let env = launch::environment(&caller, config);
    let name = config.args.first().map_or(&b""[..], Vec::as_slice);
    let failed = |error| (error, init::failure(name, error));
    if name.is_empty() {
        return Err(failed(EINVAL));
    }
    let open: exec::Open<'_> = &mut |path| program::open(&caller, None, path, true);
    let (path, file) = exec::search(name, init::search_path(&env), open).map_err(failed)?;
    let request = exec::Request { file, path, argv: config.args.clone(), envp: env };
    let limits = *task.process.limits.lock();
    let image = exec::load(request, &caller.creds, &limits, 0, open).map_err(failed)?;
    exec::commit(cur, image).map_err(failed)
}

/// Ends a process whose program did not begin.
fn abandon(task: &Task) {
    WAITS.lock().retain(|(pid, _)| *pid != task.process.pid);
    task.process.unwanted.store(true, core::sync::atomic::Ordering::SeqCst);
    exit::end_process(&task.process, exited(127));
}

/// Answers `ticket` when the process has ended. Does not block.
pub fn wait(pid: Pid, ticket: Ticket) {
    let reply = {
        let mut table = table::lock();
        match table.process(pid) {
            None => Reply::Error(ESRCH.errno().0.into()),
            Some(process) => match process.zombie() {
                Some(status) => {
                    if is_hosted(&process) {
                        table.remove_process(&process);
                    }
                    Reply::Exited(status)
                }
                None => {
                    let mut waits = WAITS.lock();
                    if waits.len() < MAX_WAITS {
                        waits.push((pid, ticket));
                        return;
                    }
                    Reply::Error(EAGAIN.errno().0.into())
                }
            },
        }
    };
    ticket.reply(&reply);
}

/// The process has become a zombie: who waits for it. One that belongs to the host goes with them.
pub(super) fn ended(table: &mut Table, process: &Process) -> Vec<Ticket> {
    let mut tickets = Vec::new();
    let mut waits = WAITS.lock();
    let mut at = 0;
    while at < waits.len() {
        if waits[at].0 == process.pid {
            tickets.push(waits.swap_remove(at).1);
        } else {
            at += 1;
        }
    }
    drop(waits);
    let unwanted = process.unwanted.load(core::sync::atomic::Ordering::SeqCst);
    if is_hosted(process) && (unwanted || !tickets.is_empty()) {
        table.remove_process(process);
    }
    tickets
}

/// Whether the host has started it.
fn is_hosted(process: &Process) -> bool {
    process.ppid() == 0 && process.pid != INIT
}
