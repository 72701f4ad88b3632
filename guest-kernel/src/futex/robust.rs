//! Robust futexes: what a thread held when it ended is marked, and one waiter woken (get_robust_list(2)).

use core::sync::atomic::Ordering::SeqCst;

use super::{
    pi::{self, OWNER_DIED, TID_MASK, WAITERS},
    wake,
};
use crate::{
    errno::Result,
    mm::user::{UserAddr, UserPtr},
    task::Current,
};

/// Entries followed; a list may be a loop.
const LIMIT: usize = 2048;

/// struct robust_list_head.
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct Head {
    next: u64,
    futex_offset: i64,
    pending: u64,
}

/// Size that set_robust_list(2) must be given.
pub const HEAD_SIZE: usize = size_of::<Head>();

/// Goes through the list of the ending task. Bad addresses end the walk: the memory is the program's.
pub fn release(cur: &Current) {
    let head = cur.task.robust_list.swap(0, SeqCst);
    if head != 0 {
        let _ = walk(cur, head);
    }
}

fn walk(cur: &Current, head_at: u64) -> Result<()> {
    let head: Head = cur.mm.read_value(UserPtr::new(UserAddr(head_at)))?;
    let word = |entry: u64| (entry & !1).wrapping_add(head.futex_offset as u64);
    let mut entry = head.next;
    for _ in 0..LIMIT {
        if entry & !1 == head_at {
            break;
        }
        // Before the futex is released: its owner may free it then.
        let next = cur.mm.read_value(UserPtr::<u64>::new(UserAddr(entry & !1)));
        if entry & !1 != head.pending & !1 {
            died(cur, word(entry), entry & 1 != 0, false)?;
        }
        entry = next?;
    }
    if head.pending & !1 != 0 {
        died(cur, word(head.pending), head.pending & 1 != 0, true)?;
    }
    Ok(())
}

/// The owner of the futex at `addr` is gone. `pending`: it was about to take or release it.
fn died(cur: &Current, addr: u64, pi: bool, pending: bool) -> Result<()> {
    let addr = UserAddr(addr);
    let tid = cur.task.tid() as u32;
    let mut value = cur.mm.load_u32(addr)?;
    loop {
        if pending && !pi && value == 0 {
            // Released but nobody woken yet.
            wake(&cur.mm, addr, false, 1, u32::MAX)?;
            return Ok(());
        }
        if value & TID_MASK != tid {
            return Ok(());
        }
        if pi && value & WAITERS != 0 {
            return pi::hand_over(&cur.mm, addr, false, tid, OWNER_DIED);
        }
        let seen = cur.mm.compare_exchange_u32(addr, value, value & WAITERS | OWNER_DIED)?;
        if seen == value {
            break;
        }
        value = seen;
    }
    if !pi && value & WAITERS != 0 {
        wake(&cur.mm, addr, false, 1, u32::MAX)?;
    }
    Ok(())
}
