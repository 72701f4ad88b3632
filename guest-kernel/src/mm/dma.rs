//! Device memory: where queues and buffers lie that helper processes see. The other side may change it at any moment, so it
//! is never borrowed, only copied and accessed through volatile or atomic operations.

use core::sync::atomic::{AtomicU16, Ordering};

use sentry_abi::{boot::Region, layout::PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    arch,
    errno::{ENOMEM, Result},
    sync::SpinLock,
};

/// Pages of the largest device memory there is.
const PAGES: usize = (sentry_abi::layout::DEVICE_SIZE / PAGE_SIZE) as usize;

/// First fit by page, so that the host memory touched stays small.
struct Allocator {
    base: u64,
    pages: usize,
    used: [u64; PAGES / 64],
}

static ALLOCATOR: SpinLock<Allocator> = SpinLock::new(Allocator { base: 0, pages: 0, used: [0; PAGES / 64] });

/// Takes over device memory.
pub fn init(region: Region) {
    let mut allocator = ALLOCATOR.lock();
    allocator.base = region.base;
    allocator.pages = ((region.size / PAGE_SIZE) as usize).min(PAGES);
}

impl Allocator {
    fn is_used(&self, page: usize) -> bool {
        self.used[page / 64] & (1 << (page % 64)) != 0
    }

    fn take(&mut self, count: usize) -> Option<usize> {
        let mut run = 0;
        for page in 0..self.pages {
            run = if self.is_used(page) { 0 } else { run + 1 };
            if run == count {
                let first = page + 1 - count;
                (first..=page).for_each(|p| self.used[p / 64] |= 1 << (p % 64));
                return Some(first);
            }
        }
        None
    }
}

/// A piece of device memory, contiguous and page aligned. Offsets beyond its end are the sentry's mistake: they panic.
pub struct DmaBuffer {
    gpa: u64,
    pages: usize,
}

impl DmaBuffer {
    /// At least `len` bytes, with whatever was there before. ENOMEM when device memory is used up.
    pub fn new(len: usize) -> Result<DmaBuffer> {
        let pages = len.div_ceil(PAGE_SIZE as usize).max(1);
        let mut allocator = ALLOCATOR.lock();
        let first = allocator.take(pages).ok_or(ENOMEM)?;
        Ok(DmaBuffer { gpa: allocator.base + first as u64 * PAGE_SIZE, pages })
    }

    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    pub fn len(&self) -> usize {
        self.pages * PAGE_SIZE as usize
    }

    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len()), "beyond a device buffer");
        arch::direct_map(self.gpa + offset as u64)
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: the range lies in this buffer, which is device memory that no reference covers; `bytes` is elsewhere.
        unsafe { arch::copy::copy_fallible(to, bytes.as_ptr(), bytes.len()) };
    }

    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: as for `write`.
        unsafe { arch::copy::copy_fallible(bytes.as_mut_ptr(), from, bytes.len()) };
    }

    pub fn write_object<T: IntoBytes + Immutable>(&self, offset: usize, object: &T) {
        self.write(offset, object.as_bytes())
    }

    pub fn read_object<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut object = T::new_zeroed();
        self.read(offset, object.as_mut_bytes());
        object
    }

    pub fn zero(&self) {
        let to = self.at(0, self.len());
        // SAFETY: as for `write`.
        unsafe { arch::copy::zero_fallible(to, self.len()) };
    }

    fn word(&self, offset: usize) -> &AtomicU16 {
        assert!(offset.is_multiple_of(2));
        let at = self.at(offset, 2).cast::<u16>();
        // SAFETY: an aligned word of this buffer, which lives as long as `self`; whoever else writes it does so atomically or
        // by whole words.
        unsafe { AtomicU16::from_ptr(at) }
    }

    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        self.word(offset).load(order)
    }

    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.word(offset).store(value, order)
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        let mut allocator = ALLOCATOR.lock();
        let first = ((self.gpa - allocator.base) / PAGE_SIZE) as usize;
        (first..first + self.pages).for_each(|p| allocator.used[p / 64] &= !(1 << (p % 64)));
    }
}

/// Device memory for unit tests on the host, where guest-physical addresses are the process's own.
#[cfg(test)]
pub mod hosted {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use sentry_abi::{
        boot::Region,
        layout::{DEVICE_BASE, DEVICE_SIZE},
    };

    static DEVICE: std::sync::OnceLock<OwnedFd> = std::sync::OnceLock::new();

    /// The memfd of device memory, which every test shares.
    pub fn device_memory() -> &'static OwnedFd {
        DEVICE.get_or_init(|| {
            // SAFETY: makes a file and maps it where nothing is mapped yet (the kernel checks that).
            let fd = unsafe {
                let fd = OwnedFd::from_raw_fd(libc::memfd_create(c"device".as_ptr(), libc::MFD_CLOEXEC));
                assert_eq!(libc::ftruncate(fd.as_raw_fd(), DEVICE_SIZE as i64), 0);
                let at = libc::mmap(
                    DEVICE_BASE as *mut libc::c_void,
                    DEVICE_SIZE as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE,
                    fd.as_raw_fd(),
                    0,
                );
                assert_eq!(at as u64, DEVICE_BASE);
                fd
            };
            super::init(Region { base: DEVICE_BASE, size: DEVICE_SIZE });
            fd
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_come_back() {
        hosted::device_memory();
        let (a, b) = (DmaBuffer::new(5000).unwrap(), DmaBuffer::new(1).unwrap());
        assert_eq!((a.len(), b.len()), (8192, 4096));
        assert!(a.gpa() + 8192 <= b.gpa() || b.gpa() + 4096 <= a.gpa());
        a.write_object(4096, &0x1122_3344u32);
        assert_eq!(a.read_object::<u32>(4096), 0x1122_3344);
        assert_eq!(a.load_u16(4096, Ordering::SeqCst), 0x3344);
        a.zero();
        assert_eq!(a.read_object::<u32>(4096), 0);
        assert!(DmaBuffer::new(1 << 30).is_err());
    }

    #[test]
    #[should_panic(expected = "beyond a device buffer")]
    fn offsets_are_checked() {
        hosted::device_memory();
        DmaBuffer::new(1).unwrap().write(4090, b"too long");
    }
}
