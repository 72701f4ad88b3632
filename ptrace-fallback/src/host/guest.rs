//! Guest kernel memory as the backend sees it: page tables, the contexts of tasks, extended-state areas, fixup tables.
//!
//! The sentry runs in this process, so its pointers are ours; every one is checked to lie in guest kernel memory, which
//! stays mapped for the sandbox's life.

use std::{
    slice,
    sync::{Arc, atomic::AtomicU64},
};

use sentry_abi::{
    context::UserContext,
    layout::{KERNEL_BASE, KERNEL_SIZE},
};
use vmm::memory::GuestMemory;

#[derive(Clone)]
pub struct KernelMemory {
    base: u64,
    _memory: Arc<GuestMemory>,
}

impl KernelMemory {
    pub fn new(memory: Arc<GuestMemory>) -> KernelMemory {
        KernelMemory { base: memory.direct_base() + KERNEL_BASE, _memory: memory }
    }

    /// Whether `[address, address + len)` (virtual) is in kernel memory and `address` is aligned.
    pub fn contains(&self, address: u64, len: u64, align: u64) -> bool {
        address.is_multiple_of(align)
            && address
                .checked_sub(self.base)
                .and_then(|offset| offset.checked_add(len))
                .is_some_and(|end| end <= KERNEL_SIZE)
    }

    /// The page table at guest-physical `gpa`.
    pub fn table(&self, gpa: u64) -> Option<&[AtomicU64; 512]> {
        let address = self.base.checked_add(gpa.checked_sub(KERNEL_BASE)?)?;
        // SAFETY: checked to be in kernel memory, which stays mapped; others change it only by atomic accesses.
        self.contains(address, 4096, 4096).then(|| unsafe { &*(address as *const [AtomicU64; 512]) })
    }

    /// A context the sentry named in a call. Its coroutine is suspended and the task is this vCPU's alone, so nobody else
    /// uses it until the call returns.
    #[allow(clippy::mut_from_ref)]
    pub fn context(&self, address: u64) -> Option<&mut UserContext> {
        let (size, align) = (size_of::<UserContext>() as u64, align_of::<UserContext>() as u64);
        // SAFETY: checked to be in kernel memory and aligned; exclusive as said above. Every bit pattern is valid.
        self.contains(address, size, align).then(|| unsafe { &mut *(address as *mut UserContext) })
    }

    /// `len` bytes at virtual `address`, exclusive as for [`Self::context`].
    #[allow(clippy::mut_from_ref)]
    pub fn bytes(&self, address: u64, len: usize) -> Option<&mut [u8]> {
        // SAFETY: as for `context`.
        self.contains(address, len as u64, 1).then(|| unsafe { slice::from_raw_parts_mut(address as *mut u8, len) })
    }
}
