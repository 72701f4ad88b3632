//! The virtual machine monitor: what runs the sentry, without knowing what the sentry does.
pub mod boot_params;
pub mod clock;
pub mod hostcall;
pub mod image;
pub mod kvm;
pub mod loader;
pub mod machine;
pub mod memory;
mod recorder;
pub mod seccomp;
pub mod symbols;
pub mod vcpu;
pub mod window_files;
pub mod xstate;
