//! Guest kernel memory as the backend sees it: page tables, the contexts of tasks, extended-state areas, fixup tables.
//!
//! The sentry runs in this process, so its pointers are ours; every one is checked to lie in guest kernel memory, which
//! stays mapped for the sandbox's life.

use std::{
    slice,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::{Context, Result, ensure};
use rustix::mm::MprotectFlags;
use sentry_abi::{
    boot::{BootParams, Region},
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

/// Makes the code of the sentry's image executable and read-only: it runs in this process. `params` is the virtual address
/// of its boot parameters. Where the image has no ELF header in memory nothing is done.
pub fn protect_image(memory: &KernelMemory, params: u64) -> Result<()> {
    let Some(image) = image(memory, params) else { return Ok(()) };
    let at = |offset: u64, len: usize| memory.bytes(memory.base + image.base + offset, len);
    let Some(header) = at(0, 64).filter(|header| header.starts_with(b"\x7fELF")) else { return Ok(()) };
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
    let half = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (table, entry_size, count) = (word(header, 32), half(header, 54), half(header, 56));
    ensure!(entry_size == 56 && count < 64, "sentry image: odd program headers");
    for index in 0..u64::from(count) {
        let program = at(table + index * 56, 56).context("sentry image: program headers outside it")?;
        const PT_LOAD: u32 = 1;
        const PF_X: u32 = 1;
        let (kind, flags) = (word(program, 0) as u32, (word(program, 0) >> 32) as u32);
        let (start, len) = (word(program, 16), word(program, 40));
        if kind != PT_LOAD || flags & PF_X == 0 || len == 0 {
            continue;
        }
        let low = start & !4095;
        let high = start.saturating_add(len).next_multiple_of(4096);
        ensure!(high <= image.size.next_multiple_of(4096), "sentry image: code outside it");
        let address = memory.base + image.base + low;
        let flags = MprotectFlags::READ | MprotectFlags::EXEC;
        // SAFETY: pages of guest memory that hold the image's code, which nothing in this process writes.
        unsafe { rustix::mm::mprotect(address as *mut _, (high - low) as usize, flags) }
            .context("making the sentry's code executable")?;
    }
    Ok(())
}

/// Guest-physical extent of the image, from the boot parameters at virtual `params`.
pub fn image(memory: &KernelMemory, params: u64) -> Option<Region> {
    let (size, align) = (size_of::<BootParams>() as u64, align_of::<BootParams>() as u64);
    // SAFETY: in kernel memory and aligned; every bit pattern of a region is valid.
    memory.contains(params, size, align).then(|| unsafe { (&raw const (*(params as *const BootParams)).image).read() })
}

/// Return addresses of the sentry's frames, innermost first, as far as its frame pointers lead.
pub fn frames(memory: &KernelMemory, mut frame: u64) -> Vec<u64> {
    let mut addresses = Vec::new();
    while addresses.len() < 32 && memory.contains(frame, 16, 8) {
        // SAFETY: in kernel memory and aligned; the sentry does not run.
        let [next, address] = unsafe { (frame as *const [u64; 2]).read() };
        addresses.push(address);
        if next <= frame {
            break;
        }
        frame = next;
    }
    addresses
}
