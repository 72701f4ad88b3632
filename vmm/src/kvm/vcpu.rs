//! A KVM vCPU: KVM_RUN and what it returns.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result};
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use sentry_abi::layout::PAGE_SIZE;

use super::kick::{Kicks, set_immediate_exit};
use crate::{
    memory::GuestMemory,
    vcpu::{Exit, Vcpu},
};

/// Machine check: how the sentry learns that an access met a page behind the end of its file.
const VECTOR_MC: u8 = 18;

pub(super) struct KvmVcpu {
    fd: VcpuFd,
    run: *mut kvm_run,
    index: u32,
    memory: Arc<GuestMemory>,
    kicks: Arc<Kicks>,
    runs: Arc<AtomicU64>,
    /// The last access failed: an exception is due before the next instruction.
    inject: bool,
}

impl KvmVcpu {
    pub fn new(
        mut fd: VcpuFd,
        index: u32,
        memory: Arc<GuestMemory>,
        kicks: Arc<Kicks>,
        runs: Arc<AtomicU64>,
    ) -> KvmVcpu {
        let run: *mut kvm_run = fd.get_kvm_run();
        kicks.enter(index, run);
        KvmVcpu { fd, run, index, memory, kicks, runs, inject: false }
    }

    /// Raises a machine check at the current instruction.
    fn inject_fault(&mut self) -> Result<()> {
        let mut events = self.fd.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?;
        events.exception.injected = 1;
        events.exception.nr = VECTOR_MC;
        events.exception.has_error_code = 0;
        events.flags = 0;
        self.fd.set_vcpu_events(&events).context("KVM_SET_VCPU_EVENTS")
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        if self.inject {
            self.inject = false;
            self.inject_fault()?;
        }
        self.runs.fetch_add(1, Relaxed);
        Ok(match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => Exit::PioWrite { port, data },
            Ok(VcpuExit::IoIn(port, data)) => Exit::PioRead { port, data },
            Ok(VcpuExit::MmioRead(addr, data)) => Exit::MmioRead { addr, data },
            Ok(VcpuExit::MmioWrite(addr, data)) => Exit::MmioWrite { addr, data },
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => Exit::Interrupted,
            Ok(VcpuExit::Shutdown) => Exit::Failed("triple fault".to_owned()),
            Ok(VcpuExit::InternalError) => Exit::Failed(internal_error(self.run)),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                Exit::Failed(format!("the CPU refused to enter the guest: reason {reason:#x} on CPU {cpu}"))
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => match file_ended(&self.memory) {
                true => {
                    self.inject = true;
                    Exit::Interrupted
                }
                false => Exit::Failed(format!("no access to guest memory at {gpa:#x}")),
            },
            Ok(other) => Exit::Failed(format!("unexpected exit {other:?}")),
            Err(error) => match error.errno() {
                libc::EINTR => {
                    set_immediate_exit(self.run, false);
                    Exit::Interrupted
                }
                libc::EAGAIN => Exit::Interrupted,
                libc::EFAULT if file_ended(&self.memory) => {
                    self.inject = true;
                    Exit::Interrupted
                }
                _ => Exit::Failed(format!("KVM_RUN: {error}")),
            },
        })
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        if let Ok(regs) = self.fd.get_regs() {
            let _ =
                writeln!(text, "rip {:#x} rflags {:#x} rsp {:#x} rbp {:#x}", regs.rip, regs.rflags, regs.rsp, regs.rbp);
            let _ = writeln!(text, "rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x}", regs.rax, regs.rbx, regs.rcx, regs.rdx);
            let _ = writeln!(text, "rsi {:#x} rdi {:#x} r8 {:#x} r9 {:#x}", regs.rsi, regs.rdi, regs.r8, regs.r9);
            let _ = writeln!(text, "r10 {:#x} r11 {:#x} r12 {:#x} r13 {:#x}", regs.r10, regs.r11, regs.r12, regs.r13);
            let _ = writeln!(text, "r14 {:#x} r15 {:#x}", regs.r14, regs.r15);
        }
        if let Ok(sregs) = self.fd.get_sregs() {
            let (cs, gs, fs) = (sregs.cs.selector, sregs.gs.base, sregs.fs.base);
            let _ =
                writeln!(text, "cs {cs:#x} gs base {gs:#x} fs base {fs:#x} cr2 {:#x} cr3 {:#x}", sregs.cr2, sregs.cr3);
            let _ = writeln!(text, "cr0 {:#x} cr4 {:#x} efer {:#x}", sregs.cr0, sregs.cr4, sregs.efer);
        }
        if let Ok(events) = self.fd.get_vcpu_events() {
            let exception = events.exception;
            if exception.injected != 0 || exception.pending != 0 {
                let _ = writeln!(text, "exception {} error code {:#x}", exception.nr, exception.error_code);
            }
        }
        text
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        // Before the shared page goes away with `fd`.
        self.kicks.leave(self.index);
    }
}

/// Whether a file shown in the window ends before its mapping does: then that is what KVM_RUN's EFAULT, which has no address
/// on older kernels, was about.
fn file_ended(memory: &GuestMemory) -> bool {
    memory.window_mappings().iter().any(|(_, mapping)| {
        rustix::fs::fstat(&*mapping.file)
            .is_ok_and(|stat| (stat.st_size as u64).next_multiple_of(PAGE_SIZE) < mapping.offset + mapping.len)
    })
}

fn internal_error(run: *mut kvm_run) -> String {
    // SAFETY: `run` is the mapped page of this vCPU, whose exit reason says that the kernel filled this part of the union.
    let (suberror, count, data) = unsafe {
        let internal = &(*run).__bindgen_anon_1.internal;
        (internal.suberror, internal.ndata, internal.data)
    };
    let what = match suberror {
        1 => "emulation failure",
        2 => "exceptions at once",
        3 => "exit during event delivery",
        4 => "unexpected exit reason",
        _ => "unknown",
    };
    let data: Vec<String> = data.iter().take(count as usize).map(|word| format!("{word:#x}")).collect();
    format!("KVM internal error {suberror} ({what}): {}", data.join(" "))
}
