//! A descriptor chain, checked: every buffer lies in device memory, readable ones come before writable ones, and lengths are
//! bounded. What the sandbox changes afterwards changes bytes, never bounds.

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, VolatileSlice};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::DeviceMemory;

/// Buffers of a chain. A 1 MB payload in pages of 4 KB is 256.
const MAX_BUFFERS: usize = 320;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadChain {
    #[error("buffer at {0:#x} of {1} bytes is not in device memory")]
    OutOfRange(u64, u32),
    #[error("readable buffer behind a writable one")]
    Order,
    #[error("more than {MAX_BUFFERS} buffers")]
    TooLong,
    #[error("empty chain, or one that does not end")]
    Malformed,
    #[error("chain is too short for its request")]
    Short,
}

#[derive(Clone, Copy, Debug)]
struct Buffer {
    addr: u64,
    len: usize,
}

/// A request's buffers. Reading consumes the readable ones, writing fills the writable ones in order.
pub struct Chain {
    memory: DeviceMemory,
    head: u16,
    readable: Cursor,
    writable: Cursor,
}

#[derive(Default)]
struct Cursor {
    buffers: Vec<Buffer>,
    /// First buffer with something left and what of it is used up.
    next: usize,
    offset: usize,
    left: usize,
    done: usize,
}

impl Cursor {
    fn push(&mut self, addr: u64, len: u32) {
        if len > 0 {
            self.buffers.push(Buffer { addr, len: len as usize });
            self.left += len as usize;
        }
    }

    /// The parts that the next `count` bytes lie in.
    fn parts(&self, mut count: usize) -> impl Iterator<Item = Buffer> + '_ {
        let mut offset = self.offset;
        self.buffers[self.next..].iter().map_while(move |buffer| {
            if count == 0 {
                return None;
            }
            let len = (buffer.len - offset).min(count);
            let part = Buffer { addr: buffer.addr + offset as u64, len };
            count -= len;
            offset = 0;
            Some(part)
        })
    }

    fn advance(&mut self, count: usize) {
        let count = count.min(self.left);
        self.left -= count;
        self.done += count;
        let mut offset = self.offset + count;
        while let Some(buffer) = self.buffers.get(self.next) {
            if offset < buffer.len {
                break;
            }
            offset -= buffer.len;
            self.next += 1;
        }
        self.offset = offset;
    }
}

impl Chain {
    pub(super) fn new<M>(memory: &DeviceMemory, chain: DescriptorChain<M>) -> Result<Chain, BadChain>
    where
        M: std::ops::Deref,
        M::Target: GuestMemory,
    {
        let (mut readable, mut writable) = (Cursor::default(), Cursor::default());
        let head = chain.head_index();
        let mut ended = false;
        for descriptor in chain {
            let (addr, len) = (descriptor.addr().0, descriptor.len());
            if len > 0 && memory.get_slice(GuestAddress(addr), len as usize).is_err() {
                return Err(BadChain::OutOfRange(addr, len));
            }
            if readable.buffers.len() + writable.buffers.len() == MAX_BUFFERS {
                return Err(BadChain::TooLong);
            }
            if descriptor.is_write_only() {
                writable.push(addr, len);
            } else if writable.buffers.is_empty() {
                readable.push(addr, len);
            } else {
                return Err(BadChain::Order);
            }
            ended = !descriptor.has_next();
        }
        if !ended {
            return Err(BadChain::Malformed);
        }
        Ok(Chain { memory: memory.clone(), head, readable, writable })
    }

    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes not read yet.
    pub fn readable(&self) -> usize {
        self.readable.left
    }

    /// Bytes not written yet.
    pub fn writable(&self) -> usize {
        self.writable.left
    }

    /// Bytes written so far.
    pub fn written(&self) -> u32 {
        u32::try_from(self.writable.done).unwrap_or(u32::MAX)
    }

    fn slice(&self, part: Buffer) -> Result<VolatileSlice<'_>, BadChain> {
        self.memory
            .get_slice(GuestAddress(part.addr), part.len)
            .map_err(|_| BadChain::OutOfRange(part.addr, part.len as u32))
    }

    pub fn read_exact(&mut self, out: &mut [u8]) -> Result<(), BadChain> {
        if out.len() > self.readable.left {
            return Err(BadChain::Short);
        }
        let mut done = 0;
        for part in self.readable.parts(out.len()) {
            self.slice(part)?.copy_to(&mut out[done..done + part.len]);
            done += part.len;
        }
        self.readable.advance(done);
        Ok(())
    }

    pub fn read_object<T: FromBytes + IntoBytes + Immutable>(&mut self) -> Result<T, BadChain> {
        let mut object = T::new_zeroed();
        self.read_exact(object.as_mut_bytes())?;
        Ok(object)
    }

    pub fn read_vec(&mut self, len: usize) -> Result<Vec<u8>, BadChain> {
        if len > self.readable.left {
            return Err(BadChain::Short);
        }
        let mut out = vec![0; len];
        self.read_exact(&mut out)?;
        Ok(out)
    }

    pub fn write_all(&mut self, data: &[u8]) -> Result<(), BadChain> {
        if data.len() > self.writable.left {
            return Err(BadChain::Short);
        }
        let mut done = 0;
        for part in self.writable.parts(data.len()) {
            self.slice(part)?.copy_from(&data[done..done + part.len]);
            done += part.len;
        }
        self.writable.advance(done);
        Ok(())
    }

    pub fn write_object<T: IntoBytes + Immutable>(&mut self, object: &T) -> Result<(), BadChain> {
        self.write_all(object.as_bytes())
    }

    /// Reserves the next `len` writable bytes, to be filled later with [`Chain::fill`].
    pub fn reserve(&mut self, len: usize) -> Result<Reserved, BadChain> {
        if len > self.writable.left {
            return Err(BadChain::Short);
        }
        let parts = self.writable.parts(len).collect();
        self.writable.advance(len);
        Ok(Reserved(parts))
    }

    /// Writes `data` into reserved bytes.
    pub fn fill(&mut self, reserved: &Reserved, data: &[u8]) -> Result<(), BadChain> {
        let mut done = 0;
        for part in &reserved.0 {
            let len = part.len.min(data.len() - done);
            self.slice(Buffer { addr: part.addr, len })?.copy_from(&data[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Up to `count` readable bytes as slices, for one vectored host call, without consuming them.
    pub fn readable_slices(&self, count: usize) -> Result<Vec<VolatileSlice<'_>>, BadChain> {
        self.readable.parts(count).map(|part| self.slice(part)).collect()
    }

    /// Up to `count` writable bytes as slices.
    pub fn writable_slices(&self, count: usize) -> Result<Vec<VolatileSlice<'_>>, BadChain> {
        self.writable.parts(count).map(|part| self.slice(part)).collect()
    }

    /// Counts `count` readable bytes as consumed.
    pub fn consume(&mut self, count: usize) {
        self.readable.advance(count);
    }

    /// Counts `count` bytes as written that a host call has put there.
    pub fn advance(&mut self, count: usize) {
        self.writable.advance(count);
    }

    /// Forgets what was written, so that an error can be written in its place.
    pub fn rewind(&mut self) {
        self.writable.left += self.writable.done;
        self.writable.done = 0;
        self.writable.next = 0;
        self.writable.offset = 0;
    }
}

/// Writable bytes set aside by [`Chain::reserve`].
pub struct Reserved(Vec<Buffer>);
