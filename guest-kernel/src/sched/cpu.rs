//! Per-CPU scheduler state, and what CPUs know of each other.

use alloc::{collections::VecDeque, string::String, sync::Arc};
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use sentry_abi::boot::MAX_CPUS;

use crate::{
    arch::{self, switch::SavedStack},
    mm::shootdown::CpuView,
    sync::SpinLock,
    task::Task,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CpuState {
    /// Not started yet.
    Offline = 0,
    /// Asked to start, has not reported yet.
    Starting = 1,
    Idle = 2,
    Kernel = 3,
    User = 4,
}

pub struct Cpu {
    pub queue: SpinLock<VecDeque<Arc<Task>>>,
    pub current: SpinLock<Option<Arc<Task>>>,
    /// The task just switched away from, until its stack is left.
    pub leaving: SpinLock<Option<Arc<Task>>>,
    pub idle: SavedStack,
    state: AtomicU8,
    view: CpuView,
    /// Has left user mode since a [`super::synchronize_user`] asked.
    pub synchronized: AtomicBool,
    /// Deadline the timer is armed for.
    pub armed: AtomicU64,
    /// When the running task must give way; `u64::MAX` while nobody waits.
    pub slice_end: AtomicU64,
}

pub static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu {
        queue: SpinLock::new(VecDeque::new()),
        current: SpinLock::new(None),
        leaving: SpinLock::new(None),
        idle: SavedStack::boot(),
        state: AtomicU8::new(CpuState::Offline as u8),
        view: CpuView::new(),
        synchronized: AtomicBool::new(true),
        armed: AtomicU64::new(u64::MAX),
        slice_end: AtomicU64::new(u64::MAX),
    }
}; MAX_CPUS];

static COUNT: AtomicU32 = AtomicU32::new(1);

/// How many CPUs the sandbox has (started or not).
pub fn set_cpu_count(count: usize) {
    COUNT.store(count.clamp(1, MAX_CPUS) as u32, Relaxed);
}

/// CPUs that applications see.
pub fn cpus_online() -> usize {
    COUNT.load(Relaxed) as usize
}

fn all() -> &'static [Cpu] {
    &CPUS[..cpus_online()]
}

impl Cpu {
    pub fn index(&self) -> usize {
        // The blocks are one array.
        (self as *const Cpu as usize - CPUS.as_ptr() as usize) / size_of::<Cpu>()
    }

    pub fn state(&self) -> CpuState {
        match self.state.load(SeqCst) {
            0 => CpuState::Offline,
            1 => CpuState::Starting,
            2 => CpuState::Idle,
            3 => CpuState::Kernel,
            _ => CpuState::User,
        }
    }

    pub fn set_state(&self, state: CpuState) {
        self.state.store(state as u8, SeqCst);
    }

    pub fn enter_user(&self, root: u64) {
        self.set_state(CpuState::User);
        self.view.enter(root);
    }

    pub fn is_idle(&self) -> bool {
        self.state() == CpuState::Idle
    }

    pub fn has_work(&self) -> bool {
        !self.queue.lock().is_empty() || all().iter().any(|c| c.queue.lock().iter().any(|t| self.may_steal(t)))
    }

    /// One that is still leaving its CPU can only be taken by that CPU.
    fn may_steal(&self, task: &Task) -> bool {
        !task.sched.stack.is_running() && task.may_run_on(self.index())
    }

    /// The next task: of the own queue, else of another CPU's. `previous` is the one that runs here.
    pub fn next(&self, previous: Option<&Arc<Task>>) -> Option<Arc<Task>> {
        loop {
            let Some(task) = self.queue.lock().pop_front() else { break };
            if task.may_run_on(self.index()) {
                return Some(task);
            }
            if previous.is_some_and(|p| Arc::ptr_eq(p, &task)) {
                // Its stack is in use: it goes when it is left.
                task.sched.set_moving(true);
                continue;
            }
            let target = allowed(&task);
            CPUS[target].queue.lock().push_back(task);
            call(target);
        }
        for other in all() {
            if core::ptr::eq(other, self) {
                continue;
            }
            let mut queue = other.queue.lock();
            if let Some(at) = queue.iter().position(|t| self.may_steal(t)) {
                return queue.remove(at);
            }
        }
        None
    }
}

/// User mode has ended on this CPU.
pub fn leave_user() {
    let cpu = &CPUS[arch::cpu_index()];
    cpu.set_state(CpuState::Kernel);
    cpu.synchronized.store(true, Relaxed);
    cpu.view.leave();
}

/// CPUs other than this one that run user code of `root`.
pub fn user_cpus(root: u64) -> impl Iterator<Item = usize> {
    let me = arch::cpu_index();
    (0..cpus_online()).filter(move |&i| i != me && CPUS[i].view.is_in(root))
}

/// What `cpu` publishes of itself for shootdowns.
pub fn view(cpu: usize) -> &'static CpuView {
    &CPUS[cpu].view
}

/// CPUs that may hold translated user addresses: in the kernel, this one included.
pub fn kernel_cpus() -> impl Iterator<Item = usize> {
    all().iter().enumerate().filter(|(_, c)| c.state() == CpuState::Kernel).map(|(i, _)| i)
}

pub fn others_in_kernel() -> bool {
    let me = arch::cpu_index();
    kernel_cpus().any(|i| i != me)
}

pub fn idle_cpu_exists() -> bool {
    all().iter().any(|c| matches!(c.state(), CpuState::Idle | CpuState::Offline))
}

/// The CPU for a task that may not run where it did: an idle one if there is.
pub fn allowed(task: &Task) -> usize {
    let may = || (0..cpus_online()).filter(|&i| task.may_run_on(i));
    may().find(|&i| CPUS[i].is_idle()).or_else(|| may().next()).unwrap_or(0)
}

/// Makes a CPU look at its queue, starting it if it never ran.
pub fn call(index: usize) {
    let cpu = &CPUS[index];
    if cpu.state.compare_exchange(CpuState::Offline as u8, CpuState::Starting as u8, SeqCst, SeqCst).is_err() {
        return arch::send_interrupt(index, sentry_abi::irq::IPI);
    }
    if let Err(error) = arch::host::start_cpu(index) {
        crate::warn!("vCPU {index} cannot start: {error:?}");
    }
}

/// Wakes one idle CPU so that it steals.
pub fn call_idle_cpu() {
    let idle = |c: &&Cpu| matches!(c.state(), CpuState::Idle | CpuState::Offline);
    if let Some(cpu) = all().iter().find(idle) {
        call(cpu.index());
    }
}

/// A line per CPU for panics and stack dumps.
pub fn describe() -> String {
    use core::fmt::Write;
    let mut text = String::new();
    for cpu in all() {
        let current = cpu.current.try_lock().and_then(|c| c.as_ref().map(|t| t.tid()));
        let queued = cpu.queue.try_lock().map_or(0, |q| q.len());
        let _ = writeln!(text, "cpu {}: {:?}, task {current:?}, {queued} queued", cpu.index(), cpu.state());
    }
    text
}
