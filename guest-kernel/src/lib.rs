//! The sentry: a Linux-compatible kernel for one sandbox.
//!
//! It builds twice: as the freestanding image that a vCPU runs (`--cfg sentry_image`, see `main.rs`), and as a plain
//! library whose logic `cargo test` checks on the host. `unsafe` is allowed in `arch` and `mm` only.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
extern crate alloc;

#[allow(unsafe_code)]
pub mod arch;
pub mod boot;
pub mod counters;
pub mod drivers;
pub mod errno;
pub mod fs;
pub mod futex;
pub mod ipc;
pub mod log;
#[allow(unsafe_code)]
pub mod mm;
pub mod net;
pub mod random;
pub mod sched;
pub mod signal;
pub mod sync;
pub mod syscall;
pub mod task;
pub mod time;
pub mod uts;
