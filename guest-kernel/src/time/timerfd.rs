//! timerfd_create(2): a timer that is read and polled.

use alloc::{string::String, sync::Arc};

use super::{Clock, Interval, interval::Fire};
use crate::{
    errno::{EAGAIN, EINVAL, Result},
    fs::{File, FileOps, FileType, OpenFlags, anon, poll},
    mm::io::IoDst,
    sync::{PollTable, SpinLock, WaitQueue},
    task::Creds,
};

pub struct TimerFd {
    pub interval: Arc<Interval>,
    expired: Arc<Expired>,
    clock_id: i32,
}

/// Expiries nobody has read yet.
struct Expired {
    count: SpinLock<u64>,
    queue: Arc<WaitQueue>,
}

impl Fire for Expired {
    fn fire(&self, count: u64) {
        *self.count.lock() += count;
        self.queue.wake(poll::IN | poll::RDNORM);
    }
}

impl Expired {
    fn take(&self) -> Option<u64> {
        let count = core::mem::take(&mut *self.count.lock());
        (count != 0).then_some(count)
    }
}

impl TimerFd {
    pub fn open(clock: &Clock, clock_id: i32, flags: OpenFlags, creds: &Creds) -> Arc<File> {
        let expired = Arc::new(Expired { count: SpinLock::new(0), queue: Arc::new(WaitQueue::new()) });
        let ops = Arc::new(TimerFd { interval: Interval::new(clock, expired.clone()), expired, clock_id });
        let path = anon::path(FileType::Regular, 0o600, creds, |_| String::from("anon_inode:[timerfd]"), None);
        File::new(ops, path, flags & OpenFlags::NONBLOCK | OpenFlags::RDWR)
    }

    /// Sets the timer; what expired before is forgotten.
    pub fn set(&self, value: u64, interval: u64, absolute: bool) -> (u64, u64) {
        let old = self.interval.set(value, interval, absolute);
        *self.expired.count.lock() = 0;
        old
    }
}

impl FileOps for TimerFd {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() < 8 {
            return Err(EINVAL);
        }
        let count = match self.expired.take() {
            Some(count) => count,
            None if file.nonblocking() => return Err(EAGAIN),
            None => self.expired.queue.wait_until(|| self.expired.take())?,
        };
        dst.put(&count.to_ne_bytes())
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            table.add(&self.expired.queue, interest | poll::ALWAYS);
        }
        if *self.expired.count.lock() > 0 { poll::IN | poll::RDNORM } else { 0 }
    }

    fn pollable(&self) -> bool {
        true
    }

    fn fdinfo(&self, out: &mut String) {
        use core::fmt::Write;
        let (left, interval) = self.interval.get();
        let pair = |ns: u64| (ns / super::NSEC_PER_SEC, ns % super::NSEC_PER_SEC);
        let _ = writeln!(
            out,
            "clockid: {}\nticks: {}\nsettime flags: 00\nit_value: {:?}\nit_interval: {:?}",
            self.clock_id,
            *self.expired.count.lock(),
            pair(left),
            pair(interval)
        );
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        self.interval.disarm();
    }
}
