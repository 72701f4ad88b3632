//! Where device completions (eventfds) and timers become pending interrupts.
//!
//! While vCPU 0, which gets them, sleeps, it waits for completions itself: a hand-over by another thread would double the time
//! of each. While it runs user code a thread does that, and kicks it. The thread also serves the timers of vCPUs in user mode.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
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
    host::{epoll, futex, sched::CpuSet},
    interrupt::CpuState,
};

const TIMER_KEY: u64 = 1 << 32;
const STOP_KEY: u64 = 1 << 33;
const WATCH_KEY: u64 = 1 << 34;
const DEVICES_KEY: u64 = 1 << 35;
const WAKE_KEY: u64 = 1 << 36;
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
    /// The completions, and what wakes vCPU 0. Part of `epoll` while `handed_over`.
    devices: Epoll,
    handed_over: AtomicBool,
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
        let devices = Epoll::new().context("epoll_create")?;
        add(&devices, cpus[0].wake_fd(), WAKE_KEY)?;
        add(&epoll, &devices, DEVICES_KEY)?;
        let mut timers = Vec::new();
        for index in 0..cpus.len() {
            timers.push(timer(&epoll, TIMER_KEY | index as u64)?);
        }
        let watch = timer(&epoll, WATCH_KEY)?;
        Ok(Arc::new(Events {
            epoll,
            cpus,
            timers,
            devices,
            handed_over: AtomicBool::new(true),
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
        if key == DEVICES_KEY {
            self.take_completions(0, |bit| self.cpus[0].raise(bit));
        }
    }

    /// Waits for completions, `limit` ns at most, and says what each sets.
    fn take_completions(&self, limit: u64, mut set: impl FnMut(u32)) {
        let mut ready = [EpollEvent::default(); 8];
        // EINTR and the like: the caller looks again.
        let count = epoll::wait(&self.devices, limit, &mut ready).unwrap_or(0);
        for event in &ready[..count] {
            if event.data() == WAKE_KEY {
                let _ = self.cpus[0].wake_fd().read();
                continue;
            }
            let irqs = self.irqs.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((fd, irq)) = irqs.get(event.data() as usize) {
                let _ = fd.read();
                set(*irq);
            }
        }
    }

    /// vCPU 0 sleeps, as `CpuState::sleep` says.
    pub fn sleep(&self, deadline: u64) {
        self.take_over();
        let cpu = &self.cpus[0];
        cpu.sleep_among_devices(deadline, |until| {
            let limit = if until == u64::MAX { u64::MAX } else { until.saturating_sub(futex::now()) };
            self.take_completions(limit, |bit| cpu.note(bit));
        });
    }

    /// vCPU 0 looks whether something has completed, unless the thread does that.
    pub fn look(&self) {
        if !self.handed_over.load(Relaxed) {
            self.take_completions(0, |bit| self.cpus[0].note(bit));
        }
    }

    /// vCPU 0 is about to run user code: the thread waits for completions.
    pub fn hand_over(&self) {
        if !self.handed_over.load(Relaxed) {
            self.look();
            self.set_handed_over(true);
        }
    }

    fn take_over(&self) {
        if self.handed_over.load(Relaxed) {
            self.set_handed_over(false);
        }
    }

    /// Only vCPU 0's thread does this.
    fn set_handed_over(&self, on: bool) {
        let events = if on { EventSet::IN } else { EventSet::empty() };
        let event = EpollEvent::new(events, DEVICES_KEY);
        if let Err(error) = self.epoll.ctl(ControlOperation::Modify, self.devices.as_raw_fd(), event) {
            // It then stays as it is, which costs time only.
            return log::error!("device completions: {error}");
        }
        self.handed_over.store(on, Relaxed);
    }

    /// Each signal of `fd` sets `irq` on vCPU 0.
    pub fn add_irq(&self, fd: EventFd, irq: u32) -> Result<()> {
        let mut irqs = self.irqs.lock().unwrap_or_else(PoisonError::into_inner);
        // Two threads may look at the same completion.
        epoll::set_nonblocking(&fd).context("completion event")?;
        add(&self.devices, &fd, irqs.len() as u64)?;
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
