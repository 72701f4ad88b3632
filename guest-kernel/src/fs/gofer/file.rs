//! File content: reads, writes and pages.
//!
//! A small file's first read comes with its opening, in one request. A large file, or one that is read again, is shown in the
//! window, and reads copy from there. Writes go to the host at once. Both see the host's page cache.

use alloc::{string::String, sync::Arc};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use sentry_abi::{
    fuse::{self, Opcode},
    layout::PAGE_SIZE,
};
use zerocopy::IntoBytes;

use super::{
    client::{Data, Owner},
    node::Node,
    window::{self, Segment},
};
use crate::{
    arch::host,
    errno::{EFAULT, EIO, ESTALE, Errno, Error, Result},
    mm::{
        Extent, FaultError, MappingList, Pager,
        dma::DmaBuffer,
        io::{IoDst, IoSrc},
    },
};

/// Files up to this size are read by request at first.
const SMALL: u64 = 64 << 10;
/// After so many writes over what is there a file is mapped for writing.
const OVERWRITES: u32 = 4;
/// Most bytes of one read or write request.
const CHUNK: usize = 256 << 10;

/// The gofer's open file.
#[derive(Clone, Copy, Default)]
pub(super) struct Handle {
    /// 0: not open.
    pub fh: u64,
    pub writable: bool,
    /// What the VMM knows it by; 0: not handed over.
    pub window: u64,
}

impl Node {
    /// The gofer's open file, for writing or handed to the VMM if need be.
    fn handle(&self, write: bool, share: bool) -> Result<Handle> {
        let mut handle = self.handle.lock();
        if handle.fh == 0 || (write && !handle.writable) {
            let flags = fuse::walk::OPEN | if share { fuse::walk::SHARE } else { 0 };
            let (out, _) = self.open_request(flags, write, None)?;
            self.replace_handle(&mut handle, Handle { fh: out.fh, writable: write, window: out.handle });
            if write {
                // On a host's overlayfs opening for writing makes another file of it: what the window shows is the old one.
                let old = self.segments.take_all();
                self.retired.lock().extend(old.into_values());
                self.drop_retired();
            }
        }
        if share && handle.window == 0 {
            let arg = fuse::ShareIn { fh: handle.fh };
            let out: fuse::ShareOut = self.call(Opcode::Share, Owner::default(), &[arg.as_bytes()])?.object()?;
            handle.window = out.handle;
        }
        Ok(*handle)
    }

    /// Opens for reading and reads the beginning, in one request; bytes that lie in `data` then.
    fn open_and_read(&self, data: &DmaBuffer, len: usize) -> Result<Option<usize>> {
        let mut handle = self.handle.lock();
        if handle.fh != 0 {
            return Ok(None);
        }
        let flags = fuse::walk::OPEN | fuse::walk::DATA;
        let (out, got) = self.open_request(flags, false, Some((data, len)))?;
        self.replace_handle(&mut handle, Handle { fh: out.fh, writable: false, window: 0 });
        Ok(Some(got.min(out.data_len as usize)))
    }

    fn open_request(
        &self,
        flags: u32,
        write: bool,
        data: Option<(&DmaBuffer, usize)>,
    ) -> Result<(fuse::WalkOut, usize)> {
        const WRONLY: u32 = 1;
        // Write-only lets the gofer fall back to it; it opens for both where it can.
        let arg = fuse::WalkIn { count: 0, flags, open_flags: if write { WRONLY } else { 0 }, padding: 0 };
        let room = size_of::<fuse::WalkOut>();
        let data = data.map_or(Data::None, |(data, len)| Data::In(data, len));
        let client = &self.fs.client;
        let reply = client.call_with(Opcode::Walk, self.id, Owner::default(), &[arg.as_bytes()], room, data)?;
        let out: fuse::WalkOut = reply.object()?;
        match out.open_error {
            0 if out.fh != 0 => Ok((out, reply.len() - room)),
            0 => Err(EIO),
            error @ -4095..0 => Err(Error::Errno(Errno(-error as u16))),
            _ => Err(EIO),
        }
    }

    pub(super) fn replace_handle(&self, handle: &mut Handle, new: Handle) {
        let old = core::mem::replace(handle, new);
        if old.fh != 0 {
            self.fs.client.release(old.fh, old.writable);
        }
        if old.window != 0 {
            host::window_forget(old.window);
        }
    }

    /// Nobody has the file open any more. What the window shows of it stays until it has to give way.
    pub(super) fn close_handle(&self) {
        let mut handle = self.handle.lock();
        self.replace_handle(&mut handle, Handle::default());
        drop(handle);
        self.drop_retired();
    }

    fn drop_retired(&self) {
        if self.mapped.is_empty() {
            let retired = core::mem::take(&mut *self.retired.lock());
            drop(retired);
        }
    }

    pub(super) fn is_mapped(&self) -> bool {
        !self.mapped.is_empty()
    }

    /// The segment that shows page `index`. May be called by a page fault: nothing is revoked here.
    fn segment(&self, index: u64, write: bool) -> Result<Arc<Segment>> {
        if let Some(segment) = self.segments.find(index, write) {
            return Ok(segment);
        }
        window::make_room();
        let handle = self.handle(write, true)?;
        let (first, pages) = window::shape(index, self.size());
        let segment = Arc::new(Segment::map(handle.window, first, pages, write)?);
        let old = self.segments.insert(&self.strong()?, segment.clone());
        if let Some(old) = old {
            self.retired.lock().push(old);
            self.drop_retired();
        }
        Ok(segment)
    }

    /// The file ends at `size` now: pages beyond it must fault again.
    pub(super) fn forget_pages_from(&self, size: u64) {
        if self.is_mapped() {
            self.mapped.revoke(self, size.div_ceil(PAGE_SIZE), u64::MAX / PAGE_SIZE, true);
        }
    }

    /// Size that bounds a read up to `end`: what others may have appended to a shared file counts.
    fn size_for(&self, end: u64) -> Result<u64> {
        let size = self.size();
        if self.fs.exclusive || end <= size { Ok(size) } else { Ok(self.refresh()?.size) }
    }

    pub fn read_at(&self, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        let size = self.size_for(offset.saturating_add(dst.remaining() as u64))?;
        let mut done = 0;
        while dst.remaining() > 0 {
            let at = offset + done as u64;
            if at >= size {
                break;
            }
            let len = (dst.remaining() as u64).min(size - at);
            let copied = match self.read_piece(dst, at, len) {
                // It has shrunk meanwhile.
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            done += copied;
        }
        Ok(done)
    }

    fn read_piece(&self, dst: &mut IoDst<'_>, at: u64, len: u64) -> Result<usize> {
        let index = at / PAGE_SIZE;
        let first = self.reads.load(Relaxed) == 0;
        let segment = match self.segments.find(index, false) {
            Some(segment) => segment,
            None if first && self.size() <= SMALL => {
                self.reads.store(1, Relaxed);
                return self.read_by_request(dst, at, len);
            }
            None => match self.segment(index, false) {
                Ok(segment) => segment,
                // Window or descriptors are used up, or the host does not map it: it can still be read.
                Err(error) if error != ESTALE => return self.read_by_request(dst, at, len),
                Err(error) => return Err(error),
            },
        };
        let (gpa, pages) = segment.gpa(index).ok_or(EIO)?;
        let within = at % PAGE_SIZE;
        let len = len.min(pages * PAGE_SIZE - within) as usize;
        match dst.put_physical(gpa + within, len) {
            Err(EFAULT) if self.refresh().is_ok_and(|attr| at >= attr.size) => Ok(0),
            other => other,
        }
    }

    fn read_by_request(&self, dst: &mut IoDst<'_>, at: u64, len: u64) -> Result<usize> {
        let len = len.min(CHUNK as u64) as usize;
        let data = DmaBuffer::new(len)?;
        let opened = if at == 0 { self.open_and_read(&data, len)? } else { None };
        let got = match opened {
            Some(got) => got,
            None => {
                let handle = self.handle(false, false)?;
                let arg = fuse::ReadIn { fh: handle.fh, offset: at, size: len as u32, ..Default::default() };
                let place = Data::In(&data, len);
                let client = &self.fs.client;
                client.call_with(Opcode::Read, self.id, Owner::default(), &[arg.as_bytes()], 0, place)?.len()
            }
        };
        if got == 0 { Ok(0) } else { dst.put_physical(data.gpa(), got.min(len)) }
    }

    /// Writes at `offset`, or at the end; bytes written and the offset behind them.
    pub fn write_at(&self, src: &mut IoSrc<'_>, offset: u64, append: bool) -> Result<(usize, u64)> {
        let mut done = 0;
        let mut end = offset;
        while src.remaining() > 0 {
            match self.write_piece(src, end, append) {
                Ok((n, after)) => {
                    end = after;
                    done += n;
                    if n == 0 {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok((done, end))
    }

    /// Writes over what is there through the window, for files that this is done to again and again. None: by request.
    fn write_in_place(&self, src: &mut IoSrc<'_>, at: u64) -> Option<(usize, u64)> {
        let size = self.size();
        if !self.fs.exclusive || at >= size {
            return None;
        }
        let index = at / PAGE_SIZE;
        let segment = match self.segments.find(index, true) {
            Some(segment) => segment,
            None if self.overwrites.fetch_add(1, Relaxed) < OVERWRITES => return None,
            None => self.segment(index, true).ok()?,
        };
        let (gpa, pages) = segment.gpa(index)?;
        let within = at % PAGE_SIZE;
        let len = (src.remaining() as u64).min(size - at).min(pages * PAGE_SIZE - within) as usize;
        // A host that has no room for a hole's page fails the copy; the request that follows says why.
        let n = src.get_physical(gpa + within, len).ok()?;
        self.written_in_place.store(true, SeqCst);
        self.written(at + n as u64);
        Some((n, at + n as u64))
    }

    fn write_piece(&self, src: &mut IoSrc<'_>, at: u64, append: bool) -> Result<(usize, u64)> {
        if !append && let Some(done) = self.write_in_place(src, at) {
            return Ok(done);
        }
        let handle = self.handle(true, false)?;
        let len = src.remaining().min(CHUNK);
        let data = DmaBuffer::new(len)?;
        let len = src.get_physical(data.gpa(), len)?;
        let write_flags = if append { fuse::write_flags::APPEND } else { 0 };
        let arg = fuse::WriteIn { fh: handle.fh, offset: at, size: len as u32, write_flags, ..Default::default() };
        let place = Data::Out(&data, len);
        let room = size_of::<fuse::WriteOut>();
        let client = &self.fs.client;
        let reply = client.call_with(Opcode::Write, self.id, Owner::default(), &[arg.as_bytes()], room, place)?;
        let out: fuse::WriteOut = reply.object()?;
        let n = (out.size as usize).min(len);
        let end = out.offset.checked_add(n as u64).ok_or(EIO)?;
        if n > 0 {
            self.written(end);
        }
        Ok((n, end))
    }

    pub fn fsync(&self, data_only: bool) -> Result<()> {
        let fh = self.handle.lock().fh;
        let arg = fuse::FSyncIn { fh, fsync_flags: data_only.into(), padding: 0 };
        self.call(Opcode::FSync, Owner::default(), &[arg.as_bytes()]).map(drop)
    }

    pub fn fallocate(&self, mode: u32, offset: u64, length: u64) -> Result<()> {
        let handle = self.handle(true, false)?;
        let arg = fuse::FAllocateIn { fh: handle.fh, offset, length, mode, padding: 0 };
        self.call(Opcode::FAllocate, Owner::default(), &[arg.as_bytes()])?;
        self.refresh().map(drop)
    }

    /// SEEK_DATA or SEEK_HOLE; None beyond the last data.
    pub fn seek_data(&self, offset: u64, data: bool) -> Result<Option<u64>> {
        let handle = self.handle(false, false)?;
        let arg = fuse::LSeekIn { fh: handle.fh, offset, whence: if data { 3 } else { 4 }, padding: 0 };
        match self.call(Opcode::LSeek, Owner::default(), &[arg.as_bytes()]) {
            Ok(reply) => Ok(Some(reply.object::<fuse::LSeekOut>()?.offset)),
            Err(crate::errno::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What open(2) must find out at once. A file that everybody may read is opened when it is first read.
    pub fn check_open(&self, write: bool) -> Result<()> {
        let attr = self.attr()?;
        if self.kind() == 0o100000 && (write || !self.fs.exclusive || attr.mode & 0o444 != 0o444) {
            self.handle(write, false)?;
        }
        Ok(())
    }

    pub(super) fn opened(&self) {
        self.opens.fetch_add(1, SeqCst);
    }

    pub(super) fn closed(&self) {
        if self.opens.fetch_sub(1, SeqCst) == 1 {
            if let Some(change) = self.time_of_writes() {
                self.fs.client.change_later(self.id, change);
            }
            // Pages of a mapping may still have to be shown, and by then its name may be gone.
            if !self.is_mapped() {
                self.close_handle();
            }
        }
    }
}

impl Pager for Node {
    fn fault(&self, index: u64, max: u64, write: bool) -> Result<Extent, FaultError> {
        let failed = |error| match error {
            crate::errno::ENOMEM => FaultError::NoMemory,
            _ => FaultError::PastEnd,
        };
        let wanted = index.saturating_add(1).saturating_mul(PAGE_SIZE);
        let mut size = self.size();
        if !self.fs.exclusive && wanted > size {
            size = self.ask().map_err(failed)?.size;
        }
        let pages = size.div_ceil(PAGE_SIZE);
        if index >= pages {
            return Err(FaultError::PastEnd);
        }
        let segment = self.segment(index, write).map_err(failed)?;
        if write {
            // Times and blocks change on the host from now on.
            self.touched();
        }
        let (gpa, follow) = segment.gpa(index).ok_or(FaultError::PastEnd)?;
        Ok(Extent { gpa, pages: follow.min(max).min(pages - index).max(1) })
    }

    fn mappings(&self) -> &MappingList {
        &self.mapped
    }

    fn identity(&self) -> (u64, u64, String) {
        self.mapped_as.lock().clone()
    }

    fn set_identity(&self, device: u64, inode: u64, path: String) {
        let old = core::mem::replace(&mut *self.mapped_as.lock(), (device, inode, path));
        drop(old);
    }
}
