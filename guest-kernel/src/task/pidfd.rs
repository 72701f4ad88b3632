//! pidfd_open(2): a process as a descriptor, readable once it has ended.

use alloc::{string::String, sync::Arc};

use super::{Current, Pid, Process, table};
use crate::{
    errno::{EBADF, EINVAL, ESRCH, Result},
    fs::{File, FileOps, FileType, OpenFlags, anon, poll},
    mm::user::UserPtr,
    signal::{SigInfo, syscalls as signals},
    sync::PollTable,
    syscall::{Fd, Hex, Level::*, Syscall},
    syscalls,
    task::Creds,
};

syscalls! { pub CALLS;
    424 pidfd_send_signal(pidfd: Fd, sig: u32, info: UserPtr<SigInfo>, flags: u32) = pidfd_send_signal, Full, "", "process";
    434 pidfd_open(pid: i32, flags: Hex) = pidfd_open, Full, "", "process";
}

pub struct PidFd {
    process: Arc<Process>,
}

impl FileOps for PidFd {
    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            table.add(&self.process.ended, interest | poll::ALWAYS);
        }
        if self.process.zombie().is_some() { poll::IN | poll::RDNORM } else { 0 }
    }

    fn pollable(&self) -> bool {
        true
    }

    fn fdinfo(&self, out: &mut String) {
        use core::fmt::Write;
        let pid = if table::process(self.process.pid).is_some_and(|p| Arc::ptr_eq(&p, &self.process)) {
            self.process.pid
        } else {
            -1
        };
        let _ = writeln!(out, "Pid:\t{pid}\nNSpid:\t{pid}");
    }
}

/// A descriptor for the process.
pub fn open(process: &Arc<Process>, flags: OpenFlags, creds: &Creds) -> Arc<File> {
    let ops = Arc::new(PidFd { process: process.clone() });
    let path = anon::path(FileType::Regular, 0o600, creds, |_| String::from("anon_inode:[pidfd]"), None);
    File::new(ops, path, flags & OpenFlags::NONBLOCK | OpenFlags::RDWR)
}

/// The process behind a descriptor.
pub fn process_of(file: &File) -> Result<Arc<Process>> {
    file.ops().downcast::<PidFd>().map(|p| p.process.clone()).ok_or(EBADF)
}

fn pidfd_open(cur: &mut Current, pid: i32, flags: Hex) -> Result<i32> {
    let flags = OpenFlags::from_bits(flags.0 as u32).filter(|f| OpenFlags::NONBLOCK.contains(*f)).ok_or(EINVAL)?;
    if pid <= 0 {
        return Err(EINVAL);
    }
    let process = match table::process(pid) {
        Some(process) => process,
        // A thread that is no leader.
        None if table::task(pid).is_some() => return Err(EINVAL),
        None => return Err(ESRCH),
    };
    let file = open(&process, flags, &cur.task.creds());
    cur.install(file, true)
}

fn pidfd_send_signal(cur: &mut Current, pidfd: Fd, sig: u32, info: UserPtr<SigInfo>, flags: u32) -> Result<()> {
    if flags != 0 {
        return Err(EINVAL);
    }
    let file = cur.task.files().get(pidfd.0)?;
    // A directory of /proc does as well.
    let process = process_of(&file).or_else(|error| crate::fs::proc::process_of(&**file.inode()).ok_or(error))?;
    let alive = table::process(process.pid).is_some_and(|p| Arc::ptr_eq(&p, &process));
    if !alive {
        return Err(ESRCH);
    }
    signals::send_to_process(cur, &process, sig, info)
}

/// The pid that a wait on the descriptor is for.
pub fn waited_pid(cur: &Current, fd: i32) -> Result<Pid> {
    Ok(process_of(&*cur.task.files().get(fd)?)?.pid)
}
