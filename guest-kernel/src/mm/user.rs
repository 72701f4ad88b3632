//! The way to user memory: addresses that prove nothing, and copies that check everything.
//!
//! Copies translate through the page table and fault pages in; a bad address is EFAULT. Nothing here trusts an address, a
//! length or a string to end.

use alloc::vec::Vec;
use core::{marker::PhantomData, sync::atomic::Ordering::Relaxed};

use sentry_abi::{
    context::pf,
    layout::{PAGE_SIZE, USER_TOP},
};
use zerocopy::{FromBytes, IntoBytes};

use super::{AddressSpace, page_table};
use crate::{
    arch,
    errno::{E2BIG, EFAULT, ENAMETOOLONG, Result},
};

/// An address an application gave.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct UserAddr(pub u64);

impl UserAddr {
    pub const NULL: UserAddr = UserAddr(0);

    pub fn is_null(self) -> bool {
        self.0 == 0
    }

    /// Offset by `bytes`; EFAULT when that leaves the address range.
    pub fn offset(self, bytes: u64) -> Result<UserAddr> {
        self.0.checked_add(bytes).filter(|&a| a <= USER_TOP).map(UserAddr).ok_or(EFAULT)
    }
}

/// The address of a `T`.
#[derive(Debug)]
pub struct UserPtr<T> {
    pub addr: UserAddr,
    what: PhantomData<fn() -> T>,
}

impl<T> Clone for UserPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for UserPtr<T> {}

impl<T> UserPtr<T> {
    pub const fn new(addr: UserAddr) -> Self {
        UserPtr { addr, what: PhantomData }
    }

    pub fn is_null(self) -> bool {
        self.addr.is_null()
    }

    /// The `n`th of an array.
    pub fn nth(self, n: u64) -> Result<Self> {
        n.checked_mul(size_of::<T>() as u64).ok_or(EFAULT).and_then(|b| self.addr.offset(b)).map(Self::new)
    }
}

/// What a piece of a copy does with one page's worth of physical memory; returns the bytes not done.
type Step<'a> = &'a mut dyn FnMut(*mut u8, usize, usize) -> usize;

impl AddressSpace {
    /// The guest-physical address behind `addr`, faulted in for the access.
    #[inline]
    fn translate(&self, addr: u64, write: bool) -> Result<u64> {
        loop {
            if let Some(entry) = page_table::walk(self.root(), addr) {
                let value = entry.load(Relaxed);
                let need = page_table::PRESENT | page_table::USER | if write { page_table::WRITE } else { 0 };
                if value & need == need {
                    let marks = page_table::ACCESSED | if write { page_table::DIRTY } else { 0 };
                    if value & marks != marks {
                        entry.fetch_or(marks, Relaxed);
                    }
                    return Ok((value & page_table::ADDRESS) | (addr % PAGE_SIZE));
                }
            }
            self.fault(addr, pf::USER | if write { pf::WRITE } else { 0 }).map_err(|_| EFAULT)?;
        }
    }

    /// Runs `step` over `[addr, addr + len)` page by page. Returns the bytes done; EFAULT only when none were.
    fn access(&self, addr: u64, len: usize, write: bool, step: Step<'_>) -> Result<usize> {
        if addr.checked_add(len as u64).is_none_or(|end| end > USER_TOP) {
            // What lies below the top may still be good, but Linux's access_ok refuses the whole range.
            return if len == 0 { Ok(0) } else { Err(EFAULT) };
        }
        let mut done = 0;
        while done < len {
            let at = addr + done as u64;
            let n = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(len - done);
            let left = match self.translate(at, write) {
                Ok(gpa) => step(arch::direct_map(gpa), done, n),
                Err(_) => n,
            };
            done += n - left;
            if left > 0 {
                break;
            }
        }
        if done == 0 && len > 0 { Err(EFAULT) } else { Ok(done) }
    }

    /// Copies in as much as can be read; EFAULT when that is nothing.
    pub fn read_partial(&self, addr: UserAddr, bytes: &mut [u8]) -> Result<usize> {
        let base = bytes.as_mut_ptr();
        self.access(addr.0, bytes.len(), false, &mut |page, at, n| {
            // SAFETY: `page` is n bytes of a user page just translated, which cannot be reused before this CPU's next
            // quiescent point; `base + at` lies within `bytes`.
            unsafe { arch::copy::copy_fallible(base.add(at), page, n) }
        })
    }

    /// Copies out as much as can be written; EFAULT when that is nothing.
    pub fn write_partial(&self, addr: UserAddr, bytes: &[u8]) -> Result<usize> {
        let base = bytes.as_ptr();
        self.access(addr.0, bytes.len(), true, &mut |page, at, n| {
            // SAFETY: as for `read_partial`.
            unsafe { arch::copy::copy_fallible(page, base.add(at), n) }
        })
    }

    /// Zeroes as much as can be written (clear_user).
    pub fn zero_partial(&self, addr: UserAddr, len: usize) -> Result<usize> {
        self.access(addr.0, len, true, &mut |page, _, n| {
            // SAFETY: as for `read_partial`.
            unsafe { arch::copy::zero_fallible(page, n) }
        })
    }

    /// Copies between user memory and physical memory that the caller keeps alive (a file's page).
    pub(super) fn copy_physical(&self, addr: UserAddr, gpa: u64, len: usize, to_user: bool) -> Result<usize> {
        let base = arch::direct_map(gpa);
        self.access(addr.0, len, to_user, &mut |page, at, n| {
            // SAFETY: both are user or window pages, the one just translated, the other kept by the caller.
            unsafe {
                if to_user {
                    arch::copy::copy_fallible(page, base.add(at), n)
                } else {
                    arch::copy::copy_fallible(base.add(at), page, n)
                }
            }
        })
    }

    /// Copies in all of it, or EFAULT.
    pub fn read(&self, addr: UserAddr, bytes: &mut [u8]) -> Result<()> {
        if self.read_partial(addr, bytes)? == bytes.len() { Ok(()) } else { Err(EFAULT) }
    }

    /// Copies out all of it, or EFAULT (with a prefix perhaps written, as copy_to_user).
    pub fn write(&self, addr: UserAddr, bytes: &[u8]) -> Result<()> {
        if self.write_partial(addr, bytes)? == bytes.len() { Ok(()) } else { Err(EFAULT) }
    }

    pub fn read_value<T: FromBytes + IntoBytes>(&self, ptr: UserPtr<T>) -> Result<T> {
        let mut value = T::new_zeroed();
        self.read(ptr.addr, value.as_mut_bytes())?;
        Ok(value)
    }

    pub fn write_value<T: IntoBytes + zerocopy::Immutable>(&self, ptr: UserPtr<T>, value: &T) -> Result<()> {
        self.write(ptr.addr, value.as_bytes())
    }

    /// `count` elements; the caller bounds `count`.
    pub fn read_array<T: FromBytes + IntoBytes + Clone>(&self, ptr: UserPtr<T>, count: usize) -> Result<Vec<T>> {
        let mut values = alloc::vec![T::new_zeroed(); count];
        for (i, value) in values.iter_mut().enumerate() {
            self.read(ptr.nth(i as u64)?.addr, value.as_mut_bytes())?;
        }
        Ok(values)
    }

    /// A NUL-terminated string of at most `max` bytes (without the NUL); ENAMETOOLONG beyond that.
    pub fn read_cstr(&self, addr: UserAddr, max: usize) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        loop {
            // Up to the page's end: what lies behind it need not be mapped.
            let at = addr.offset(text.len() as u64)?;
            let start = text.len();
            let n = ((PAGE_SIZE - at.0 % PAGE_SIZE) as usize).min(256);
            text.resize(start + n, 0);
            let got = self.read_partial(at, &mut text[start..])?;
            text.truncate(start + got);
            if let Some(end) = text[start..].iter().position(|&b| b == 0) {
                text.truncate(start + end);
                return if text.len() > max { Err(ENAMETOOLONG) } else { Ok(text) };
            }
            if text.len() > max {
                return Err(ENAMETOOLONG);
            }
        }
    }

    /// A NULL-terminated array of strings (argv, envp). `budget` bounds strings and pointers together; E2BIG beyond.
    pub fn read_cstr_array(&self, ptr: UserPtr<u64>, budget: &mut usize) -> Result<Vec<Vec<u8>>> {
        let mut strings = Vec::new();
        if ptr.is_null() {
            return Ok(strings);
        }
        loop {
            let addr = self.read_value(ptr.nth(strings.len() as u64)?)?;
            if addr == 0 {
                return Ok(strings);
            }
            let text =
                self.read_cstr(UserAddr(addr), 128 << 10).map_err(|e| if e == ENAMETOOLONG { E2BIG } else { e })?;
            *budget = budget.checked_sub(text.len() + 9).ok_or(E2BIG)?;
            strings.push(text);
        }
    }

    /// Loads an aligned 32-bit word (futex).
    pub fn load_u32(&self, addr: UserAddr) -> Result<u32> {
        if !addr.0.is_multiple_of(4) {
            return Err(crate::errno::EINVAL);
        }
        let gpa = self.translate(addr.0, false)?;
        // SAFETY: an aligned word of a user page just translated.
        unsafe { arch::copy::load32(arch::direct_map(gpa).cast()) }.ok_or(EFAULT)
    }

    /// As [`AddressSpace::load_u32`] but never faults: `None` when the page is not there. For use with a spin lock held, after
    /// a load that may fault.
    pub fn load_u32_present(&self, addr: UserAddr) -> Option<u32> {
        let value = page_table::walk(self.root(), addr.0)?.load(Relaxed);
        let need = page_table::PRESENT | page_table::USER;
        if value & need != need || !addr.0.is_multiple_of(4) {
            return None;
        }
        let gpa = (value & page_table::ADDRESS) | (addr.0 % PAGE_SIZE);
        // SAFETY: an aligned word of a user page just translated.
        unsafe { arch::copy::load32(arch::direct_map(gpa).cast()) }
    }

    /// Atomically replaces an aligned 32-bit word if it holds `old`; returns what it held.
    pub fn compare_exchange_u32(&self, addr: UserAddr, old: u32, new: u32) -> Result<u32> {
        if !addr.0.is_multiple_of(4) {
            return Err(crate::errno::EINVAL);
        }
        let gpa = self.translate(addr.0, true)?;
        // SAFETY: an aligned word of a user page just translated.
        unsafe { arch::copy::cmpxchg32(arch::direct_map(gpa).cast(), old, new) }.ok_or(EFAULT)
    }

    /// As [`AddressSpace::compare_exchange_u32`] but never faults: `None` when the page is not there or not writable. For use
    /// with a spin lock held.
    pub fn compare_exchange_u32_present(&self, addr: UserAddr, old: u32, new: u32) -> Option<u32> {
        let entry = page_table::walk(self.root(), addr.0)?;
        let value = entry.load(Relaxed);
        let need = page_table::PRESENT | page_table::USER | page_table::WRITE;
        if value & need != need || !addr.0.is_multiple_of(4) {
            return None;
        }
        entry.fetch_or(page_table::ACCESSED | page_table::DIRTY, Relaxed);
        let gpa = (value & page_table::ADDRESS) | (addr.0 % PAGE_SIZE);
        // SAFETY: an aligned word of a user page just translated.
        unsafe { arch::copy::cmpxchg32(arch::direct_map(gpa).cast(), old, new) }
    }

    /// What names a futex word shared between processes: the physical address. The page must be kept from moving by the
    /// caller's knowledge that the mapping is shared.
    pub fn physical(&self, addr: UserAddr) -> Result<u64> {
        self.translate(addr.0, false)
    }
}
