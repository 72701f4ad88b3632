//! A timer with an interval, on any clock: what itimers, POSIX timers and timerfds have in common.
//!
//! CPU-time clocks advance only while tasks run, which nothing watches tick by tick: their timers look at the clock when it
//! could be due at the earliest, and again later if it is not.

use alloc::sync::{Arc, Weak};

use super::{Clock, monotonic};
use crate::{
    sched::{
        cpus_online,
        timer::{self, Expire},
    },
    sync::SpinLock,
};

/// What happens when it is due.
pub trait Fire: Send + Sync {
    /// `count` intervals have passed. Must not block.
    fn fire(&self, count: u64);
}

/// Closest and farthest next look at a CPU-time clock, ns.
const LOOK_MIN: u64 = 500_000;
const LOOK_MAX: u64 = 20_000_000;

/// Shortest time from one expiry to the next, ns: intervals below it are counted, not waited for one by one, so that the
/// task itself gets to run.
const SHORTEST: u64 = 20_000;

#[derive(Default)]
struct State {
    /// When it is due, on the clock; `None` while disarmed.
    due: Option<u64>,
    interval: u64,
    timer: Option<timer::Timer>,
    /// For CPU time: the reading at the last look, and how far ahead the next one is.
    seen: u64,
    step: u64,
}

pub struct Interval {
    clock: WeakClock,
    state: SpinLock<State>,
    weak: Weak<Interval>,
    what: Arc<dyn Fire>,
}

/// Timers do not keep the process alive whose CPU time they watch.
enum WeakClock {
    Wall(Clock),
    Process(Weak<crate::task::Process>, super::CpuKind),
    Thread(Weak<crate::task::Task>, super::CpuKind),
}

impl WeakClock {
    fn get(&self) -> Option<Clock> {
        Some(match self {
            WeakClock::Wall(clock) => clock.clone(),
            WeakClock::Process(process, kind) => Clock::ProcessCpu(process.upgrade()?, *kind),
            WeakClock::Thread(task, kind) => Clock::ThreadCpu(task.upgrade()?, *kind),
        })
    }
}

impl Interval {
    pub fn new(clock: &Clock, what: Arc<dyn Fire>) -> Arc<Self> {
        let clock = match clock {
            Clock::ProcessCpu(process, kind) => WeakClock::Process(Arc::downgrade(process), *kind),
            Clock::ThreadCpu(task, kind) => WeakClock::Thread(Arc::downgrade(task), *kind),
            wall => WeakClock::Wall(wall.clone()),
        };
        Arc::new_cyclic(|weak| Interval { clock, state: SpinLock::new(State::default()), weak: weak.clone(), what })
    }

    /// Arms for `value` ns from now (or at `value` on the clock); 0 disarms. Gives the old time left and interval.
    pub fn set(&self, value: u64, interval: u64, absolute: bool) -> (u64, u64) {
        let Some(clock) = self.clock.get() else { return (0, 0) };
        let now = clock.now();
        let mut state = self.state.lock();
        let old = left(&state, now);
        if let Some(timer) = state.timer.take() {
            timer::cancel(&timer);
        }
        *state = State { interval, ..State::default() };
        if value != 0 {
            state.due = Some(if absolute { value } else { now.saturating_add(value) });
            self.arm(&mut state, &clock, now, 0);
        }
        old
    }

    /// Time left and interval; 0 left: disarmed.
    pub fn get(&self) -> (u64, u64) {
        let Some(clock) = self.clock.get() else { return (0, 0) };
        let now = clock.now();
        left(&self.state.lock(), now)
    }

    pub fn disarm(&self) {
        self.set(0, 0, false);
    }

    fn arm(&self, state: &mut State, clock: &Clock, now: u64, soonest: u64) {
        let (Some(due), Some(own)) = (state.due, self.weak.upgrade()) else { return };
        let left = due.saturating_sub(now);
        let ahead = if clock.is_cpu_time() {
            // Every CPU may be running a thread of the process; while nothing runs, look less often.
            let earliest = left / cpus_online() as u64;
            state.step = if now == state.seen { (state.step * 2).clamp(LOOK_MIN, LOOK_MAX) } else { LOOK_MIN };
            state.seen = now;
            earliest.max(state.step)
        } else {
            left
        };
        state.timer = Some(timer::add(monotonic().saturating_add(ahead.max(soonest)), own));
    }
}

fn left(state: &State, now: u64) -> (u64, u64) {
    // An armed timer has at least a nanosecond left.
    (state.due.map_or(0, |due| due.saturating_sub(now).max(1)), state.interval)
}

impl Expire for Interval {
    fn expire(self: Arc<Self>) {
        let Some(clock) = self.clock.get() else { return };
        let now = clock.now();
        let count = {
            let mut state = self.state.lock();
            let Some(due) = state.due else { return };
            if now < due {
                // Set again in between, or CPU time that has not passed yet.
                if let Some(timer) = state.timer.take() {
                    timer::cancel(&timer);
                }
                self.arm(&mut state, &clock, now, 0);
                return;
            }
            // No interval: once.
            let Some(missed) = (now - due).checked_div(state.interval) else {
                *state = State::default();
                drop(state);
                return self.what.fire(1);
            };
            let count = 1 + missed;
            state.due = Some(due.saturating_add(count.saturating_mul(state.interval)));
            self.arm(&mut state, &clock, now, SHORTEST);
            count
        };
        self.what.fire(count);
    }
}
