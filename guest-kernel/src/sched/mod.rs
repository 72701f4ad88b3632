//! The scheduler: run queues per CPU, parking and waking, preemption, idle CPUs.
//!
//! Round robin per CPU with stealing by idle CPUs. A woken task goes to the CPU it last ran on when that is idle, else to the
//! waker's queue: a pipeline then stays on one CPU, and if the waker keeps running, an idle CPU is called for the queue
//! after [`OFFLOAD`]. Under ptrace a move to another CPU costs more than a short wait.

mod cpu;
mod entity;
mod freeze;
pub mod timer;

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

pub use cpu::{
    CpuState, cpus_online, describe, kernel_cpus, leave_user, others_in_kernel, set_cpu_count, user_cpus, view,
};
pub use entity::Entity;
pub use freeze::{freeze, frozen, thaw, wait_thawed};

use self::cpu::{CPUS, Cpu};
use crate::{
    arch,
    counters::{Counter, count},
    sync::{Wake, spin_lock_may_block},
    task::{Task, times::Mode},
    time,
};

/// Longest time in user mode while others wait on the same CPU, ns.
const SLICE: u64 = 5_000_000;
/// How long a queued task waits for its CPU before an idle one is called, ns.
const OFFLOAD: u64 = 150_000;

fn this_cpu() -> &'static Cpu {
    &CPUS[arch::cpu_index()]
}

/// The running task.
pub fn current() -> Option<Arc<Task>> {
    this_cpu().current.lock().clone()
}

/// The running task, as what a wait queue wakes.
pub fn current_wake() -> Arc<dyn Wake> {
    match current() {
        Some(task) => task,
        None => nobody(),
    }
}

/// Whether a signal wants the running task out of its wait.
pub fn interrupted() -> bool {
    current().is_some_and(|task| task.sched.interrupted())
}

/// Makes a new task runnable, on this CPU's queue.
pub fn start(task: Arc<Task>) {
    task.sched.last_cpu.store(arch::cpu_index() as u32, Relaxed);
    this_cpu().queue.lock().push_back(task);
}

/// Blocks the running task until [`unpark`], or until CLOCK_MONOTONIC reaches `deadline` (ns). May return early. False when
/// the deadline has passed.
pub fn park_until(deadline: u64) -> bool {
    spin_lock_may_block();
    let Some(task) = current() else { return wait_in_place(deadline) };
    if deadline == u64::MAX {
        park(&task);
        return true;
    }
    if time::monotonic() >= deadline {
        return false;
    }
    let timer = timer::add(deadline, task.clone());
    park(&task);
    timer::cancel(&timer);
    time::monotonic() < deadline
}

fn park(task: &Arc<Task>) {
    if task.sched.begin_park() {
        task.meter.voluntary.fetch_add(1, Relaxed);
        schedule();
    }
}

/// Wakes a parked task, or makes its next park return at once.
pub fn unpark(task: &Arc<Task>) {
    if task.sched.end_park() {
        enqueue(task.clone());
    }
}

/// Every CPU that runs user code (of the address space `root`, if `only`) has been through the kernel on return, which is a
/// full memory barrier for what it runs.
pub fn synchronize_user(root: u64, only: bool) {
    core::sync::atomic::fence(SeqCst);
    let me = arch::cpu_index();
    let running: smallvec::SmallVec<[usize; 8]> = (0..cpus_online())
        .filter(|&i| i != me && CPUS[i].state() == CpuState::User && (!only || view(i).is_in(root)))
        .collect();
    for &cpu in &running {
        CPUS[cpu].synchronized.store(false, SeqCst);
        arch::send_interrupt(cpu, sentry_abi::irq::IPI);
    }
    for &cpu in &running {
        while CPUS[cpu].state() == CpuState::User && !CPUS[cpu].synchronized.load(SeqCst) {
            core::hint::spin_loop();
        }
    }
}

/// Gets a task's attention: it leaves an interruptible wait or user mode and looks for what there is to do.
pub fn interrupt(task: &Arc<Task>) {
    task.sched.set_interrupted(true);
    unpark(task);
    let cpu = task.sched.last_cpu();
    if cpu != arch::cpu_index() && CPUS[cpu].state() == CpuState::User {
        arch::send_interrupt(cpu, sentry_abi::irq::IPI);
    }
}

/// Takes a running task out of user mode, so that its CPU thinks again about what to run.
pub fn preempt(task: &Arc<Task>) {
    let cpu = task.sched.last_cpu();
    if CPUS[cpu].state() == CpuState::User {
        arch::send_interrupt(cpu, sentry_abi::irq::IPI);
    }
}

fn enqueue(task: Arc<Task>) {
    let me = arch::cpu_index();
    let last = task.sched.last_cpu();
    // A task that is still leaving its CPU must be queued there: only that CPU knows when its stack is free.
    let target = if last != me && task.sched.stack.is_running() {
        last
    } else if !task.may_run_on(last) || !task.may_run_on(me) {
        cpu::allowed(&task)
    } else if CPUS[last].is_idle() {
        last
    } else {
        me
    };
    CPUS[target].queue.lock().push_back(task);
    if target != me {
        cpu::call(target);
    }
}

/// Moves the running task off a CPU that its affinity does not allow any more.
pub fn obey_affinity() {
    if let Some(task) = current()
        && !task.may_run_on(arch::cpu_index())
    {
        task.sched.set_moving(true);
        schedule();
    }
}

/// Whether nobody else waits for this CPU: then a task may look at a device for a moment instead of sleeping.
pub fn alone() -> bool {
    this_cpu().queue.lock().is_empty()
}

/// Gives the CPU to the next task in the queue, if there is one.
pub fn yield_now() {
    let Some(task) = current() else { return };
    let cpu = this_cpu();
    if cpu.queue.lock().is_empty() {
        return;
    }
    cpu.queue.lock().push_back(task);
    schedule();
}

/// Ends the running task: it is never scheduled again and its last reference goes away on another stack.
pub fn exit() -> ! {
    if let Some(task) = current() {
        task.sched.context.store(core::ptr::null_mut(), SeqCst);
    }
    loop {
        schedule();
    }
}

/// Takes the next task and switches to it. The running task must be parked, queued or dead.
fn schedule() {
    spin_lock_may_block();
    let cpu = this_cpu();
    let previous = cpu.current.lock().clone();
    let next = cpu.next(previous.as_ref());
    if previous.is_none() && next.is_none() {
        // An idle CPU saw work that another one has taken since.
        return;
    }
    if let (Some(a), Some(b)) = (&previous, &next)
        && Arc::ptr_eq(a, b)
    {
        return;
    }
    if let Some(previous) = &previous {
        previous.meter.switch(Mode::Off);
        arch::switch_out(previous.sched.context.load(Relaxed));
        crate::mm::quiesce();
    }
    count(Counter::ContextSwitches);
    if let Some(next) = &next {
        next.meter.switch(Mode::System);
        next.sched.last_cpu.store(cpu.index() as u32, Relaxed);
    }
    *cpu.current.lock() = next.clone();
    let from: *const arch::switch::SavedStack = match &previous {
        Some(task) => &*task.sched.stack,
        None => &cpu.idle,
    };
    let to: *const arch::switch::SavedStack = match &next {
        Some(task) => &*task.sched.stack,
        None => &cpu.idle,
    };
    // The new task is kept alive by `current`, the old one by its parker, a queue, or the CPU's `leaving` slot.
    *cpu.leaving.lock() = previous;
    drop(next);
    arch::switch::switch_between(from, to);
    finish_switch();
}

/// First thing on a stack that was switched to: lets go of the task that was left.
pub fn finish_switch() {
    let left = this_cpu().leaving.lock().take();
    if let Some(task) = left
        && task.sched.moving()
    {
        task.sched.set_moving(false);
        enqueue(task);
    }
}

/// What a CPU does when it has no task: takes interrupts, steals, sleeps. Never returns.
pub fn idle_loop() -> ! {
    let cpu = this_cpu();
    loop {
        take_interrupts();
        if cpu.has_work() {
            cpu.set_state(CpuState::Kernel);
            schedule();
            continue;
        }
        crate::mm::quiesce();
        crate::mm::frames::release_surplus();
        cpu.set_state(CpuState::Idle);
        // Whoever queues work after this sees the CPU idle and interrupts it.
        if !cpu.has_work() {
            count(Counter::IdleWaits);
            arch::wait_for_interrupt(timer::next_deadline(cpu.index()));
        }
        cpu.set_state(CpuState::Kernel);
    }
}

/// Handles this CPU's pending interrupts: expired timers, device completions, requests of other CPUs.
pub fn take_interrupts() {
    let pending = arch::take_pending();
    if pending & 1 << sentry_abi::irq::TIMER != 0 {
        this_cpu().armed.store(u64::MAX, Relaxed);
    }
    timer::expire(arch::cpu_index());
    let devices = pending >> sentry_abi::irq::DEVICE0;
    if devices != 0 {
        crate::boot::device_interrupts(devices);
    }
}

/// An interrupt ended user mode: handles it, and gives way to others when the slice is used up.
pub fn user_interrupted() {
    take_interrupts();
    obey_affinity();
    let cpu = this_cpu();
    if cpu.queue.lock().is_empty() {
        cpu.slice_end.store(u64::MAX, Relaxed);
        return;
    }
    cpu::call_idle_cpu();
    if time::monotonic() >= cpu.slice_end.load(Relaxed) {
        cpu.slice_end.store(u64::MAX, Relaxed);
        if let Some(task) = current() {
            task.meter.involuntary.fetch_add(1, Relaxed);
        }
        yield_now();
    }
}

/// Arms the timer for what can come due while user code runs: timers, and the slice when others wait.
pub fn before_user() {
    crate::mm::quiesce();
    let cpu = this_cpu();
    let mut deadline = timer::next_deadline(cpu.index());
    if !cpu.queue.lock().is_empty() {
        let now = time::monotonic();
        let mut end = cpu.slice_end.load(Relaxed);
        if end == u64::MAX {
            end = now + SLICE;
            cpu.slice_end.store(end, Relaxed);
        }
        deadline = deadline.min(if cpu::idle_cpu_exists() { (now + OFFLOAD).min(end) } else { end });
    }
    if deadline < cpu.armed.load(Relaxed) {
        cpu.armed.store(deadline, Relaxed);
        arch::set_timer(deadline);
    }
}

/// Marks this CPU as running user code of the address space `root`, for shootdowns.
pub fn enter_user(root: u64) {
    this_cpu().enter_user(root);
}

/// Boxed so that assembly-visible addresses stay put.
pub(crate) fn new_stack(entry: arch::switch::Entry, argument: u64) -> Option<Box<arch::switch::SavedStack>> {
    arch::switch::SavedStack::new(entry, argument).map(Box::new)
}

/// A wait of a CPU that has no task, while it boots: takes interrupts in place.
fn wait_in_place(deadline: u64) -> bool {
    #[cfg(test)]
    std::thread::yield_now();
    arch::wait_for_interrupt(deadline.min(timer::next_deadline(arch::cpu_index())));
    take_interrupts();
    deadline == u64::MAX || time::monotonic() < deadline
}

fn nobody() -> Arc<dyn Wake> {
    struct Nobody;
    impl Wake for Nobody {
        fn wake(self: Arc<Self>, _events: u32) {}
    }
    Arc::new(Nobody)
}
