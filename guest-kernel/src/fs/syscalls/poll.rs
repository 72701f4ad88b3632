//! poll(2), select(2) and epoll(7) calls, eventfd(2), signalfd(2).

use alloc::{sync::Arc, vec::Vec};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::UserTimespec;
use crate::{
    errno::{EBADF, EFAULT, EINVAL, Error, Restart, Result},
    fs::{File, OpenFlags, epoll, eventfd, poll, signalfd::SignalFd},
    mm::user::{UserAddr, UserPtr},
    sched,
    signal::SigSet,
    sync::PollTable,
    syscall::{Fd, Hex, Level::*, Syscall},
    syscalls,
    task::{Current, Resource},
    time,
};

syscalls! { pub CALLS;
    7 poll(fds: UserPtr<PollFd>, count: u64, timeout: i32) = poll, Full, "", "pipe";
    271 ppoll(fds: UserPtr<PollFd>, count: u64, timeout: UserPtr<UserTimespec>, mask: UserPtr<u64>, size: usize) = ppoll, Full, "", "pipe";
    23 select(count: i32, read: UserAddr, write: UserAddr, except: UserAddr, timeout: UserPtr<[i64; 2]>) = select, Full, "", "pipe";
    270 pselect6(count: i32, read: UserAddr, write: UserAddr, except: UserAddr, timeout: UserPtr<UserTimespec>, mask: UserPtr<[u64; 2]>) = pselect6, Full, "", "pipe";
    213 epoll_create(size: i32) = epoll_create, Full, "", "pipe";
    291 epoll_create1(flags: Hex) = epoll_create1, Full, "", "pipe";
    233 epoll_ctl(epfd: Fd, operation: i32, fd: Fd, event: UserPtr<epoll::UserEvent>) = epoll_ctl, Full, "", "pipe";
    232 epoll_wait(epfd: Fd, events: UserPtr<epoll::UserEvent>, max: i32, timeout: i32) = epoll_wait, Full, "", "pipe";
    281 epoll_pwait(epfd: Fd, events: UserPtr<epoll::UserEvent>, max: i32, timeout: i32, mask: UserPtr<u64>, size: usize) = epoll_pwait, Full, "", "pipe";
    441 epoll_pwait2(epfd: Fd, events: UserPtr<epoll::UserEvent>, max: i32, timeout: UserPtr<UserTimespec>, mask: UserPtr<u64>, size: usize) = epoll_pwait2, Full, "", "pipe";
    284 eventfd(initial: u32) = eventfd, Full, "", "pipe";
    282 signalfd(fd: Fd, mask: UserPtr<u64>, size: usize) = signalfd, Full, "", "signal";
    289 signalfd4(fd: Fd, mask: UserPtr<u64>, size: usize, flags: Hex) = signalfd4, Full, "", "signal";
    290 eventfd2(initial: u32, flags: Hex) = eventfd2, Full, "", "pipe";
}

/// struct pollfd.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct PollFd {
    fd: i32,
    events: u16,
    revents: u16,
}

/// Milliseconds from now as a deadline; negative: never.
fn deadline_ms(timeout: i32) -> u64 {
    match u64::try_from(timeout) {
        Ok(ms) => time::monotonic().saturating_add(ms * 1_000_000),
        Err(_) => u64::MAX,
    }
}

/// Waits until `check` yields something, registered with what it depends on. `check` gets a table on its first pass only.
fn wait<R>(deadline: u64, mut check: impl FnMut(Option<&mut PollTable>) -> Option<R>) -> Result<Option<R>> {
    if deadline <= time::monotonic() {
        return Ok(check(None));
    }
    let mut table = PollTable::new(sched::current_wake());
    if let Some(result) = check(Some(&mut table)) {
        return Ok(Some(result));
    }
    loop {
        // Registered: what becomes ready from here on wakes us.
        if let Some(result) = check(None) {
            return Ok(Some(result));
        }
        if sched::interrupted() {
            return Err(Error::Restart(Restart::NoHandler));
        }
        if !sched::park_until(deadline) {
            return Ok(check(None));
        }
    }
}

fn do_poll(cur: &mut Current, fds: UserPtr<PollFd>, count: u64, deadline: u64) -> Result<usize> {
    if count > cur.task.process.limits.lock().soft(Resource::Nofile).min(1 << 20) {
        return Err(EINVAL);
    }
    let mut entries = cur.mm.read_array(fds, count as usize)?;
    let table = cur.task.files();
    let files: Vec<Option<Arc<File>>> =
        entries.iter().map(|e| if e.fd < 0 { None } else { table.get(e.fd).ok() }).collect();
    let entries_ref = &mut entries;
    let ready = wait(deadline, |mut queues| {
        let mut ready = 0;
        for (entry, file) in entries_ref.iter_mut().zip(&files) {
            let events = match file {
                Some(file) => file.poll(entry.events.into(), if ready == 0 { queues.as_deref_mut() } else { None }),
                None if entry.fd < 0 => 0,
                None => poll::NVAL,
            };
            entry.revents = events as u16;
            ready += usize::from(events != 0);
        }
        (ready > 0).then_some(ready)
    })?;
    for (i, entry) in entries.iter().enumerate() {
        let at = fds.nth(i as u64)?.addr.offset(6)?;
        cur.mm.write_value(UserPtr::new(at), &entry.revents)?;
    }
    Ok(ready.unwrap_or(0))
}

fn poll(cur: &mut Current, fds: UserPtr<PollFd>, count: u64, timeout: i32) -> Result<usize> {
    do_poll(cur, fds, count, deadline_ms(timeout))
}

impl Current {
    /// Writes the time left back to the caller, as select(2) and ppoll(2) do.
    pub fn write_left(&self, timeout: UserPtr<UserTimespec>, deadline: u64) {
        if timeout.is_null() {
            return;
        }
        let left = deadline.saturating_sub(time::monotonic());
        let value = UserTimespec { sec: (left / 1_000_000_000) as i64, nsec: (left % 1_000_000_000) as i64 };
        // Read-only memory is no reason to fail what has been done.
        let _ = self.mm.write_value(timeout, &value);
    }
}

/// Runs `call` with another signal mask. An interrupted call gets its old mask back once the signal has been delivered.
fn with_mask<R>(
    cur: &mut Current,
    mask: UserPtr<u64>,
    size: usize,
    call: impl FnOnce(&mut Current) -> Result<R>,
) -> Result<R> {
    if mask.is_null() {
        return call(cur);
    }
    if size != 8 {
        return Err(EINVAL);
    }
    let set = SigSet(cur.mm.read_value(mask)?);
    cur.set_temporary_mask(set);
    let result = call(cur);
    cur.end_temporary_mask(&result);
    result
}

fn ppoll(
    cur: &mut Current,
    fds: UserPtr<PollFd>,
    count: u64,
    timeout: UserPtr<UserTimespec>,
    mask: UserPtr<u64>,
    size: usize,
) -> Result<usize> {
    let deadline = cur.deadline(timeout)?;
    let result = with_mask(cur, mask, size, |cur| do_poll(cur, fds, count, deadline));
    cur.write_left(timeout, deadline);
    result
}

/// The three sets of select(2): in as asked, out as found.
struct Sets {
    words: [Vec<u64>; 3],
}

const SELECT_EVENTS: [u32; 3] = [
    poll::IN | poll::RDNORM | poll::RDBAND | poll::HUP | poll::ERR,
    poll::OUT | poll::WRNORM | poll::WRBAND | poll::ERR,
    poll::PRI,
];

fn do_select(cur: &mut Current, count: i32, sets: [UserAddr; 3], deadline: u64) -> Result<usize> {
    let count = usize::try_from(count).map_err(|_| EINVAL)?;
    let table = cur.task.files();
    // Descriptors beyond the table are not open; Linux looks no further either.
    let count = count.min(table.capacity().max(64));
    let words = count.div_ceil(64);
    let mut asked = Sets { words: [const { Vec::new() }; 3] };
    for (set, addr) in asked.words.iter_mut().zip(sets) {
        *set = if addr.is_null() { alloc::vec![0; words] } else { cur.mm.read_array(UserPtr::new(addr), words)? };
        if let (Some(last), rest @ 1..) = (set.last_mut(), count % 64) {
            *last &= (1 << rest) - 1;
        }
    }
    let mut files = Vec::new();
    for fd in 0..count {
        let mut interest = 0;
        for (set, events) in asked.words.iter().zip(SELECT_EVENTS) {
            if set[fd / 64] >> (fd % 64) & 1 != 0 {
                interest |= events;
            }
        }
        if interest != 0 {
            files.push((fd, interest, table.get(fd as i32).map_err(|_| EBADF)?));
        }
    }
    let mut found = Sets { words: core::array::from_fn(|_| alloc::vec![0u64; words]) };
    let ready = wait(deadline, |mut queues| {
        let mut ready = 0;
        for (fd, interest, file) in &files {
            let events = file.poll(*interest, if ready == 0 { queues.as_deref_mut() } else { None });
            for ((set, wanted), out) in asked.words.iter().zip(SELECT_EVENTS).zip(&mut found.words) {
                if set[fd / 64] >> (fd % 64) & 1 != 0 && events & wanted != 0 {
                    out[fd / 64] |= 1 << (fd % 64);
                    ready += 1;
                }
            }
        }
        (ready > 0).then_some(ready)
    })?;
    for (set, addr) in found.words.iter().zip(sets) {
        if !addr.is_null() {
            cur.mm.write(addr, set.as_bytes())?;
        }
    }
    Ok(ready.unwrap_or(0))
}

fn select(
    cur: &mut Current,
    count: i32,
    read: UserAddr,
    write: UserAddr,
    except: UserAddr,
    timeout: UserPtr<[i64; 2]>,
) -> Result<usize> {
    let mut deadline = u64::MAX;
    if !timeout.is_null() {
        let [sec, usec] = cur.mm.read_value(timeout)?;
        if sec < 0 || usec < 0 {
            return Err(EINVAL);
        }
        let ns = (sec as u64).saturating_mul(1_000_000_000).saturating_add((usec as u64).saturating_mul(1000));
        deadline = time::monotonic().saturating_add(ns).min(u64::MAX - 1);
    }
    let result = do_select(cur, count, [read, write, except], deadline);
    if !timeout.is_null() {
        let left = deadline.saturating_sub(time::monotonic()) / 1000;
        let _ = cur.mm.write_value(timeout, &[(left / 1_000_000) as i64, (left % 1_000_000) as i64]);
    }
    result
}

fn pselect6(
    cur: &mut Current,
    count: i32,
    read: UserAddr,
    write: UserAddr,
    except: UserAddr,
    timeout: UserPtr<UserTimespec>,
    mask: UserPtr<[u64; 2]>,
) -> Result<usize> {
    let deadline = cur.deadline(timeout)?;
    let [mask, size] = if mask.is_null() { [0, 0] } else { cur.mm.read_value(mask)? };
    let mask = UserPtr::new(UserAddr(mask));
    let result = with_mask(cur, mask, size as usize, |cur| do_select(cur, count, [read, write, except], deadline));
    cur.write_left(timeout, deadline);
    result
}

fn epoll_create(cur: &mut Current, size: i32) -> Result<i32> {
    if size <= 0 { Err(EINVAL) } else { epoll_create1(cur, Hex(0)) }
}

fn epoll_create1(cur: &mut Current, flags: Hex) -> Result<i32> {
    let flags = flags_arg(flags, OpenFlags::CLOEXEC)?;
    let file = epoll::Epoll::open(&cur.task.creds());
    cur.install(file, flags.contains(OpenFlags::CLOEXEC))
}

fn flags_arg(flags: Hex, allowed: OpenFlags) -> Result<OpenFlags> {
    let flags = u32::try_from(flags.0).ok().and_then(OpenFlags::from_bits).ok_or(EINVAL)?;
    if allowed.contains(flags) { Ok(flags) } else { Err(EINVAL) }
}

fn epoll_ctl(cur: &mut Current, epfd: Fd, operation: i32, fd: Fd, event: UserPtr<epoll::UserEvent>) -> Result<()> {
    const DELETE: i32 = 2;
    let event = if operation == DELETE { epoll::UserEvent::default() } else { cur.mm.read_value(event)? };
    let instance = cur.file(epfd)?;
    let target = cur.file(fd)?;
    if Arc::ptr_eq(&instance, &target) {
        return Err(EINVAL);
    }
    let epoll = instance.ops().downcast::<epoll::Epoll>().ok_or(EINVAL)?;
    epoll.control(operation, fd.0, &target, event)
}

fn do_epoll_wait(
    cur: &mut Current,
    epfd: Fd,
    events: UserPtr<epoll::UserEvent>,
    max: i32,
    deadline: u64,
) -> Result<usize> {
    let max = usize::try_from(max).ok().filter(|&m| m > 0 && m < (i32::MAX as usize) / 12).ok_or(EINVAL)?;
    let file = cur.file(epfd)?;
    let epoll = file.ops().downcast::<epoll::Epoll>().ok_or(EINVAL)?;
    let ready = epoll.wait(max.min(1024), deadline)?;
    for (i, event) in ready.iter().enumerate() {
        if cur.mm.write_value(events.nth(i as u64)?, event).is_err() {
            return if i == 0 { Err(EFAULT) } else { Ok(i) };
        }
    }
    Ok(ready.len())
}

fn epoll_wait(cur: &mut Current, epfd: Fd, events: UserPtr<epoll::UserEvent>, max: i32, timeout: i32) -> Result<usize> {
    do_epoll_wait(cur, epfd, events, max, deadline_ms(timeout))
}

fn epoll_pwait(
    cur: &mut Current,
    epfd: Fd,
    events: UserPtr<epoll::UserEvent>,
    max: i32,
    timeout: i32,
    mask: UserPtr<u64>,
    size: usize,
) -> Result<usize> {
    let deadline = deadline_ms(timeout);
    with_mask(cur, mask, size, |cur| do_epoll_wait(cur, epfd, events, max, deadline))
}

fn epoll_pwait2(
    cur: &mut Current,
    epfd: Fd,
    events: UserPtr<epoll::UserEvent>,
    max: i32,
    timeout: UserPtr<UserTimespec>,
    mask: UserPtr<u64>,
    size: usize,
) -> Result<usize> {
    let deadline = cur.deadline(timeout)?;
    with_mask(cur, mask, size, |cur| do_epoll_wait(cur, epfd, events, max, deadline))
}

fn eventfd(cur: &mut Current, initial: u32) -> Result<i32> {
    eventfd2(cur, initial, Hex(0))
}

fn eventfd2(cur: &mut Current, initial: u32, flags: Hex) -> Result<i32> {
    const SEMAPHORE: u64 = 1;
    let semaphore = flags.0 & SEMAPHORE != 0;
    let flags = flags_arg(Hex(flags.0 & !SEMAPHORE), OpenFlags::CLOEXEC | OpenFlags::NONBLOCK)?;
    let file = eventfd::EventFd::open(initial.into(), semaphore, flags, &cur.task.creds());
    cur.install(file, flags.contains(OpenFlags::CLOEXEC))
}

fn signalfd(cur: &mut Current, fd: Fd, mask: UserPtr<u64>, size: usize) -> Result<i32> {
    signalfd4(cur, fd, mask, size, Hex(0))
}

fn signalfd4(cur: &mut Current, fd: Fd, mask: UserPtr<u64>, size: usize, flags: Hex) -> Result<i32> {
    let flags = flags_arg(flags, OpenFlags::CLOEXEC | OpenFlags::NONBLOCK)?;
    if size != 8 {
        return Err(EINVAL);
    }
    let wanted = SigSet(cur.mm.read_value(mask)?).without(SigSet::UNBLOCKABLE);
    if fd.0 == -1 {
        let file = SignalFd::open(wanted, flags, &cur.task.creds());
        return cur.install(file, flags.contains(OpenFlags::CLOEXEC));
    }
    let file = cur.file(fd)?;
    file.ops().downcast::<SignalFd>().ok_or(EINVAL)?.set(wanted);
    Ok(fd.0)
}
