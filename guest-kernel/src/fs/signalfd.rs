//! signalfd(2): signals as records to read.

use alloc::{string::String, sync::Arc};

use zerocopy::{Immutable, IntoBytes};

use super::{File, FileOps, FileType, OpenFlags, anon, poll};
use crate::{
    errno::{EAGAIN, EINVAL, Result},
    mm::io::IoDst,
    sched,
    signal::{SigInfo, SigSet, deliver, set::SIGCHLD},
    sync::{PollTable, SpinLock},
    task::Creds,
};

pub struct SignalFd {
    wanted: SpinLock<SigSet>,
}

/// struct signalfd_siginfo.
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Record {
    signo: u32,
    errno: i32,
    code: i32,
    pid: u32,
    uid: u32,
    fd: i32,
    tid: u32,
    band: u32,
    overrun: u32,
    trapno: u32,
    status: i32,
    int: i32,
    pointer: u64,
    utime: u64,
    stime: u64,
    address: u64,
    rest: [u64; 6],
}

const _: () = assert!(size_of::<Record>() == 128);

impl Record {
    fn new(info: &SigInfo) -> Record {
        let [first, second, third, fourth] = info.fields;
        let child = info.signal() == SIGCHLD && info.from_kernel();
        Record {
            signo: info.signal(),
            errno: info.errno,
            code: info.code,
            pid: first as u32,
            uid: (first >> 32) as u32,
            fd: 0,
            tid: 0,
            band: 0,
            overrun: 0,
            trapno: 0,
            status: if child { second as i32 } else { 0 },
            int: if child { 0 } else { second as i32 },
            pointer: if child { 0 } else { second },
            utime: if child { third } else { 0 },
            stime: if child { fourth } else { 0 },
            address: 0,
            rest: [0; 6],
        }
    }
}

impl SignalFd {
    pub fn open(wanted: SigSet, flags: OpenFlags, creds: &Creds) -> Arc<File> {
        let ops = Arc::new(SignalFd { wanted: SpinLock::new(wanted) });
        let path = anon::path(FileType::Regular, 0o600, creds, |_| String::from("anon_inode:[signalfd]"), None);
        File::new(ops, path, flags & OpenFlags::NONBLOCK | OpenFlags::RDWR)
    }

    pub fn set(&self, wanted: SigSet) {
        *self.wanted.lock() = wanted;
        if let Some(task) = sched::current() {
            task.process.signalled.wake_all();
        }
    }

    /// The next signal that the running task has pending.
    fn take(&self) -> Option<SigInfo> {
        let wanted = *self.wanted.lock();
        let task = sched::current()?;
        let mut state = task.process.state.lock();
        deliver::take(&task, &mut state, wanted)
    }
}

impl FileOps for SignalFd {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() < size_of::<Record>() {
            return Err(EINVAL);
        }
        let mut next = self.take();
        if next.is_none() {
            if file.nonblocking() {
                return Err(EAGAIN);
            }
            let task = sched::current().ok_or(EAGAIN)?;
            next = Some(task.process.signalled.wait_until(|| self.take())?);
        }
        let mut done = 0;
        while let Some(info) = next {
            done += dst.put(Record::new(&info).as_bytes())?;
            next = if dst.remaining() >= size_of::<Record>() { self.take() } else { None };
        }
        Ok(done)
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        let Some(task) = sched::current() else { return 0 };
        if let Some(table) = table {
            table.add(&task.process.signalled, interest);
        }
        let pending = {
            let state = task.process.state.lock();
            task.pending.lock().set().union(state.pending.set())
        };
        if pending.intersection(*self.wanted.lock()).is_empty() { 0 } else { poll::IN | poll::RDNORM }
    }

    fn pollable(&self) -> bool {
        true
    }

    fn fdinfo(&self, out: &mut String) {
        use core::fmt::Write;
        let _ = writeln!(out, "sigmask:\t{:016x}", self.wanted.lock().0);
    }
}
