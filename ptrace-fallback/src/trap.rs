//! From the stop of a stub to what a CPU would have reported.

use sentry_abi::context::{Registers, USER_CS, pf, vector};

use crate::host::ptrace::SignalInfo;

/// How memory was accessed, as far as it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Fetch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// `protection`: something is mapped there, without the permission.
    PageFault {
        address: u64,
        protection: bool,
    },
    Exception {
        vector: u32,
        address: u64,
    },
    /// A call through the vsyscall page, which the stub's filter has stopped.
    Vsyscall {
        nr: u64,
    },
    /// A kick, or a signal from outside that has no meaning here.
    None,
}

const SI_KERNEL: i32 = 0x80;

/// The meaning of a signal-delivery stop.
pub fn cause(signal: i32, info: &SignalInfo) -> Cause {
    let exception = |vector| Cause::Exception { vector, address: 0 };
    // Codes of 0 and below were sent by a process.
    if info.code <= 0 {
        return Cause::None;
    }
    match (signal, info.code) {
        (libc::SIGSEGV, 1) => Cause::PageFault { address: info.address, protection: false },
        (libc::SIGSEGV, 2) => Cause::PageFault { address: info.address, protection: true },
        (libc::SIGSEGV, _) => exception(vector::GP),
        (libc::SIGBUS, 1) => exception(vector::AC),
        (libc::SIGBUS, SI_KERNEL) => exception(vector::SS),
        (libc::SIGBUS, _) => Cause::Exception { vector: vector::FILE_PAST_END, address: info.address },
        (libc::SIGFPE, 1 | 2) => exception(vector::DE),
        (libc::SIGFPE, _) => exception(vector::XM),
        (libc::SIGILL, _) => exception(vector::UD),
        (libc::SIGTRAP, SI_KERNEL) => exception(vector::BP),
        (libc::SIGTRAP, _) => exception(vector::DB),
        (libc::SIGSYS, 1) => Cause::Vsyscall { nr: info.syscall as u32 as u64 },
        _ => Cause::None,
    }
}

/// A fault is an instruction fetch when it is at the instruction, or at the page behind an instruction that crosses into it.
pub fn is_fetch(address: u64, rip: u64) -> bool {
    address == rip || (address.is_multiple_of(4096) && address > rip && address - rip < 15)
}

/// #PF error code.
pub fn error_code(present: bool, access: Access) -> u32 {
    let mut code = pf::USER;
    if present {
        code |= pf::PRESENT;
    }
    match access {
        Access::Read => {}
        Access::Write => code |= pf::WRITE,
        Access::Fetch => code |= pf::FETCH,
    }
    code
}

/// Whether the stop was in 32-bit code, which this kernel does not have: then the instruction pointer may be one of the
/// host's vDSO and is not shown.
pub fn hide_foreign_code(registers: &mut Registers) -> bool {
    if registers.cs == USER_CS {
        return false;
    }
    registers.cs = USER_CS;
    if registers.rip >> 32 != 0 {
        registers.rip = 0;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(code: i32) -> SignalInfo {
        SignalInfo { code, address: 0x1234, syscall: 0 }
    }

    #[test]
    fn signals_become_vectors() {
        assert_eq!(cause(libc::SIGSEGV, &info(1)), Cause::PageFault { address: 0x1234, protection: false });
        let vector_of = |signal, code| match cause(signal, &info(code)) {
            Cause::Exception { vector, .. } => vector,
            other => panic!("{other:?}"),
        };
        assert_eq!(vector_of(libc::SIGSEGV, 128), vector::GP);
        assert_eq!(vector_of(libc::SIGBUS, 2), vector::FILE_PAST_END);
        assert_eq!(vector_of(libc::SIGBUS, 128), vector::SS);
        assert_eq!(vector_of(libc::SIGFPE, 1), vector::DE);
        assert_eq!(vector_of(libc::SIGILL, 2), vector::UD);
        assert_eq!(vector_of(libc::SIGTRAP, 128), vector::BP);
        assert_eq!(vector_of(libc::SIGTRAP, 2), vector::DB);
        assert_eq!(cause(libc::SIGSEGV, &info(0)), Cause::None);
        assert_eq!(cause(libc::SIGURG, &info(-6)), Cause::None);
    }

    #[test]
    fn fetches() {
        assert!(is_fetch(0x1000, 0x1000));
        assert!(is_fetch(0x2000, 0x1ffa));
        assert!(!is_fetch(0x2001, 0x1ffa));
        assert!(!is_fetch(0x2000, 0x1000));
    }
}
