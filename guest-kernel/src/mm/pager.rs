//! What supplies the pages of a mapping that is not anonymous: files, shared memory.

use alloc::{
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::any::Any;

use sentry_abi::layout::PAGE_SIZE;

use super::{AddressSpace, FaultError};
use crate::{
    errno::{EOPNOTSUPP, Result},
    sync::SpinLock,
};

/// Physically contiguous pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First page: a user page (each mapping entry takes a reference) or a window page (revoked through the mapping list).
    pub gpa: u64,
    pub pages: u64,
}

/// The source of a mapping's pages.
///
/// `fault` runs with the address space locked and may block on the gofer, but must not take a lock that is ever held while
/// user memory is copied: the copy itself may fault and come here.
pub trait Pager: Any + Send + Sync {
    /// Pages from page number `index` of the object: at least one, at most `max`. `write`: they are going to be written
    /// through a shared mapping.
    fn fault(&self, index: u64, max: u64, write: bool) -> Result<Extent, FaultError>;

    /// The mappings of this object, which it revokes pages of when it shrinks.
    fn mappings(&self) -> &MappingList;

    /// Device, inode and path for /proc/pid/maps.
    fn identity(&self) -> (u64, u64, String);

    /// Makes a hole of bytes `[start, end)`, whole pages (MADV_REMOVE).
    fn punch(&self, _start: u64, _end: u64) -> Result<()> {
        Err(EOPNOTSUPP)
    }

    /// Device, inode and path of what it was mapped by last, for [`Pager::identity`].
    fn set_identity(&self, _device: u64, _inode: u64, _path: String) {}
}

impl dyn Pager {
    /// The concrete type, for a subsystem that looks for its own mappings.
    pub fn downcast<T: Pager>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// Address spaces that map an object.
#[derive(Default)]
pub struct MappingList {
    spaces: SpinLock<Vec<(Weak<AddressSpace>, usize)>>,
}

impl MappingList {
    pub const fn new() -> Self {
        MappingList { spaces: SpinLock::new(Vec::new()) }
    }

    /// One more mapping of the object in that address space.
    pub(super) fn add(&self, space: &Weak<AddressSpace>) {
        let mut spaces = self.spaces.lock();
        match spaces.iter_mut().find(|(s, _)| s.ptr_eq(space)) {
            Some((_, count)) => *count += 1,
            None => spaces.push((space.clone(), 1)),
        }
    }

    pub(super) fn remove(&self, space: &Weak<AddressSpace>) {
        let mut spaces = self.spaces.lock();
        if let Some(at) = spaces.iter().position(|(s, _)| s.ptr_eq(space)) {
            spaces[at].1 -= 1;
            if spaces[at].1 == 0 {
                spaces.swap_remove(at);
            }
        }
    }

    /// How many mappings there are (shm_nattch).
    pub fn count(&self) -> u64 {
        self.spaces.lock().iter().map(|(_, count)| *count as u64).sum()
    }

    /// Whether anything maps the object.
    pub fn is_empty(&self) -> bool {
        self.spaces.lock().is_empty()
    }

    /// Removes every translation of pages `[first, last)` of `pager`; later accesses fault again. Private copies stay unless
    /// `private_too` (truncation removes them as well). Must be called without a lock that `Pager::fault` takes.
    pub fn revoke(&self, pager: &dyn Pager, first: u64, last: u64, private_too: bool) {
        let spaces: Vec<Arc<AddressSpace>> = self.spaces.lock().iter().filter_map(|(s, _)| s.upgrade()).collect();
        for space in spaces {
            space.revoke(pager, first * PAGE_SIZE, last.saturating_mul(PAGE_SIZE), private_too);
        }
    }
}
