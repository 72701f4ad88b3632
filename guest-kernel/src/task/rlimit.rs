//! Resource limits and use: getrlimit(2), prlimit(2), getrusage(2), times(2).

use alloc::sync::Arc;

use super::{
    Current, Limit, Process, Resource,
    creds::cap,
    groups,
    syscalls::Rusage,
    times::{Usage, to_ticks},
};
use crate::{
    errno::{EINVAL, EPERM, Result},
    mm::user::UserPtr,
    syscall::{Level::*, Syscall},
    syscalls, time,
};

syscalls! { pub CALLS;
    97 getrlimit(resource: u32, limit: UserPtr<Limit>) = getrlimit, Full, "", "limit";
    98 getrusage(who: i32, usage: UserPtr<Rusage>) = getrusage, Full, "", "clock";
    100 times(buf: UserPtr<[u64; 4]>) = times, Full, "", "clock";
    160 setrlimit(resource: u32, limit: UserPtr<Limit>) = setrlimit, Full, "", "limit";
    302 prlimit64(pid: i32, resource: u32, new: UserPtr<Limit>, old: UserPtr<Limit>) = prlimit64, Full, "", "limit";
}

/// Highest RLIMIT_NOFILE (fs.nr_open).
const NR_OPEN: u64 = 1 << 20;

fn read(process: &Process, resource: u32) -> Result<Limit> {
    process.limits.lock().by_number(resource).map(|l| *l).ok_or(EINVAL)
}

fn write(cur: &Current, process: &Arc<Process>, resource: u32, new: Limit) -> Result<()> {
    if new.soft > new.hard {
        return Err(EINVAL);
    }
    if resource == Resource::Nofile as u32 && new.hard > NR_OPEN {
        return Err(EPERM);
    }
    let limits = {
        let mut limits = process.limits.lock();
        let limit = limits.by_number(resource).ok_or(EINVAL)?;
        if new.hard > limit.hard && !cur.task.capable(cap::SYS_RESOURCE) {
            return Err(EPERM);
        }
        *limit = new;
        *limits
    };
    if resource == Resource::Cpu as u32 {
        process.timers.watch_cpu_limit(process);
    }
    if let Some(mm) = process.main_thread().and_then(|t| t.mm()) {
        mm.set_limits(limits.soft(Resource::Stack), limits.soft(Resource::Data), limits.soft(Resource::As));
    }
    Ok(())
}

fn getrlimit(cur: &mut Current, resource: u32, limit: UserPtr<Limit>) -> Result<()> {
    let value = read(&cur.task.process, resource)?;
    cur.mm.write_value(limit, &value)
}

fn setrlimit(cur: &mut Current, resource: u32, limit: UserPtr<Limit>) -> Result<()> {
    let new = cur.mm.read_value(limit)?;
    let process = cur.task.process.clone();
    write(cur, &process, resource, new)
}

fn prlimit64(cur: &mut Current, pid: i32, resource: u32, new: UserPtr<Limit>, old: UserPtr<Limit>) -> Result<()> {
    let process = groups::find(cur, pid)?;
    if !Arc::ptr_eq(&process, &cur.task.process) {
        let ours = cur.task.creds();
        let same = process.main_thread().is_none_or(|t| {
            let theirs = t.creds();
            [theirs.uid, theirs.euid, theirs.suid].iter().all(|id| *id == ours.uid)
                && [theirs.gid, theirs.egid, theirs.sgid].iter().all(|id| *id == ours.gid)
        });
        if !same && !ours.capable(cap::SYS_RESOURCE) {
            return Err(EPERM);
        }
    }
    let wanted = if new.is_null() { None } else { Some(cur.mm.read_value(new)?) };
    let before = read(&process, resource)?;
    if let Some(wanted) = wanted {
        write(cur, &process, resource, wanted)?;
    }
    if old.is_null() { Ok(()) } else { cur.mm.write_value(old, &before) }
}

fn getrusage(cur: &mut Current, who: i32, usage: UserPtr<Rusage>) -> Result<()> {
    const SELF: i32 = 0;
    const CHILDREN: i32 = -1;
    const THREAD: i32 = 1;
    let process = &cur.task.process;
    let value: Usage = match who {
        SELF => process.usage(),
        CHILDREN => *process.dead_children.lock(),
        THREAD => cur.task.usage(),
        _ => return Err(EINVAL),
    };
    cur.mm.write_value(usage, &Rusage::from(value))
}

fn times(cur: &mut Current, buf: UserPtr<[u64; 4]>) -> Result<u64> {
    if !buf.is_null() {
        let own = cur.task.process.usage();
        let children = *cur.task.process.dead_children.lock();
        let ticks = [own.user, own.system, children.user, children.system].map(to_ticks);
        cur.mm.write_value(buf, &ticks)?;
    }
    Ok(to_ticks(time::boottime()))
}
