//! Memory: physical frames, page tables, address spaces, the kernel heap, and the way to user memory.

pub mod buddy;
pub mod dma;
mod fault;
pub mod frames;
pub mod heap;
pub mod io;
pub mod kmem;
mod mapping;
pub mod page_table;
mod pager;
pub mod shared;
mod atomic {
    pub use core::sync::atomic::{AtomicU64, Ordering, fence};
}
macro_rules! constructor {
    ($value:expr) => {
        #[allow(clippy::new_without_default)]
        pub const fn new() -> Self {
            $value
        }
    };
}
pub mod shootdown;
mod space;
pub mod syscalls;
pub mod table;
#[cfg(test)]
mod tests;
pub mod user;
mod vma;

pub use fault::FaultError;
pub use frames::{Page, quiesce};
pub use mapping::MapRequest;
pub use pager::{Extent, MappingList, Pager};
pub use shared::{Quota, SharedPages};
pub use space::{AddressSpace, Layout};
pub use vma::{Prot, Vma, VmaFlags, VmaKind};

/// Takes over user memory (at most `limit` bytes; 0: all) and the kernel half of page tables.
pub fn init(params: &sentry_abi::boot::BootParams, limit: u64) {
    space::init(params.boot_root);
    if frames::init(params, limit).is_err() {
        panic!("kernel memory cannot hold the page tables of {} bytes", params.user.size);
    }
}
