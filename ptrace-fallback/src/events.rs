//! The thread that turns device completions (eventfds) and timers into pending interrupts.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use vmm::seccomp::{self, Role};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
};

use crate::{
    host::{futex, sched::CpuSet},
    interrupt::CpuState,
};

const TIMER_KEY: u64 = 1 << 32;
const STOP_KEY: u64 = 1 << 33;
const WATCH_KEY: u64 = 1 << 34;
/// How often vCPUs in user mode are looked at, ns.
const WATCH_INTERVAL: u64 = 20_000_000;

struct Timer {
    fd: OwnedFd,
    /// What the host's timer is set to; `u64::MAX`: off.
    armed: Mutex<u64>,
}

pub struct Events {
    epoll: Epoll,
    cpus: Arc<[CpuState]>,
    timers: Vec<Timer>,
    /// Signalled by devices, by position in the epoll keys; with the interrupt bit each sets.
    irqs: Mutex<Vec<(EventFd, u32)>>,
    stop: EventFd,
    /// Ticks while vCPUs are at work.
    watch: Timer,
    allowed: CpuSet,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Events {
    pub fn new(cpus: Arc<[CpuState]>) -> Result<Arc<Events>> {
        let epoll = Epoll::new().context("epoll_create")?;
        let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("eventfd")?;
        add(&epoll, &stop, STOP_KEY)?;
        let mut timers = Vec::new();
        for index in 0..cpus.len() {
            timers.push(timer(&epoll, TIMER_KEY | index as u64)?);
        }
        let watch = timer(&epoll, WATCH_KEY)?;
        Ok(Arc::new(Events {
            epoll,
            cpus,
            timers,
            irqs: Mutex::default(),
            stop,
            watch,
            allowed: CpuSet::allowed(),
            thread: Mutex::default(),
        }))
    }

    /// Starts the thread, once.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let events = self.clone();
            let spawned = std::thread::Builder::new().name("runsc-events".into()).spawn(move || events.run());
            *thread = Some(spawned.context("starting the event thread")?);
        }
        Ok(())
    }

    fn run(&self) {
        if let Err(error) = seccomp::confine(Role::EventsPtrace) {
            log::warn!("confinement: missing: {error:#}");
        }
        let mut ready = [EpollEvent::default(); 16];
        loop {
            let count = match self.epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
                Err(error) => return log::error!("event thread: {error}"),
            };
            for event in &ready[..count] {
                if event.data() == STOP_KEY {
                    return;
                }
                self.handle(event.data());
            }
        }
    }

    fn handle(&self, key: u64) {
        if key == WATCH_KEY {
            return self.tick();
        }
        if key & TIMER_KEY != 0 {
            return self.timer_expired((key & 0xffff_ffff) as usize);
        }
        let irqs = self.irqs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((fd, irq)) = irqs.get(key as usize) else { return };
        let _ = fd.read();
        self.cpus[0].raise(*irq);
    }

    /// Each signal of `fd` sets `irq` on vCPU 0.
    pub fn add_irq(&self, fd: EventFd, irq: u32) -> Result<()> {
        let mut irqs = self.irqs.lock().unwrap_or_else(PoisonError::into_inner);
        add(&self.epoll, &fd, irqs.len() as u64)?;
        irqs.push((fd, irq));
        Ok(())
    }

    /// Sees to it that the vCPU's timer is raised when it is due although the vCPU runs user code. A host timer that is set
    /// to an earlier time is left alone: it finds out when it fires, which saves a call for each time slice.
    pub fn arm(&self, cpu: usize) {
        let deadline = self.cpus[cpu].deadline();
        if deadline == u64::MAX {
            return;
        }
        let timer = &self.timers[cpu];
        let mut armed = timer.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if *armed > deadline {
            *armed = deadline;
            set(timer, deadline);
        }
    }

    fn timer_expired(&self, cpu: usize) {
        let (Some(timer), Some(state)) = (self.timers.get(cpu), self.cpus.get(cpu)) else { return };
        let mut count = [0; 8];
        let _ = rustix::io::read(&timer.fd, &mut count);
        *timer.armed.lock().unwrap_or_else(PoisonError::into_inner) = u64::MAX;
        state.expire(futex::now());
        self.arm(cpu);
    }

    /// Sees to it that a stub which runs long is not bound to its tracer's CPU. Called when one is bound.
    pub fn watch(&self) {
        let mut armed = self.watch.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if *armed == u64::MAX {
            *armed = futex::now() + WATCH_INTERVAL;
            set(&self.watch, *armed);
        }
    }

    fn tick(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.watch.fd, &mut count);
        let mut armed = self.watch.armed.lock().unwrap_or_else(PoisonError::into_inner);
        // Every vCPU has its tick, also behind one that was active.
        let active = self.cpus.iter().fold(false, |active, cpu| cpu.watched.tick(&self.allowed) | active);
        *armed = if active { futex::now() + WATCH_INTERVAL } else { u64::MAX };
        if active {
            set(&self.watch, *armed);
        }
    }

    pub fn stop(&self) {
        let _ = self.stop.write(1);
        let handle = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            let _ = handle.join();
        }
    }
}

fn timer(epoll: &Epoll, key: u64) -> Result<Timer> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let fd = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).context("timerfd_create")?;
    add(epoll, &fd, key)?;
    Ok(Timer { fd, armed: Mutex::new(u64::MAX) })
}

fn set(timer: &Timer, deadline: u64) {
    // Zero would disarm.
    let deadline = deadline.max(1);
    let it_value = Timespec { tv_sec: (deadline / 1_000_000_000) as i64, tv_nsec: (deadline % 1_000_000_000) as i64 };
    let value = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
    let _ = rustix::time::timerfd_settime(&timer.fd, TimerfdTimerFlags::ABSTIME, &value);
}

fn add(epoll: &Epoll, fd: &impl AsRawFd, key: u64) -> Result<()> {
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, key)).context("epoll_ctl")
}
