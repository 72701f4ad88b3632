//! A process: what its threads share (Linux's thread group and signal_struct).

use alloc::{
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32,
    Ordering::{Relaxed, SeqCst},
};

use super::{ExecFile, Limits, Pid, Session, Task, times::Usage};
use crate::{
    signal::{action::Handlers, queue::Queue},
    sync::{SpinLock, WaitQueue},
    time::{self, timers::ProcessTimers},
};

pub struct Process {
    pub pid: Pid,
    /// Parent and group: changed with the process table locked.
    ppid: AtomicI32,
    pgid: AtomicI32,
    /// The parent, for those who may not lock the table.
    parent: SpinLock<Weak<Process>>,
    session: SpinLock<Arc<Session>>,
    /// Signal for the parent at the end; 0: none.
    pub exit_signal: AtomicU32,
    pub state: SpinLock<State>,
    handlers: SpinLock<Arc<Handlers>>,
    pub limits: SpinLock<Limits>,
    /// Children of this process have changed state.
    pub child_event: WaitQueue,
    /// Threads stopped by job control wait here for SIGCONT.
    pub continued: WaitQueue,
    /// exec waits here for the other threads' end.
    pub thread_gone: WaitQueue,
    /// signalfds of this process become readable here.
    pub signalled: Arc<WaitQueue>,
    /// pidfds of this process become readable here.
    pub ended: Arc<WaitQueue>,
    /// CLOCK_MONOTONIC at fork, ns.
    pub started: u64,
    /// CPU time and faults of threads that are gone, and of children waited for.
    pub dead_threads: SpinLock<Usage>,
    pub dead_children: SpinLock<Usage>,
    /// PR_SET_CHILD_SUBREAPER.
    pub subreaper: AtomicBool,
    /// PR_SET_DUMPABLE.
    pub dumpable: AtomicU32,
    /// personality(2).
    pub personality: AtomicU32,
    /// The program has been replaced since fork: setpgid by the parent is refused.
    pub has_executed: AtomicBool,
    pub oom_score_adj: AtomicI32,
    /// The program file, for /proc/pid/exe.
    pub exe: SpinLock<Option<Arc<dyn ExecFile>>>,
    /// setitimer and POSIX timers.
    pub timers: ProcessTimers,
    /// The host started it and will not wait for it.
    pub unwanted: AtomicBool,
    /// Real uid of the thread that ended last.
    pub last_uid: AtomicU32,
}

/// What signals, stops and exit share.
#[derive(Default)]
pub struct State {
    pub threads: Vec<Arc<Task>>,
    /// Signals for the process as a whole.
    pub pending: Queue,
    /// All threads end, the process with this wait status.
    pub group_exit: Option<u32>,
    /// exec ends all threads but this one.
    pub exec: Option<Pid>,
    /// Job control stops the process with this signal.
    pub stop: Option<u32>,
    /// Threads that have come to the stop.
    pub stopped_threads: usize,
    /// All have, and the parent knows.
    pub stop_reported: bool,
    /// How often SIGCONT was sent: a stop that was decided before one does not happen.
    pub continues: u64,
    /// What wait(2) has not been told yet.
    pub report_stop: Option<u32>,
    pub report_continue: bool,
    /// The wait status, once every thread is gone.
    pub zombie: Option<u32>,
    /// The wait status of the thread that ended last, unless the group was ended.
    pub exit_status: u32,
}

impl Process {
    /// The first process.
    pub fn first(pid: Pid, session: Arc<Session>, limits: Limits) -> Self {
        Process {
            pid,
            ppid: AtomicI32::new(0),
            pgid: AtomicI32::new(pid),
            parent: SpinLock::new(Weak::new()),
            session: SpinLock::new(session),
            exit_signal: AtomicU32::new(crate::signal::set::SIGCHLD),
            state: SpinLock::new(State::default()),
            handlers: SpinLock::new(Handlers::new()),
            limits: SpinLock::new(limits),
            child_event: WaitQueue::new(),
            continued: WaitQueue::new(),
            thread_gone: WaitQueue::new(),
            signalled: Arc::new(WaitQueue::new()),
            ended: Arc::new(WaitQueue::new()),
            started: time::monotonic(),
            dead_threads: SpinLock::new(Usage::default()),
            dead_children: SpinLock::new(Usage::default()),
            subreaper: AtomicBool::new(false),
            dumpable: AtomicU32::new(1),
            personality: AtomicU32::new(0),
            has_executed: AtomicBool::new(false),
            oom_score_adj: AtomicI32::new(0),
            exe: SpinLock::new(None),
            timers: ProcessTimers::default(),
            unwanted: AtomicBool::new(false),
            last_uid: AtomicU32::new(0),
        }
    }

    /// A child for fork.
    pub fn fork(&self, pid: Pid, parent: &Arc<Process>, exit_signal: u32, handlers: Arc<Handlers>) -> Self {
        let child = Process::first(pid, self.session(), *self.limits.lock());
        child.set_parent(parent);
        child.set_pgid(self.pgid());
        child.exit_signal.store(exit_signal, Relaxed);
        *child.handlers.lock() = handlers;
        child.dumpable.store(self.dumpable.load(Relaxed), Relaxed);
        child.personality.store(self.personality.load(Relaxed), Relaxed);
        child.oom_score_adj.store(self.oom_score_adj.load(Relaxed), Relaxed);
        *child.exe.lock() = self.exe.lock().clone();
        child
    }

    pub fn ppid(&self) -> Pid {
        self.ppid.load(SeqCst)
    }

    pub fn parent(&self) -> Option<Arc<Process>> {
        self.parent.lock().upgrade()
    }

    pub(super) fn set_parent(&self, parent: &Arc<Process>) {
        self.ppid.store(parent.pid, SeqCst);
        *self.parent.lock() = Arc::downgrade(parent);
    }

    /// Init, until a fault of its own: signals it has no handler for do not end it.
    pub fn is_unkillable(&self) -> bool {
        self.pid == super::table::INIT
    }

    /// Real uid, of a zombie too.
    pub fn uid(&self) -> u32 {
        self.main_thread().map_or_else(|| self.last_uid.load(Relaxed), |t| t.creds().uid)
    }

    pub fn pgid(&self) -> Pid {
        self.pgid.load(SeqCst)
    }

    pub(super) fn set_pgid(&self, pgid: Pid) {
        self.pgid.store(pgid, SeqCst);
    }

    pub fn session(&self) -> Arc<Session> {
        self.session.lock().clone()
    }

    pub(super) fn set_session(&self, session: Arc<Session>) {
        *self.session.lock() = session;
    }

    pub fn handlers(&self) -> Arc<Handlers> {
        self.handlers.lock().clone()
    }

    pub fn set_handlers(&self, handlers: Arc<Handlers>) {
        *self.handlers.lock() = handlers;
    }

    /// The wait status, when the process has ended and waits to be reaped.
    pub fn zombie(&self) -> Option<u32> {
        self.state.lock().zombie
    }

    /// A living thread, the leader if it lives.
    pub fn main_thread(&self) -> Option<Arc<Task>> {
        let state = self.state.lock();
        state.threads.iter().find(|t| t.tid() == self.pid).or(state.threads.first()).cloned()
    }

    pub fn threads(&self) -> Vec<Arc<Task>> {
        self.state.lock().threads.clone()
    }

    /// Name of the program, for /proc and logs.
    pub fn name(&self) -> String {
        self.main_thread().map_or_else(String::new, |t| t.name())
    }

    /// CPU time and faults of all threads, dead ones included.
    pub fn usage(&self) -> Usage {
        let mut usage = *self.dead_threads.lock();
        for thread in &self.state.lock().threads {
            usage.add(&thread.usage());
        }
        usage
    }
}
