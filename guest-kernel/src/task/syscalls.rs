//! System calls of tasks and processes.

use crate::{
    errno::Result,
    syscall::{Level::*, Syscall},
    syscalls,
    task::Current,
};

syscalls! { pub CALLS;
    39 getpid() = getpid, Full, "", "processes";
}

fn getpid(cur: &mut Current) -> Result<u64> {
    Ok(cur.task.tid as u64)
}
