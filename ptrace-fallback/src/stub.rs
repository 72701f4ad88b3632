//! One thread of a stub process: where its registers are, and system calls made by it for us.
//!
//! A stub thread holds one task's state at a time. Its general registers are in the stub, in `saved`, or in both; a remote
//! call overwrites those in the stub, so they are saved before and put back when the task next runs.

use std::io;

use sentry_abi::context::{Registers, USER_CS, USER_SS};

use crate::host::{
    ptrace::{self, Resume, Stop},
    shared::{self, Call, CommandPage, MAX_CALLS, TRAMPOLINE},
};

pub const OPTIONS: u64 = ptrace::O_SYSGOOD | ptrace::O_EXITKILL | ptrace::O_TRACEFORK | ptrace::O_TRACECLONE;

const EVENT_FORK: i32 = 1;
const EVENT_CLONE: i32 = 3;
pub const EVENT_STOP: i32 = 128;

/// Why a stub could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// Killed from outside, or by the host's memory limit.
    #[error("stub is gone")]
    Gone,
    #[error("call {index} of the list failed: {error}")]
    Call { index: usize, error: io::Error },
    #[error("stub stopped unexpectedly in a remote call: {0}")]
    Unexpected(String),
    #[error("ptrace: {0}")]
    Ptrace(#[source] io::Error),
}

impl From<io::Error> for StubError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ESRCH) => StubError::Gone,
            _ => StubError::Ptrace(error),
        }
    }
}

type Result<T> = std::result::Result<T, StubError>;

pub struct StubThread {
    pub pid: i32,
    pub tid: i32,
    /// The task whose state the stub holds; 0: none.
    pub task: u64,
    /// The task's registers, if `saved_valid`.
    saved: Registers,
    saved_valid: bool,
    /// The stub's registers are the task's.
    loaded: bool,
    /// rax in the stub, where known.
    rax: Option<u64>,
    /// The host CPU the thread is bound to.
    pub cpu: Option<usize>,
    /// Call to make before others: a new stub's own set-up.
    setup: Option<Call>,
}

impl StubThread {
    /// A thread that is stopped and traced by this thread.
    pub fn stopped(pid: i32, tid: i32) -> StubThread {
        StubThread {
            pid,
            tid,
            task: 0,
            saved: Registers::default(),
            saved_valid: true,
            loaded: false,
            rax: None,
            cpu: None,
            setup: None,
        }
    }

    /// Starts to trace a thread that waits in the trampoline.
    pub fn seize(pid: i32, tid: i32) -> Result<StubThread> {
        ptrace::seize(tid, OPTIONS)?;
        ptrace::interrupt(tid)?;
        loop {
            match ptrace::wait(tid)? {
                Stop::Event(EVENT_STOP) => return Ok(StubThread::stopped(pid, tid)),
                Stop::Exited => return Err(StubError::Gone),
                _ => ptrace::resume(tid, Resume::Continue)?,
            }
        }
    }

    /// Whether the stopped thread has not been killed from outside.
    pub fn is_there(&self) -> bool {
        ptrace::get_registers(self.tid).is_ok()
    }

    /// The task's registers.
    pub fn registers(&mut self) -> Result<&Registers> {
        if !self.saved_valid {
            self.saved = ptrace::get_registers(self.tid)?;
            self.saved_valid = true;
        }
        Ok(&self.saved)
    }

    /// Puts a task's registers into the stub. The selectors are fixed: this kernel has 64-bit user code only. An error of
    /// the host (EIO) means that it refuses the values.
    pub fn load(&mut self, registers: &Registers) -> io::Result<()> {
        let mut registers = *registers;
        registers.orig_rax = u64::MAX;
        registers.cs = USER_CS;
        registers.ss = USER_SS;
        (registers.ds, registers.es, registers.fs, registers.gs) = (0, 0, 0, 0);
        ptrace::set_registers(self.tid, &registers)?;
        self.saved = registers;
        self.saved_valid = true;
        self.loaded = true;
        self.rax = Some(registers.rax);
        Ok(())
    }

    /// Makes the stub ready to go on with its task, with `rax` as given.
    pub fn reload(&mut self, rax: u64) -> io::Result<()> {
        if !self.loaded {
            self.saved.rax = rax;
            let registers = self.saved;
            return self.load(&registers);
        }
        if self.rax != Some(rax) {
            ptrace::set_rax(self.tid, rax)?;
            self.rax = Some(rax);
        }
        Ok(())
    }

    /// Runs the loaded task until it stops. At a system call stop rax is -ENOSYS.
    pub fn run(&mut self) -> Result<Stop> {
        ptrace::resume(self.tid, Resume::Emulate)?;
        self.saved_valid = false;
        self.loaded = true;
        let stop = ptrace::wait(self.tid)?;
        self.rax = match stop {
            Stop::Syscall => Some(-i64::from(libc::ENOSYS) as u64),
            _ => None,
        };
        Ok(stop)
    }

    /// Makes the calls in order, up to the first that fails.
    pub fn remote(&mut self, page: &mut CommandPage, calls: &[Call]) -> Result<()> {
        self.remote_at(TRAMPOLINE, page.list_address(), page, calls)
    }

    /// As [`Self::remote`], with the trampoline and the list at other addresses: before the stub has its final layout.
    pub fn remote_at(&mut self, trampoline: u64, list: u64, page: &mut CommandPage, calls: &[Call]) -> Result<()> {
        if let Some(setup) = self.setup.take() {
            self.calls(trampoline, list, page, &[setup])?;
        }
        for (chunk_index, chunk) in calls.chunks(MAX_CALLS).enumerate() {
            self.calls(trampoline, list, page, chunk).map_err(|error| match error {
                StubError::Call { index, error } => StubError::Call { index: chunk_index * MAX_CALLS + index, error },
                other => other,
            })?;
        }
        Ok(())
    }

    fn calls(&mut self, trampoline: u64, list: u64, page: &mut CommandPage, calls: &[Call]) -> Result<()> {
        page.write_calls(calls);
        let start = Registers { rip: trampoline, rbx: list, rbp: calls.len() as u64, ..remote_registers() };
        self.start_remote(&start)?;
        let end = self.finish_remote()?;
        if end.rbp == 0 {
            return Ok(());
        }
        let index = calls.len() - (end.rbp as usize).min(calls.len());
        Err(StubError::Call { index, error: io::Error::from_raw_os_error((end.rax as i64).wrapping_neg() as i32) })
    }

    /// Clones this thread's process (its descriptors stay shared). The new one is traced by this thread and stopped.
    pub fn fork(&mut self) -> Result<StubThread> {
        let pid = self.clone_stub((libc::CLONE_FILES | libc::SIGCHLD) as u64)?;
        let mut stub = StubThread::stopped(pid, pid);
        stub.cpu = self.cpu;
        stub.setup = Some(Call::new(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64]));
        Ok(stub)
    }

    /// A new process that waits in the trampoline, traced by nobody.
    pub fn fork_waiting(&mut self) -> Result<i32> {
        let pid = self.clone_stub((libc::CLONE_FILES | libc::SIGCHLD) as u64)?;
        ptrace::detach(pid)?;
        Ok(pid)
    }

    /// A new thread of this stub's process that waits in the trampoline, traced by nobody.
    pub fn thread_waiting(&mut self) -> Result<i32> {
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        let tid = self.clone_stub(flags as u64)?;
        ptrace::detach(tid)?;
        Ok(tid)
    }

    fn clone_stub(&mut self, flags: u64) -> Result<i32> {
        let start = Registers {
            rip: TRAMPOLINE + shared::fork_offset(),
            rax: libc::SYS_clone as u64,
            rdi: flags,
            ..remote_registers()
        };
        self.start_remote(&start)?;
        let mut new = None;
        let result = loop {
            match ptrace::wait(self.tid)? {
                Stop::Event(EVENT_FORK | EVENT_CLONE) => {
                    new = Some(ptrace::event_message(self.tid)? as i32);
                    ptrace::resume(self.tid, Resume::Continue)?;
                }
                stop => match self.remote_stop(stop)? {
                    Some(end) => break end.rax as i64,
                    None => continue,
                },
            }
        };
        let Some(new) = new else {
            return Err(StubError::Call {
                index: 0,
                error: io::Error::from_raw_os_error(result.wrapping_neg() as i32),
            });
        };
        match ptrace::wait(new)? {
            Stop::Exited => Err(StubError::Gone),
            _ => Ok(new),
        }
    }

    /// Lets the thread wait in the trampoline and traces it no more.
    pub fn release(mut self) -> Result<()> {
        let start = Registers { rip: TRAMPOLINE + shared::pause_offset(), ..remote_registers() };
        self.loaded = false;
        ptrace::set_registers(self.tid, &start)?;
        ptrace::detach(self.tid)?;
        Ok(())
    }

    fn start_remote(&mut self, registers: &Registers) -> Result<()> {
        if self.loaded {
            self.registers()?;
            self.loaded = false;
        }
        ptrace::set_registers(self.tid, registers)?;
        ptrace::resume(self.tid, Resume::Continue)?;
        Ok(())
    }

    fn finish_remote(&mut self) -> Result<Registers> {
        loop {
            let stop = ptrace::wait(self.tid)?;
            if let Some(end) = self.remote_stop(stop)? {
                return Ok(end);
            }
        }
    }

    /// The registers when a remote call has ended. Kicks and signals from outside are suppressed: a kick's reason is looked
    /// at before the task runs again.
    fn remote_stop(&mut self, stop: Stop) -> Result<Option<Registers>> {
        match stop {
            Stop::Exited => return Err(StubError::Gone),
            // SI_KERNEL: an int3, not a signal somebody sent.
            Stop::Signal(libc::SIGTRAP) if ptrace::signal_info(self.tid)?.code == 0x80 => {
                return Ok(Some(ptrace::get_registers(self.tid)?));
            }
            Stop::Signal(signal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGSYS | libc::SIGFPE)) => {
                let info = ptrace::signal_info(self.tid)?;
                if info.code > 0 {
                    let rip = ptrace::get_registers(self.tid)?.rip;
                    return Err(StubError::Unexpected(format!("signal {signal}, {info:x?}, rip {rip:#x}")));
                }
            }
            _ => {}
        }
        ptrace::resume(self.tid, Resume::Continue)?;
        Ok(None)
    }
}

fn remote_registers() -> Registers {
    Registers { orig_rax: u64::MAX, rflags: 0x202, cs: USER_CS, ss: USER_SS, ..Registers::default() }
}
