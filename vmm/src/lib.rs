//! The virtual machine monitor: what runs the sentry, without knowing what the sentry does.
pub mod image;
pub mod loader;
pub mod memory;
pub mod vcpu;
