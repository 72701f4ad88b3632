//! Locks and waiting.
//!
//! - [`SpinLock`]: short critical sections; nothing may block, wait for another CPU or touch user memory while one is held.
//! - [`Mutex`]: sleeps; a holder may block. Never held while copying to or from user memory if a page fault can need it
//!   (see `mm::Pager`).
//! - [`WaitQueue`]: the one way to wait for a condition, shared by blocking calls, poll, select and epoll.
//!
//! Lock order, outermost first: process table, thread group, descriptor table, inode, address space, then spin locks; of two
//! of one kind, the one with the lower address first. Debug builds check that no task blocks with a spin lock held.

mod mutex;
mod spin_lock;
mod wait;

pub use mutex::{Mutex, MutexGuard};
pub use spin::Once;
pub(crate) use spin_lock::assert_may_block as spin_lock_may_block;
pub use spin_lock::{SpinLock, SpinLockGuard};
pub use wait::{PollTable, WaitQueue, Wake};
