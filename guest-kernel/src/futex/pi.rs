//! Futexes that hold their owner's thread id (FUTEX_LOCK_PI, futex(2)): the unlocker hands the word over to the longest waiter.
//!
//! Priorities are not acted on, so nothing is inherited; what programs can see of ownership is as on Linux.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::{Key, TABLE, Waiter, leave};
use crate::{
    errno::{EAGAIN, EDEADLK, EINVAL, EPERM, ESRCH, ETIMEDOUT, Error, Restart, Result},
    mm::{AddressSpace, user::UserAddr},
    sched,
    sync::SpinLock,
    task::{Task, table},
};

pub const WAITERS: u32 = 0x8000_0000;
pub const OWNER_DIED: u32 = 0x4000_0000;
pub const TID_MASK: u32 = 0x3fff_ffff;

/// What one look at the word led to, with the bucket locked.
enum Step {
    Taken,
    /// Waits in the bucket now.
    Queued,
    /// The page must be made present and writable first.
    Fault,
    Again,
}

/// FUTEX_LOCK_PI; FUTEX_TRYLOCK_PI with `try_only`. `deadline`: CLOCK_MONOTONIC ns.
pub fn lock(
    task: &Arc<Task>,
    mm: &AddressSpace,
    addr: UserAddr,
    private: bool,
    try_only: bool,
    deadline: u64,
) -> Result<()> {
    let (key, _page) = Key::of(mm, addr, private)?;
    let tid = task.tid() as u32;
    let waiter = Arc::new(Waiter {
        task: task.clone(),
        key: SpinLock::new(key),
        bitset: 0,
        pi: true,
        woken: AtomicBool::new(false),
    });
    loop {
        match attempt(mm, addr, key, tid, &waiter, try_only)? {
            Step::Taken => return Ok(()),
            Step::Queued => break,
            Step::Again => {}
            Step::Fault => {
                let value = mm.load_u32(addr)?;
                mm.compare_exchange_u32(addr, value, value)?;
            }
        }
    }
    let result = loop {
        if waiter.woken.load(SeqCst) {
            return Ok(());
        }
        if task.sched.interrupted() {
            break Err(Error::Restart(Restart::Always));
        }
        if !sched::park_until(deadline) {
            break Err(ETIMEDOUT);
        }
    };
    // Handed over at the last moment after all?
    if leave(&waiter) { result } else { Ok(()) }
}

fn attempt(
    mm: &AddressSpace,
    addr: UserAddr,
    key: Key,
    tid: u32,
    waiter: &Arc<Waiter>,
    try_only: bool,
) -> Result<Step> {
    let mut bucket = TABLE[key.bucket()].lock();
    let Some(value) = mm.load_u32_present(addr) else { return Ok(Step::Fault) };
    let owner = value & TID_MASK;
    if owner == tid {
        return Err(EDEADLK);
    }
    let others = bucket.iter().any(|w| w.pi && *w.key.lock() == key);
    if owner == 0 {
        let new = tid | value & OWNER_DIED | if others { WAITERS } else { 0 };
        return Ok(match mm.compare_exchange_u32_present(addr, value, new) {
            None => Step::Fault,
            Some(seen) if seen == value => Step::Taken,
            Some(_) => Step::Again,
        });
    }
    if try_only {
        return Err(EAGAIN);
    }
    // Nobody would ever hand it over.
    if table::task(owner as i32).is_none() {
        return Err(ESRCH);
    }
    if value & WAITERS == 0 {
        match mm.compare_exchange_u32_present(addr, value, value | WAITERS) {
            None => return Ok(Step::Fault),
            Some(seen) if seen != value => return Ok(Step::Again),
            Some(_) => {}
        }
    }
    bucket.push(waiter.clone());
    Ok(Step::Queued)
}

/// FUTEX_UNLOCK_PI: EPERM unless the caller owns it.
pub fn unlock(task: &Task, mm: &AddressSpace, addr: UserAddr, private: bool) -> Result<()> {
    let value = mm.load_u32(addr)?;
    if value & TID_MASK != task.tid() as u32 {
        return Err(EPERM);
    }
    hand_over(mm, addr, private, task.tid() as u32, 0)
}

/// Gives the word, which `owner` holds, to the longest waiter, or to nobody; `marks`: OWNER_DIED or nothing.
pub(super) fn hand_over(mm: &AddressSpace, addr: UserAddr, private: bool, owner: u32, marks: u32) -> Result<()> {
    let (key, _page) = Key::of(mm, addr, private)?;
    let next = loop {
        {
            let mut bucket = TABLE[key.bucket()].lock();
            let mut waiting = bucket.iter().enumerate().filter(|(_, w)| w.pi && *w.key.lock() == key).map(|(i, _)| i);
            let (first, more) = (waiting.next(), waiting.next().is_some());
            let new = marks | first.map_or(0, |at| bucket[at].task.tid() as u32) | if more { WAITERS } else { 0 };
            let value = mm.load_u32_present(addr);
            if value.is_some_and(|value| value & TID_MASK != owner) {
                return Err(EINVAL);
            }
            let stored =
                value.and_then(|value| mm.compare_exchange_u32_present(addr, value, new).map(|seen| seen == value));
            match stored {
                Some(true) => {
                    let next = first.map(|at| bucket.remove(at));
                    if let Some(next) = &next {
                        next.woken.store(true, SeqCst);
                    }
                    break next;
                }
                Some(false) => continue,
                None => {}
            }
        }
        let value = mm.load_u32(addr)?;
        mm.compare_exchange_u32(addr, value, value)?;
    };
    if let Some(next) = next {
        sched::unpark(&next.task);
    }
    Ok(())
}
