//! The file server of a sandbox: the process that alone may open the container's files.
//!
//! It speaks the protocol of [`sentry_abi::fuse`] over one virtio queue in device memory, and maps nothing else. It resolves
//! one component at a time below its roots (openat2 with RESOLVE_BENEATH, no symbolic or magic links), opens only regular
//! files and directories for I/O, and never executes anything.
//!
//! fuse-backend-rs was not used: it keeps a host descriptor for every inode it has ever seen (hosts give 20,000), and does
//! not use openat2. Here a node is (parent, name, device, inode) and its descriptor is a bounded cache: it is opened again
//! when needed and refused with ESTALE if it has become another file.

mod dirs;
mod files;
mod link;
mod meta;
mod nodes;
mod serve;
mod server;
#[cfg(test)]
mod tests;

pub use link::GoferBackend;
pub use serve::{GoferConfig, Root, serve};
