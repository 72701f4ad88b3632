//! Exceptions of user code as signals: which one, with which code and address (sigaction(2), Linux's arch/x86 traps).

use sentry_abi::{
    context::{pf, vector},
    layout::USER_TOP,
};

use super::{
    deliver,
    frame::LastTrap,
    info::{SigInfo, code},
    set::{SIGBUS, SIGFPE, SIGILL, SIGKILL, SIGSEGV, SIGTRAP},
};
use crate::{
    arch,
    counters::{Counter, count},
    mm::FaultError,
    task::{Current, exit},
};

/// Resolves a page fault or raises the signal for the exception the task stopped for.
pub fn exception(cur: &mut Current) {
    let (number, error, address) = cur.exception();
    let mut reported = (number, error);
    let info = match number {
        vector::PF => match cur.mm.fault(address, error) {
            Ok(()) => {
                cur.task.meter.count_fault();
                return;
            }
            Err(FaultError::NoMemory) => {
                count(Counter::OomKills);
                crate::warn!("[{}] {} is killed: out of memory", cur.task.tid(), cur.task.name());
                arch::host::out_of_memory();
                return exit::end_process(&cur.task.process, SIGKILL);
            }
            Err(FaultError::PastEnd) => SigInfo::fault(SIGBUS, code::BUS_ADRERR, address),
            Err(FaultError::Protection) => {
                reported.1 |= pf::PRESENT;
                SigInfo::fault(SIGSEGV, code::SEGV_ACCERR, address)
            }
            Err(FaultError::Unmapped) => {
                if address >= USER_TOP {
                    reported.1 |= pf::PRESENT;
                }
                SigInfo::fault(SIGSEGV, code::SEGV_MAPERR, address)
            }
        },
        vector::FILE_PAST_END => {
            reported = (vector::PF, error | pf::USER);
            SigInfo::fault(SIGBUS, code::BUS_ADRERR, address)
        }
        vector::DE => SigInfo::fault(SIGFPE, code::FPE_INTDIV, cur.registers().rip),
        vector::DB => SigInfo::fault(SIGTRAP, code::TRAP_TRACE, cur.registers().rip),
        vector::BP => SigInfo::kernel(SIGTRAP),
        vector::UD => SigInfo::fault(SIGILL, code::ILL_ILLOPN, cur.registers().rip),
        vector::MF | vector::XM => {
            let reason = float_code(cur, number);
            SigInfo::fault(SIGFPE, reason, cur.registers().rip)
        }
        vector::AC => SigInfo::fault(SIGBUS, code::BUS_ADRALN, 0),
        vector::NP | vector::SS => SigInfo::kernel(SIGBUS),
        _ => SigInfo::kernel(SIGSEGV),
    };
    // Like Linux, CR2 keeps the address of the last page fault.
    let last = if number == vector::PF || number == vector::FILE_PAST_END { address } else { cur.last_trap.address };
    cur.last_trap = LastTrap { number: reported.0, error: reported.1, address: last };
    if crate::log::enabled(crate::log::LogLevel::Debug) {
        let rip = cur.registers().rip;
        crate::debug!(
            "[{}] exception {number} error {error:#x} address {address:#x} at {rip:#x}: signal {}",
            cur.task.tid(),
            info.signo
        );
    }
    deliver::force(cur, info);
}

/// Which floating-point exception is pending and not masked.
fn float_code(cur: &mut Current, number: u32) -> i32 {
    let bytes = cur.xstate().bytes();
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let pending = if number == vector::MF {
        // Status word without the exceptions the control word masks.
        word(2) & !word(0)
    } else {
        let mxcsr = word(24);
        !(mxcsr >> 7) & mxcsr
    };
    match pending & 0x3f {
        p if p & 0x01 != 0 => code::FPE_FLTINV,
        p if p & 0x04 != 0 => code::FPE_FLTDIV,
        p if p & 0x08 != 0 => code::FPE_FLTOVF,
        p if p & 0x12 != 0 => code::FPE_FLTUND,
        p if p & 0x20 != 0 => code::FPE_FLTRES,
        _ => code::SI_KERNEL,
    }
}
