//! What integration tests share: where the binary is, the C programs, running something with a time limit, running it in a
//! sandbox and reading its counters, and the emulated machine that runs KVM tests where the host has no hardware KVM.
//!
//! A test's body is written once against [`platform::Platform`] and runs natively, on ptrace and on KVM.

pub mod binary;
pub mod bundle;
pub mod command;
pub mod host;
pub mod machine;
pub mod platform;
pub mod programs;
pub mod sandbox;
pub mod terminal;
