//! What a vCPU's thread does with stubs: runs tasks in them, fills and flushes their mappings, makes and ends them.
//!
//! ptrace belongs to threads, so all of this happens on the vCPU's own thread with its own stub threads.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use sentry_abi::{
    context::{Registers, TrapKind, UserContext, state, vector},
    counters::Counter,
    layout::{PAGE_SIZE, USER_BASE, USER_TOP},
};

use crate::{
    decode,
    fills::Fill,
    host::{
        fork::USER_FD,
        ptrace::{self, AUDIT_ARCH_X86_64, Stop},
        shared::{Call, CommandPage},
    },
    pagetable,
    placement::Placement,
    plan,
    space::{Inner, Space},
    stub::{StubError, StubThread},
    trap::{self, Access, Cause},
    vm::Shared,
    xstate::XstateBuffer,
};

/// Fills of one address in a row, without progress, before the sentry sees the fault.
const MAX_REPEATS: u32 = 8;
/// How long the end of a vCPU waits for the ends of its stubs. A process whose other threads belong to another vCPU ends with
/// that one; what is left goes when this thread does.
const REAP_LIMIT: Duration = Duration::from_millis(100);
/// Ranges of a forking address space that are looked up for its child.
const MAX_INHERITED: usize = 128;
/// Host mappings of a stub at which all are given up: the host refuses at 65,530.
const MAX_MAPPINGS: usize = 60_000;

pub enum Entered {
    Trap(TrapKind),
    /// The VMM asked the vCPU to stop; the call is to be made again.
    Stopped,
}

struct Stub {
    space: Arc<Space>,
    thread: StubThread,
    /// A fault that the sentry was told of: its page is filled before the task goes on.
    fault: Option<u64>,
}

pub struct Worker {
    shared: Arc<Shared>,
    index: u32,
    page: CommandPage,
    template: StubThread,
    xstate: XstateBuffer,
    placement: Placement,
    /// The stub entered last, and the others this vCPU has a thread in, by root.
    current: Option<Stub>,
    parked: HashMap<u64, Stub>,
    destroyed_seen: u64,
    /// Killed threads that were not reaped yet.
    dying: Vec<i32>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, index: u32) -> Result<Worker> {
        let template = *shared.zygote.templates.get(index as usize).context("no template stub for this vCPU")?;
        let template = StubThread::seize(template, template).context("tracing the vCPU's template stub")?;
        let xstate = XstateBuffer::new(template.tid).context("extended state of a stub")?;
        let page = shared.zygote.pages.command_page(index);
        Ok(Worker {
            shared,
            index,
            page,
            template,
            xstate,
            placement: Placement::new(),
            current: None,
            parked: HashMap::new(),
            destroyed_seen: 0,
            dying: Vec::new(),
        })
    }

    /// Runs the task of the context at `ctx` in the space of `root` until it traps.
    pub fn enter(&mut self, ctx: u64, root: u64) -> Entered {
        let shared = self.shared.clone();
        let Some(ctx) = shared.kernel.context(ctx) else {
            log::error!("enter_user: context at {ctx:#x} is not in kernel memory");
            return Entered::Trap(TrapKind::Dead);
        };
        let kind = match self.select(root).and_then(|()| self.run(&shared, ctx)) {
            Ok(None) => return Entered::Stopped,
            Ok(Some(kind)) => kind,
            Err(error) => {
                log::warn!("address space {root:#x}: {error:#}");
                if let Some(stub) = &self.current
                    && stub.space.root == root
                {
                    stub.space.set_dead();
                }
                TrapKind::Dead
            }
        };
        ctx.trap = kind as u32;
        Entered::Trap(kind)
    }

    /// `None`: a stop was asked for before the task could run.
    fn run(&mut self, shared: &Shared, ctx: &mut UserContext) -> Result<Option<TrapKind>> {
        let cpu = &shared.cpus[self.index as usize];
        let stub = self.current.as_mut().context("no stub")?;
        if stub.space.is_dead() {
            return Ok(Some(TrapKind::Dead));
        }
        if self.index == 0 {
            shared.events.hand_over();
        }
        if cpu.has_pending() {
            return Ok(Some(TrapKind::Interrupt));
        }
        if let Some(address) = stub.fault.take() {
            prefill(shared, stub, &mut self.template, &mut self.page, address)?;
        } else if stub.thread.task == 0 {
            inherit(shared, stub, &mut self.template, &mut self.page)?;
        }
        let stub = self.current.as_mut().context("no stub")?;
        if !load_task(shared, stub, &mut self.xstate, self.index, ctx)? {
            return Ok(Some(exception(ctx, vector::GP, 0, 0)));
        }
        shared.events.arm(self.index as usize);
        let mut last_fill = (0, 0, 0);
        loop {
            let (pid, tid) = (stub.thread.pid, stub.thread.tid);
            if self.placement.enter(&cpu.watched, tid, &mut stub.thread.cpu) {
                shared.events.watch();
            }
            while !stub.space.begin() {
                let space = stub.space.clone();
                flush_revoked(shared, &space, &mut stub.thread, &mut self.page)?;
                stub.thread.reload(ctx.regs.rax)?;
            }
            if !cpu.enter_user(pid, tid) {
                stub.space.end();
                return Ok(cpu.has_pending().then_some(TrapKind::Interrupt));
            }
            let stop = stub.thread.run();
            cpu.leave_user();
            stub.space.end();
            self.placement.leave(&cpu.watched);
            shared.count(Counter::StubStops, 1);
            let signal = match stop? {
                Stop::Syscall => match ptrace::syscall_info(tid)? {
                    Some(info) if info.arch == AUDIT_ARCH_X86_64 => {
                        ctx.regs.orig_rax = info.nr;
                        let [rdi, rsi, rdx, r10, r8, r9] = info.args;
                        (ctx.regs.rdi, ctx.regs.rsi, ctx.regs.rdx) = (rdi, rsi, rdx);
                        (ctx.regs.r10, ctx.regs.r8, ctx.regs.r9) = (r10, r8, r9);
                        (ctx.regs.rip, ctx.regs.rsp) = (info.ip, info.sp);
                        ctx.regs.rax = -i64::from(libc::ENOSYS) as u64;
                        ctx.state = 0;
                        return Ok(Some(TrapKind::Syscall));
                    }
                    _ => {
                        read_registers(stub, ctx)?;
                        return Ok(Some(TrapKind::ForeignSyscall));
                    }
                },
                Stop::Signal(signal) => signal,
                Stop::Event(_) => 0,
                Stop::Exited => return Err(StubError::Gone.into()),
            };
            // From here on the context is complete: whatever ends the loop finds it so.
            read_registers(stub, ctx)?;
            if signal == 0 {
                stub.thread.reload(ctx.regs.rax)?;
                continue;
            }
            let info = ptrace::signal_info(tid)?;
            let cause = trap::cause(signal, &info);
            if cause != Cause::None && trap::hide_foreign_code(&mut ctx.regs) {
                ctx.state |= state::DIRTY;
                return Ok(Some(exception(ctx, vector::UD, 0, 0)));
            }
            match cause {
                Cause::None => {}
                Cause::Exception { vector: vector::XM, .. } if self.xstate.x87_exception(tid)? => {
                    return Ok(Some(exception(ctx, vector::MF, 0, 0)));
                }
                Cause::Exception { vector: vector::GP, .. } => {
                    let (code, len) = instruction(tid, ctx.regs.rip);
                    let error = decode::protection_error(&code[..len], &ctx.regs);
                    return Ok(Some(exception(ctx, vector::GP, error, 0)));
                }
                Cause::Exception { vector, address } => return Ok(Some(exception(ctx, vector, 0, address))),
                Cause::Vsyscall { nr } => return Ok(Some(vsyscall(ctx, nr))),
                Cause::PageFault { address, protection } => {
                    if last_fill.0 == address && last_fill.1 == ctx.regs.rip {
                        last_fill.2 += 1;
                    } else {
                        last_fill = (address, ctx.regs.rip, 1);
                    }
                    let fault = Fault { address, protection, regs: &ctx.regs };
                    let outcome = fill(shared, stub, &mut self.template, &mut self.page, &fault)?;
                    match outcome {
                        Filled::Done if last_fill.2 < MAX_REPEATS => {}
                        // Another vCPU takes it away again each time: the sentry finds nothing to do, and the task can be
                        // interrupted.
                        Filled::Done => {
                            let code = trap::error_code(true, Access::Read);
                            return Ok(Some(exception(ctx, vector::PF, code, address)));
                        }
                        Filled::NoFile => return Ok(Some(exception(ctx, vector::FILE_PAST_END, 0, address))),
                        Filled::Fault(code) => {
                            stub.fault = Some(address);
                            return Ok(Some(exception(ctx, vector::PF, code, address)));
                        }
                    }
                }
            }
            stub.thread.reload(ctx.regs.rax)?;
        }
    }

    /// Makes the stub of `root` the current one, with a thread of this vCPU.
    fn select(&mut self, root: u64) -> Result<()> {
        if self.destroyed_seen != self.shared.destroyed.load(std::sync::atomic::Ordering::SeqCst) {
            self.bury_destroyed();
        }
        if self.current.as_ref().is_some_and(|stub| stub.space.root == root) {
            return Ok(());
        }
        let stub = match self.parked.remove(&root) {
            Some(stub) => stub,
            None => self.attach(root)?,
        };
        if let Some(before) = self.current.replace(stub) {
            self.parked.insert(before.space.root, before);
        }
        Ok(())
    }

    /// Takes a waiting thread of a space that another vCPU has made, and leaves a new one for the next.
    fn attach(&mut self, root: u64) -> Result<Stub> {
        let space = self.shared.spaces().get(&root).cloned().context("address space does not exist")?;
        let mut inner = space.lock();
        let tid = inner.spares.pop().context("no thread is left in the stub")?;
        let mut thread = StubThread::seize(space.pid, tid).context("tracing a thread of the stub")?;
        inner.threads += 1;
        if (inner.threads as usize) < self.shared.cpus.len() && inner.spares.is_empty() {
            inner.spares.push(thread.thread_waiting().context("a thread for other vCPUs")?);
        }
        drop(inner);
        Ok(Stub { space, thread, fault: None })
    }

    /// 0 or an error number; an error if this vCPU can make no address space any more.
    pub fn create_space(&mut self, root: u64) -> Result<u64> {
        let Err(error) = self.make_space(root) else { return Ok(0) };
        log::warn!("a stub for address space {root:#x}: {error}");
        // Without it every fork and exec would fail from now on.
        anyhow::ensure!(
            self.template.is_there(),
            "the template stub {} of vCPU {} was killed",
            self.template.tid,
            self.index
        );
        Ok(match error {
            StubError::Call { error, .. } => error.raw_os_error().unwrap_or(libc::ENOMEM) as u64,
            _ => libc::ENOMEM as u64,
        })
    }

    fn make_space(&mut self, root: u64) -> Result<(), StubError> {
        self.destroy_space(root);
        self.placement.join(self.template.tid, &mut self.template.cpu);
        let mut thread = self.template.fork()?;
        self.shared.count(Counter::StubsCreated, 1);
        let mut spares = Vec::new();
        if self.shared.cpus.len() > 1 {
            match thread.thread_waiting() {
                Ok(tid) => spares.push(tid),
                Err(error) => {
                    ptrace::kill_process(thread.pid);
                    self.dying.push(thread.tid);
                    return Err(error);
                }
            }
        }
        // A fork is the likely reason: its child goes on where the task is that runs here.
        let inherited = match &self.current {
            Some(stub) => stub.space.lock().fills.ranges().take(MAX_INHERITED).collect(),
            None => Vec::new(),
        };
        let space = Arc::new(Space::new(root, thread.pid, spares, inherited));
        self.shared.spaces().insert(root, space.clone());
        self.parked.insert(root, Stub { space, thread, fault: None });
        Ok(())
    }

    pub fn destroy_space(&mut self, root: u64) -> u64 {
        let Some(space) = self.shared.spaces().remove(&root) else { return 0 };
        space.set_destroyed();
        ptrace::kill_process(space.pid);
        self.shared.destroyed.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.bury_destroyed();
        0
    }

    /// Lets go of threads in spaces that are gone. The host ends a process only when each tracer has reaped its thread.
    fn bury_destroyed(&mut self) {
        self.destroyed_seen = self.shared.destroyed.load(std::sync::atomic::Ordering::SeqCst);
        if let Some(stub) = self.current.take_if(|stub| stub.space.is_destroyed()) {
            self.dying.push(stub.thread.tid);
        }
        let dying = &mut self.dying;
        self.parked.retain(|_, stub| {
            let keep = !stub.space.is_destroyed();
            if !keep {
                dying.push(stub.thread.tid);
            }
            keep
        });
        self.reap();
    }

    fn reap(&mut self) {
        self.dying.retain(|&tid| !ptrace::reap(tid));
    }

    /// Before the vCPU sleeps.
    pub fn idle(&mut self) {
        if self.destroyed_seen != self.shared.destroyed.load(std::sync::atomic::Ordering::SeqCst) {
            self.bury_destroyed();
        } else if !self.dying.is_empty() {
            self.reap();
        }
    }

    fn stub_of_task(&mut self, task: u64) -> Option<&mut Stub> {
        if self.current.as_ref().is_some_and(|stub| stub.thread.task == task) {
            return self.current.as_mut();
        }
        self.parked.values_mut().find(|stub| stub.thread.task == task)
    }

    pub fn load_registers(&mut self, address: u64) -> u64 {
        let shared = self.shared.clone();
        let Some(ctx) = shared.kernel.context(address) else { return libc::EFAULT as u64 };
        if ctx.state & state::LOADED != 0 {
            return 0;
        }
        let Some(stub) = self.stub_of_task(ctx.task) else { return libc::ESRCH as u64 };
        match stub.thread.registers() {
            Ok(registers) => {
                let (rax, orig_rax) = (ctx.regs.rax, ctx.regs.orig_rax);
                ctx.regs = *registers;
                (ctx.regs.rax, ctx.regs.orig_rax) = (rax, orig_rax);
                ctx.state |= state::LOADED;
                0
            }
            Err(error) => {
                log::warn!("registers of task {}: {error}", ctx.task);
                libc::ESRCH as u64
            }
        }
    }

    pub fn save_xstate(&mut self, address: u64) -> u64 {
        let shared = self.shared.clone();
        let Some(ctx) = shared.kernel.context(address) else { return libc::EFAULT as u64 };
        if ctx.xsave_dirty != 0 || ctx.holder != self.index + 1 {
            return 0;
        }
        let Some(area) = shared.kernel.bytes(ctx.xsave, shared.xsave_size) else { return libc::EFAULT as u64 };
        let Some(tid) = self.stub_of_task(ctx.task).map(|stub| stub.thread.tid) else { return 0 };
        match self.xstate.save(tid, area) {
            Ok(()) => 0,
            Err(error) => {
                log::warn!("extended state of task {}: {error}", ctx.task);
                libc::ESRCH as u64
            }
        }
    }

    /// Removes what is filled in a range. Nothing to do costs no call.
    pub fn flush(&mut self, root: u64, start: u64, len: u64) -> u64 {
        match self.try_flush(root, start, len) {
            Ok(()) => 0,
            Err(error) => {
                // Its tasks must not run with old translations.
                log::warn!("flushing address space {root:#x}: {error:#}");
                if let Some(space) = self.shared.spaces().get(&root) {
                    space.set_dead();
                    ptrace::kill_process(space.pid);
                }
                0
            }
        }
    }

    fn try_flush(&mut self, root: u64, start: u64, len: u64) -> Result<()> {
        let Some(space) = self.shared.spaces().get(&root).cloned() else { return Ok(()) };
        if space.is_dead() {
            return Ok(());
        }
        {
            let mut inner = space.lock();
            let Some((low, high)) = inner.fills.remove(start, len) else { return Ok(()) };
            self.shared.count(Counter::StubFlushes, 1);
            if !space.revoke(&mut inner, low, high) {
                return Ok(());
            }
        }
        self.select(root)?;
        let stub = self.current.as_mut().context("no stub")?;
        flush_revoked(&self.shared, &space, &mut stub.thread, &mut self.page)
    }

    pub fn describe(&self) -> String {
        match &self.current {
            Some(stub) => format!(
                "stub {} thread {} of address space {:#x}, task {}; {} others\n",
                stub.thread.pid,
                stub.thread.tid,
                stub.space.root,
                stub.thread.task,
                self.parked.len()
            ),
            None => String::from("no stub\n"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let stubs = self.current.take().into_iter().chain(self.parked.drain().map(|(_, stub)| stub));
        let mut tids: Vec<i32> = std::mem::take(&mut self.dying);
        for stub in stubs {
            stub.space.set_dead();
            ptrace::kill_process(stub.space.pid);
            tids.push(stub.thread.tid);
        }
        ptrace::kill_process(self.template.pid);
        tids.push(self.template.tid);
        ptrace::reap_within(tids, REAP_LIMIT);
    }
}

struct Fault<'a> {
    address: u64,
    protection: bool,
    regs: &'a Registers,
}

enum Filled {
    Done,
    /// The sentry's to resolve; the error code.
    Fault(u32),
    /// The page belongs to the window, and no file is there.
    NoFile,
}

/// Puts the task of `ctx` into the stub's thread. False: the host refuses its registers or extended state.
fn load_task(
    shared: &Shared,
    stub: &mut Stub,
    xstate: &mut XstateBuffer,
    index: u32,
    ctx: &mut UserContext,
) -> Result<bool> {
    let thread = &mut stub.thread;
    let changed = thread.task != ctx.task || ctx.holder != index + 1;
    if changed || ctx.xsave_dirty != 0 {
        let area = match ctx.xsave {
            0 => None,
            at => Some(&*shared.kernel.bytes(at, shared.xsave_size).context("xsave area is not in kernel memory")?),
        };
        match xstate.load(thread.tid, area) {
            Ok(()) => ctx.xsave_dirty = 0,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
            Err(error) => return Err(StubError::from(error).into()),
        }
    }
    let loaded = if changed || ctx.state & state::DIRTY != 0 {
        anyhow::ensure!(ctx.state & state::LOADED != 0, "task {} enters without registers", ctx.task);
        thread.load(&ctx.regs)
    } else {
        thread.reload(ctx.regs.rax)
    };
    match loaded {
        Ok(()) => {
            thread.task = ctx.task;
            ctx.holder = index + 1;
            ctx.state &= !state::DIRTY;
            Ok(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
        Err(error) => Err(StubError::from(error).into()),
    }
}

fn read_registers(stub: &mut Stub, ctx: &mut UserContext) -> Result<(), StubError> {
    ctx.regs = *stub.thread.registers()?;
    ctx.regs.orig_rax = u64::MAX;
    ctx.state = state::LOADED;
    Ok(())
}

fn exception(ctx: &mut UserContext, vector: u32, error_code: u32, address: u64) -> TrapKind {
    ctx.vector = vector;
    ctx.error_code = error_code;
    ctx.address = address;
    TrapKind::Exception
}

/// A call through the vsyscall page: the system call it stands for. The host has already returned to the page's caller.
fn vsyscall(ctx: &mut UserContext, nr: u64) -> TrapKind {
    ctx.regs.orig_rax = nr;
    ctx.regs.rax = -i64::from(libc::ENOSYS) as u64;
    ctx.state = state::LOADED | state::DIRTY;
    TrapKind::Syscall
}

/// Answers a fault from the page table, or says what the sentry is to be told.
fn fill(
    shared: &Shared,
    stub: &mut Stub,
    template: &mut StubThread,
    page: &mut CommandPage,
    fault: &Fault<'_>,
) -> Result<Filled> {
    // A missing mapping does not show what the access was; a guess that is wrong comes back as a protection fault.
    let guess = if trap::is_fetch(fault.address, fault.regs.rip) {
        Access::Fetch
    } else if fault.protection || is_store(stub.thread.tid, fault) {
        Access::Write
    } else {
        Access::Read
    };
    if fault.address >= USER_TOP {
        return Ok(Filled::Fault(trap::error_code(fault.protection, guess)));
    }
    let space = stub.space.clone();
    let mut inner = space.lock();
    let leaf = pagetable::leaf(&shared.kernel, space.root, fault.address);
    let entry = leaf.as_ref().and_then(|leaf| leaf.page(((fault.address - leaf.base) / PAGE_SIZE) as usize));
    let (Some(leaf), Some(entry)) = (leaf, entry) else {
        return Ok(Filled::Fault(trap::error_code(false, guess)));
    };
    // On a page that allows execution a protection fault is a write, even near the instruction.
    let access = if fault.protection && entry.execute { Access::Write } else { guess };
    let allowed = match access {
        Access::Read => true,
        Access::Write => entry.write,
        Access::Fetch => entry.execute,
    };
    if !allowed {
        return Ok(Filled::Fault(trap::error_code(true, access)));
    }
    let runs = plan::runs(&leaf, fault.address, access == Access::Write, &inner.fills);
    if runs.is_empty() {
        // Another vCPU has cleared the entry since.
        return Ok(Filled::Fault(trap::error_code(false, access)));
    }
    map(shared, &space, &mut stub.thread, template, page, &mut inner, &runs)
}

/// The bytes at an instruction pointer, and how many could be read: an instruction may end at the end of what is mapped.
fn instruction(tid: i32, rip: u64) -> ([u8; 16], usize) {
    let (mut code, mut len) = ([0; 16], 0);
    for word in code.chunks_exact_mut(8) {
        let Ok(value) = ptrace::peek(tid, rip.wrapping_add(len as u64)) else { break };
        word.copy_from_slice(&value.to_le_bytes());
        len += 8;
    }
    (code, len)
}

/// Whether the instruction that faulted is known to write there.
fn is_store(tid: i32, fault: &Fault<'_>) -> bool {
    let (code, len) = instruction(tid, fault.regs.rip);
    decode::writes(&code[..len], fault.address, fault.regs.rdi, fault.regs.rsp)
}

/// After the sentry has answered a fault: what is there now is mapped before the task faults again.
fn prefill(
    shared: &Shared,
    stub: &mut Stub,
    template: &mut StubThread,
    page: &mut CommandPage,
    address: u64,
) -> Result<()> {
    if address >= USER_TOP {
        return Ok(());
    }
    let space = stub.space.clone();
    let mut inner = space.lock();
    let Some(leaf) = pagetable::leaf(&shared.kernel, space.root, address) else { return Ok(()) };
    let runs = plan::runs(&leaf, address, false, &inner.fills);
    if !runs.is_empty() {
        map(shared, &space, &mut stub.thread, template, page, &mut inner, &runs)?;
    }
    Ok(())
}

/// In a new address space: maps what its parent had.
fn inherit(shared: &Shared, stub: &mut Stub, template: &mut StubThread, page: &mut CommandPage) -> Result<()> {
    let space = stub.space.clone();
    let mut inner = space.lock();
    let ranges = std::mem::take(&mut inner.inherited);
    if inner.fills.count() == 0 && !ranges.is_empty() {
        let runs = plan::inherited(&shared.kernel, space.root, &ranges);
        if !runs.is_empty() {
            map(shared, &space, &mut stub.thread, template, page, &mut inner, &runs)?;
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn map(
    shared: &Shared,
    space: &Space,
    thread: &mut StubThread,
    template: &mut StubThread,
    page: &mut CommandPage,
    inner: &mut Inner,
    runs: &[Fill],
) -> Result<Filled> {
    if inner.fills.count() + runs.len() > MAX_MAPPINGS {
        unmap_all(thread, page, inner)?;
    }
    // What a run covers needs no unmapping first.
    let covered = |&(low, high): &(u64, u64)| runs.iter().any(|run| run.start <= low && high <= run.end());
    let mut revoked = space.take_revoked(inner);
    let noted = revoked.len();
    let mut calls = Vec::with_capacity(runs.len());
    let mut parts = Vec::with_capacity(runs.len());
    let mut file_missing = false;
    for (index, run) in runs.iter().enumerate() {
        file_missing |= !resolve(shared, template, page, run, &mut calls, &mut parts)? && index == 0;
    }
    if parts.len() == runs.len() {
        revoked.retain(|range| !covered(range));
    }
    let unmaps = revoked.len();
    calls.splice(0..0, revoked.into_iter().map(unmap_call));
    if calls.is_empty() {
        space.flushed(inner);
        return Ok(Filled::NoFile);
    }
    shared.count(Counter::StubRemoteCalls, 1);
    let mut done = match thread.remote(page, &calls) {
        Ok(()) => parts.len(),
        // The host refuses to split a mapping, or has no room for one more.
        Err(StubError::Call { index, error })
            if index < unmaps || (index == unmaps && error.raw_os_error() == Some(libc::ENOMEM)) =>
        {
            unmap_all(thread, page, inner)?;
            if !parts.is_empty() {
                thread.remote(page, &calls[unmaps..unmaps + 1])?;
            }
            parts.len().min(1)
        }
        Err(StubError::Call { index, error }) if index == unmaps => {
            log::warn!("mapping {:x?} into a stub: {error}", parts[0]);
            file_missing = true;
            0
        }
        // What did not fit or is not allowed is not filled; the first is what the task waits for.
        Err(StubError::Call { index, .. }) => index - unmaps,
        Err(error) => return Err(error.into()),
    };
    if done < parts.len() && unmaps < noted {
        // A range that its run was to cover may still be mapped.
        unmap_all(thread, page, inner)?;
        done = 0;
    }
    space.flushed(inner);
    for part in &parts[..done] {
        shared.count(Counter::StubFills, 1);
        shared.count(Counter::StubFillPages, part.len / PAGE_SIZE);
        inner.fills.insert(*part);
    }
    Ok(if file_missing { Filled::NoFile } else { Filled::Done })
}

/// Unmaps what flushes have revoked.
fn flush_revoked(shared: &Shared, space: &Space, thread: &mut StubThread, page: &mut CommandPage) -> Result<()> {
    let mut inner = space.lock();
    let calls: Vec<Call> = space.take_revoked(&mut inner).into_iter().map(unmap_call).collect();
    if !calls.is_empty() {
        shared.count(Counter::StubRemoteCalls, 1);
        match thread.remote(page, &calls) {
            Err(StubError::Call { .. }) => unmap_all(thread, page, &mut inner)?,
            other => other?,
        }
    }
    space.flushed(&inner);
    Ok(())
}

fn unmap_call((low, high): (u64, u64)) -> Call {
    Call::new(libc::SYS_munmap, [low, high - low])
}

/// The calls that map a run; false where no file is behind its start.
fn resolve(
    shared: &Shared,
    template: &mut StubThread,
    page: &mut CommandPage,
    run: &Fill,
    calls: &mut Vec<Call>,
    parts: &mut Vec<Fill>,
) -> Result<bool> {
    let mut prot = libc::PROT_READ;
    if run.write {
        prot |= libc::PROT_WRITE;
    }
    if run.execute {
        prot |= libc::PROT_EXEC;
    }
    let mut push = |part: Fill, fd: u64, offset: u64, flags: libc::c_int| {
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED | flags) as u64;
        calls.push(Call::new(libc::SYS_mmap, [part.start, part.len, prot as u64, flags, fd, offset]));
        parts.push(part);
    };
    if let Some(offset) = run.gpa.checked_sub(USER_BASE) {
        let end = offset.checked_add(run.len);
        anyhow::ensure!(
            end.is_some_and(|end| end <= shared.memory.user_size()),
            "page table entry for {:#x} points at {:#x}, behind user memory",
            run.start,
            run.gpa
        );
        push(*run, USER_FD, offset, libc::MAP_POPULATE);
        return Ok(true);
    }
    let mut rest = *run;
    while rest.len > 0 {
        let Some(backing) = shared.memory.window_backing(rest.gpa) else { return Ok(rest.start != run.start) };
        let fd = shared.files().descriptor(&backing.file, &shared.zygote.socket, template, page)?;
        let len = rest.len.min(backing.len);
        push(Fill { len, write: rest.write && backing.writable, ..rest }, fd, backing.offset, 0);
        rest = Fill { start: rest.start + len, len: rest.len - len, gpa: rest.gpa + len, ..rest };
    }
    Ok(true)
}

/// The last resort when the host refuses more mappings, or to split one.
fn unmap_all(thread: &mut StubThread, page: &mut CommandPage, inner: &mut Inner) -> Result<(), StubError> {
    inner.fills.clear();
    thread.remote(page, &[Call::new(libc::SYS_munmap, [0, USER_TOP])])
}
