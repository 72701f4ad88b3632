//! The running task's own side: what only it touches, so no locks are needed.

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sentry_abi::context::{Registers, TrapKind, UserContext, state};

use super::{Task, times::Mode};
use crate::{
    arch::{self, xstate::XsaveArea},
    counters::{Counter, count},
    errno::{ENOMEM, Restart, Result},
    mm::AddressSpace,
    sched,
    signal::{SigSet, altstack::AltStack, frame::LastTrap},
    syscall,
};

/// Names user contexts to the CPU: thread ids come again, these do not.
static NEXT_CONTEXT: AtomicU64 = AtomicU64::new(1);

/// A task as it sees itself; handlers get it as `cur`. Lives on the task's kernel stack.
pub struct Current {
    pub task: Arc<Task>,
    /// The address space in use; the same as `task.mm` until exec or exit changes both.
    pub mm: Arc<AddressSpace>,
    context: UserContext,
    xsave: XsaveArea,
    /// The last system call asked to be restarted; signal delivery decides.
    pub restart: Option<Restart>,
    /// What restart_syscall(2) goes on with after a [`Restart::Block`].
    pub restart_with: Option<Box<RestartWith>>,
    /// The thread has called _exit: its wait status.
    pub exit_status: Option<u32>,
    pub altstack: AltStack,
    /// The signal mask to come back after a call that waited with another one.
    pub saved_mask: Option<SigSet>,
    pub last_trap: LastTrap,
    /// What a task does before it first runs user code.
    pub first: Option<Box<First>>,
}

pub type First = dyn FnOnce(&mut Current) + Send;

/// The rest of an interrupted call.
pub type RestartWith = dyn FnOnce(&mut Current) -> Result<u64> + Send;

impl Current {
    pub fn new(task: Arc<Task>, mm: Arc<AddressSpace>, registers: Registers, xsave: XsaveArea) -> Box<Self> {
        let mut context = UserContext::new();
        context.regs = registers;
        context.task = NEXT_CONTEXT.fetch_add(1, Relaxed);
        context.xsave = xsave.address();
        Box::new(Current {
            task,
            mm,
            context,
            xsave,
            restart: None,
            restart_with: None,
            exit_status: None,
            altstack: AltStack::default(),
            saved_mask: None,
            last_trap: LastTrap::default(),
            first: None,
        })
    }

    /// System call arguments, in order; good after a system call trap without loading all registers.
    #[inline]
    pub fn arguments(&self) -> [u64; 6] {
        let r = &self.context.regs;
        [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]
    }

    /// The number of the system call the task stopped for.
    #[inline]
    pub fn syscall_number(&self) -> u64 {
        self.context.regs.orig_rax
    }

    /// All registers, for reading.
    pub fn registers(&mut self) -> &Registers {
        arch::load_registers(&mut self.context);
        &self.context.regs
    }

    /// All registers, for changing.
    pub fn registers_mut(&mut self) -> &mut Registers {
        arch::load_registers(&mut self.context);
        self.context.state |= state::DIRTY;
        &mut self.context.regs
    }

    /// Instruction and stack pointer at the trap.
    pub fn ip_sp(&self) -> (u64, u64) {
        (self.context.regs.rip, self.context.regs.rsp)
    }

    #[inline]
    pub fn set_return(&mut self, value: u64) {
        self.context.regs.rax = value;
    }

    /// The extended state, up to date.
    pub fn xstate(&mut self) -> &XsaveArea {
        arch::save_xstate(&mut self.context);
        &self.xsave
    }

    /// The extended state, to be changed: loaded before user code runs again.
    pub fn xstate_mut(&mut self) -> &mut XsaveArea {
        arch::save_xstate(&mut self.context);
        self.context.xsave_dirty = 1;
        &mut self.xsave
    }

    /// Vector, error code and address of the exception the task stopped for.
    pub fn exception(&self) -> (u32, u32, u64) {
        (self.context.vector, self.context.error_code, self.context.address)
    }

    /// Runs the task's life on the calling kernel stack.
    pub fn run(&mut self) {
        let task = self.task.clone();
        task.sched.set_context(&mut self.context);
        while !super::before_user(self) {
            if sched::frozen() {
                sched::wait_thawed(&task);
                continue;
            }
            let mm = self.mm.clone();
            sched::before_user();
            sched::enter_user(mm.root());
            // After the CPU is marked: whoever sets the flag from here on sees the mark and sends an interrupt.
            if task.sched.interrupted() && super::must_handle(self) || sched::frozen() {
                sched::leave_user();
                continue;
            }
            mm.synchronize();
            task.meter.switch(Mode::User);
            let trap = arch::enter_user(&mut self.context, mm.root());
            task.meter.switch(Mode::System);
            sched::leave_user();
            self.trap(trap);
        }
        task.sched.clear_context();
    }

    fn trap(&mut self, trap: TrapKind) {
        match trap {
            TrapKind::Syscall => {
                count(Counter::Syscalls);
                syscall::dispatch(self);
            }
            TrapKind::Exception => {
                count(Counter::Exceptions);
                crate::signal::fault::exception(self);
            }
            TrapKind::Interrupt => {
                count(Counter::Interrupts);
                sched::user_interrupted();
            }
            TrapKind::ForeignSyscall => self.set_return(crate::errno::ENOSYS.to_return()),
            TrapKind::Dead => super::die(self),
        }
    }
}

/// First code of every task's kernel stack.
pub extern "sysv64" fn entry(_argument: u64) -> ! {
    sched::finish_switch();
    if let Some(task) = sched::current() {
        let start = task.start.lock().take();
        drop(task);
        if let Some(mut current) = start {
            if let Some(first) = current.first.take() {
                first(&mut current);
            }
            current.run();
            super::exit::finish(current);
        }
    }
    sched::exit()
}

/// What a new task is made of.
pub struct NewTask {
    pub tid: super::Pid,
    pub process: Arc<super::Process>,
    pub mm: Arc<AddressSpace>,
    pub resources: super::Resources,
    pub registers: Registers,
    pub xsave: XsaveArea,
    pub altstack: AltStack,
}

/// A task that starts with these registers; it runs once [`sched::start`] gets it.
pub fn prepare(new: NewTask) -> Result<Arc<Task>> {
    let (task, current) = make(new)?;
    task.set_start(current);
    Ok(task)
}

/// A task and what it starts with ([`Task::set_start`]).
pub fn make(new: NewTask) -> Result<(Arc<Task>, Box<Current>)> {
    let stack = sched::new_stack(entry, 0).ok_or(ENOMEM)?;
    let task = Arc::new(Task::new(new.tid, new.process, sched::Entity::new(stack), new.mm.clone(), new.resources));
    let mut current = Current::new(task.clone(), new.mm, new.registers, new.xsave);
    current.altstack = new.altstack;
    Ok((task, current))
}
