//! System calls of tasks and processes.

use core::sync::atomic::Ordering::SeqCst;

use super::{Pid, exit};
use crate::{
    errno::{EFAULT, EINVAL, EPERM, Result},
    mm::user::{UserAddr, UserPtr},
    syscall::{Hex, Level::*, Syscall},
    syscalls,
    task::Current,
};

syscalls! { pub CALLS;
    39 getpid() = getpid, Full, "", "process";
    60 exit(status: i32) = exit, Full, "", "process";
    110 getppid() = getppid, Full, "", "process";
    158 arch_prctl(code: u32, addr: Hex) = arch_prctl, Full, "", "process";
    186 gettid() = gettid, Full, "", "process";
    218 set_tid_address(tidptr: UserAddr) = set_tid_address, Full, "", "process";
    231 exit_group(status: i32) = exit_group, Full, "", "process";
}

fn getpid(cur: &mut Current) -> Result<Pid> {
    Ok(cur.task.process.pid)
}

fn gettid(cur: &mut Current) -> Result<Pid> {
    Ok(cur.task.tid())
}

fn getppid(cur: &mut Current) -> Result<Pid> {
    Ok(cur.task.process.ppid())
}

fn exit(cur: &mut Current, status: i32) -> Result<()> {
    cur.exit_status = Some(exit::exited(status));
    Ok(())
}

fn exit_group(cur: &mut Current, status: i32) -> Result<()> {
    exit::end_process(&cur.task.process, exit::exited(status));
    Ok(())
}

fn set_tid_address(cur: &mut Current, tidptr: UserAddr) -> Result<Pid> {
    cur.task.clear_child_tid.store(tidptr.0, SeqCst);
    Ok(cur.task.tid())
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
            cur.mm.write_value(UserPtr::new(UserAddr(addr.0)), &base).map_err(|_| EFAULT)?;
            Ok(0)
        }
        // CPUID works in programs.
        ARCH_GET_CPUID => Ok(1),
        _ => Err(EINVAL),
    }
}
