//! The host interfaces the backend uses, one small module each. All `unsafe` of the crate is here.

pub mod coroutine;
pub mod epoll;
pub mod faults;
pub mod fork;
pub mod futex;
pub mod guest;
pub mod ptrace;
pub mod sched;
pub mod shared;
