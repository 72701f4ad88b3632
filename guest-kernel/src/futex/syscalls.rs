//! System calls of futexes.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;

use super::{Awaited, pi, robust};
use crate::{
    errno::{EINVAL, ENOSYS, EPERM, ESRCH, Error, Restart, Result},
    mm::user::{UserAddr, UserPtr},
    syscall::{Level::*, Syscall},
    syscalls,
    task::{Current, cap, table},
    time::{self, Timespec},
};

syscalls! { pub CALLS;
    202 futex(uaddr: UserAddr, op: u32, val: u32, timeout: UserAddr, uaddr2: UserAddr, val3: u32) = futex, Partial, "no priority is inherited, no requeue to a PI futex", "futex";
    273 set_robust_list(head: UserAddr, len: usize) = set_robust_list, Full, "", "futex";
    449 futex_waitv(waiters: UserPtr<UserWaiter>, count: u32, flags: u32, timeout: UserPtr<Timespec>, clock: i32) = futex_waitv, Full, "", "futex";
    274 get_robust_list(pid: i32, head: UserPtr<u64>, len: UserPtr<u64>) = get_robust_list, Full, "", "futex";
}

const WAIT: u32 = 0;
const WAKE: u32 = 1;
const REQUEUE: u32 = 3;
const CMP_REQUEUE: u32 = 4;
const WAKE_OP: u32 = 5;
const LOCK_PI: u32 = 6;
const UNLOCK_PI: u32 = 7;
const TRYLOCK_PI: u32 = 8;
const WAIT_BITSET: u32 = 9;
const WAKE_BITSET: u32 = 10;
const LOCK_PI2: u32 = 13;
const PRIVATE: u32 = 128;
const CLOCK_REALTIME: u32 = 256;

fn futex(
    cur: &mut Current,
    uaddr: UserAddr,
    op: u32,
    val: u32,
    timeout: UserAddr,
    uaddr2: UserAddr,
    val3: u32,
) -> Result<u64> {
    let private = op & PRIVATE != 0;
    let realtime = op & CLOCK_REALTIME != 0;
    let command = op & !(PRIVATE | CLOCK_REALTIME);
    if realtime && !matches!(command, WAIT | WAIT_BITSET | LOCK_PI2) {
        return Err(ENOSYS);
    }
    // For the calls without a timeout the argument is a number.
    let val2 = timeout.0 as u32;
    let mm = cur.mm.clone();
    match command {
        WAIT | WAIT_BITSET => {
            let bitset = if command == WAIT { u32::MAX } else { val3 };
            if bitset == 0 {
                return Err(EINVAL);
            }
            let deadline = if timeout.is_null() {
                u64::MAX
            } else {
                let ns = mm.read_value(UserPtr::<Timespec>::new(timeout))?.to_ns()?;
                match (command == WAIT, realtime) {
                    (true, _) => time::monotonic().saturating_add(ns),
                    (false, false) => ns,
                    (false, true) => time::realtime_deadline(ns),
                }
            };
            wait(cur, uaddr, private, val, bitset, deadline)
        }
        WAKE => super::wake(&mm, uaddr, private, val.max(1), u32::MAX).map(u64::from),
        WAKE_BITSET if val3 == 0 => Err(EINVAL),
        WAKE_BITSET => super::wake(&mm, uaddr, private, val.max(1), val3).map(u64::from),
        REQUEUE | CMP_REQUEUE => {
            if (val as i32) < 0 || (val2 as i32) < 0 {
                return Err(EINVAL);
            }
            let expected = (command == CMP_REQUEUE).then_some(val3);
            super::requeue(&mm, uaddr, uaddr2, private, val, val2, expected).map(u64::from)
        }
        LOCK_PI | LOCK_PI2 | TRYLOCK_PI => {
            let deadline = if timeout.is_null() || command == TRYLOCK_PI {
                u64::MAX
            } else {
                let ns = mm.read_value(UserPtr::<Timespec>::new(timeout))?.to_ns()?;
                if command == LOCK_PI || realtime { time::realtime_deadline(ns) } else { ns }
            };
            pi::lock(&cur.task, &mm, uaddr, private, command == TRYLOCK_PI, deadline).map(|()| 0)
        }
        UNLOCK_PI => pi::unlock(&cur.task, &mm, uaddr, private).map(|()| 0),
        WAKE_OP => super::wake_op(&mm, uaddr, uaddr2, private, val, val2, val3).map(u64::from),
        _ => Err(ENOSYS),
    }
}

fn wait(cur: &mut Current, addr: UserAddr, private: bool, val: u32, bitset: u32, deadline: u64) -> Result<u64> {
    let result = super::wait(&cur.task, &cur.mm, addr, private, val, bitset, deadline);
    match result {
        Err(Error::Restart(_)) if deadline != u64::MAX => {
            // Going on must not start the time again.
            cur.restart_with = Some(alloc::boxed::Box::new(move |cur| wait(cur, addr, private, val, bitset, deadline)));
            Err(Error::Restart(Restart::Block))
        }
        other => other.map(|()| 0),
    }
}

/// struct futex_waitv.
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct UserWaiter {
    value: u64,
    addr: u64,
    flags: u32,
    reserved: u32,
}

const MAX_WAITERS: u32 = 128;

fn futex_waitv(
    cur: &mut Current,
    waiters: UserPtr<UserWaiter>,
    count: u32,
    flags: u32,
    timeout: UserPtr<Timespec>,
    clock: i32,
) -> Result<usize> {
    const SIZE_U32: u32 = 2;
    if flags != 0 || !(1..=MAX_WAITERS).contains(&count) || waiters.is_null() {
        return Err(EINVAL);
    }
    let deadline = match (timeout.is_null(), clock) {
        (true, _) => u64::MAX,
        (false, 0) => time::realtime_deadline(cur.mm.read_value(timeout)?.to_ns()?),
        (false, 1) => cur.mm.read_value(timeout)?.to_ns()?,
        _ => return Err(EINVAL),
    };
    let futexes: Vec<Awaited> = cur
        .mm
        .read_array(waiters, count as usize)?
        .into_iter()
        .map(|w| {
            let known = w.flags & !(SIZE_U32 | PRIVATE) == 0 && w.flags & 3 == SIZE_U32 && w.reserved == 0;
            let expected = u32::try_from(w.value).ok().filter(|_| known).ok_or(EINVAL)?;
            Ok(Awaited { addr: UserAddr(w.addr), expected, private: w.flags & PRIVATE != 0 })
        })
        .collect::<Result<_>>()?;
    super::wait_any(&cur.task, &cur.mm, &futexes, deadline)
}

fn set_robust_list(cur: &mut Current, head: UserAddr, len: usize) -> Result<()> {
    if len != robust::HEAD_SIZE {
        return Err(EINVAL);
    }
    cur.task.robust_list.store(head.0, SeqCst);
    Ok(())
}

fn get_robust_list(cur: &mut Current, pid: i32, head: UserPtr<u64>, len: UserPtr<u64>) -> Result<()> {
    let target = if pid == 0 { cur.task.clone() } else { table::task(pid).ok_or(ESRCH)? };
    let (ours, theirs) = (cur.task.creds(), target.creds());
    if ours.fsuid != theirs.uid && !ours.capable(cap::SYS_PTRACE) {
        return Err(EPERM);
    }
    cur.mm.write_value(len, &(robust::HEAD_SIZE as u64))?;
    cur.mm.write_value(head, &target.robust_list.load(SeqCst))
}
