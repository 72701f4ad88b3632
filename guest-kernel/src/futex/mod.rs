//! Futexes (futex(2)): threads that wait for a word of user memory to change.
//!
//! Waiters hang in hash buckets by key: address space and address for private memory, the physical address for shared
//! memory. The word is read with the bucket locked, so that a wake-up after a change finds whoever saw the old value.

pub mod pi;
pub mod robust;
pub mod syscalls;

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};

use crate::{
    errno::{EAGAIN, ETIMEDOUT, Error, Restart, Result},
    mm::{AddressSpace, Page, frames, user::UserAddr},
    sched,
    sync::{SpinLock, SpinLockGuard},
    task::Task,
};

/// What names a futex.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    /// Root of the address space, and the address.
    Private(u64, u64),
    /// Guest-physical address.
    Shared(u64),
}

const BUCKETS: usize = 256;

impl Key {
    /// The key, and for shared memory a reference that keeps its page from being reused.
    fn of(mm: &AddressSpace, addr: UserAddr, private: bool) -> Result<(Key, Option<Page>)> {
        // Aligned, readable.
        mm.load_u32(addr)?;
        if private || mm.find(addr.0).is_none_or(|vma| vma.is_private()) {
            return Ok((Key::Private(mm.root(), addr.0), None));
        }
        let gpa = mm.physical(addr)?;
        frames::get(gpa & !(sentry_abi::layout::PAGE_SIZE - 1));
        let page = Page::from_reference(gpa & !(sentry_abi::layout::PAGE_SIZE - 1));
        Ok((Key::Shared(gpa), Some(page)))
    }

    fn bucket(&self) -> usize {
        let value = match self {
            Key::Private(root, addr) => root.rotate_left(20) ^ addr,
            Key::Shared(gpa) => *gpa,
        };
        // Fibonacci hashing of the word's number.
        ((value >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % BUCKETS
    }
}

struct Waiter {
    task: Arc<Task>,
    /// Changed by a requeue, with both buckets locked.
    key: SpinLock<Key>,
    bitset: u32,
    /// Waits to be given the word (FUTEX_LOCK_PI); wake-ups pass it by.
    pi: bool,
    woken: AtomicBool,
}

type Bucket = Vec<Arc<Waiter>>;

static TABLE: [SpinLock<Bucket>; BUCKETS] = [const { SpinLock::new(Vec::new()) }; BUCKETS];

/// Waits until woken while the word holds `expected`. `deadline`: CLOCK_MONOTONIC ns, `u64::MAX` for none.
pub fn wait(
    task: &Arc<Task>,
    mm: &AddressSpace,
    addr: UserAddr,
    private: bool,
    expected: u32,
    bitset: u32,
    deadline: u64,
) -> Result<()> {
    let (key, _page) = Key::of(mm, addr, private)?;
    let waiter = Waiter::new(task, key, bitset);
    enqueue(&waiter, mm, addr, key, expected)?;
    let result = loop {
        if waiter.woken.load(SeqCst) {
            break Ok(());
        }
        if task.sched.interrupted() {
            break Err(Error::Restart(Restart::Sys));
        }
        if !sched::park_until(deadline) {
            break Err(ETIMEDOUT);
        }
    };
    if result.is_err() && leave(&waiter) {
        return result;
    }
    Ok(())
}

/// Puts a waiter into its bucket while the word holds `expected`; EAGAIN otherwise.
fn enqueue(waiter: &Arc<Waiter>, mm: &AddressSpace, addr: UserAddr, key: Key, expected: u32) -> Result<()> {
    loop {
        {
            let mut bucket = TABLE[key.bucket()].lock();
            match mm.load_u32_present(addr) {
                Some(value) if value == expected => {
                    bucket.push(waiter.clone());
                    return Ok(());
                }
                Some(_) => return Err(EAGAIN),
                None => {}
            }
        }
        mm.load_u32(addr)?;
    }
}

/// One futex of [`wait_any`].
pub struct Awaited {
    pub addr: UserAddr,
    pub expected: u32,
    pub private: bool,
}

/// futex_waitv(2): waits for whichever is woken first, and gives its index.
pub fn wait_any(task: &Arc<Task>, mm: &AddressSpace, futexes: &[Awaited], deadline: u64) -> Result<usize> {
    let mut keys = Vec::new();
    for futex in futexes {
        keys.push(Key::of(mm, futex.addr, futex.private)?);
    }
    let mut waiters: Vec<Arc<Waiter>> = Vec::new();
    let mut result = Ok(());
    for (futex, (key, _page)) in futexes.iter().zip(&keys) {
        let waiter = Waiter::new(task, *key, u32::MAX);
        result = enqueue(&waiter, mm, futex.addr, *key, futex.expected);
        if result.is_err() {
            break;
        }
        waiters.push(waiter);
    }
    let woken = |waiters: &[Arc<Waiter>]| waiters.iter().any(|w| w.woken.load(SeqCst));
    while result.is_ok() && !woken(&waiters) {
        if task.sched.interrupted() {
            result = Err(Error::Restart(Restart::Sys));
        } else if !sched::park_until(deadline) {
            result = Err(ETIMEDOUT);
        }
    }
    let mut first = None;
    for (index, waiter) in waiters.iter().enumerate() {
        if !leave(waiter) {
            first = first.or(Some(index));
        }
    }
    // A wake-up that came while giving up must not be lost.
    match first {
        Some(index) => Ok(index),
        None => result.map(|()| 0),
    }
}

impl Waiter {
    fn new(task: &Arc<Task>, key: Key, bitset: u32) -> Arc<Self> {
        Arc::new(Waiter {
            task: task.clone(),
            key: SpinLock::new(key),
            bitset,
            pi: false,
            woken: AtomicBool::new(false),
        })
    }
}

/// Takes a waiter that gives up out of its bucket; false when it has been woken after all.
fn leave(waiter: &Arc<Waiter>) -> bool {
    loop {
        let at = waiter.key.lock().bucket();
        let mut bucket = TABLE[at].lock();
        if waiter.woken.load(SeqCst) {
            return false;
        }
        if let Some(index) = bucket.iter().position(|w| Arc::ptr_eq(w, waiter)) {
            bucket.remove(index);
            return true;
        }
        // Requeued in between: look in the new bucket.
    }
}

/// Wakes up to `count` waiters whose bitset meets `bitset`; gives how many.
pub fn wake(mm: &AddressSpace, addr: UserAddr, private: bool, count: u32, bitset: u32) -> Result<u32> {
    let (key, _page) = Key::of(mm, addr, private)?;
    Ok(wake_key(key, count, bitset))
}

fn wake_key(key: Key, count: u32, bitset: u32) -> u32 {
    let woken = take(&mut TABLE[key.bucket()].lock(), key, count, bitset);
    release(&woken)
}

/// Takes waiters out of a locked bucket.
fn take(bucket: &mut Bucket, key: Key, count: u32, bitset: u32) -> Vec<Arc<Waiter>> {
    let mut taken = Vec::new();
    let mut at = 0;
    while at < bucket.len() && (taken.len() as u32) < count {
        let waiter = &bucket[at];
        if *waiter.key.lock() == key && waiter.bitset & bitset != 0 {
            taken.push(bucket.remove(at));
        } else {
            at += 1;
        }
    }
    for waiter in &taken {
        waiter.woken.store(true, SeqCst);
    }
    taken
}

fn release(waiters: &[Arc<Waiter>]) -> u32 {
    for waiter in waiters {
        sched::unpark(&waiter.task);
    }
    waiters.len() as u32
}

/// Locks the buckets of two keys, in order; the second is `None` when they are one.
fn lock_two(a: usize, b: usize) -> (SpinLockGuard<'static, Bucket>, Option<SpinLockGuard<'static, Bucket>>) {
    if a == b {
        return (TABLE[a].lock(), None);
    }
    let (low, high) = (TABLE[a.min(b)].lock(), TABLE[a.max(b)].lock());
    if a < b { (low, Some(high)) } else { (high, Some(low)) }
}

/// Wakes `wake` waiters of one futex and moves up to `requeue` others to another one; gives woken plus moved. With
/// `expected`, EAGAIN unless the first word holds that.
pub fn requeue(
    mm: &AddressSpace,
    from: UserAddr,
    to: UserAddr,
    private: bool,
    wake: u32,
    requeue: u32,
    expected: Option<u32>,
) -> Result<u32> {
    let (source, _page) = Key::of(mm, from, private)?;
    let (target, _page2) = Key::of(mm, to, private)?;
    let (woken, moved) = loop {
        {
            let (mut bucket, mut other) = lock_two(source.bucket(), target.bucket());
            let value = mm.load_u32_present(from);
            if expected.is_none() || value.is_some() {
                if expected.is_some() && value != expected {
                    return Err(EAGAIN);
                }
                let woken = take(&mut bucket, source, wake, u32::MAX);
                let mut moved = 0;
                let mut at = 0;
                while at < bucket.len() && moved < requeue {
                    if bucket[at].pi || *bucket[at].key.lock() != source {
                        at += 1;
                        continue;
                    }
                    *bucket[at].key.lock() = target;
                    moved += 1;
                    match &mut other {
                        Some(other) => {
                            let waiter = bucket.remove(at);
                            other.push(waiter);
                        }
                        None => at += 1,
                    }
                }
                break (woken, moved);
            }
        }
        mm.load_u32(from)?;
    };
    Ok(release(&woken) + moved)
}

/// FUTEX_WAKE_OP: changes the second word, wakes on the first, and on the second if its old value compares.
pub fn wake_op(
    mm: &AddressSpace,
    first: UserAddr,
    second: UserAddr,
    private: bool,
    wake: u32,
    wake_second: u32,
    operation: u32,
) -> Result<u32> {
    let (key1, _page) = Key::of(mm, first, private)?;
    let (key2, _page2) = Key::of(mm, second, private)?;
    let op = Operation::decode(operation)?;
    let mut old = mm.load_u32(second)?;
    loop {
        let seen = mm.compare_exchange_u32(second, old, op.apply(old))?;
        if seen == old {
            break;
        }
        old = seen;
    }
    let mut woken = wake_key(key1, wake, u32::MAX);
    if op.compares(old) {
        woken += wake_key(key2, wake_second, u32::MAX);
    }
    Ok(woken)
}

/// The packed operation of FUTEX_WAKE_OP.
struct Operation {
    op: u32,
    arg: u32,
    cmp: u32,
    cmp_arg: i32,
}

impl Operation {
    fn decode(packed: u32) -> Result<Self> {
        const SHIFT: u32 = 8;
        let sign_extend = |v: u32| ((v << 20) as i32) >> 20;
        let op = packed >> 28 & 0xf;
        let mut arg = sign_extend(packed >> 12 & 0xfff) as u32;
        if op & SHIFT != 0 {
            arg = 1 << (arg & 31);
        }
        let op = op & 7;
        let cmp = packed >> 24 & 0xf;
        if op > 4 || cmp > 5 {
            return Err(crate::errno::ENOSYS);
        }
        Ok(Operation { op, arg, cmp, cmp_arg: sign_extend(packed & 0xfff) })
    }

    fn apply(&self, old: u32) -> u32 {
        match self.op {
            0 => self.arg,
            1 => old.wrapping_add(self.arg),
            2 => old | self.arg,
            3 => old & !self.arg,
            _ => old ^ self.arg,
        }
    }

    fn compares(&self, old: u32) -> bool {
        let old = old as i32;
        match self.cmp {
            0 => old == self.cmp_arg,
            1 => old != self.cmp_arg,
            2 => old < self.cmp_arg,
            3 => old <= self.cmp_arg,
            4 => old > self.cmp_arg,
            _ => old >= self.cmp_arg,
        }
    }
}

/// Waiters in all buckets, for the debugging dump.
pub fn waiters() -> usize {
    TABLE.iter().map(|b| b.lock().iter().filter(|w| !w.woken.load(Relaxed)).count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations() {
        // FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_GT, 0)
        let op = Operation::decode(1 << 28 | 4 << 24 | 1 << 12).unwrap();
        assert_eq!(op.apply(5), 6);
        assert!(op.compares(1) && !op.compares(0));
        // FUTEX_OP_SET -1, compare with -1
        let op = Operation::decode(0xfff << 12 | 0xfff).unwrap();
        assert_eq!(op.apply(5), u32::MAX);
        assert!(op.compares(u32::MAX));
        // Shifted argument
        let op = Operation::decode(10 << 28 | 3 << 12).unwrap();
        assert_eq!(op.apply(0), 8);
        assert!(Operation::decode(7 << 28).is_err());
    }

    #[test]
    fn keys_spread_over_buckets() {
        let used: alloc::collections::BTreeSet<usize> =
            (0..1000u64).map(|i| Key::Private(0x1000, 0x7000_0000 + i * 64).bucket()).collect();
        assert!(used.len() > 200, "{}", used.len());
    }
}
