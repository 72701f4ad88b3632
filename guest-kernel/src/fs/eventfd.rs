//! eventfd(2): a counter that can be waited for.

use alloc::{string::String, sync::Arc};

use super::{File, FileOps, FileType, OpenFlags, anon, poll};
use crate::{
    errno::{EAGAIN, EINVAL, Result},
    mm::io::{IoDst, IoSrc},
    sync::{PollTable, SpinLock, WaitQueue},
    task::Creds,
};

pub struct EventFd {
    count: SpinLock<u64>,
    semaphore: bool,
    queue: Arc<WaitQueue>,
}

/// Highest count.
const MAX: u64 = u64::MAX - 1;

impl EventFd {
    pub fn open(initial: u64, semaphore: bool, flags: OpenFlags, creds: &Creds) -> Arc<File> {
        let ops = Arc::new(EventFd { count: SpinLock::new(initial), semaphore, queue: Arc::new(WaitQueue::new()) });
        let path = anon::path(FileType::Regular, 0o600, creds, |_| String::from("anon_inode:[eventfd]"), None);
        File::new(ops, path, flags & OpenFlags::NONBLOCK | OpenFlags::RDWR)
    }

    fn take(&self) -> Option<u64> {
        let mut count = self.count.lock();
        if *count == 0 {
            return None;
        }
        let value = if self.semaphore { 1 } else { *count };
        *count -= value;
        Some(value)
    }

    fn add(&self, value: u64) -> Option<()> {
        let mut count = self.count.lock();
        *count = count.checked_add(value).filter(|&c| c <= MAX)?;
        Some(())
    }
}

impl FileOps for EventFd {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() < 8 {
            return Err(EINVAL);
        }
        let value = match self.take() {
            Some(value) => value,
            None if file.nonblocking() => return Err(EAGAIN),
            None => self.queue.wait_until(|| self.take())?,
        };
        self.queue.wake(poll::OUT | poll::WRNORM);
        dst.put(&value.to_ne_bytes())
    }

    fn write(&self, file: &File, src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        let mut bytes = [0; 8];
        if src.get(&mut bytes)? < 8 {
            return Err(EINVAL);
        }
        let value = u64::from_ne_bytes(bytes);
        if value == u64::MAX {
            return Err(EINVAL);
        }
        match self.add(value) {
            Some(()) => {}
            None if file.nonblocking() => return Err(EAGAIN),
            None => self.queue.wait_until(|| self.add(value))?,
        }
        self.queue.wake(poll::IN | poll::RDNORM);
        Ok(8)
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            table.add(&self.queue, interest | poll::ALWAYS);
        }
        let count = *self.count.lock();
        let mut ready = 0;
        if count > 0 {
            ready |= poll::IN | poll::RDNORM;
        }
        if count < MAX {
            ready |= poll::OUT | poll::WRNORM;
        }
        ready
    }

    fn pollable(&self) -> bool {
        true
    }

    fn fdinfo(&self, out: &mut String) {
        use core::fmt::Write;
        let _ = writeln!(out, "eventfd-count: {:16x}", *self.count.lock());
    }
}
