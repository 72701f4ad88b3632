//! The vCPU: the sentry's coroutine, and the calls it makes.

use std::{fmt::Write, sync::Arc};

use anyhow::Result;
use sentry_abi::{
    layout::KERNEL_SIZE,
    para::{FixupEntry, Op},
};
use vmm::vcpu::{Entry, Exit, Vcpu};

use crate::{
    host::{
        coroutine::{self, Coroutine, Yield},
        faults, guest,
    },
    recorder::Recorder,
    vm::Shared,
    worker::{Entered, Worker},
};

/// What to do first in the next `run`.
#[derive(Clone, Copy)]
enum Next {
    /// Return this to the sentry.
    Return(u64),
    /// Return the first four bytes of `data`: a read's answer.
    ReturnData,
    /// Do a call again that a stop request had interrupted.
    Again(u64, [u64; 4]),
    Failed,
}

/// What a call of the sentry leads to.
enum Called {
    Done,
    MmioRead(u64),
    MmioWrite(u64),
    PioRead(u16),
    PioWrite(u16),
    Failed(String),
}

/// See the crate's documentation. It stays on the thread that made it.
pub struct PtraceVcpu {
    shared: Arc<Shared>,
    index: u32,
    coroutine: Coroutine,
    worker: Worker,
    next: Next,
    data: [u8; 4],
    recorder: Recorder,
    image: (u64, u64),
}

impl PtraceVcpu {
    pub(crate) fn new(shared: Arc<Shared>, index: u32, entry: Entry) -> Result<PtraceVcpu> {
        faults::prepare_thread()?;
        let mut image = (0, 0);
        if index == 0 {
            guest::protect_image(&shared.kernel, entry.params)?;
        }
        if let Some(region) = guest::image(&shared.kernel, entry.params) {
            image = (shared.memory.direct_base() + region.base, region.size);
        }
        let fixups = &raw const shared.fixups;
        let coroutine = Coroutine::new(entry.rip, entry.params, u64::from(index), fixups.cast_mut())?;
        let worker = Worker::new(shared.clone(), index)?;
        Ok(PtraceVcpu {
            shared,
            index,
            coroutine,
            worker,
            next: Next::Return(0),
            data: [0; 4],
            recorder: Recorder::default(),
            image,
        })
    }

    /// Handles a call of the sentry.
    fn call(&mut self, op: u64, args: [u64; 4]) -> Result<Called> {
        let [a0, a1, a2, a3] = args;
        let state = &self.shared.cpus[self.index as usize];
        let mut called = Called::Done;
        let mut next = None;
        let result = match op {
            ENTER_USER => match self.worker.enter(a0, a1) {
                Entered::Trap(kind) => kind as u64,
                Entered::Stopped => {
                    next = Some(Next::Again(op, args));
                    0
                }
            },
            LOAD_REGISTERS => self.worker.load_registers(a0),
            SAVE_XSTATE => self.worker.save_xstate(a0),
            CREATE_SPACE => self.worker.create_space(a0).unwrap_or_else(|error| {
                called = Called::Failed(error.to_string());
                0
            }),
            DESTROY_SPACE => self.worker.destroy_space(a0),
            FLUSH_RANGE => self.worker.flush(a0, a1, a2),
            WAIT => {
                self.worker.idle();
                match self.index {
                    0 => self.shared.events.sleep(a0),
                    _ => state.sleep(a0),
                }
                0
            }
            SET_TIMER => {
                state.set_deadline(a0);
                0
            }
            SEND_INTERRUPT => {
                match self.shared.cpus.get(a0 as usize) {
                    Some(target) => target.raise(a1 as u32),
                    None => called = Called::Failed(format!("interrupt to vCPU {a0}, which does not exist")),
                }
                0
            }
            TAKE_PENDING => {
                if self.index == 0 {
                    self.shared.events.look();
                }
                state.take_pending()
            }
            MMIO_WRITE => {
                if !self.shared.signal_ioevent(a0, a1 as u32) {
                    self.data = (a1 as u32).to_le_bytes();
                    called = Called::MmioWrite(a0);
                }
                0
            }
            PIO_WRITE => {
                self.data = (a1 as u32).to_le_bytes();
                called = Called::PioWrite(a0 as u16);
                0
            }
            MMIO_READ | PIO_READ => {
                self.data = [0; 4];
                next = Some(Next::ReturnData);
                called = if op == MMIO_READ { Called::MmioRead(a0) } else { Called::PioRead(a0 as u16) };
                0
            }
            REGISTER_FIXUPS => {
                let size = a3.saturating_mul(size_of::<FixupEntry>() as u64);
                if size <= KERNEL_SIZE && self.shared.kernel.contains(a2, size, 4) {
                    self.shared.fixups.set(a2, a3);
                } else {
                    called = Called::Failed(format!("fixup table at {a2:#x}, {a3} entries: not in kernel memory"));
                }
                0
            }
            SET_CPU_BASE => {
                coroutine::set_gs_base(a0)?;
                0
            }
            _ => {
                called = Called::Failed(format!("unknown call {op}"));
                0
            }
        };
        self.recorder.record(op, &args, result);
        self.next = next.unwrap_or(Next::Return(result));
        Ok(called)
    }

    /// What is known of a fault in the sentry's own code.
    fn crash_report(&self) -> String {
        let Some(crash) = self.coroutine.crash() else { return "the sentry crashed".into() };
        let rip = crash.rip();
        let mut text = format!("{} in sentry code at {rip:#x}", crash.name());
        let (base, size) = self.image;
        match rip.checked_sub(base).filter(|&offset| offset < size) {
            Some(offset) => _ = write!(text, " (image + {offset:#x})"),
            None => text.push_str(" (outside the image)"),
        }
        let _ = writeln!(text, ", address {:#x}, code {}", crash.address, crash.code);
        text.push_str(&crash.dump());
        text.push_str("\nframes:");
        for address in guest::frames(&self.shared.kernel, crash.rbp()) {
            let _ = write!(text, " {address:#x}");
        }
        text
    }
}

impl Vcpu for PtraceVcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        loop {
            if self.shared.cpus[self.index as usize].take_stop() {
                return Ok(Exit::Interrupted);
            }
            let value = match self.next {
                Next::Failed => return Ok(Exit::Failed("the sentry has failed before".into())),
                Next::Again(..) => 0,
                Next::Return(value) => value,
                Next::ReturnData => u64::from(u32::from_le_bytes(self.data)),
            };
            let yielded = match self.next {
                Next::Again(op, args) => Yield::Call { op, args },
                _ => self.coroutine.resume(value),
            };
            let called = match yielded {
                Yield::Call { op, args } => self.call(op, args)?,
                Yield::Crash => Called::Failed(self.crash_report()),
            };
            return Ok(match called {
                Called::Done => continue,
                Called::MmioRead(addr) => Exit::MmioRead { addr, data: &mut self.data },
                Called::MmioWrite(addr) => Exit::MmioWrite { addr, data: &self.data },
                Called::PioRead(port) => Exit::PioRead { port, data: &mut self.data },
                Called::PioWrite(port) => Exit::PioWrite { port, data: &self.data },
                Called::Failed(reason) => {
                    self.next = Next::Failed;
                    Exit::Failed(format!("{reason}\n{}", self.describe()))
                }
            });
        }
    }

    fn describe(&self) -> String {
        let mut text = format!("vCPU {} (ptrace), last calls:\n", self.index);
        text.push_str(&self.recorder.report());
        text.push_str(&self.worker.describe());
        text
    }
}

macro_rules! ops {
    ($($name:ident = $op:ident,)*) => { $(const $name: u64 = Op::$op as u64;)* };
}
ops! {
    ENTER_USER = EnterUser,
    LOAD_REGISTERS = LoadRegisters,
    SAVE_XSTATE = SaveXstate,
    CREATE_SPACE = CreateSpace,
    DESTROY_SPACE = DestroySpace,
    FLUSH_RANGE = FlushRange,
    WAIT = Wait,
    SET_TIMER = SetTimer,
    SEND_INTERRUPT = SendInterrupt,
    TAKE_PENDING = TakePending,
    MMIO_WRITE = MmioWrite,
    MMIO_READ = MmioRead,
    PIO_WRITE = PioWrite,
    PIO_READ = PioRead,
    REGISTER_FIXUPS = RegisterFixups,
    SET_CPU_BASE = SetCpuBase,
}
