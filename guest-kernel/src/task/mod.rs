//! Tasks and processes.
//!
//! A [`Task`] is a thread; a [`Process`] is what threads share. What only the task itself touches lives in [`Current`].

pub mod clone;
pub mod creds;
pub mod current;
pub mod elf;
pub mod exec;
pub mod exit;
pub mod groups;
pub mod hosted;
pub mod ids;
pub mod info;
pub mod init;
pub mod launch;
pub mod limits;
pub mod peek;
pub mod pidfd;
pub mod prctl;
pub mod process;
pub mod rlimit;
pub mod scheduling;
pub mod session;
pub mod stack;
pub mod syscalls;
pub mod table;
pub mod times;
pub mod wait;

use alloc::{boxed::Box, string::String, sync::Arc};
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use arrayvec::ArrayVec;
pub use creds::{Creds, cap};
pub use current::Current;
pub use exec::ExecFile;
pub use limits::{Limit, Limits, Resource};
pub use process::Process;
pub use session::{Session, Terminal};

use crate::{
    fs::{FdTable, FsContext},
    ipc::sem,
    mm::AddressSpace,
    sched::{self, Entity, timer::Expire},
    signal::{SigSet, deliver, queue::Queue},
    sync::{SpinLock, WaitQueue, Wake},
};

/// A process or thread id as applications see it.
pub type Pid = i32;

/// Longest name of a task (TASK_COMM_LEN without the NUL).
pub const NAME_MAX: usize = 15;

/// A thread: what the scheduler runs.
pub struct Task {
    tid: AtomicI32,
    pub process: Arc<Process>,
    pub sched: Entity,
    /// None once the task has given up its memory in exit.
    pub mm: SpinLock<Option<Arc<AddressSpace>>>,
    /// Descriptors (shared with CLONE_FILES), and root, cwd and umask (CLONE_FS).
    files: SpinLock<Arc<FdTable>>,
    fs: SpinLock<Arc<FsContext>>,
    creds: SpinLock<Arc<Creds>>,
    name: SpinLock<ArrayVec<u8, NAME_MAX>>,
    /// Signals for this thread; with `process.state` locked.
    pub pending: SpinLock<Queue>,
    /// Blocked signals: changed by the task itself with `process.state` locked.
    blocked: AtomicU64,
    /// Signals a sigtimedwait waits for: they wake the task although they are blocked.
    pub awaited: AtomicU64,
    /// Where a zero is written and a futex woken at the end (set_tid_address(2)).
    pub clear_child_tid: AtomicU64,
    /// Head of the list of held robust futexes.
    pub robust_list: AtomicU64,
    /// PR_SET_PDEATHSIG.
    pub parent_death_signal: AtomicU32,
    pub meter: times::Meter,
    /// CLOCK_MONOTONIC at clone, ns.
    pub started: u64,
    /// nice(2), -20 to 19.
    pub nice: AtomicI32,
    /// sched_setscheduler(2) policy and real-time priority: kept, not acted on.
    pub policy: AtomicU32,
    pub priority: AtomicI32,
    /// ioprio_set(2): kept, not acted on; 0: not set.
    pub io_priority: AtomicU32,
    /// CPUs of sched_setaffinity(2).
    pub affinity: AtomicU64,
    /// What semop(2) undoes at the end (CLONE_SYSVSEM shares it).
    pub sem_undo: SpinLock<Option<Arc<sem::UndoList>>>,
    /// A vfork parent waits here until the child has released its memory.
    pub vfork: SpinLock<Option<Arc<VforkDone>>>,
    /// What the task starts with, until it first runs.
    start: SpinLock<Option<Box<Current>>>,
}

/// Tells a vfork parent that the child has ended or has a program of its own.
#[derive(Default)]
pub struct VforkDone {
    done: AtomicBool,
    queue: WaitQueue,
}

impl VforkDone {
    pub fn set(&self) {
        self.done.store(true, SeqCst);
        self.queue.wake_all();
    }

    /// Only a fatal signal ends the wait early.
    pub fn wait(&self, task: &Task) {
        self.queue.wait_uninterruptible(|| (self.done.load(SeqCst) || task.must_die()).then_some(()));
    }
}

impl Task {
    pub(crate) fn new(
        tid: Pid,
        process: Arc<Process>,
        sched: Entity,
        mm: Arc<AddressSpace>,
        resources: Resources,
    ) -> Self {
        Task {
            tid: AtomicI32::new(tid),
            process,
            sched,
            mm: SpinLock::new(Some(mm)),
            files: SpinLock::new(resources.files),
            fs: SpinLock::new(resources.fs),
            creds: SpinLock::new(resources.creds),
            name: SpinLock::new(ArrayVec::new()),
            pending: SpinLock::new(Queue::new()),
            blocked: AtomicU64::new(0),
            awaited: AtomicU64::new(0),
            clear_child_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            parent_death_signal: AtomicU32::new(0),
            meter: times::Meter::default(),
            started: crate::time::monotonic(),
            nice: AtomicI32::new(0),
            policy: AtomicU32::new(0),
            priority: AtomicI32::new(0),
            io_priority: AtomicU32::new(0),
            affinity: AtomicU64::new(u64::MAX),
            sem_undo: SpinLock::new(None),
            vfork: SpinLock::new(None),
            start: SpinLock::new(None),
        }
    }

    /// Whether its affinity allows a CPU.
    #[inline]
    pub fn may_run_on(&self, cpu: usize) -> bool {
        self.affinity.load(Relaxed) >> cpu & 1 != 0
    }

    #[inline]
    pub fn tid(&self) -> Pid {
        self.tid.load(Relaxed)
    }

    pub(crate) fn set_tid(&self, tid: Pid) {
        self.tid.store(tid, Relaxed);
    }

    pub fn mm(&self) -> Option<Arc<AddressSpace>> {
        self.mm.lock().clone()
    }

    pub fn files(&self) -> Arc<FdTable> {
        self.files.lock().clone()
    }

    /// Replaces the descriptor table (unshare, exec, exit); the caller drops the old one where it may block.
    pub fn set_files(&self, files: Arc<FdTable>) -> Arc<FdTable> {
        core::mem::replace(&mut *self.files.lock(), files)
    }

    pub fn fs(&self) -> Arc<FsContext> {
        self.fs.lock().clone()
    }

    pub fn set_fs(&self, fs: Arc<FsContext>) -> Arc<FsContext> {
        core::mem::replace(&mut *self.fs.lock(), fs)
    }

    pub fn creds(&self) -> Arc<Creds> {
        self.creds.lock().clone()
    }

    pub fn set_creds(&self, creds: Creds) {
        let new = Arc::new(creds);
        let old = core::mem::replace(&mut *self.creds.lock(), new);
        drop(old);
    }

    #[inline]
    pub fn capable(&self, cap: u32) -> bool {
        self.creds.lock().capable(cap)
    }

    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.name.lock()).into_owned()
    }

    pub fn name_bytes(&self) -> ArrayVec<u8, NAME_MAX> {
        self.name.lock().clone()
    }

    /// Sets the name, cut to what fits and at the first NUL.
    pub fn set_name(&self, name: &[u8]) {
        *self.name.lock() = name.iter().copied().take_while(|&b| b != 0).take(NAME_MAX).collect();
    }

    #[inline]
    pub fn blocked(&self) -> SigSet {
        SigSet(self.blocked.load(SeqCst))
    }

    pub(crate) fn set_blocked(&self, set: SigSet) {
        self.blocked.store(set.without(SigSet::UNBLOCKABLE).0, SeqCst);
    }

    /// Whether the task has to end without running user code again.
    pub fn must_die(&self) -> bool {
        let state = self.process.state.lock();
        state.group_exit.is_some() || state.exec.is_some_and(|keep| keep != self.tid())
    }

    pub(crate) fn set_start(&self, current: Box<Current>) {
        *self.start.lock() = Some(current);
    }

    /// Gives up a task that never ran: it and what it starts with refer to each other.
    fn abandon(&self) {
        let start = self.start.lock().take();
        drop(start);
    }

    pub fn is_leader(&self) -> bool {
        self.tid() == self.process.pid
    }

    pub fn usage(&self) -> times::Usage {
        let (user, system) = self.meter.read();
        times::Usage {
            user,
            system,
            minor_faults: self.meter.faults.load(Relaxed),
            voluntary: self.meter.voluntary.load(Relaxed),
            involuntary: self.meter.involuntary.load(Relaxed),
            peak: self.mm().map_or(0, |mm| mm.peak()),
        }
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

/// What must happen before user code runs: signals, stops, exit. True when the task ends.
#[inline]
fn before_user(cur: &mut Current) -> bool {
    if !cur.task.sched.interrupted() && cur.restart.is_none() && cur.exit_status.is_none() {
        return false;
    }
    cur.exit_status.is_some() || deliver::handle(cur)
}

/// Whether there is something for [`before_user`] to do.
fn must_handle(cur: &mut Current) -> bool {
    cur.task.sched.interrupted()
}

/// The task cannot go on: its memory cannot be shown to it any more.
fn die(cur: &mut Current) {
    crate::warn!("[{}] {} cannot go on: no room for its memory", cur.task.tid(), cur.task.name());
    exit::end_process(&cur.task.process, crate::signal::set::SIGKILL);
}
