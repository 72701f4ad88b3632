//! Process groups and sessions (setpgid(2), setsid(2)).

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use super::{Current, Pid, Process, Session, table};
use crate::{
    errno::{EACCES, EINVAL, EPERM, ESRCH, Result},
    syscall::{Level::*, Syscall},
    syscalls,
};

syscalls! { pub CALLS;
    109 setpgid(pid: i32, pgid: i32) = setpgid, Full, "", "group";
    111 getpgrp() = getpgrp, Full, "", "group";
    112 setsid() = setsid, Full, "", "group";
    121 getpgid(pid: i32) = getpgid, Full, "", "group";
    124 getsid(pid: i32) = getsid, Full, "", "group";
}

/// A process by pid, or the tid of one of its threads; 0: the caller's.
pub fn find(cur: &Current, pid: Pid) -> Result<Arc<Process>> {
    if pid == 0 {
        return Ok(cur.task.process.clone());
    }
    table::process(pid).or_else(|| table::task(pid).map(|t| t.process.clone())).ok_or(ESRCH)
}

fn setpgid(cur: &mut Current, pid: i32, pgid: i32) -> Result<()> {
    let me = cur.task.process.clone();
    let pid = if pid == 0 { me.pid } else { pid };
    let pgid = if pgid == 0 { pid } else { pgid };
    if pgid < 0 {
        return Err(EINVAL);
    }
    let mut table = table::lock();
    let target = table.process(pid).ok_or(ESRCH)?;
    let session = target.session();
    if target.ppid() == me.pid {
        if session.sid != me.session().sid {
            return Err(EPERM);
        }
        if target.has_executed.load(Relaxed) {
            return Err(EACCES);
        }
    } else if target.pid != me.pid {
        return Err(ESRCH);
    }
    if session.sid == target.pid {
        return Err(EPERM);
    }
    if pgid != pid && table.session_of_group(pgid) != Some(me.session().sid) {
        return Err(EPERM);
    }
    if target.pgid() != pgid {
        table.move_to_group(&target, pgid);
    }
    Ok(())
}

fn getpgrp(cur: &mut Current) -> Result<Pid> {
    Ok(cur.task.process.pgid())
}

fn getpgid(cur: &mut Current, pid: i32) -> Result<Pid> {
    Ok(find(cur, pid)?.pgid())
}

fn getsid(cur: &mut Current, pid: i32) -> Result<Pid> {
    Ok(find(cur, pid)?.session().sid)
}

fn setsid(cur: &mut Current) -> Result<Pid> {
    let process = cur.task.process.clone();
    let mut table = table::lock();
    // A leader of a group would leave its group behind in another session.
    if process.session().sid == process.pid || !table.group(process.pid).is_empty() {
        return Err(EPERM);
    }
    table.move_to_session(&process, Session::new(process.pid));
    table.move_to_group(&process, process.pid);
    Ok(process.pid)
}
