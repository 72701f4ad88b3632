//! System calls of memory management: mmap(2) and its relatives.

use alloc::{string::String, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bitflags::bitflags;
use sentry_abi::layout::{PAGE_SIZE, USER_TOP};

use super::{MapRequest, Pager, Prot, SharedPages, VmaFlags, VmaKind, user::UserPtr};
use crate::{
    errno::{EINVAL, ENOMEM, EOPNOTSUPP, Result},
    syscall::{Arg, Fd, Level::*, Syscall, page_align},
    syscalls,
    task::Current,
};

syscalls! { pub CALLS;
    9 mmap(addr: u64, length: u64, prot: ProtArg, flags: MapFlags, fd: Fd, offset: u64) = mmap, Partial, "MAP_HUGETLB is ENOMEM", "mmap";
    10 mprotect(addr: u64, len: u64, prot: ProtArg) = mprotect, Full, "", "mmap";
    11 munmap(addr: u64, length: u64) = munmap, Full, "", "mmap";
    12 brk(addr: u64) = brk, Full, "", "mmap";
    25 mremap(old: u64, old_len: u64, new_len: u64, flags: MremapFlags, new: u64) = mremap, Full, "", "mmap";
    26 msync(addr: u64, length: u64, flags: i32) = msync, Full, "", "mmap";
    27 mincore(addr: u64, length: u64, vec: UserPtr<u8>) = mincore, Full, "", "mmap";
    28 madvise(addr: u64, length: u64, advice: i32) = madvise, Partial, "hints that would only save memory are accepted without effect", "mmap";
    149 mlock(addr: u64, len: u64) = mlock, Full, "memory is never swapped", "mmap";
    150 munlock(addr: u64, len: u64) = munlock, Full, "", "mmap";
    151 mlockall(flags: i32) = mlockall, Partial, "accepted: memory is never swapped", "mmap";
    152 munlockall() = munlockall, Full, "", "mmap";
    325 mlock2(addr: u64, len: u64, flags: u32) = mlock2, Full, "", "mmap";
}

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct MapFlags: u32 {
        const SHARED = 0x1;
        const PRIVATE = 0x2;
        const FIXED = 0x10;
        const ANONYMOUS = 0x20;
        const BIT_32 = 0x40;
        const GROWSDOWN = 0x100;
        const DENYWRITE = 0x800;
        const EXECUTABLE = 0x1000;
        const LOCKED = 0x2000;
        const NORESERVE = 0x4000;
        const POPULATE = 0x8000;
        const NONBLOCK = 0x10000;
        const STACK = 0x20000;
        const HUGETLB = 0x40000;
        const SYNC = 0x80000;
        const FIXED_NOREPLACE = 0x100000;
        // Unknown bits are ignored, as Linux does for MAP_PRIVATE and MAP_SHARED.
        const _ = !0;
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct MremapFlags: u32 {
        const MAYMOVE = 1;
        const FIXED = 2;
        const DONTUNMAP = 4;
    }
}

/// PROT_* with the grow bits that only mprotect knows.
#[derive(Clone, Copy)]
struct ProtArg(u32);

const PROT_GROWSDOWN: u32 = 0x0100_0000;
const PROT_GROWSUP: u32 = 0x0200_0000;
const PROT_SEM: u32 = 8;

macro_rules! flag_arg {
    ($ty:ty, $decode:expr, $names:expr) => {
        impl Arg for $ty {
            fn decode(raw: u64) -> Result<Self> {
                $decode(raw as u32)
            }
            fn show(_: &Current, raw: u64, out: &mut String) {
                let names: String = $names(raw as u32);
                out.push_str(if names.is_empty() { "0" } else { &names });
            }
        }
    };
}

fn names<F: bitflags::Flags>(flags: F) -> String {
    let mut text = String::new();
    for (name, _) in flags.iter_names() {
        if !text.is_empty() {
            text.push('|');
        }
        text.push_str(name);
    }
    text
}

flag_arg!(ProtArg, |raw| Ok(ProtArg(raw)), |raw| names(Prot::from_bits_truncate(raw)));
flag_arg!(MapFlags, |raw| Ok(MapFlags::from_bits_retain(raw)), |raw| names(MapFlags::from_bits_retain(raw)));
flag_arg!(MremapFlags, |raw| MremapFlags::from_bits(raw).ok_or(EINVAL), |raw| names(MremapFlags::from_bits_truncate(
    raw
)));

/// Inode numbers of shared anonymous memory.
static NEXT_INODE: AtomicU64 = AtomicU64::new(1);

fn mmap(cur: &mut Current, addr: u64, length: u64, prot: ProtArg, flags: MapFlags, fd: Fd, offset: u64) -> Result<u64> {
    let shared = match (flags.contains(MapFlags::SHARED), flags.contains(MapFlags::PRIVATE)) {
        (false, false) => return Err(EINVAL),
        // MAP_SHARED_VALIDATE refuses what it does not know; MAP_SYNC needs DAX.
        (true, true) if flags.contains(MapFlags::SYNC) => return Err(EOPNOTSUPP),
        (shared, _) => shared,
    };
    if length == 0 || !offset.is_multiple_of(PAGE_SIZE) {
        return Err(EINVAL);
    }
    let len = page_align(length).filter(|&l| l <= USER_TOP).ok_or(ENOMEM)?;
    offset.checked_add(len).ok_or(crate::errno::EOVERFLOW)?;
    if flags.contains(MapFlags::HUGETLB) {
        return Err(ENOMEM);
    }
    let prot = Prot::from_bits_truncate(prot.0);
    let exact = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
    if exact && !addr.is_multiple_of(PAGE_SIZE) {
        return Err(EINVAL);
    }
    let mut vma_flags = VmaFlags::empty();
    vma_flags.set(VmaFlags::SHARED, shared);
    vma_flags.set(VmaFlags::GROWS_DOWN, flags.contains(MapFlags::GROWSDOWN) && !shared);
    vma_flags.set(VmaFlags::LOCKED, flags.contains(MapFlags::LOCKED));
    vma_flags.set(VmaFlags::NO_RESERVE, flags.contains(MapFlags::NORESERVE));
    let (kind, max_prot) = if !flags.contains(MapFlags::ANONYMOUS) {
        let (pager, max_prot) = file_pager(cur, fd, prot, shared)?;
        (VmaKind::Object { pager, offset }, max_prot)
    } else if shared {
        let inode = NEXT_INODE.fetch_add(1, Relaxed);
        let pager: Arc<dyn Pager> = Arc::new(SharedPages::new(1, inode, "/dev/zero (deleted)".into(), len));
        (VmaKind::Object { pager, offset: 0 }, Prot::all())
    } else {
        (VmaKind::Anonymous, Prot::all())
    };
    let address = if exact { addr } else { addr & !(PAGE_SIZE - 1) };
    let start = cur.mm.map(MapRequest {
        address,
        len,
        prot,
        max_prot,
        flags: vma_flags,
        kind,
        fixed: flags.contains(MapFlags::FIXED) && !flags.contains(MapFlags::FIXED_NOREPLACE),
        no_replace: flags.contains(MapFlags::FIXED_NOREPLACE),
    })?;
    if flags.intersects(MapFlags::POPULATE | MapFlags::LOCKED) && !flags.contains(MapFlags::NONBLOCK) {
        populate(cur, start, len, prot);
    }
    Ok(start)
}

/// Faults pages in ahead; what cannot be is left to the access itself.
fn populate(cur: &Current, start: u64, len: u64, prot: Prot) {
    let error = if prot.contains(Prot::WRITE) { sentry_abi::context::pf::WRITE } else { 0 };
    for address in (start..start + len).step_by(PAGE_SIZE as usize) {
        let present = super::page_table::walk(cur.mm.root(), address)
            .is_some_and(|e| e.load(Relaxed) & super::page_table::PRESENT != 0);
        if !present && cur.mm.fault(address, error).is_err() {
            return;
        }
    }
}

fn mprotect(cur: &mut Current, addr: u64, len: u64, prot: ProtArg) -> Result<()> {
    let grow = prot.0 & (PROT_GROWSDOWN | PROT_GROWSUP);
    if !addr.is_multiple_of(PAGE_SIZE) || grow == PROT_GROWSDOWN | PROT_GROWSUP {
        return Err(EINVAL);
    }
    if prot.0 & !(Prot::all().bits() | PROT_SEM | PROT_GROWSDOWN | PROT_GROWSUP) != 0 {
        return Err(EINVAL);
    }
    if len == 0 {
        return Ok(());
    }
    let (mut start, mut len) = (addr, page_align(len).ok_or(ENOMEM)?);
    if grow == PROT_GROWSDOWN {
        // From the lowest page of the stack up to the range's end.
        let vma = cur.mm.find(addr).ok_or(ENOMEM)?;
        if !vma.flags.contains(VmaFlags::GROWS_DOWN) {
            return Err(EINVAL);
        }
        len += addr - vma.start;
        start = vma.start;
    } else if grow != 0 {
        return Err(EINVAL);
    }
    cur.mm.protect(start, len, Prot::from_bits_truncate(prot.0))
}

fn munmap(cur: &mut Current, addr: u64, length: u64) -> Result<()> {
    if length == 0 {
        return Err(EINVAL);
    }
    cur.mm.unmap(addr, length)
}

fn brk(cur: &mut Current, addr: u64) -> Result<u64> {
    Ok(cur.mm.set_brk(addr))
}

fn mremap(cur: &mut Current, old: u64, old_len: u64, new_len: u64, flags: MremapFlags, new: u64) -> Result<u64> {
    let may_move = flags.contains(MremapFlags::MAYMOVE);
    if !old.is_multiple_of(PAGE_SIZE) || flags.intersects(MremapFlags::FIXED | MremapFlags::DONTUNMAP) && !may_move {
        return Err(EINVAL);
    }
    let (old_len, new_len) = (page_align(old_len).ok_or(EINVAL)?, page_align(new_len).ok_or(EINVAL)?);
    if new_len == 0 || new_len > USER_TOP || flags.contains(MremapFlags::DONTUNMAP) && old_len != new_len {
        return Err(EINVAL);
    }
    let fixed = flags.contains(MremapFlags::FIXED).then_some(new);
    cur.mm.remap(old, old_len, new_len, may_move, fixed, flags.contains(MremapFlags::DONTUNMAP))
}

fn msync(cur: &mut Current, addr: u64, length: u64, flags: i32) -> Result<()> {
    const MS_ASYNC: i32 = 1;
    const MS_INVALIDATE: i32 = 2;
    const MS_SYNC: i32 = 4;
    if flags & !(MS_ASYNC | MS_INVALIDATE | MS_SYNC) != 0
        || flags & (MS_ASYNC | MS_SYNC) == MS_ASYNC | MS_SYNC
        || !addr.is_multiple_of(PAGE_SIZE)
    {
        return Err(EINVAL);
    }
    // Shared file mappings show the host's page cache (or the sentry's only copy): there is nothing to write back first.
    if length == 0 {
        return Ok(());
    }
    cur.mm.check_mapped(addr, length)
}

fn mincore(cur: &mut Current, addr: u64, length: u64, vec: UserPtr<u8>) -> Result<()> {
    if length == 0 {
        return if addr.is_multiple_of(PAGE_SIZE) { Ok(()) } else { Err(EINVAL) };
    }
    // In pieces: the range may be larger than the kernel's memory.
    const PIECE: u64 = 64 << 20;
    let len = page_align(length).ok_or(ENOMEM)?;
    let end = addr.checked_add(len).ok_or(ENOMEM)?;
    let mut at = addr;
    while at < end {
        let pages = cur.mm.residency(at, PIECE.min(end - at))?;
        cur.mm.write(vec.addr.offset((at - addr) / PAGE_SIZE)?, &pages)?;
        at += PIECE;
    }
    Ok(())
}

fn madvise(cur: &mut Current, addr: u64, length: u64, advice: i32) -> Result<()> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(EINVAL);
    }
    let len = page_align(length).ok_or(EINVAL)?;
    addr.checked_add(len).ok_or(EINVAL)?;
    let none = VmaFlags::empty();
    match advice {
        // NORMAL, RANDOM, SEQUENTIAL, WILLNEED, MERGEABLE, UNMERGEABLE, HUGEPAGE, NOHUGEPAGE, DONTDUMP, DODUMP, COLD, PAGEOUT.
        0..=3 | 12..=17 | 20 | 21 => {
            if len == 0 {
                Ok(())
            } else {
                cur.mm.check_mapped(addr, len)
            }
        }
        _ if len == 0 && matches!(advice, 4 | 8..=11 | 18 | 19 | 22 | 23) => Ok(()),
        // DONTNEED; FREE may keep the content, giving it up at once is allowed.
        4 | 8 => cur.mm.discard(addr, len),
        // REMOVE: a hole in the shared object.
        9 => cur.mm.punch(addr, len),
        10 => cur.mm.set_flags(addr, len, VmaFlags::DONT_FORK, none),
        11 => cur.mm.set_flags(addr, len, none, VmaFlags::DONT_FORK),
        18 => cur.mm.set_flags(addr, len, VmaFlags::WIPE_ON_FORK, none),
        19 => cur.mm.set_flags(addr, len, none, VmaFlags::WIPE_ON_FORK),
        // POPULATE_READ, POPULATE_WRITE.
        22 | 23 => {
            let error = if advice == 23 { sentry_abi::context::pf::WRITE } else { 0 };
            for page in (addr..addr + len).step_by(PAGE_SIZE as usize) {
                cur.mm.fault(page, error).map_err(|e| match e {
                    super::FaultError::Unmapped | super::FaultError::NoMemory => ENOMEM,
                    super::FaultError::Protection => EINVAL,
                    super::FaultError::PastEnd => crate::errno::EFAULT,
                })?;
            }
            Ok(())
        }
        _ => Err(EINVAL),
    }
}

fn mlock(cur: &mut Current, addr: u64, len: u64) -> Result<()> {
    set_locked(cur, addr, len, true)
}

fn mlock2(cur: &mut Current, addr: u64, len: u64, flags: u32) -> Result<()> {
    // MLOCK_ONFAULT is all there is.
    if flags & !1 != 0 {
        return Err(EINVAL);
    }
    set_locked(cur, addr, len, true)
}

fn munlock(cur: &mut Current, addr: u64, len: u64) -> Result<()> {
    set_locked(cur, addr, len, false)
}

fn set_locked(cur: &mut Current, addr: u64, len: u64, locked: bool) -> Result<()> {
    let start = addr & !(PAGE_SIZE - 1);
    let len = len.checked_add(addr - start).and_then(page_align).ok_or(EINVAL)?;
    if len == 0 {
        return Ok(());
    }
    let (set, clear) =
        if locked { (VmaFlags::LOCKED, VmaFlags::empty()) } else { (VmaFlags::empty(), VmaFlags::LOCKED) };
    cur.mm.set_flags(start, len, set, clear)
}

fn mlockall(_cur: &mut Current, flags: i32) -> Result<()> {
    // MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT (which needs one of the others).
    if flags == 0 || flags & !7 != 0 || flags == 4 { Err(EINVAL) } else { Ok(()) }
}

fn munlockall(_cur: &mut Current) -> Result<()> {
    Ok(())
}

fn file_pager(cur: &Current, fd: Fd, prot: Prot, shared: bool) -> Result<(Arc<dyn Pager>, Prot)> {
    crate::fs::mmap_pager(&*cur.file(fd)?, prot, shared)
}
