//! The container's first process, and what the host is told when it cannot start.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt::Write;

use sentry_abi::config::ProcessConfig;

use super::{
    Limits, Process, Resources, Session, Task, current,
    exec::{self, Open, Request},
    table::{self, INIT},
};
use crate::{
    arch::{self, xstate::XsaveArea},
    errno::{EACCES, ENOENT, Error, Result, text},
    fs::FsContext,
    sched,
    sync::{Once, SpinLock},
};

/// Creates the container's init process with these descriptors, root and working directory. `open` opens programs as that
/// process. Failures have been reported to the host when this returns them.
pub fn make_init(config: &ProcessConfig, resources: Resources, open: Open<'_>) -> Result<Arc<Task>> {
    ORIGIN.call_once(|| resources.fs.copy());
    match create(config, resources, open) {
        Ok(task) => Ok(task),
        Err(error) => {
            let what = config.args.first().map_or(&b""[..], Vec::as_slice);
            let message = failure(what, error);
            crate::warn!("{message}");
            arch::host::init_result(error.errno().0, message.as_bytes());
            Err(error)
        }
    }
}

/// Tells the host that init is ready, and lets it begin; with `hold` it begins with [`release`].
pub fn begin(task: Arc<Task>, hold: bool) {
    if hold {
        *HELD.lock() = Some(task);
    } else {
        sched::start(task);
    }
    arch::host::init_result(0, b"");
}

/// Init, until it may begin.
static HELD: SpinLock<Option<Arc<Task>>> = SpinLock::new(None);

/// Lets an init that is held begin; false when there is none.
pub fn release() -> bool {
    let Some(task) = HELD.lock().take() else { return false };
    sched::start(task);
    true
}

/// Root and working directory of the container: what a task refers to once it has given up its own.
static ORIGIN: Once<Arc<FsContext>> = Once::new();

pub fn origin() -> Option<Arc<FsContext>> {
    ORIGIN.get().cloned()
}

/// Wait status of a container whose program could not be started, as shells give it.
pub fn failure_status(error: Error) -> u32 {
    if error == ENOENT { 127 << 8 } else { 126 << 8 }
}

/// What engines look for in a runtime's error.
pub(super) fn failure(what: &[u8], error: Error) -> String {
    let mut message = String::new();
    let name = String::from_utf8_lossy(what);
    let _ = match error {
        ENOENT if !what.contains(&b'/') => write!(message, "exec: \"{name}\": executable file not found in $PATH"),
        ENOENT => write!(message, "exec: \"{name}\": stat {name}: no such file or directory"),
        EACCES => write!(message, "exec: \"{name}\": permission denied"),
        other => write!(message, "exec: \"{name}\": {}", text(other.errno()).to_lowercase()),
    };
    message
}

fn create(config: &ProcessConfig, mut resources: Resources, open: Open<'_>) -> Result<Arc<Task>> {
    let limits = Limits::new(&config.rlimits);
    let name = config.args.first().ok_or(ENOENT)?;
    let (path, file) = exec::search(name, search_path(&config.env), open)?;
    let request = Request { file, path, argv: config.args.clone(), envp: config.env.clone() };
    let image = exec::load(request, &resources.creds, &limits, 0, open)?;
    let pid = {
        let mut table = table::lock();
        table.allocate()?
    };
    debug_assert!(pid == INIT);
    let process = Arc::new(Process::first(pid, Session::new(pid), limits));
    process.timers.watch_cpu_limit(&process);
    *process.exe.lock() = Some(image.file);
    if let Some(score) = config.oom_score_adj {
        process.oom_score_adj.store(score, core::sync::atomic::Ordering::Relaxed);
    }
    resources.creds = Arc::new(image.creds);
    let new = current::NewTask {
        tid: pid,
        process: process.clone(),
        mm: image.mm,
        resources,
        registers: image.registers,
        xsave: XsaveArea::new()?,
        altstack: Default::default(),
    };
    let task = current::prepare(new)?;
    task.set_name(&image.name);
    process.state.lock().threads.push(task.clone());
    let mut table = table::lock();
    table.add_process(&process);
    table.add_task(&task);
    drop(table);
    Ok(task)
}

/// PATH of an environment, or what the C library takes without one.
pub(super) fn search_path(env: &[Vec<u8>]) -> &[u8] {
    let found = env.iter().rev().find_map(|e| e.strip_prefix(b"PATH="));
    found.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}
