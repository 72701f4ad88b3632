//! System calls of clocks and timers.

use alloc::{boxed::Box, sync::Arc};

use super::{
    Clock, Itimerspec, Itimerval, NSEC_PER_SEC, Timespec, Timeval, clock, monotonic, realtime, timerfd::TimerFd,
    timers::Notify,
};
use crate::{
    errno::{EINVAL, ENOTSUP, EPERM, Error, Restart, Result},
    fs::OpenFlags,
    mm::user::{UserAddr, UserPtr},
    sched,
    signal::set::{self, SIGALRM},
    syscall::{Fd, Hex, Level::*, Syscall},
    syscalls,
    task::{Current, table},
};

syscalls! { pub CALLS;
    35 nanosleep(duration: UserPtr<Timespec>, rem: UserPtr<Timespec>) = nanosleep, Full, "", "clock";
    36 getitimer(which: u32, value: UserPtr<Itimerval>) = getitimer, Full, "", "clock";
    37 alarm(seconds: u32) = alarm, Full, "", "timer";
    38 setitimer(which: u32, new: UserPtr<Itimerval>, old: UserPtr<Itimerval>) = setitimer, Full, "", "clock";
    96 gettimeofday(tv: UserPtr<Timeval>, tz: UserPtr<u64>) = gettimeofday, Full, "", "clock";
    159 adjtimex(buf: UserAddr) = adjtimex, Unsupported, "clocks follow the host's", "clock";
    164 settimeofday(tv: UserPtr<Timeval>, tz: UserAddr) = settimeofday, Unsupported, "clocks follow the host's", "clock";
    201 time(tloc: UserPtr<i64>) = time, Full, "", "clock";
    222 timer_create(clockid: i32, event: UserPtr<SigEvent>, id: UserPtr<i32>) = timer_create, Full, "", "timer";
    223 timer_settime(id: i32, flags: u32, new: UserPtr<Itimerspec>, old: UserPtr<Itimerspec>) = timer_settime, Full, "", "timer";
    224 timer_gettime(id: i32, value: UserPtr<Itimerspec>) = timer_gettime, Full, "", "timer";
    225 timer_getoverrun(id: i32) = timer_getoverrun, Full, "", "timer";
    226 timer_delete(id: i32) = timer_delete, Full, "", "timer";
    227 clock_settime(clockid: i32, time: UserPtr<Timespec>) = clock_settime, Unsupported, "clocks follow the host's", "clock";
    228 clock_gettime(clockid: i32, time: UserPtr<Timespec>) = clock_gettime, Full, "", "clock";
    229 clock_getres(clockid: i32, res: UserPtr<Timespec>) = clock_getres, Full, "", "clock";
    230 clock_nanosleep(clockid: i32, flags: u32, request: UserPtr<Timespec>, rem: UserPtr<Timespec>) = clock_nanosleep, Full, "", "clock";
    283 timerfd_create(clockid: i32, flags: Hex) = timerfd_create, Full, "", "timer";
    286 timerfd_settime(fd: Fd, flags: u32, new: UserPtr<Itimerspec>, old: UserPtr<Itimerspec>) = timerfd_settime, Partial, "TFD_TIMER_CANCEL_ON_SET has no effect", "timer";
    287 timerfd_gettime(fd: Fd, value: UserPtr<Itimerspec>) = timerfd_gettime, Full, "", "timer";
    305 clock_adjtime(clockid: i32, buf: UserAddr) = clock_adjtime, Unsupported, "clocks follow the host's", "clock";
}

fn clock_gettime(cur: &mut Current, clockid: i32, time: UserPtr<Timespec>) -> Result<()> {
    // The vDSO comes here when its sample is too old.
    super::resample_if_old();
    let now = Clock::from_id(clockid, &cur.task)?.now();
    cur.mm.write_value(time, &Timespec::from_ns(now))
}

fn clock_getres(cur: &mut Current, clockid: i32, res: UserPtr<Timespec>) -> Result<()> {
    let ns = clock::resolution(clockid, &cur.task)?;
    if res.is_null() { Ok(()) } else { cur.mm.write_value(res, &Timespec::from_ns(ns)) }
}

fn clock_settime(cur: &mut Current, clockid: i32, time: UserPtr<Timespec>) -> Result<()> {
    if clockid != clock::CLOCK_REALTIME {
        return Err(EINVAL);
    }
    cur.mm.read_value(time)?.to_ns()?;
    Err(EPERM)
}

fn settimeofday(_cur: &mut Current, _tv: UserPtr<Timeval>, _tz: UserAddr) -> Result<()> {
    Err(EPERM)
}

fn adjtimex(_cur: &mut Current, _buf: UserAddr) -> Result<()> {
    Err(EPERM)
}

fn clock_adjtime(_cur: &mut Current, _clockid: i32, _buf: UserAddr) -> Result<()> {
    Err(EPERM)
}

fn gettimeofday(cur: &mut Current, tv: UserPtr<Timeval>, tz: UserPtr<u64>) -> Result<()> {
    if !tv.is_null() {
        cur.mm.write_value(tv, &Timeval::from_ns(realtime()))?;
    }
    if !tz.is_null() {
        // UTC without daylight saving time.
        cur.mm.write_value(tz, &0)?;
    }
    Ok(())
}

fn time(cur: &mut Current, tloc: UserPtr<i64>) -> Result<i64> {
    let now = (realtime() / NSEC_PER_SEC) as i64;
    if !tloc.is_null() {
        cur.mm.write_value(tloc, &now)?;
    }
    Ok(now)
}

/// Sleeps until CLOCK_MONOTONIC passes `deadline`. Interrupted, it goes on with the time that is left.
fn sleep_until(cur: &mut Current, deadline: u64, rem: UserPtr<Timespec>) -> Result<u64> {
    loop {
        if sched::interrupted() {
            break;
        }
        if !sched::park_until(deadline) {
            return Ok(0);
        }
    }
    if !rem.is_null() {
        let left = deadline.saturating_sub(monotonic());
        cur.mm.write_value(rem, &Timespec::from_ns(left))?;
    }
    cur.restart_with = Some(Box::new(move |cur| sleep_until(cur, deadline, rem)));
    Err(Error::Restart(Restart::Block))
}

fn nanosleep(cur: &mut Current, duration: UserPtr<Timespec>, rem: UserPtr<Timespec>) -> Result<u64> {
    let ns = cur.mm.read_value(duration)?.to_ns()?;
    sleep_until(cur, monotonic().saturating_add(ns), rem)
}

const TIMER_ABSTIME: u32 = 1;

fn clock_nanosleep(
    cur: &mut Current,
    clockid: i32,
    flags: u32,
    request: UserPtr<Timespec>,
    rem: UserPtr<Timespec>,
) -> Result<u64> {
    let clock = Clock::from_id(clockid, &cur.task)?;
    if !clock::can_wait(clockid) {
        return Err(ENOTSUP);
    }
    let ns = cur.mm.read_value(request)?.to_ns()?;
    if clock.is_cpu_time() {
        if matches!(&clock, Clock::ThreadCpu(task, _) if Arc::ptr_eq(task, &cur.task)) {
            // It would never wake up.
            return Err(EINVAL);
        }
        return sleep_cpu(cur, &clock, ns, flags & TIMER_ABSTIME != 0);
    }
    if flags & TIMER_ABSTIME == 0 {
        return sleep_until(cur, monotonic().saturating_add(ns), rem);
    }
    let deadline = clock.deadline(ns);
    loop {
        if sched::interrupted() {
            return Err(Error::Restart(Restart::NoHandler));
        }
        if !sched::park_until(deadline) {
            return Ok(0);
        }
    }
}

/// Sleeps on other tasks' CPU time.
fn sleep_cpu(cur: &mut Current, clock: &Clock, ns: u64, absolute: bool) -> Result<u64> {
    const LOOK: u64 = 4_000_000;
    let due = if absolute { ns } else { clock.now().saturating_add(ns) };
    loop {
        let left = due.saturating_sub(clock.now());
        if left == 0 {
            return Ok(0);
        }
        if sched::interrupted() {
            let clock = clock.clone();
            cur.restart_with = Some(Box::new(move |cur| sleep_cpu(cur, &clock, due, true)));
            return Err(Error::Restart(Restart::Block));
        }
        sched::park_until(monotonic() + LOOK.max(left / sched::cpus_online() as u64));
    }
}

fn write_itimer(cur: &Current, ptr: UserPtr<Itimerval>, (left, interval): (u64, u64)) -> Result<()> {
    // Less than a microsecond left still counts.
    let left = if left == 0 { 0 } else { left.max(1000) };
    let value = Itimerval { interval: Timeval::from_ns(interval), value: Timeval::from_ns(left) };
    cur.mm.write_value(ptr, &value)
}

fn getitimer(cur: &mut Current, which: u32, value: UserPtr<Itimerval>) -> Result<()> {
    let process = &cur.task.process;
    let timer = process.timers.itimer(which, process)?;
    write_itimer(cur, value, timer.get())
}

fn setitimer(cur: &mut Current, which: u32, new: UserPtr<Itimerval>, old: UserPtr<Itimerval>) -> Result<()> {
    let process = &cur.task.process;
    let timer = process.timers.itimer(which, process)?;
    let new = if new.is_null() { Itimerval::default() } else { cur.mm.read_value(new)? };
    let before = timer.set(new.value.to_ns()?, new.interval.to_ns()?, false);
    if old.is_null() { Ok(()) } else { write_itimer(cur, old, before) }
}

fn alarm(cur: &mut Current, seconds: u32) -> Result<u32> {
    let process = &cur.task.process;
    let timer = process.timers.itimer(0, process)?;
    let (left, _) = timer.set(u64::from(seconds) * NSEC_PER_SEC, 0, false);
    // Rounded, but never to "none".
    let rounded = (left + NSEC_PER_SEC / 2) / NSEC_PER_SEC;
    Ok(if left > 0 { rounded.max(1) as u32 } else { 0 })
}

/// struct sigevent; the union after `notify` holds a thread id for SIGEV_THREAD_ID.
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct SigEvent {
    value: u64,
    signal: u32,
    notify: u32,
    tid: i32,
    rest: [i32; 11],
}

fn timer_create(cur: &mut Current, clockid: i32, event: UserPtr<SigEvent>, id: UserPtr<i32>) -> Result<()> {
    const SIGEV_SIGNAL: u32 = 0;
    const SIGEV_NONE: u32 = 1;
    const SIGEV_THREAD: u32 = 2;
    const SIGEV_THREAD_ID: u32 = 4;
    let clock = Clock::from_id(clockid, &cur.task)?;
    if !clock::can_wait(clockid) {
        return Err(ENOTSUP);
    }
    let notify = if event.is_null() {
        None
    } else {
        let event = cur.mm.read_value(event)?;
        if event.notify & !SIGEV_THREAD_ID != SIGEV_NONE && !set::is_valid(event.signal) {
            return Err(EINVAL);
        }
        Some(match event.notify {
            SIGEV_SIGNAL | SIGEV_THREAD => Notify::Process { signal: event.signal, value: event.value },
            SIGEV_NONE => Notify::Nothing,
            SIGEV_THREAD_ID => {
                let task = table::task(event.tid).filter(|t| Arc::ptr_eq(&t.process, &cur.task.process));
                let task = Arc::downgrade(&task.ok_or(EINVAL)?);
                Notify::Thread { task, signal: event.signal, value: event.value }
            }
            _ => return Err(EINVAL),
        })
    };
    let process = &cur.task.process;
    let new = process.timers.create(process, &clock, notify, SIGALRM)?;
    if let Err(error) = cur.mm.write_value(id, &new) {
        process.timers.delete(new)?;
        return Err(error);
    }
    Ok(())
}

fn spec((left, interval): (u64, u64)) -> Itimerspec {
    Itimerspec { interval: Timespec::from_ns(interval), value: Timespec::from_ns(left) }
}

fn timer_settime(
    cur: &mut Current,
    id: i32,
    flags: u32,
    new: UserPtr<Itimerspec>,
    old: UserPtr<Itimerspec>,
) -> Result<()> {
    let new = cur.mm.read_value(new)?;
    let (value, interval) = (new.value.to_ns()?, new.interval.to_ns()?);
    let timer = cur.task.process.timers.find(id)?;
    let before = timer.interval.set(value, interval, flags & TIMER_ABSTIME != 0);
    if old.is_null() { Ok(()) } else { cur.mm.write_value(old, &spec(before)) }
}

fn timer_gettime(cur: &mut Current, id: i32, value: UserPtr<Itimerspec>) -> Result<()> {
    let timer = cur.task.process.timers.find(id)?;
    cur.mm.write_value(value, &spec(timer.interval.get()))
}

fn timer_getoverrun(cur: &mut Current, id: i32) -> Result<i32> {
    Ok(cur.task.process.timers.find(id)?.overrun())
}

fn timer_delete(cur: &mut Current, id: i32) -> Result<()> {
    cur.task.process.timers.delete(id)
}

fn timerfd_create(cur: &mut Current, clockid: i32, flags: Hex) -> Result<i32> {
    let known = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK;
    let flags = OpenFlags::from_bits(flags.0 as u32).filter(|f| known.contains(*f)).ok_or(EINVAL)?;
    let clock = Clock::from_id(clockid, &cur.task)?;
    if !matches!(clockid, 0 | 1 | 7 | 8 | 9) {
        return Err(EINVAL);
    }
    let file = TimerFd::open(&clock, clockid, flags, &cur.task.creds());
    cur.install(file, flags.contains(OpenFlags::CLOEXEC))
}

fn timerfd_settime(
    cur: &mut Current,
    fd: Fd,
    flags: u32,
    new: UserPtr<Itimerspec>,
    old: UserPtr<Itimerspec>,
) -> Result<()> {
    const CANCEL_ON_SET: u32 = 2;
    let new = cur.mm.read_value(new)?;
    let (value, interval) = (new.value.to_ns()?, new.interval.to_ns()?);
    if flags & !(TIMER_ABSTIME | CANCEL_ON_SET) != 0 {
        return Err(EINVAL);
    }
    let file = cur.task.files().get(fd.0)?;
    let timer = file.ops().downcast::<TimerFd>().ok_or(EINVAL)?;
    let before = timer.set(value, interval, flags & TIMER_ABSTIME != 0);
    if old.is_null() { Ok(()) } else { cur.mm.write_value(old, &spec(before)) }
}

fn timerfd_gettime(cur: &mut Current, fd: Fd, value: UserPtr<Itimerspec>) -> Result<()> {
    let file = cur.task.files().get(fd.0)?;
    let timer = file.ops().downcast::<TimerFd>().ok_or(EINVAL)?;
    cur.mm.write_value(value, &spec(timer.interval.get()))
}
