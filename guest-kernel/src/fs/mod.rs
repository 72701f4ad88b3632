//! The virtual file system: inodes and open files behind traits, the tree of names and mounts over them, descriptors.
//!
//! - [`Inode`], [`FileSystem`]: what a file system implements; [`FileOps`]: what an open file does.
//! - [`File`]: an open file description; [`FdTable`]: descriptors that refer to it.
//! - [`Dentry`]: cached names; [`Mount`]: what is seen where; [`Path`]: a dentry through a mount; [`Walk`]: path to [`Path`].
//!
//! User memory is never copied while a lock is held that a page fault on a file takes (`mm::Pager::fault`).

mod access;
pub mod anon;
mod context;
pub mod dentry;
pub mod dev;
pub mod epoll;
pub mod eventfd;
mod fdtable;
mod file;
pub mod gofer;
mod inode;
pub mod inotify;
pub mod locks;
mod mount;
pub mod mqueue;
pub mod namei;
pub mod overlay;
mod path;
pub mod permission;
pub mod pipe;
pub mod proc;
pub mod program;
pub mod ring;
pub mod setup;
pub mod signalfd;
pub mod stdio;
pub mod syscalls;
#[cfg(test)]
mod tests;
pub mod tmpfs;
pub mod tty;
mod xattr;

pub use context::FsContext;
pub use dentry::Dentry;
pub use fdtable::{FdTable, closed};
pub use file::{AsyncOwner, DirEntry, File, FileOps, OWN_POSITION, OpenFlags, mmap_pager, open_files, poll};
pub use inode::*;
pub use mount::{Mount, MountFlags};
pub use path::{Followed, Last, NAME_MAX, PATH_MAX, Parent, Path, Resolve, Walk};
pub use setup::{namespace_root, setup};
