//! Where the bytes of a read go and those of a write come from: user memory by iovecs, or a kernel buffer.
//!
//! Files copy piece by piece and may stop anywhere; a bad address gives EFAULT only when nothing was copied before it.

use core::cmp::min;

use smallvec::SmallVec;

use super::{AddressSpace, user::UserAddr};
use crate::{
    arch,
    errno::{EFAULT, EINVAL, Result},
};

/// One piece of user memory, as struct iovec.
#[derive(Clone, Copy, Debug)]
pub struct IoVec {
    pub addr: UserAddr,
    pub len: usize,
}

/// Longest transfer of one call (Linux's MAX_RW_COUNT).
pub const MAX_TRANSFER: usize = 0x7fff_f000;

/// A list of pieces and the position in it.
#[derive(Clone)]
struct Cursor {
    pieces: SmallVec<[IoVec; 1]>,
    piece: usize,
    within: usize,
    remaining: usize,
}

impl Cursor {
    fn new(pieces: SmallVec<[IoVec; 1]>) -> Result<Self> {
        let mut remaining = 0usize;
        for p in &pieces {
            if p.len > isize::MAX as usize {
                return Err(EINVAL);
            }
            remaining = remaining.checked_add(p.len).filter(|&n| n <= isize::MAX as usize).ok_or(EINVAL)?;
        }
        Ok(Cursor { pieces, piece: 0, within: 0, remaining: remaining.min(MAX_TRANSFER) })
    }

    /// Runs `copy(address, offset, len)` over the next `len` bytes; it returns what it did.
    fn advance(&mut self, len: usize, mut copy: impl FnMut(UserAddr, usize, usize) -> Result<usize>) -> Result<usize> {
        let len = min(len, self.remaining);
        let mut done = 0;
        while done < len {
            let Some(piece) = self.pieces.get(self.piece) else { break };
            if self.within == piece.len {
                self.piece += 1;
                self.within = 0;
                continue;
            }
            let n = min(piece.len - self.within, len - done);
            let copied = match piece.addr.offset(self.within as u64).and_then(|at| copy(at, done, n)) {
                Ok(copied) => copied,
                Err(error) if done == 0 => return Err(error),
                Err(_) => 0,
            };
            self.within += copied;
            self.remaining -= copied;
            done += copied;
            if copied < n {
                break;
            }
        }
        Ok(done)
    }
}

/// Destination of a read.
pub struct IoDst<'a>(Dst<'a>);

enum Dst<'a> {
    User(&'a AddressSpace, Cursor),
    Kernel(&'a mut [u8], usize),
}

impl<'a> IoDst<'a> {
    pub fn user(space: &'a AddressSpace, addr: UserAddr, len: usize) -> Result<Self> {
        Self::user_vec(space, SmallVec::from_buf([IoVec { addr, len }]))
    }

    /// EINVAL when the lengths do not fit a signed size.
    pub fn user_vec(space: &'a AddressSpace, pieces: SmallVec<[IoVec; 1]>) -> Result<Self> {
        Ok(IoDst(Dst::User(space, Cursor::new(pieces)?)))
    }

    pub fn kernel(buffer: &'a mut [u8]) -> Self {
        IoDst(Dst::Kernel(buffer, 0))
    }

    pub fn remaining(&self) -> usize {
        match &self.0 {
            Dst::User(_, cursor) => cursor.remaining,
            Dst::Kernel(buffer, at) => buffer.len() - at,
        }
    }

    /// Copies up to what remains; fewer bytes than offered only at the end or before a bad address.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize> {
        match &mut self.0 {
            Dst::User(space, cursor) => {
                cursor.advance(bytes.len(), |addr, at, n| space.write_partial(addr, &bytes[at..at + n]))
            }
            Dst::Kernel(buffer, at) => {
                let n = min(bytes.len(), buffer.len() - *at);
                buffer[*at..*at + n].copy_from_slice(&bytes[..n]);
                *at += n;
                Ok(n)
            }
        }
    }

    pub fn put_zeros(&mut self, len: usize) -> Result<usize> {
        match &mut self.0 {
            Dst::User(space, cursor) => cursor.advance(len, |addr, _, n| space.zero_partial(addr, n)),
            Dst::Kernel(buffer, at) => {
                let n = min(len, buffer.len() - *at);
                buffer[*at..*at + n].fill(0);
                *at += n;
                Ok(n)
            }
        }
    }

    /// Copies from `len` bytes of physical memory (user or window pages) that the caller keeps alive. EFAULT when a window
    /// page's file has shrunk and nothing was copied.
    pub fn put_physical(&mut self, gpa: u64, len: usize) -> Result<usize> {
        match &mut self.0 {
            Dst::User(space, cursor) => {
                cursor.advance(len, |addr, at, n| space.copy_physical(addr, gpa + at as u64, n, true))
            }
            Dst::Kernel(buffer, at) => {
                let n = min(len, buffer.len() - *at);
                // SAFETY: n bytes of `buffer` from `at`, and of pages that the caller keeps.
                let left = unsafe { arch::copy::copy_fallible(buffer[*at..].as_mut_ptr(), arch::direct_map(gpa), n) };
                *at += n - left;
                if left == n && n > 0 { Err(EFAULT) } else { Ok(n - left) }
            }
        }
    }
}

/// Source of a write.
pub struct IoSrc<'a>(Src<'a>);

enum Src<'a> {
    User(&'a AddressSpace, Cursor),
    Kernel(&'a [u8]),
}

impl<'a> IoSrc<'a> {
    pub fn user(space: &'a AddressSpace, addr: UserAddr, len: usize) -> Result<Self> {
        Self::user_vec(space, SmallVec::from_buf([IoVec { addr, len }]))
    }

    /// EINVAL when the lengths do not fit a signed size.
    pub fn user_vec(space: &'a AddressSpace, pieces: SmallVec<[IoVec; 1]>) -> Result<Self> {
        Ok(IoSrc(Src::User(space, Cursor::new(pieces)?)))
    }

    pub fn kernel(bytes: &'a [u8]) -> Self {
        IoSrc(Src::Kernel(bytes))
    }

    pub fn remaining(&self) -> usize {
        match &self.0 {
            Src::User(_, cursor) => cursor.remaining,
            Src::Kernel(bytes) => bytes.len(),
        }
    }

    /// Fills `buffer` from what remains; fewer bytes only at the end or before a bad address.
    pub fn get(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match &mut self.0 {
            Src::User(space, cursor) => {
                cursor.advance(buffer.len(), |addr, at, n| space.read_partial(addr, &mut buffer[at..at + n]))
            }
            Src::Kernel(bytes) => {
                let n = min(buffer.len(), bytes.len());
                buffer[..n].copy_from_slice(&bytes[..n]);
                *bytes = &bytes[n..];
                Ok(n)
            }
        }
    }

    /// Copies to `len` bytes of physical memory like [`IoSrc::get_physical`], without using them up: for a device that may
    /// take only a part, which [`IoSrc::skip`] then counts.
    pub fn peek_physical(&self, gpa: u64, len: usize) -> Result<usize> {
        match &self.0 {
            Src::User(space, cursor) => IoSrc(Src::User(space, cursor.clone())).get_physical(gpa, len),
            Src::Kernel(bytes) => IoSrc(Src::Kernel(bytes)).get_physical(gpa, len),
        }
    }

    pub fn skip(&mut self, len: usize) {
        match &mut self.0 {
            // Copies nothing, so it cannot fail.
            Src::User(_, cursor) => drop(cursor.advance(len, |_, _, n| Ok(n))),
            Src::Kernel(bytes) => *bytes = &bytes[len.min(bytes.len())..],
        }
    }

    /// Copies to `len` bytes of physical memory that the caller keeps alive.
    pub fn get_physical(&mut self, gpa: u64, len: usize) -> Result<usize> {
        match &mut self.0 {
            Src::User(space, cursor) => {
                cursor.advance(len, |addr, at, n| space.copy_physical(addr, gpa + at as u64, n, false))
            }
            Src::Kernel(bytes) => {
                let n = min(len, bytes.len());
                // SAFETY: n bytes of pages that the caller keeps, and of `bytes`.
                let left = unsafe { arch::copy::copy_fallible(arch::direct_map(gpa), bytes.as_ptr(), n) };
                *bytes = &bytes[n - left..];
                if left == n && n > 0 { Err(EFAULT) } else { Ok(n - left) }
            }
        }
    }
}
