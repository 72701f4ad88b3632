//! A process's timers: setitimer(2) and timer_create(2).

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering::Relaxed};

use super::{Clock, CpuKind, Interval, NSEC_PER_SEC, interval::Fire};
use crate::{
    errno::{EAGAIN, EINVAL, Result},
    signal::{
        SigInfo,
        info::code,
        send::{self, Origin},
        set::{SIGALRM, SIGKILL, SIGPROF, SIGVTALRM, SIGXCPU},
    },
    sync::SpinLock,
    task::{Process, Resource, Task, limits::RLIM_INFINITY},
};

/// Timers a process may have besides those of setitimer.
const MAX_TIMERS: usize = 1024;

/// POSIX timers of all processes, and how many there may be.
static TOTAL: AtomicUsize = AtomicUsize::new(0);
const MAX_TOTAL: usize = 1 << 15;

#[derive(Default)]
pub struct ProcessTimers {
    inner: SpinLock<Inner>,
}

#[derive(Default)]
struct Inner {
    itimers: [Option<Arc<Interval>>; 3],
    /// RLIMIT_CPU.
    cpu_limit: Option<Arc<Interval>>,
    posix: BTreeMap<i32, Arc<PosixTimer>>,
    next: i32,
}

/// ITIMER_REAL, _VIRTUAL, _PROF.
struct ItimerSignal {
    process: Weak<Process>,
    signal: u32,
}

impl Fire for ItimerSignal {
    fn fire(&self, _count: u64) {
        if let Some(process) = self.process.upgrade() {
            let _ = send::to_process(&process, SigInfo::kernel(self.signal), Origin::Inside);
        }
    }
}

/// RLIMIT_CPU: SIGXCPU each second from the soft limit on, SIGKILL at the hard one.
struct CpuLimit {
    process: Weak<Process>,
}

impl Fire for CpuLimit {
    fn fire(&self, _count: u64) {
        let Some(process) = self.process.upgrade() else { return };
        let hard = process.limits.lock().get(Resource::Cpu).hard;
        let used = process.usage().cpu() / NSEC_PER_SEC;
        let signal = if used >= hard { SIGKILL } else { SIGXCPU };
        let _ = send::to_process(&process, SigInfo::kernel(signal), Origin::Outside);
    }
}

/// How a POSIX timer tells.
#[derive(Clone)]
pub enum Notify {
    Nothing,
    Process { signal: u32, value: u64 },
    Thread { task: Weak<Task>, signal: u32, value: u64 },
}

pub struct PosixTimer {
    pub interval: Arc<Interval>,
    target: Arc<PosixSignal>,
}

struct PosixSignal {
    id: AtomicI32,
    process: Weak<Process>,
    notify: Notify,
    /// Overruns of the newest signal, which may not have been taken yet, and of the one before.
    newest: AtomicI32,
    before: AtomicI32,
}

impl PosixTimer {
    /// Expiries that the last signal taken stands for besides its own.
    pub fn overrun(&self) -> i32 {
        let target = &self.target;
        if target.update_pending(|_| {}) { target.before.load(Relaxed) } else { target.newest.load(Relaxed) }
    }
}

impl Drop for PosixTimer {
    fn drop(&mut self) {
        TOTAL.fetch_sub(1, Relaxed);
    }
}

impl PosixSignal {
    /// Changes the timer's signal that waits to be taken; false when there is none.
    fn update_pending(&self, change: impl FnOnce(&mut SigInfo)) -> bool {
        let Some(process) = self.process.upgrade() else { return false };
        let id = self.id.load(Relaxed);
        let ours = |info: &SigInfo| info.code == code::SI_TIMER && info.fields[0] as u32 as i32 == id;
        match &self.notify {
            Notify::Nothing => false,
            Notify::Process { .. } => process.state.lock().pending.update(ours, change),
            Notify::Thread { task, .. } => task.upgrade().is_some_and(|task| task.pending.lock().update(ours, change)),
        }
    }
}

impl Fire for PosixSignal {
    fn fire(&self, count: u64) {
        let Some(process) = self.process.upgrade() else { return };
        let id = self.id.load(Relaxed);
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let (task, signal, value) = match &self.notify {
            Notify::Nothing => return,
            Notify::Process { signal, value } => (None, *signal, *value),
            Notify::Thread { task, signal, value } => match task.upgrade() {
                Some(task) => (Some(task), *signal, *value),
                None => return,
            },
        };
        // A signal of this timer that has not been taken yet counts on.
        let pending = self.update_pending(|info| {
            let overrun = ((info.fields[0] >> 32) as i32).saturating_add(count);
            *info = SigInfo::timer(signal, id, overrun, value);
            self.newest.store(overrun, Relaxed);
        });
        if !pending {
            let overrun = count - 1;
            self.before.store(self.newest.swap(overrun, Relaxed), Relaxed);
            let info = SigInfo::timer(signal, id, overrun, value);
            let _ = match &task {
                Some(task) => send::to_task(task, info, Origin::Inside),
                None => send::to_process(&process, info, Origin::Inside),
            };
        }
    }
}

impl ProcessTimers {
    /// The timer of ITIMER_* `which`, made when first asked for.
    pub fn itimer(&self, which: u32, process: &Arc<Process>) -> Result<Arc<Interval>> {
        let mut inner = self.inner.lock();
        let slot = inner.itimers.get_mut(which as usize).ok_or(EINVAL)?;
        if let Some(timer) = slot {
            return Ok(timer.clone());
        }
        let (clock, signal) = match which {
            0 => (Clock::Monotonic, SIGALRM),
            1 => (Clock::ProcessCpu(process.clone(), CpuKind::User), SIGVTALRM),
            _ => (Clock::ProcessCpu(process.clone(), CpuKind::All), SIGPROF),
        };
        let timer = Interval::new(&clock, Arc::new(ItimerSignal { process: Arc::downgrade(process), signal }));
        *slot = Some(timer.clone());
        Ok(timer)
    }

    /// RLIMIT_CPU has its value now: watches the process's CPU time, unless there is no limit.
    pub fn watch_cpu_limit(&self, process: &Arc<Process>) {
        let soft = process.limits.lock().soft(Resource::Cpu);
        let timer = {
            let mut inner = self.inner.lock();
            if soft == RLIM_INFINITY && inner.cpu_limit.is_none() {
                return;
            }
            let new = || {
                let clock = Clock::ProcessCpu(process.clone(), CpuKind::All);
                Interval::new(&clock, Arc::new(CpuLimit { process: Arc::downgrade(process) }))
            };
            inner.cpu_limit.get_or_insert_with(new).clone()
        };
        if soft == RLIM_INFINITY {
            timer.disarm();
        } else {
            timer.set(soft.saturating_mul(NSEC_PER_SEC).max(1), NSEC_PER_SEC, true);
        }
    }

    pub fn create(&self, process: &Arc<Process>, clock: &Clock, notify: Option<Notify>, default: u32) -> Result<i32> {
        let mut inner = self.inner.lock();
        if inner.posix.len() >= MAX_TIMERS || TOTAL.load(Relaxed) >= MAX_TOTAL {
            return Err(EAGAIN);
        }
        let mut id = inner.next;
        while inner.posix.contains_key(&id) {
            id = id.checked_add(1).unwrap_or(0);
        }
        inner.next = id.checked_add(1).unwrap_or(0);
        // Without a sigevent the signal is SIGALRM with the timer's number.
        let notify = notify.unwrap_or(Notify::Process { signal: default, value: id as u64 });
        let target = Arc::new(PosixSignal {
            id: AtomicI32::new(id),
            process: Arc::downgrade(process),
            notify,
            newest: AtomicI32::new(0),
            before: AtomicI32::new(0),
        });
        TOTAL.fetch_add(1, Relaxed);
        let timer = PosixTimer { interval: Interval::new(clock, target.clone()), target };
        inner.posix.insert(id, Arc::new(timer));
        Ok(id)
    }

    pub fn find(&self, id: i32) -> Result<Arc<PosixTimer>> {
        self.inner.lock().posix.get(&id).cloned().ok_or(EINVAL)
    }

    pub fn delete(&self, id: i32) -> Result<()> {
        let timer = self.inner.lock().posix.remove(&id).ok_or(EINVAL)?;
        timer.interval.disarm();
        Ok(())
    }

    /// exec: POSIX timers go, itimers stay.
    pub fn delete_all_posix(&self) {
        let gone: Vec<_> = core::mem::take(&mut self.inner.lock().posix).into_values().collect();
        for timer in gone {
            timer.interval.disarm();
        }
    }

    /// The process ends.
    pub fn delete_all(&self) {
        self.delete_all_posix();
        let (itimers, cpu_limit) = {
            let mut inner = self.inner.lock();
            (core::mem::take(&mut inner.itimers), inner.cpu_limit.take())
        };
        for timer in itimers.into_iter().flatten().chain(cpu_limit) {
            timer.disarm();
        }
    }
}
