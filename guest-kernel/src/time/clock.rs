//! Clocks by number (clock_gettime(2)).

use alloc::sync::Arc;

use super::{boottime, monotonic, realtime};
use crate::{
    errno::{EINVAL, Result},
    task::{Process, Task, table},
};

pub const CLOCK_REALTIME: i32 = 0;
pub const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
const CLOCK_MONOTONIC_RAW: i32 = 4;
const CLOCK_REALTIME_COARSE: i32 = 5;
const CLOCK_MONOTONIC_COARSE: i32 = 6;
pub const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_REALTIME_ALARM: i32 = 8;
const CLOCK_BOOTTIME_ALARM: i32 = 9;
const CLOCK_TAI: i32 = 11;
/// TAI minus UTC, seconds: Linux knows it from NTP only and starts at 0.
const TAI_OFFSET: u64 = 0;

/// Resolution of what is read from the TSC, ns, and of the coarse clocks (a tick of 250 Hz).
const FINE: u64 = 1;
const COARSE: u64 = 4_000_000;

#[derive(Clone)]
pub enum Clock {
    Realtime,
    Monotonic,
    Boottime,
    Tai,
    ProcessCpu(Arc<Process>, CpuKind),
    ThreadCpu(Arc<Task>, CpuKind),
}

/// Which CPU time: CPUCLOCK_PROF, _VIRT or _SCHED.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuKind {
    All,
    User,
}

impl Clock {
    /// The clock of a number; negative ones name a process's or a thread's CPU time.
    pub fn from_id(id: i32, task: &Arc<Task>) -> Result<Clock> {
        Ok(match id {
            CLOCK_REALTIME | CLOCK_REALTIME_COARSE | CLOCK_REALTIME_ALARM => Clock::Realtime,
            CLOCK_MONOTONIC | CLOCK_MONOTONIC_RAW | CLOCK_MONOTONIC_COARSE => Clock::Monotonic,
            CLOCK_BOOTTIME | CLOCK_BOOTTIME_ALARM => Clock::Boottime,
            CLOCK_TAI => Clock::Tai,
            CLOCK_PROCESS_CPUTIME_ID => Clock::ProcessCpu(task.process.clone(), CpuKind::All),
            CLOCK_THREAD_CPUTIME_ID => Clock::ThreadCpu(task.clone(), CpuKind::All),
            id if id < 0 => cpu_clock(id, task)?,
            _ => return Err(EINVAL),
        })
    }

    pub fn now(&self) -> u64 {
        match self {
            Clock::Realtime => realtime(),
            Clock::Tai => realtime() + TAI_OFFSET,
            Clock::Monotonic => monotonic(),
            Clock::Boottime => boottime(),
            Clock::ProcessCpu(process, kind) => kind.of(&process.usage()),
            Clock::ThreadCpu(task, kind) => kind.of(&task.usage()),
        }
    }

    pub fn is_cpu_time(&self) -> bool {
        matches!(self, Clock::ProcessCpu(..) | Clock::ThreadCpu(..))
    }

    /// The CLOCK_MONOTONIC time, ns, at which this clock shows `at`; not for CPU time.
    pub fn deadline(&self, at: u64) -> u64 {
        if at == u64::MAX {
            return u64::MAX;
        }
        monotonic().saturating_add(at.saturating_sub(self.now()))
    }
}

impl CpuKind {
    fn of(self, usage: &crate::task::times::Usage) -> u64 {
        match self {
            CpuKind::All => usage.cpu(),
            CpuKind::User => usage.user,
        }
    }
}

/// `(~pid << 3) | per-thread 4 | kind`.
fn cpu_clock(id: i32, task: &Arc<Task>) -> Result<Clock> {
    const PER_THREAD: i32 = 4;
    let kind = match id & 3 {
        0 | 2 => CpuKind::All,
        1 => CpuKind::User,
        _ => return Err(EINVAL),
    };
    let pid = !(id >> 3);
    if id & PER_THREAD != 0 {
        let thread = if pid == 0 { Some(task.clone()) } else { table::task(pid) };
        // Only threads of the caller's process can be named.
        let thread = thread.filter(|t| Arc::ptr_eq(&t.process, &task.process)).ok_or(EINVAL)?;
        return Ok(Clock::ThreadCpu(thread, kind));
    }
    let process = if pid == 0 { Some(task.process.clone()) } else { table::process(pid) };
    Ok(Clock::ProcessCpu(process.ok_or(EINVAL)?, kind))
}

/// clock_getres(2), ns.
pub fn resolution(id: i32, task: &Arc<Task>) -> Result<u64> {
    Clock::from_id(id, task)?;
    Ok(if matches!(id, CLOCK_REALTIME_COARSE | CLOCK_MONOTONIC_COARSE) { COARSE } else { FINE })
}

/// Whether timers and sleeps accept the clock.
pub fn can_wait(id: i32) -> bool {
    !matches!(id, CLOCK_MONOTONIC_RAW | CLOCK_REALTIME_COARSE | CLOCK_MONOTONIC_COARSE)
}
