//! Tasks and processes.

pub mod creds;
pub mod current;
pub mod syscalls;

use alloc::{boxed::Box, sync::Arc};

pub use current::Current;

use self::creds::Creds;
use crate::{
    fs::{FdTable, FsContext},
    mm::AddressSpace,
    sched::{self, Entity, timer::Expire},
    sync::{SpinLock, Wake},
};

/// A process or thread id as applications see it.
pub type Pid = i32;

/// A thread: what the scheduler runs.
pub struct Task {
    pub tid: Pid,
    pub sched: Entity,
    /// None once the task has given up its memory in exit.
    pub mm: SpinLock<Option<Arc<AddressSpace>>>,
    /// Descriptors (shared with CLONE_FILES), and root, cwd and umask (CLONE_FS).
    pub files: SpinLock<Arc<FdTable>>,
    pub fs: SpinLock<Arc<FsContext>>,
    pub creds: SpinLock<Arc<Creds>>,
    /// What the task starts with, until it first runs.
    start: SpinLock<Option<Box<Current>>>,
}

impl Task {
    pub fn mm(&self) -> Option<Arc<AddressSpace>> {
        self.mm.lock().clone()
    }

    pub fn files(&self) -> Arc<FdTable> {
        self.files.lock().clone()
    }

    pub fn fs(&self) -> Arc<FsContext> {
        self.fs.lock().clone()
    }

    pub fn creds(&self) -> Arc<Creds> {
        self.creds.lock().clone()
    }
}

/// What a task has besides memory, given to it when it is made.
pub struct Resources {
    pub files: Arc<FdTable>,
    pub fs: Arc<FsContext>,
    pub creds: Arc<Creds>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>, _events: u32) {
        sched::unpark(&self);
    }
}

impl Expire for Task {
    fn expire(self: Arc<Self>) {
        sched::unpark(&self);
    }
}

impl Task {
    fn new(tid: Pid, sched: Entity, mm: Arc<AddressSpace>, resources: Resources) -> Self {
        Task {
            tid,
            sched,
            mm: SpinLock::new(Some(mm)),
            files: SpinLock::new(resources.files),
            fs: SpinLock::new(resources.fs),
            creds: SpinLock::new(resources.creds),
            start: SpinLock::new(None),
        }
    }
}

/// What must happen before user code runs: signals, stops, exit. True when the task ends.
fn before_user(_cur: &mut Current) -> bool {
    false
}

/// Whether there is something for [`before_user`] to do.
fn must_handle(cur: &mut Current) -> bool {
    cur.task.sched.interrupted()
}

/// An exception of user code: a page fault is resolved, everything else becomes a signal.
fn exception(cur: &mut Current) {
    let (vector, error, address) = cur.exception();
    if vector == sentry_abi::context::vector::PF && cur.mm.fault(address, error).is_ok() {
        return;
    }
    crate::warn!("exception {vector} error {error:#x} address {address:#x} at {:#x}", cur.registers().rip);
    die(cur)
}

fn die(_cur: &mut Current) {
    crate::arch::host::exit(11)
}

/// The task's end: everything it held is given up.
fn finish(cur: Current) {
    crate::arch::leave_user_space();
    drop(cur)
}
