//! The devices of a sandbox, host side: the virtio-mmio transport, the file server (gofer), the standard streams (console)
//! and the control channel between the command line, the VMM and the sentry.
//!
//! Everything that comes from the sandbox (descriptors, lengths, messages) is hostile and checked here.

pub mod console;
pub mod control;
pub mod gofer;
pub mod virtio;
