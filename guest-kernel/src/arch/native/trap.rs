//! Traps that come in while the kernel runs, and interrupts.

use core::fmt;

use sentry_abi::{
    context::vector,
    irq::{self, VECTOR_BASE},
    layout::{KERNEL_SIZE, KVM_DIRECT_BASE},
};

use super::{
    super::copy,
    apic, entry,
    registers::{behind_halt, read_cr2, read_cr3},
    set_pending, this, timer, xsave,
};

pub(super) const NMI: u32 = 2;
/// How the VMM says that an access met a page behind the end of its file.
pub(super) const MACHINE_CHECK: u32 = 18;
/// Another CPU has set a pending bit of this one.
pub(super) const VECTOR_KICK: u32 = 0xf0;
const VECTOR_TIMER: u32 = VECTOR_BASE as u32 + irq::TIMER;

/// What the entry code pushes, and the CPU before it.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Called by the entry code on a trap stack, GS being the CPU's block.
pub(super) extern "sysv64" fn kernel(frame: &mut Frame) {
    match frame.vector as u32 {
        NMI => {}
        number @ 32.. => {
            interrupt(number);
            frame.rip = behind_halt(frame.rip);
        }
        number => match fixup(frame.rip) {
            Some(rip) => frame.rip = rip,
            None => fault(number, frame),
        },
    }
}

/// Takes note of an interrupt; what it means is looked at outside, with `take_pending`.
pub(super) fn interrupt(number: u32) {
    match number {
        VECTOR_TIMER => {
            apic::end_of_interrupt();
            if timer::expired(&this().timer) {
                set_pending(number);
            }
        }
        VECTOR_KICK => apic::end_of_interrupt(),
        number if number == u32::from(irq::VECTOR_SPURIOUS) => {}
        number => {
            apic::end_of_interrupt();
            if (u32::from(VECTOR_BASE)..u32::from(VECTOR_BASE) + 64).contains(&number) {
                set_pending(number);
            }
        }
    }
}

/// Where a faulting instruction goes on: those of this backend, then the table that both backends share.
fn fixup(rip: u64) -> Option<u64> {
    if let Some(rip) = entry::fixup(rip).or_else(|| xsave::fixup(rip)) {
        return Some(rip);
    }
    copy::fixup_table().iter().find_map(|fixup| {
        let at = fixup as *const _ as u64;
        let absolute = |offset: i32| at.wrapping_add_signed(offset.into());
        (absolute(fixup.start)..absolute(fixup.end)).contains(&rip).then(|| absolute(fixup.fixup))
    })
}

fn fault(number: u32, frame: &Frame) -> ! {
    let name = match number {
        0 => "divide error",
        vector::UD => "invalid opcode",
        8 => "double fault",
        vector::GP => "general protection fault",
        vector::PF => "page fault",
        MACHINE_CHECK => "machine check",
        _ => "exception",
    };
    let (address, root, callers) = (read_cr2(), read_cr3(), Callers(frame.rbp));
    panic!("{name} (vector {number}, address {address:#x}, cr3 {root:#x}) in the kernel: {frame:#x?}\n{callers}");
}

/// Return addresses of the code that a trap interrupted, from its frame pointer.
struct Callers(u64);

impl fmt::Display for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KERNEL: core::ops::Range<u64> = KVM_DIRECT_BASE..KVM_DIRECT_BASE + KERNEL_SIZE - 16;
        let mut frame = self.0;
        for _ in 0..32 {
            if !KERNEL.contains(&frame) || !frame.is_multiple_of(8) {
                break;
            }
            // SAFETY: two words of kernel memory, all of which is mapped.
            let [next, address] = unsafe { (frame as *const [u64; 2]).read_volatile() };
            writeln!(f, "  from {address:#x}")?;
            // Frames ascend within one stack.
            if next <= frame {
                break;
            }
            frame = next;
        }
        Ok(())
    }
}
