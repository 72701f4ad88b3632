//! Pending interrupts as the sentry sees them: bits of one word per vCPU, the same in both backends.

/// The timer armed with `set_timer` has expired.
pub const TIMER: u32 = 0;
/// Another vCPU asks this one to look at its run queue and flush requests.
pub const IPI: u32 = 1;
/// Device `n` of the boot parameters has set bit `DEVICE0 + n`.
pub const DEVICE0: u32 = 2;

/// Interrupt vector under KVM of a bit: `VECTOR_BASE + bit`. MSIs are sent with these vectors.
pub const VECTOR_BASE: u8 = 0x30;
pub const VECTOR_SPURIOUS: u8 = 0xff;
