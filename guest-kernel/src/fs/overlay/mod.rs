//! A writable overlay in memory over a gofer's files: what `do` and `--overlay` use, so that nothing reaches the host.
//!
//! Unlike Linux's overlayfs there is no upper file system: a node keeps its own attributes and content once it differs from
//! the node below, and a directory keeps the names that differ (made, moved here, or gone). A directory that was moved still
//! reads from the node below it, so it can be moved without copying. Content is copied up at the first write, attributes
//! alone when only they change; a file that was open for reading then sees the new content.

mod dir;
mod file;
mod inode;
mod node;
#[cfg(test)]
mod tests;

pub use node::OverlayFs;
