//! Signals (signal(7)): sets, queues, dispositions, sending, and delivery to user code.

pub mod action;
pub mod altstack;
pub mod deliver;
pub mod fault;
pub mod frame;
pub mod info;
pub mod queue;
pub mod send;
pub mod set;
pub mod syscalls;

pub use info::SigInfo;
pub use set::SigSet;
