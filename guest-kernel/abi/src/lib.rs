//! The contract between the sentry (guest kernel) and the VMM.
//!
//! Everything here is `no_std` and used by both sides: the guest-physical layout, the boot parameters, the user register
//! context, the calls a ptrace vCPU offers in place of instructions, the host calls of both backends, the counters, and
//! the messages that describe containers. It holds no logic beyond encoding.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod boot;
pub mod config;
pub mod console;
pub mod context;
pub mod control;
pub mod counters;
pub mod fuse;
pub mod hostcall;
pub mod irq;
pub mod layout;
pub mod para;
pub mod virtio;
