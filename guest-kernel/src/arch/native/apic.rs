//! The local APIC in x2APIC mode: a set of MSRs.

use sentry_abi::irq;

use super::registers::write_msr;

const TASK_PRIORITY: u32 = 0x808;
const END_OF_INTERRUPT: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const INTERRUPT_COMMAND: u32 = 0x830;
const TIMER_ENTRY: u32 = 0x832;
const LINT0: u32 = 0x835;
const LINT1: u32 = 0x836;
const INITIAL_COUNT: u32 = 0x838;
const DIVIDE: u32 = 0x83e;
const TSC_DEADLINE: u32 = 0x6e0;

const SOFTWARE_ENABLE: u64 = 1 << 8;
const MASKED: u64 = 1 << 16;
const TIMER_TSC_DEADLINE: u64 = 1 << 18;
const DIVIDE_BY_1: u64 = 0b1011;
const TIMER_VECTOR: u64 = irq::VECTOR_BASE as u64 + irq::TIMER as u64;

fn write(register: u32, value: u64) {
    // SAFETY: the VMM has switched the APIC to x2APIC mode; its registers only decide which interrupts come.
    unsafe { write_msr(register, value) };
}

/// Enables this CPU's APIC, the timer included.
pub(super) fn init() {
    write(TASK_PRIORITY, 0);
    write(LINT0, MASKED);
    write(LINT1, MASKED);
    write(SPURIOUS, SOFTWARE_ENABLE | u64::from(irq::VECTOR_SPURIOUS));
    if has_tsc_deadline() {
        write(TIMER_ENTRY, TIMER_TSC_DEADLINE | TIMER_VECTOR);
    } else {
        write(DIVIDE, DIVIDE_BY_1);
        write(TIMER_ENTRY, TIMER_VECTOR);
    }
}

pub(super) fn has_tsc_deadline() -> bool {
    core::arch::x86_64::__cpuid(1).ecx & 1 << 24 != 0
}

pub(super) fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Interrupts another CPU. Its APIC ID is its index.
pub(super) fn send(cpu: usize, vector: u32) {
    // SAFETY: orders earlier stores before the MSR write, which by itself does not.
    unsafe { core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags)) };
    write(INTERRUPT_COMMAND, (cpu as u64) << 32 | u64::from(vector));
}

/// Makes the timer fire when the TSC reaches `tsc`; 0 stops it.
pub(super) fn set_tsc_deadline(tsc: u64) {
    write(TSC_DEADLINE, tsc);
}

/// Makes the timer fire after `count` ns (KVM's APIC counts at 1 GHz); 0 stops it.
pub(super) fn set_one_shot(count: u32) {
    write(INITIAL_COUNT, count.into());
}
