//! prctl(2) and arch_prctl(2).

use core::sync::atomic::Ordering::Relaxed;

use super::{
    Current,
    creds::{ALL_CAPS, cap, securebits},
};
use crate::{
    errno::{EINVAL, EPERM, Result},
    mm::user::{UserAddr, UserPtr},
    signal::set,
    syscall::{Hex, Level::*, Syscall},
    syscalls,
};

syscalls! { pub CALLS;
    157 prctl(option: u32, arg2: Hex, arg3: Hex, arg4: Hex, arg5: Hex) = prctl, Partial, "no seccomp, no memory tagging, no core scheduling", "process";
    158 arch_prctl(code: u32, addr: Hex) = arch_prctl, Full, "", "ident";
}

const PR_SET_PDEATHSIG: u32 = 1;
const PR_GET_PDEATHSIG: u32 = 2;
const PR_GET_DUMPABLE: u32 = 3;
const PR_SET_DUMPABLE: u32 = 4;
const PR_GET_KEEPCAPS: u32 = 7;
const PR_SET_KEEPCAPS: u32 = 8;
const PR_GET_TIMING: u32 = 13;
const PR_SET_TIMING: u32 = 14;
const PR_SET_NAME: u32 = 15;
const PR_GET_NAME: u32 = 16;
const PR_GET_SECCOMP: u32 = 21;
const PR_CAPBSET_READ: u32 = 23;
const PR_CAPBSET_DROP: u32 = 24;
const PR_GET_TSC: u32 = 25;
const PR_GET_SECUREBITS: u32 = 27;
const PR_SET_SECUREBITS: u32 = 28;
const PR_SET_TIMERSLACK: u32 = 29;
const PR_GET_TIMERSLACK: u32 = 30;
const PR_SET_CHILD_SUBREAPER: u32 = 36;
const PR_GET_CHILD_SUBREAPER: u32 = 37;
const PR_SET_NO_NEW_PRIVS: u32 = 38;
const PR_GET_NO_NEW_PRIVS: u32 = 39;
const PR_GET_TID_ADDRESS: u32 = 40;
const PR_SET_THP_DISABLE: u32 = 41;
const PR_GET_THP_DISABLE: u32 = 42;
const PR_CAP_AMBIENT: u32 = 47;
const PR_SET_VMA: u32 = 0x5356_4d41;

/// What is told of timer slack, ns.
const TIMER_SLACK: u64 = 50_000;

fn prctl(cur: &mut Current, option: u32, arg2: Hex, arg3: Hex, arg4: Hex, arg5: Hex) -> Result<u64> {
    let task = cur.task.clone();
    let process = &task.process;
    let rest = arg3.0 | arg4.0 | arg5.0;
    match option {
        PR_SET_PDEATHSIG => {
            if arg2.0 >= u64::from(set::SIGNALS) {
                return Err(EINVAL);
            }
            task.parent_death_signal.store(arg2.0 as u32, Relaxed);
            Ok(0)
        }
        PR_GET_PDEATHSIG => {
            cur.mm.write_value(UserPtr::new(UserAddr(arg2.0)), &task.parent_death_signal.load(Relaxed))?;
            Ok(0)
        }
        PR_GET_DUMPABLE => Ok(process.dumpable.load(Relaxed).into()),
        PR_SET_DUMPABLE if arg2.0 <= 1 => {
            process.dumpable.store(arg2.0 as u32, Relaxed);
            Ok(0)
        }
        PR_SET_NAME => {
            let mut name = [0; super::NAME_MAX];
            // Up to the terminating NUL; what lies behind it need not be readable.
            let text = match cur.mm.read_cstr(UserAddr(arg2.0), super::NAME_MAX) {
                Ok(text) => text,
                Err(crate::errno::ENAMETOOLONG) => {
                    cur.mm.read(UserAddr(arg2.0), &mut name)?;
                    name.to_vec()
                }
                Err(error) => return Err(error),
            };
            task.set_name(&text);
            Ok(0)
        }
        PR_GET_NAME => {
            let mut name = [0; super::NAME_MAX + 1];
            let text = task.name_bytes();
            name[..text.len()].copy_from_slice(&text);
            cur.mm.write(UserAddr(arg2.0), &name)?;
            Ok(0)
        }
        PR_GET_KEEPCAPS => Ok(u64::from(task.creds().securebits & securebits::KEEP_CAPS != 0)),
        PR_SET_KEEPCAPS => {
            let mut creds = (*task.creds()).clone();
            if arg2.0 > 1 {
                return Err(EINVAL);
            }
            // The lock bit is the one above.
            if creds.securebits & securebits::KEEP_CAPS << 1 != 0 {
                return Err(EPERM);
            }
            creds.securebits &= !securebits::KEEP_CAPS;
            creds.securebits |= if arg2.0 == 1 { securebits::KEEP_CAPS } else { 0 };
            task.set_creds(creds);
            Ok(0)
        }
        PR_GET_SECUREBITS => Ok(task.creds().securebits.into()),
        PR_SET_SECUREBITS => set_securebits(cur, arg2.0),
        PR_CAPBSET_READ if arg2.0 <= cap::LAST.into() => Ok(task.creds().caps.bounding >> arg2.0 & 1),
        PR_CAPBSET_DROP if arg2.0 <= cap::LAST.into() => {
            let mut creds = (*task.creds()).clone();
            if !creds.capable(cap::SETPCAP) {
                return Err(EPERM);
            }
            creds.caps.bounding &= !(1 << arg2.0);
            task.set_creds(creds);
            Ok(0)
        }
        PR_CAP_AMBIENT => ambient(cur, arg2.0, arg3.0, arg4.0 | arg5.0),
        PR_SET_CHILD_SUBREAPER => {
            process.subreaper.store(arg2.0 != 0, Relaxed);
            Ok(0)
        }
        PR_GET_CHILD_SUBREAPER => {
            let value = u32::from(process.subreaper.load(Relaxed));
            cur.mm.write_value(UserPtr::new(UserAddr(arg2.0)), &value)?;
            Ok(0)
        }
        PR_SET_NO_NEW_PRIVS if arg2.0 == 1 && rest == 0 => {
            let mut creds = (*task.creds()).clone();
            creds.no_new_privs = true;
            task.set_creds(creds);
            Ok(0)
        }
        PR_GET_NO_NEW_PRIVS if arg2.0 | rest == 0 => Ok(task.creds().no_new_privs.into()),
        PR_GET_SECCOMP => Ok(0),
        PR_GET_TSC => {
            cur.mm.write_value(UserPtr::new(UserAddr(arg2.0)), &1u32)?;
            Ok(0)
        }
        PR_GET_TIMING => Ok(0),
        PR_SET_TIMING if arg2.0 == 0 => Ok(0),
        PR_SET_TIMERSLACK => Ok(0),
        PR_GET_TIMERSLACK => Ok(TIMER_SLACK),
        PR_GET_TID_ADDRESS => {
            let value = task.clear_child_tid.load(Relaxed);
            cur.mm.write_value(UserPtr::new(UserAddr(arg2.0)), &value)?;
            Ok(0)
        }
        // A hint; pages are as large as they happen to be.
        PR_SET_THP_DISABLE if rest == 0 => Ok(0),
        PR_GET_THP_DISABLE if arg2.0 | rest == 0 => Ok(0),
        // As a kernel without CONFIG_ANON_VMA_NAME; the C library ignores it.
        PR_SET_VMA => Err(EINVAL),
        _ => Err(EINVAL),
    }
}

fn set_securebits(cur: &mut Current, wanted: u64) -> Result<u64> {
    let old = cur.task.creds();
    let wanted = u32::try_from(wanted).ok().filter(|w| w & !securebits::ALL == 0).ok_or(EPERM)?;
    let locked = old.securebits & securebits::LOCKS;
    // Locks stay, and what they lock does not change.
    let frozen = (locked >> 1) & (old.securebits ^ wanted);
    if !old.capable(cap::SETPCAP) || locked & !wanted != 0 || frozen != 0 {
        return Err(EPERM);
    }
    let mut new = (*old).clone();
    new.securebits = wanted;
    cur.task.set_creds(new);
    Ok(0)
}

fn ambient(cur: &mut Current, operation: u64, which: u64, rest: u64) -> Result<u64> {
    const IS_SET: u64 = 1;
    const RAISE: u64 = 2;
    const LOWER: u64 = 3;
    const CLEAR_ALL: u64 = 4;
    let old = cur.task.creds();
    let mut new = (*old).clone();
    if rest != 0 {
        return Err(EINVAL);
    }
    if operation == CLEAR_ALL {
        if which != 0 {
            return Err(EINVAL);
        }
        new.caps.ambient = 0;
        cur.task.set_creds(new);
        return Ok(0);
    }
    if which > cap::LAST.into() {
        return Err(EINVAL);
    }
    let bit = 1u64 << which & ALL_CAPS;
    match operation {
        IS_SET => return Ok(u64::from(old.caps.ambient & bit != 0)),
        RAISE => {
            let allowed = old.caps.permitted & old.caps.inheritable & bit != 0;
            if !allowed || old.securebits & securebits::NO_CAP_AMBIENT_RAISE != 0 {
                return Err(EPERM);
            }
            new.caps.ambient |= bit;
        }
        LOWER => new.caps.ambient &= !bit,
        _ => return Err(EINVAL),
    }
    cur.task.set_creds(new);
    Ok(0)
}

const ARCH_SET_GS: u32 = 0x1001;
const ARCH_SET_FS: u32 = 0x1002;
const ARCH_GET_FS: u32 = 0x1003;
const ARCH_GET_GS: u32 = 0x1004;
const ARCH_GET_CPUID: u32 = 0x1011;

fn arch_prctl(cur: &mut Current, code: u32, addr: Hex) -> Result<u64> {
    match code {
        ARCH_SET_FS | ARCH_SET_GS => {
            if addr.0 >= sentry_abi::layout::USER_TOP {
                return Err(EPERM);
            }
            let registers = cur.registers_mut();
            *(if code == ARCH_SET_FS { &mut registers.fs_base } else { &mut registers.gs_base }) = addr.0;
            Ok(0)
        }
        ARCH_GET_FS | ARCH_GET_GS => {
            let registers = cur.registers();
            let base = if code == ARCH_GET_FS { registers.fs_base } else { registers.gs_base };
            cur.mm.write_value(UserPtr::new(UserAddr(addr.0)), &base)?;
            Ok(0)
        }
        // CPUID works in programs.
        ARCH_GET_CPUID => Ok(1),
        _ => Err(EINVAL),
    }
}
