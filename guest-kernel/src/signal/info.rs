//! What a signal says of its cause: `siginfo_t` (sigaction(2)).

use super::set::{SIGCHLD, SIGNALS};

/// si_code values of <asm-generic/siginfo.h>.
pub mod code {
    pub const SI_USER: i32 = 0;
    pub const SI_KERNEL: i32 = 0x80;
    pub const SI_QUEUE: i32 = -1;
    pub const SI_TIMER: i32 = -2;
    pub const SI_MESGQ: i32 = -3;
    pub const SI_TKILL: i32 = -6;
    pub const ILL_ILLOPN: i32 = 2;
    pub const FPE_INTDIV: i32 = 1;
    pub const FPE_INTOVF: i32 = 2;
    pub const FPE_FLTDIV: i32 = 3;
    pub const FPE_FLTOVF: i32 = 4;
    pub const FPE_FLTUND: i32 = 5;
    pub const FPE_FLTRES: i32 = 6;
    pub const FPE_FLTINV: i32 = 7;
    pub const SEGV_MAPERR: i32 = 1;
    pub const SEGV_ACCERR: i32 = 2;
    pub const BUS_ADRALN: i32 = 1;
    pub const BUS_ADRERR: i32 = 2;
    pub const TRAP_BRKPT: i32 = 1;
    pub const TRAP_TRACE: i32 = 2;
    pub const CLD_EXITED: i32 = 1;
    pub const CLD_KILLED: i32 = 2;
    pub const CLD_DUMPED: i32 = 3;
    pub const CLD_STOPPED: i32 = 5;
    pub const CLD_CONTINUED: i32 = 6;
}

/// The used part of a siginfo_t; the rest reads as zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct SigInfo {
    pub signo: i32,
    pub errno: i32,
    pub code: i32,
    pub _pad: i32,
    /// The union, from byte 16.
    pub fields: [u64; 4],
}

/// Bytes of a siginfo_t in user memory.
pub const SIGINFO_SIZE: usize = 128;

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

impl SigInfo {
    pub const fn new(signal: u32, code: i32) -> Self {
        SigInfo { signo: signal as i32, errno: 0, code, _pad: 0, fields: [0; 4] }
    }

    /// From the kernel itself, without a process behind it.
    pub const fn kernel(signal: u32) -> Self {
        Self::new(signal, code::SI_KERNEL)
    }

    /// From kill(2) or tgkill(2).
    pub const fn user(signal: u32, code: i32, pid: i32, uid: u32) -> Self {
        SigInfo { fields: [pair(pid as u32, uid), 0, 0, 0], ..Self::new(signal, code) }
    }

    /// A fault at `address`.
    pub const fn fault(signal: u32, code: i32, address: u64) -> Self {
        SigInfo { fields: [address, 0, 0, 0], ..Self::new(signal, code) }
    }

    /// A child's change of state. `status` is an exit code or a signal; times in clock ticks.
    pub const fn child(code: i32, pid: i32, uid: u32, status: i32, user: u64, system: u64) -> Self {
        SigInfo { fields: [pair(pid as u32, uid), status as u32 as u64, user, system], ..Self::new(SIGCHLD, code) }
    }

    /// A POSIX timer's expiry.
    pub const fn timer(signal: u32, id: i32, overrun: i32, value: u64) -> Self {
        SigInfo { fields: [pair(id as u32, overrun as u32), value, 0, 0], ..Self::new(signal, code::SI_TIMER) }
    }

    pub const fn signal(&self) -> u32 {
        self.signo as u32
    }

    /// All 128 bytes.
    pub fn to_user(&self) -> [u8; SIGINFO_SIZE] {
        let mut bytes = [0; SIGINFO_SIZE];
        bytes[..size_of::<SigInfo>()].copy_from_slice(zerocopy::IntoBytes::as_bytes(self));
        bytes
    }

    /// Whether the kernel made it, so that its numbers can be trusted.
    pub const fn from_kernel(&self) -> bool {
        self.code > 0
    }
}

const _: () = assert!(size_of::<SigInfo>() == 48 && SIGNALS == 65);
