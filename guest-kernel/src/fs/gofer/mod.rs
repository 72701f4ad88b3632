//! The container's files, served by the gofer: a FUSE client with caches.
//!
//! A mount is `exclusive` (nobody else changes the files: names, absent names, attributes and listings are cached without
//! limit in time) or shared (everything is asked for again). Reads and mappings go through the window, which shows the
//! host's page cache, so they are coherent with writes, which go to the host at once.

mod attr;
mod client;
mod dir;
mod file;
mod inode;
mod node;
#[cfg(test)]
pub(super) mod tests;
mod window;

pub use client::{Client, Owner};
pub use inode::mount;
pub use node::{GoferFs, Node};
