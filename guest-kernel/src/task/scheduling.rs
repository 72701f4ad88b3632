//! Scheduling parameters (sched(7)): kept and reported. The scheduler is round robin whatever they say.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering::Relaxed;

use super::{Current, Resource, Task, creds::cap, table};
use crate::{
    arch,
    errno::{E2BIG, EACCES, EINVAL, EPERM, ESRCH, Result},
    mm::user::{UserAddr, UserPtr},
    sched,
    syscall::{Level::*, Syscall},
    syscalls,
    time::Timespec,
};

syscalls! { pub CALLS;
    24 sched_yield() = sched_yield, Full, "", "sched";
    140 getpriority(which: u32, who: i32) = getpriority, Full, "", "sched";
    141 setpriority(which: u32, who: i32, value: i32) = setpriority, Partial, "kept, not acted on", "sched";
    142 sched_setparam(pid: i32, param: UserPtr<i32>) = sched_setparam, Partial, "kept, not acted on", "sched";
    143 sched_getparam(pid: i32, param: UserPtr<i32>) = sched_getparam, Full, "", "sched";
    144 sched_setscheduler(pid: i32, policy: u32, param: UserPtr<i32>) = sched_setscheduler, Partial, "kept, not acted on", "sched";
    145 sched_getscheduler(pid: i32) = sched_getscheduler, Full, "", "sched";
    146 sched_get_priority_max(policy: u32) = sched_get_priority_max, Full, "", "sched";
    147 sched_get_priority_min(policy: u32) = sched_get_priority_min, Full, "", "sched";
    148 sched_rr_get_interval(pid: i32, interval: UserPtr<Timespec>) = sched_rr_get_interval, Full, "", "sched";
    203 sched_setaffinity(pid: i32, size: usize, mask: UserAddr) = sched_setaffinity, Full, "", "sched";
    204 sched_getaffinity(pid: i32, size: usize, mask: UserAddr) = sched_getaffinity, Full, "", "sched";
    251 ioprio_set(which: u32, who: i32, ioprio: u32) = ioprio_set, Partial, "kept, not acted on", "sched";
    252 ioprio_get(which: u32, who: i32) = ioprio_get, Full, "", "sched";
    309 getcpu(cpu: UserPtr<u32>, node: UserPtr<u32>) = getcpu, Full, "", "sched";
    314 sched_setattr(pid: i32, attr: UserPtr<SchedAttr>, flags: u32) = sched_setattr, Partial, "kept, not acted on", "sched";
    315 sched_getattr(pid: i32, attr: UserPtr<SchedAttr>, size: u32, flags: u32) = sched_getattr, Full, "", "sched";
}

const SCHED_OTHER: u32 = 0;
const SCHED_FIFO: u32 = 1;
const SCHED_RR: u32 = 2;
const SCHED_BATCH: u32 = 3;
const SCHED_IDLE: u32 = 5;
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;
/// Time slice that SCHED_RR tasks are told, ns.
const SLICE: u64 = 5_000_000;

fn sched_yield(_cur: &mut Current) -> Result<()> {
    sched::yield_now();
    Ok(())
}

fn find(cur: &Current, pid: i32) -> Result<Arc<Task>> {
    match pid {
        0 => Ok(cur.task.clone()),
        pid if pid < 0 => Err(EINVAL),
        pid => table::task(pid).ok_or(ESRCH),
    }
}

/// Tasks that PRIO_PROCESS, PRIO_PGRP or PRIO_USER selects.
fn select(cur: &Current, which: u32, who: i32) -> Result<Vec<Arc<Task>>> {
    let tasks: Vec<Arc<Task>> = match which {
        0 => return find(cur, who).map(|t| alloc::vec![t]).map_err(|_| ESRCH),
        1 => {
            let group = if who == 0 { cur.task.process.pgid() } else { who };
            table::lock().tasks().filter(|t| t.process.pgid() == group).cloned().collect()
        }
        2 => {
            let uid = if who == 0 { cur.task.creds().uid } else { who as u32 };
            table::lock().tasks().filter(|t| t.creds().uid == uid).cloned().collect()
        }
        _ => return Err(EINVAL),
    };
    if tasks.is_empty() { Err(ESRCH) } else { Ok(tasks) }
}

/// The kernel's form of a nice value: 40 (highest priority) to 1.
fn getpriority(cur: &mut Current, which: u32, who: i32) -> Result<i32> {
    let tasks = select(cur, which, who)?;
    tasks.iter().map(|t| 20 - t.nice.load(Relaxed)).max().ok_or(ESRCH)
}

fn may_change(cur: &Current, target: &Task) -> Result<()> {
    let (ours, theirs) = (cur.task.creds(), target.creds());
    if ours.euid == theirs.uid || ours.euid == theirs.euid || ours.capable(cap::SYS_NICE) { Ok(()) } else { Err(EPERM) }
}

fn setpriority(cur: &mut Current, which: u32, who: i32, value: i32) -> Result<()> {
    let value = value.clamp(-20, 19);
    for task in select(cur, which, who)? {
        may_change(cur, &task)?;
        let allowed = task.process.limits.lock().soft(Resource::Nice);
        let lowers = value >= task.nice.load(Relaxed) || (20 - value) as u64 <= allowed;
        if !lowers && !cur.task.capable(cap::SYS_NICE) {
            return Err(EACCES);
        }
        task.nice.store(value, Relaxed);
    }
    Ok(())
}

fn sched_setscheduler(cur: &mut Current, pid: i32, policy: u32, param: UserPtr<i32>) -> Result<()> {
    if param.is_null() {
        return Err(EINVAL);
    }
    let task = find(cur, pid)?;
    let priority = cur.mm.read_value(param)?;
    set_policy(cur, &task, policy & !SCHED_RESET_ON_FORK, priority)
}

fn set_policy(cur: &Current, task: &Task, policy: u32, priority: i32) -> Result<()> {
    let real_time = match policy {
        SCHED_FIFO | SCHED_RR => true,
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE => false,
        _ => return Err(EINVAL),
    };
    if real_time != (1..=99).contains(&priority) || (!real_time && priority != 0) {
        return Err(EINVAL);
    }
    may_change(cur, task)?;
    let allowed = task.process.limits.lock().soft(Resource::Rtprio);
    if real_time && priority as u64 > allowed && !cur.task.capable(cap::SYS_NICE) {
        return Err(EPERM);
    }
    task.policy.store(policy, Relaxed);
    task.priority.store(priority, Relaxed);
    Ok(())
}

fn sched_getscheduler(cur: &mut Current, pid: i32) -> Result<u32> {
    Ok(find(cur, pid)?.policy.load(Relaxed))
}

fn sched_setparam(cur: &mut Current, pid: i32, param: UserPtr<i32>) -> Result<()> {
    if param.is_null() {
        return Err(EINVAL);
    }
    let task = find(cur, pid)?;
    let priority = cur.mm.read_value(param)?;
    set_policy(cur, &task, task.policy.load(Relaxed), priority)
}

fn sched_getparam(cur: &mut Current, pid: i32, param: UserPtr<i32>) -> Result<()> {
    if param.is_null() {
        return Err(EINVAL);
    }
    let task = find(cur, pid)?;
    cur.mm.write_value(param, &task.priority.load(Relaxed))
}

fn priority_range(policy: u32) -> Result<(i32, i32)> {
    match policy {
        SCHED_FIFO | SCHED_RR => Ok((1, 99)),
        SCHED_OTHER | SCHED_BATCH | SCHED_IDLE | 6 => Ok((0, 0)),
        _ => Err(EINVAL),
    }
}

fn sched_get_priority_max(_cur: &mut Current, policy: u32) -> Result<i32> {
    priority_range(policy).map(|r| r.1)
}

fn sched_get_priority_min(_cur: &mut Current, policy: u32) -> Result<i32> {
    priority_range(policy).map(|r| r.0)
}

fn sched_rr_get_interval(cur: &mut Current, pid: i32, interval: UserPtr<Timespec>) -> Result<()> {
    let task = find(cur, pid)?;
    let slice = if task.policy.load(Relaxed) == SCHED_FIFO { 0 } else { SLICE };
    cur.mm.write_value(interval, &Timespec::from_ns(slice))
}

/// struct sched_attr.
#[derive(Clone, Copy, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// Bytes of its first version, which ended before `util_min`.
const SCHED_ATTR_SIZE_VER0: usize = 48;

fn sched_setattr(cur: &mut Current, pid: i32, attr: UserPtr<SchedAttr>, flags: u32) -> Result<()> {
    if flags != 0 {
        return Err(EINVAL);
    }
    let task = find(cur, pid)?;
    let size = cur.mm.read_value(UserPtr::<u32>::new(attr.addr))? as usize;
    let size = if size == 0 { SCHED_ATTR_SIZE_VER0 } else { size };
    if !(SCHED_ATTR_SIZE_VER0..=4096).contains(&size) {
        cur.mm.write_value(UserPtr::new(attr.addr), &(size_of::<SchedAttr>() as u32))?;
        return Err(E2BIG);
    }
    let known = size.min(size_of::<SchedAttr>());
    // What this kernel does not know must be zero.
    let mut rest = alloc::vec![0; size - known];
    cur.mm.read(attr.addr.offset(known as u64)?, &mut rest)?;
    if rest.iter().any(|&b| b != 0) {
        cur.mm.write_value(UserPtr::new(attr.addr), &(size_of::<SchedAttr>() as u32))?;
        return Err(E2BIG);
    }
    let mut value = SchedAttr::default();
    cur.mm.read(attr.addr, &mut zerocopy::IntoBytes::as_mut_bytes(&mut value)[..known])?;
    let attr = value;
    set_policy(cur, &task, attr.policy, attr.priority as i32)?;
    if matches!(attr.policy, SCHED_OTHER | SCHED_BATCH) {
        let lowers = attr.nice >= task.nice.load(Relaxed);
        if !lowers && !cur.task.capable(cap::SYS_NICE) {
            return Err(EPERM);
        }
        task.nice.store(attr.nice.clamp(-20, 19), Relaxed);
    }
    Ok(())
}

fn sched_getattr(cur: &mut Current, pid: i32, attr: UserPtr<SchedAttr>, size: u32, flags: u32) -> Result<()> {
    if attr.is_null() || flags != 0 || (size as usize) < SCHED_ATTR_SIZE_VER0 || size > 4096 {
        return Err(EINVAL);
    }
    let known = size_of::<SchedAttr>().min(size as usize);
    let task = find(cur, pid)?;
    let value = SchedAttr {
        size: known as u32,
        policy: task.policy.load(Relaxed),
        nice: task.nice.load(Relaxed),
        priority: task.priority.load(Relaxed) as u32,
        ..SchedAttr::default()
    };
    cur.mm.write(attr.addr, &zerocopy::IntoBytes::as_bytes(&value)[..known])
}

fn online() -> u64 {
    u64::MAX >> (64 - sched::cpus_online().clamp(1, 64))
}

fn sched_setaffinity(cur: &mut Current, pid: i32, size: usize, mask: UserAddr) -> Result<()> {
    let task = find(cur, pid).map_err(|_| ESRCH)?;
    let mut bytes = [0u8; 8];
    let known = size.min(8);
    cur.mm.read(mask, &mut bytes[..known])?;
    may_change(cur, &task)?;
    let wanted = u64::from_le_bytes(bytes) & online();
    if wanted == 0 {
        return Err(EINVAL);
    }
    task.affinity.store(wanted, Relaxed);
    if Arc::ptr_eq(&task, &cur.task) {
        sched::obey_affinity();
    } else {
        // It looks at its affinity when it is next queued.
        sched::preempt(&task);
    }
    Ok(())
}

fn sched_getaffinity(cur: &mut Current, pid: i32, size: usize, mask: UserAddr) -> Result<usize> {
    if !size.is_multiple_of(8) || size < sched::cpus_online().div_ceil(8) {
        return Err(EINVAL);
    }
    let task = find(cur, pid).map_err(|_| ESRCH)?;
    let value = task.affinity.load(Relaxed) & online();
    cur.mm.write(mask, &value.to_le_bytes())?;
    Ok(8)
}

fn ioprio_set(cur: &mut Current, which: u32, who: i32, ioprio: u32) -> Result<()> {
    let class = ioprio >> 13;
    if class > 3 {
        return Err(EINVAL);
    }
    if class == 1 && !cur.task.capable(cap::SYS_ADMIN) {
        return Err(EPERM);
    }
    for task in select(cur, which.checked_sub(1).ok_or(EINVAL)?, who)? {
        may_change(cur, &task)?;
        task.io_priority.store(ioprio, Relaxed);
    }
    Ok(())
}

/// The best of those selected: the lowest number. Unset, it is best effort in the middle.
fn ioprio_get(cur: &mut Current, which: u32, who: i32) -> Result<u32> {
    let tasks = select(cur, which.checked_sub(1).ok_or(EINVAL)?, who)?;
    let priority = |task: &Arc<Task>| match task.io_priority.load(Relaxed) {
        0 => 2 << 13 | 4,
        set => set,
    };
    tasks.iter().map(priority).min().ok_or(ESRCH)
}

fn getcpu(cur: &mut Current, cpu: UserPtr<u32>, node: UserPtr<u32>) -> Result<()> {
    if !cpu.is_null() {
        cur.mm.write_value(cpu, &(arch::cpu_index() as u32))?;
    }
    if node.is_null() { Ok(()) } else { cur.mm.write_value(node, &0) }
}
