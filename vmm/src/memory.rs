//! Guest memory: the regions of `sentry_abi::layout`, where they lie in this process and which descriptor backs them.
//!
//! One reservation holds everything: guest-physical `p` is at `direct_base() + p` here. Kernel memory is private and
//! anonymous, so no descriptor of it exists that could leak; device memory is a small sealed memfd that helper processes map;
//! user memory is anonymous (KVM) or a memfd (ptrace); the window shows zero pages until a host file is placed over them.
//!
//! Nothing is committed: the host gives pages on first touch. The device side reads and writes only through vm-memory's
//! volatile accessors, and never through the window, whose files may shrink at any moment.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, SealFlags},
    mm::{Advice, MapFlags, ProtFlags},
};
use sentry_abi::layout::{
    DEVICE_BASE, DEVICE_SIZE, KERNEL_BASE, KERNEL_SIZE, PAGE_SIZE, USER_BASE, WINDOW_BASE, WINDOW_SIZE,
};
use vm_memory::{
    ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, mmap::MmapRegionBuilder,
};

/// Upper bound of the user region; with `USER_BASE` it stays below the 40 physical address bits that every CPU has.
pub const MAX_USER_SIZE: u64 = 512 << 30;
/// The direct map starts at a multiple of this here, so that huge pages of guest and host coincide.
const DIRECT_ALIGN: u64 = 1 << 30;

/// What user pages are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserBacking {
    /// Private anonymous memory with huge pages.
    Anonymous,
    /// A memfd, for backends that map user pages into other processes.
    Memfd,
}

#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig {
    /// Bytes of application memory; rounded up to 2 MB.
    pub user_size: u64,
    pub user_backing: UserBacking,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    Kernel,
    Device,
    Window,
    User,
}

/// A region of guest-physical memory and where it lies in this process.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub kind: RegionKind,
    pub gpa: u64,
    pub size: u64,
    pub host: u64,
}

/// The file behind a page of the window.
#[derive(Clone, Debug)]
pub struct WindowBacking {
    pub file: Arc<OwnedFd>,
    /// Offset in `file` of the page asked for.
    pub offset: u64,
    /// Bytes from there to the end of the mapping.
    pub len: u64,
    pub writable: bool,
}

struct WindowEntry {
    file: Arc<OwnedFd>,
    offset: u64,
    len: u64,
    writable: bool,
}

pub struct GuestMemory {
    reservation: Mapping,
    direct_base: u64,
    user_size: u64,
    user_fd: Option<Arc<File>>,
    device_fd: Arc<File>,
    volatile: GuestMemoryMmap,
    /// Mapped parts of the window by window offset; they never overlap.
    window: Mutex<BTreeMap<u64, WindowEntry>>,
}

impl GuestMemory {
    pub fn new(config: &MemoryConfig) -> Result<Arc<GuestMemory>> {
        let user_size = config
            .user_size
            .checked_next_multiple_of(2 << 20)
            .filter(|&size| size > 0 && size <= MAX_USER_SIZE)
            .with_context(|| format!("memory size {}: not between 1 and {MAX_USER_SIZE} bytes", config.user_size))?;

        let span = USER_BASE + user_size;
        let reservation = Mapping::reserve(span + DIRECT_ALIGN)
            .with_context(|| format!("reserving {span} bytes of address space for guest memory (RLIMIT_AS?)"))?;
        let direct_base = reservation.base().next_multiple_of(DIRECT_ALIGN);

        let device_fd = Arc::new(sealed_memfd("runsc-device", DEVICE_SIZE).context("device memory")?);
        let user_fd = match config.user_backing {
            UserBacking::Anonymous => None,
            UserBacking::Memfd => Some(Arc::new(sealed_memfd("runsc-user", user_size).context("user memory")?)),
        };

        let read_write = ProtFlags::READ | ProtFlags::WRITE;
        reservation
            .place_anonymous(direct_base + KERNEL_BASE, KERNEL_SIZE, read_write)
            .context("mapping kernel memory (RLIMIT_DATA?)")?;
        reservation
            .place_file(direct_base + DEVICE_BASE, DEVICE_SIZE, read_write, device_fd.as_fd(), 0)
            .context("mapping device memory")?;
        reservation
            .place_anonymous(direct_base + WINDOW_BASE, WINDOW_SIZE, ProtFlags::READ)
            .context("mapping the window")?;
        match &user_fd {
            None => reservation.place_anonymous(direct_base + USER_BASE, user_size, read_write),
            Some(fd) => reservation.place_file(direct_base + USER_BASE, user_size, read_write, fd.as_fd(), 0),
        }
        .context("mapping user memory (RLIMIT_DATA?)")?;

        // Kernel memory is touched sparsely, user memory in bulk. Hosts without huge pages refuse the advice: nothing is lost.
        reservation.advise(direct_base + KERNEL_BASE, KERNEL_SIZE, Advice::LinuxNoHugepage).ok();
        if config.user_backing == UserBacking::Anonymous {
            reservation.advise(direct_base + USER_BASE, user_size, Advice::LinuxHugepage).ok();
        }
        // A process that this one forks must not hold guest memory.
        for (gpa, size) in [(KERNEL_BASE, KERNEL_SIZE), (DEVICE_BASE, DEVICE_SIZE), (USER_BASE, user_size)] {
            reservation.advise(direct_base + gpa, size, Advice::LinuxDontFork).context("MADV_DONTFORK")?;
        }

        let volatile = GuestMemoryMmap::from_regions(vec![
            volatile_region(direct_base, KERNEL_BASE, KERNEL_SIZE, None)?,
            volatile_region(direct_base, DEVICE_BASE, DEVICE_SIZE, Some(&device_fd))?,
            volatile_region(direct_base, USER_BASE, user_size, user_fd.as_ref())?,
        ])
        .context("guest memory regions")?;

        Ok(Arc::new(GuestMemory {
            reservation,
            direct_base,
            user_size,
            user_fd,
            device_fd,
            volatile,
            window: Mutex::new(BTreeMap::new()),
        }))
    }

    /// Where guest-physical address 0 lies in this process.
    pub fn direct_base(&self) -> u64 {
        self.direct_base
    }

    pub fn user_size(&self) -> u64 {
        self.user_size
    }

    /// The memfd of user memory, offset 0 being `USER_BASE`; none when it is anonymous.
    pub fn user_fd(&self) -> Option<BorrowedFd<'_>> {
        self.user_fd.as_ref().map(|fd| fd.as_fd())
    }

    /// The memfd of device memory, offset 0 being `DEVICE_BASE`.
    pub fn device_fd(&self) -> BorrowedFd<'_> {
        self.device_fd.as_fd()
    }

    pub fn regions(&self) -> [Region; 4] {
        let region = |kind, gpa, size| Region { kind, gpa, size, host: self.direct_base + gpa };
        [
            region(RegionKind::Kernel, KERNEL_BASE, KERNEL_SIZE),
            region(RegionKind::Device, DEVICE_BASE, DEVICE_SIZE),
            region(RegionKind::Window, WINDOW_BASE, WINDOW_SIZE),
            region(RegionKind::User, USER_BASE, self.user_size),
        ]
    }

    /// Kernel, device and user memory for vm-memory's accessors (cheap to clone). The window is not part of it.
    pub fn volatile(&self) -> &GuestMemoryMmap {
        &self.volatile
    }

    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len();
        self.volatile
            .read_slice(buf, GuestAddress(gpa))
            .with_context(|| format!("reading {len} bytes of guest memory at {gpa:#x}"))
    }

    pub fn write(&self, gpa: u64, buf: &[u8]) -> Result<()> {
        let len = buf.len();
        self.volatile
            .write_slice(buf, GuestAddress(gpa))
            .with_context(|| format!("writing {len} bytes of guest memory at {gpa:#x}"))
    }

    pub fn read_obj<T: ByteValued>(&self, gpa: u64) -> Result<T> {
        self.volatile
            .read_obj(GuestAddress(gpa))
            .with_context(|| format!("reading {} bytes of guest memory at {gpa:#x}", size_of::<T>()))
    }

    pub fn write_obj<T: ByteValued>(&self, gpa: u64, value: T) -> Result<()> {
        self.volatile
            .write_obj(value, GuestAddress(gpa))
            .with_context(|| format!("writing {} bytes of guest memory at {gpa:#x}", size_of::<T>()))
    }

    /// Gives pages of the user region back to the host; they read as zeros afterwards. Page aligned.
    pub fn release(&self, gpa: u64, len: u64) -> Result<()> {
        let offset = gpa.checked_sub(USER_BASE).filter(|&offset| page_range_within(offset, len, self.user_size));
        let Some(offset) = offset else { bail!("release of {len:#x} bytes at {gpa:#x}: not pages of user memory") };
        match &self.user_fd {
            None => {
                self.reservation.advise(self.direct_base + gpa, len, Advice::LinuxDontNeed).context("MADV_DONTNEED")
            }
            Some(fd) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(fd, flags, offset, len).context("punching a hole into user memory")
            }
        }
    }

    /// Shows `len` bytes of `file` from `offset` at `window_offset`, replacing what was there. Page aligned; `writable` maps
    /// shared and writable, which needs a descriptor open for writing.
    pub fn window_map(
        &self,
        window_offset: u64,
        file: &Arc<OwnedFd>,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<()> {
        ensure!(
            page_range_within(window_offset, len, WINDOW_SIZE),
            "window range {window_offset:#x}+{len:#x} is outside the window or not page aligned"
        );
        ensure!(
            offset.is_multiple_of(PAGE_SIZE) && offset.checked_add(len).is_some_and(|end| end <= i64::MAX as u64),
            "file offset {offset:#x} is out of range or not page aligned"
        );
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let mut window = self.window_table();
        self.reservation
            .place_file(self.direct_base + WINDOW_BASE + window_offset, len, prot, file.as_fd(), offset)
            .context("mapping a file into the window")?;
        remove_range(&mut window, window_offset, len);
        window.insert(window_offset, WindowEntry { file: file.clone(), offset, len, writable });
        Ok(())
    }

    /// Puts zero pages back.
    pub fn window_unmap(&self, window_offset: u64, len: u64) -> Result<()> {
        ensure!(
            page_range_within(window_offset, len, WINDOW_SIZE),
            "window range {window_offset:#x}+{len:#x} is outside the window or not page aligned"
        );
        let mut window = self.window_table();
        self.reservation
            .place_anonymous(self.direct_base + WINDOW_BASE + window_offset, len, ProtFlags::READ)
            .context("clearing a part of the window")?;
        remove_range(&mut window, window_offset, len);
        Ok(())
    }

    /// What lies behind the page of the window at `gpa`; none for zero pages and for addresses outside it.
    pub fn window_backing(&self, gpa: u64) -> Option<WindowBacking> {
        let page = gpa.checked_sub(WINDOW_BASE)? & !(PAGE_SIZE - 1);
        let window = self.window_table();
        let (&start, entry) = window.range(..=page).next_back()?;
        let skip = page - start;
        (skip < entry.len).then(|| WindowBacking {
            file: entry.file.clone(),
            offset: entry.offset + skip,
            len: entry.len - skip,
            writable: entry.writable,
        })
    }

    /// Mapped parts of the window: guest-physical address, and what is there.
    pub fn window_mappings(&self) -> Vec<(u64, WindowBacking)> {
        let whole = |entry: &WindowEntry| WindowBacking {
            file: entry.file.clone(),
            offset: entry.offset,
            len: entry.len,
            writable: entry.writable,
        };
        self.window_table().iter().map(|(start, entry)| (WINDOW_BASE + start, whole(entry))).collect()
    }

    fn window_table(&self) -> MutexGuard<'_, BTreeMap<u64, WindowEntry>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts `[start, start + len)` out of the table; entries that reach over an edge keep the rest.
fn remove_range(window: &mut BTreeMap<u64, WindowEntry>, start: u64, len: u64) {
    let end = start + len;
    let first = match window.range(..start).next_back() {
        Some((&at, entry)) if at + entry.len > start => at,
        _ => start,
    };
    let hit: Vec<u64> = window.range(first..end).map(|(&at, _)| at).collect();
    for at in hit {
        let Some(entry) = window.remove(&at) else { continue };
        let entry_end = at + entry.len;
        if entry_end > end {
            let skip = end - at;
            let rest = WindowEntry {
                file: entry.file.clone(),
                offset: entry.offset + skip,
                len: entry_end - end,
                writable: entry.writable,
            };
            window.insert(end, rest);
        }
        if at < start {
            window.insert(at, WindowEntry { len: start - at, ..entry });
        }
    }
}

/// Whether `[offset, offset + len)` is a non-empty range of whole pages below `size`.
fn page_range_within(offset: u64, len: u64, size: u64) -> bool {
    len > 0
        && offset.is_multiple_of(PAGE_SIZE)
        && len.is_multiple_of(PAGE_SIZE)
        && offset.checked_add(len).is_some_and(|end| end <= size)
}

/// A memfd whose size cannot change, so that no holder of it can make another one's access fault.
fn sealed_memfd(name: &str, size: u64) -> Result<File> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context("memfd_create")?;
    rustix::fs::ftruncate(&fd, size).with_context(|| format!("sizing a memfd to {size} bytes (RLIMIT_FSIZE?)"))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .context("sealing a memfd")?;
    Ok(File::from(fd))
}

fn volatile_region(direct_base: u64, gpa: u64, size: u64, file: Option<&Arc<File>>) -> Result<GuestRegionMmap> {
    let mut builder = MmapRegionBuilder::new(size as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_NORESERVE | if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE });
    if let Some(file) = file {
        builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), 0));
    }
    // SAFETY: the range was mapped readable and writable by the caller just before. Clones of this view may outlive
    // `GuestMemory`, so its reservation is never unmapped (see `Mapping`).
    let region =
        unsafe { builder.with_raw_mmap_pointer((direct_base + gpa) as *mut u8) }.build().context("mmap region")?;
    GuestRegionMmap::new(region, GuestAddress(gpa)).context("guest-physical range overflows")
}

/// A range of this process's address space that is ours. It lasts as long as the process: vCPU threads, devices and clones
/// of the volatile view hold addresses in it, and a process holds one sandbox.
struct Mapping {
    base: NonNull<u8>,
    len: u64,
}

// SAFETY: the pointer is an address for the system calls below; nothing is read or written through it here.
unsafe impl Send for Mapping {}
// SAFETY: as above; the kernel serialises changes of mappings.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn reserve(len: u64) -> Result<Mapping> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address the kernel chooses touches nothing that exists.
        let base =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len as usize, ProtFlags::empty(), flags)? };
        let base = NonNull::new(base.cast()).context("mmap returned address 0")?;
        Ok(Mapping { base, len })
    }

    fn base(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    fn check(&self, address: u64, len: u64) -> Result<()> {
        let offset = address.checked_sub(self.base());
        ensure!(
            offset.is_some_and(|offset| page_range_within(offset, len, self.len)),
            "range {address:#x}+{len:#x} is outside guest memory"
        );
        Ok(())
    }

    fn place_anonymous(&self, address: u64, len: u64, prot: ProtFlags) -> Result<()> {
        self.check(address, len)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is inside our reservation; only guest memory, reached by raw pointers and volatile accessors,
        // is replaced.
        unsafe { rustix::mm::mmap_anonymous(address as *mut _, len as usize, prot, flags)? };
        Ok(())
    }

    fn place_file(&self, address: u64, len: u64, prot: ProtFlags, file: BorrowedFd<'_>, offset: u64) -> Result<()> {
        self.check(address, len)?;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as in `place_anonymous`.
        unsafe { rustix::mm::mmap(address as *mut _, len as usize, prot, flags, file, offset)? };
        Ok(())
    }

    fn advise(&self, address: u64, len: u64, advice: Advice) -> Result<()> {
        self.check(address, len)?;
        // SAFETY: the range is inside our reservation; the advice used here discards contents at most, and only those of
        // guest memory.
        unsafe { rustix::mm::madvise(address as *mut _, len as usize, advice)? };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn memory(user_backing: UserBacking) -> Arc<GuestMemory> {
        GuestMemory::new(&MemoryConfig { user_size: 64 << 20, user_backing }).unwrap()
    }

    fn file(pages: u64) -> Arc<OwnedFd> {
        let mut file = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        for page in 0..pages {
            file.write_all(&[page as u8 + 1; PAGE_SIZE as usize]).unwrap();
        }
        Arc::new(file.into())
    }

    fn window_byte(memory: &GuestMemory, window_offset: u64) -> u8 {
        let address = memory.direct_base() + WINDOW_BASE + window_offset;
        // SAFETY: the tests read only window pages with a file page or a zero page behind them.
        unsafe { std::ptr::read_volatile(address as *const u8) }
    }

    #[test]
    fn regions_lie_at_direct_base() {
        for backing in [UserBacking::Anonymous, UserBacking::Memfd] {
            let memory = memory(backing);
            assert_eq!(memory.user_fd().is_some(), backing == UserBacking::Memfd);
            for region in memory.regions() {
                assert_eq!(region.host, memory.direct_base() + region.gpa);
                if region.kind != RegionKind::Window {
                    let last = region.gpa + region.size - 8;
                    memory.write_obj(last, 0x1234_5678_9abc_def0u64).unwrap();
                    assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0x1234_5678_9abc_def0);
                    assert!(memory.write_obj(last + 1, 0u64).is_err(), "crosses the end of {:?}", region.kind);
                }
            }
            assert!(memory.read_obj::<u64>(WINDOW_BASE).is_err(), "devices do not reach the window");
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for user_size in [0, MAX_USER_SIZE + 1, u64::MAX] {
            assert!(GuestMemory::new(&MemoryConfig { user_size, user_backing: UserBacking::Anonymous }).is_err());
        }
    }

    #[test]
    fn released_pages_read_as_zeros() {
        for backing in [UserBacking::Anonymous, UserBacking::Memfd] {
            let memory = memory(backing);
            memory.write(USER_BASE, &[7; 3 * PAGE_SIZE as usize]).unwrap();
            memory.release(USER_BASE + PAGE_SIZE, PAGE_SIZE).unwrap();
            assert_eq!(memory.read_obj::<u8>(USER_BASE).unwrap(), 7);
            assert_eq!(memory.read_obj::<u8>(USER_BASE + PAGE_SIZE).unwrap(), 0);
            assert_eq!(memory.read_obj::<u8>(USER_BASE + 2 * PAGE_SIZE).unwrap(), 7);
            assert!(memory.release(KERNEL_BASE, PAGE_SIZE).is_err());
            assert!(memory.release(USER_BASE + 1, PAGE_SIZE).is_err());
            assert!(memory.release(USER_BASE, memory.user_size() + PAGE_SIZE).is_err());
            assert!(memory.release(USER_BASE, !(PAGE_SIZE - 1)).is_err());
        }
    }

    #[test]
    fn window_shows_files_and_zero_pages() {
        let memory = memory(UserBacking::Anonymous);
        let file = file(8);
        assert_eq!(window_byte(&memory, 0), 0);
        memory.window_map(0, &file, 0, 8 * PAGE_SIZE, false).unwrap();
        assert_eq!(window_byte(&memory, 3 * PAGE_SIZE), 4);

        memory.window_unmap(2 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
        assert_eq!(window_byte(&memory, 3 * PAGE_SIZE), 0);
        assert_eq!(window_byte(&memory, 4 * PAGE_SIZE), 5);
        assert!(memory.window_backing(WINDOW_BASE + 2 * PAGE_SIZE).is_none());
        let left = memory.window_backing(WINDOW_BASE + PAGE_SIZE + 5).unwrap();
        assert_eq!((left.offset, left.len), (PAGE_SIZE, PAGE_SIZE));
        let right = memory.window_backing(WINDOW_BASE + 5 * PAGE_SIZE).unwrap();
        assert_eq!((right.offset, right.len), (5 * PAGE_SIZE, 3 * PAGE_SIZE));

        memory.window_map(PAGE_SIZE, &file, 6 * PAGE_SIZE, 2 * PAGE_SIZE, false).unwrap();
        assert_eq!(window_byte(&memory, PAGE_SIZE), 7);
        assert_eq!(memory.window_backing(WINDOW_BASE + 2 * PAGE_SIZE).unwrap().offset, 7 * PAGE_SIZE);
        assert_eq!(memory.window_mappings().len(), 3);
    }

    #[test]
    fn window_ranges_are_checked() {
        let memory = memory(UserBacking::Anonymous);
        let file = file(1);
        assert!(memory.window_map(WINDOW_SIZE, &file, 0, PAGE_SIZE, false).is_err());
        assert!(memory.window_map(1, &file, 0, PAGE_SIZE, false).is_err());
        assert!(memory.window_map(0, &file, 1, PAGE_SIZE, false).is_err());
        assert!(memory.window_map(0, &file, !(PAGE_SIZE - 1), PAGE_SIZE, false).is_err());
        assert!(memory.window_map(0, &file, 0, 0, false).is_err());
        assert!(memory.window_unmap(u64::MAX - PAGE_SIZE + 1, 2 * PAGE_SIZE).is_err());
        assert!(memory.window_backing(0).is_none() && memory.window_backing(u64::MAX).is_none());
    }
}
