//! signalfd(2): pending signals of the reader as something to read and poll.

use alloc::{string::String, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::{
    deliver,
    info::{SigInfo, code},
    set::{SIGBUS, SIGCHLD, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, SigSet},
    syscalls::check_size,
};
use crate::{
    errno::{EAGAIN, EINVAL, Result},
    fs::{File, FileOps, FileType, OpenFlags, anon, poll},
    mm::{io::IoDst, user::UserPtr},
    sched,
    sync::PollTable,
    syscall::{Fd, Hex, Level::*, Syscall},
    syscalls,
    task::{Creds, Current},
};

syscalls! { pub CALLS;
    282 signalfd(fd: Fd, mask: UserPtr<u64>, size: usize) = signalfd, Full, "", "signal";
    289 signalfd4(fd: Fd, mask: UserPtr<u64>, size: usize, flags: Hex) = signalfd4, Full, "", "signal";
}

struct SignalFd {
    mask: AtomicU64,
}

/// struct signalfd_siginfo.
#[derive(Clone, Copy, FromZeros, IntoBytes, Immutable)]
#[repr(C)]
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
    ptr: u64,
    utime: u64,
    stime: u64,
    addr: u64,
    addr_lsb: u16,
    _pad: u16,
    syscall: i32,
    call_addr: u64,
    arch: u32,
    _rest: [u8; 28],
}

const _: () = assert!(size_of::<Record>() == 128);

impl From<&SigInfo> for Record {
    fn from(info: &SigInfo) -> Self {
        let [first, second, third, fourth] = info.fields;
        let mut record = Record::new_zeroed();
        record.signo = info.signo as u32;
        record.errno = info.errno;
        record.code = info.code;
        match (info.signal(), info.code) {
            (SIGCHLD, how) if how > 0 => {
                (record.pid, record.uid) = (first as u32, (first >> 32) as u32);
                (record.status, record.utime, record.stime) = (second as i32, third, fourth);
            }
            (SIGSEGV | SIGBUS | SIGILL | SIGFPE | SIGTRAP, how) if how > 0 => record.addr = first,
            (_, code::SI_TIMER) => {
                (record.tid, record.overrun) = (first as u32, (first >> 32) as u32);
                (record.int, record.ptr) = (second as i32, second);
            }
            _ => {
                (record.pid, record.uid) = (first as u32, (first >> 32) as u32);
                (record.int, record.ptr) = (second as i32, second);
            }
        }
        record
    }
}

impl SignalFd {
    fn mask(&self) -> SigSet {
        SigSet(self.mask.load(SeqCst))
    }

    /// Takes a pending signal of the reading task.
    fn take(&self) -> Option<SigInfo> {
        let task = sched::current()?;
        let mut state = task.process.state.lock();
        deliver::take(&task, &mut state, self.mask())
    }
}

impl FileOps for SignalFd {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        let size = size_of::<Record>();
        if dst.remaining() < size {
            return Err(EINVAL);
        }
        let mut done = 0;
        while dst.remaining() >= size {
            let info = match self.take() {
                Some(info) => info,
                None if done > 0 => break,
                None if file.nonblocking() => return Err(EAGAIN),
                None => {
                    let Some(task) = sched::current() else { return Err(EAGAIN) };
                    let info = task.process.signalled.wait_until(|| self.take());
                    // What was taken may have been all that asked for attention.
                    deliver::recalculate(&task);
                    info?
                }
            };
            done += dst.put(Record::from(&info).as_bytes())?;
        }
        Ok(done)
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        let Some(task) = sched::current() else { return 0 };
        if let Some(table) = table {
            table.add(&task.process.signalled, interest | poll::ALWAYS);
        }
        let state = task.process.state.lock();
        let pending = task.pending.lock().set().union(state.pending.set());
        if pending.intersection(self.mask()).is_empty() { 0 } else { poll::IN | poll::RDNORM }
    }

    fn pollable(&self) -> bool {
        true
    }

    fn fdinfo(&self, out: &mut String) {
        use core::fmt::Write;
        let _ = writeln!(out, "sigmask:\t{:016x}", self.mask().0);
    }
}

fn open(mask: SigSet, flags: OpenFlags, creds: &Creds) -> Arc<File> {
    let ops = Arc::new(SignalFd { mask: AtomicU64::new(mask.0) });
    let path = anon::path(FileType::Regular, 0o600, creds, |_| String::from("anon_inode:[signalfd]"), None);
    File::new(ops, path, flags & OpenFlags::NONBLOCK | OpenFlags::RDWR)
}

fn signalfd(cur: &mut Current, fd: Fd, mask: UserPtr<u64>, size: usize) -> Result<i32> {
    signalfd4(cur, fd, mask, size, Hex(0))
}

fn signalfd4(cur: &mut Current, fd: Fd, mask: UserPtr<u64>, size: usize, flags: Hex) -> Result<i32> {
    check_size(size)?;
    let mask = SigSet(cur.mm.read_value(mask)?).without(SigSet::UNBLOCKABLE);
    let known = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK;
    let flags = OpenFlags::from_bits(flags.0 as u32).filter(|f| known.contains(*f)).ok_or(EINVAL)?;
    if fd.0 == -1 {
        let file = open(mask, flags, &cur.task.creds());
        return cur.install(file, flags.contains(OpenFlags::CLOEXEC));
    }
    let file = cur.task.files().get(fd.0)?;
    file.ops().downcast::<SignalFd>().ok_or(EINVAL)?.mask.store(mask.0, SeqCst);
    cur.task.process.signalled.wake_all();
    Ok(fd.0)
}
