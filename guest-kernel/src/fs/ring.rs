//! A ring of bytes between two ends: what pipes and stream sockets hold.

use alloc::vec::Vec;

use crate::{
    errno::{ENOMEM, Result},
    mm::io::{IoDst, IoSrc},
};

/// Memory that a ring begins with.
const FIRST: usize = 4096;

/// A ring whose memory grows to what is used, at most `capacity`.
pub struct Ring {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    capacity: usize,
}

impl Ring {
    /// `capacity` is at least 4096.
    pub const fn new(capacity: usize) -> Self {
        Ring { bytes: Vec::new(), start: 0, len: 0, capacity }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Room that is left; none when the capacity is below what the ring holds.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.len)
    }

    /// Changes the capacity; memory follows as far as what it holds allows.
    pub fn set_capacity(&mut self, capacity: usize) {
        if self.bytes.len() > capacity && self.len <= capacity {
            self.resize(capacity);
        }
        self.capacity = capacity;
    }

    /// Makes the ring's memory hold `wanted` bytes.
    fn reserve(&mut self, wanted: usize) -> Result<()> {
        let size = wanted.next_power_of_two().clamp(FIRST, self.capacity);
        if size <= self.bytes.len() {
            return Ok(());
        }
        if crate::mm::kmem::under_pressure() {
            return Err(ENOMEM);
        }
        self.resize(size);
        Ok(())
    }

    fn resize(&mut self, size: usize) {
        let mut bytes = alloc::vec![0; size];
        let (first, second) = self.filled();
        bytes[..first.len()].copy_from_slice(first);
        bytes[first.len()..first.len() + second.len()].copy_from_slice(second);
        self.bytes = bytes;
        self.start = 0;
    }

    fn filled(&self) -> (&[u8], &[u8]) {
        let first = self.len.min(self.bytes.len() - self.start);
        (&self.bytes[self.start..self.start + first], &self.bytes[..self.len - first])
    }

    /// Copies up to `max` bytes from `skip` on; they stay. EFAULT when nothing could be copied.
    pub fn peek(&self, skip: usize, max: usize, dst: &mut IoDst<'_>) -> Result<usize> {
        let (first, second) = self.filled();
        let mut done = 0;
        for (piece, skip) in [(first, skip), (second, skip.saturating_sub(first.len()))] {
            let Some(piece) = piece.get(skip..) else { continue };
            let piece = &piece[..piece.len().min(max - done)];
            if piece.is_empty() {
                continue;
            }
            match dst.put(piece) {
                Ok(n) => {
                    done += n;
                    if n < piece.len() {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Lets go of the first `len` bytes.
    pub fn consume(&mut self, len: usize) {
        let len = len.min(self.len);
        self.len -= len;
        self.start = if self.len == 0 { 0 } else { (self.start + len) % self.bytes.len() };
    }

    /// Moves up to what `dst` takes out of the ring.
    pub fn read(&mut self, dst: &mut IoDst<'_>) -> Result<usize> {
        let done = self.peek(0, self.len, dst)?;
        self.consume(done);
        Ok(done)
    }

    /// Moves up to `max` bytes, which must fit, into the ring.
    pub fn write(&mut self, src: &mut IoSrc<'_>, max: usize) -> Result<usize> {
        self.reserve(self.len + max)?;
        let mut done = 0;
        while done < max {
            let at = (self.start + self.len) % self.bytes.len();
            let free = if at >= self.start { self.bytes.len() - at } else { self.start - at };
            let len = free.min(max - done);
            match src.get(&mut self.bytes[at..at + len]) {
                Ok(n) => {
                    self.len += n;
                    done += n;
                    if n < len {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}
