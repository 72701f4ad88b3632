//! Open files of the overlay.

use alloc::{sync::Arc, vec, vec::Vec};

use super::{dir::Listed, node::Node};
use crate::{
    errno::{ENOTSUP, Result},
    fs::{DirEntry, File, FileOps, gofer},
    mm::{
        Pager, SharedPages,
        io::{IoDst, IoSrc},
    },
    sync::Mutex,
};

/// Bytes copied up at a time.
const PIECE: usize = 64 << 10;
/// FALLOC_FL_*.
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;

/// Copies the first `limit` bytes of a file below.
pub(super) fn copy_up(lower: &gofer::Node, content: &SharedPages, limit: u64) -> Result<()> {
    let size = lower.attr()?.size.min(limit);
    let mut buffer = vec![0; PIECE.min(size as usize)];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(PIECE as u64) as usize;
        let n = lower.read_at(&mut IoDst::kernel(&mut buffer[..len]), at)?;
        if n == 0 {
            break;
        }
        let mut done = 0;
        while done < n {
            let written = content.write(&mut IoSrc::kernel(&buffer[done..n]), at + done as u64)?;
            if written == 0 {
                return Err(crate::errno::ENOSPC);
            }
            done += written;
        }
        at += n as u64;
    }
    Ok(())
}

pub(super) struct OverlayFile {
    pub node: Arc<Node>,
    /// What the directory held when reading it began.
    listing: Mutex<Option<Arc<Vec<Listed>>>>,
}

/// Where a listing begins (0 and 1 are "." and "..").
const FIRST: u64 = 2;

impl OverlayFile {
    pub fn new(node: Arc<Node>) -> Self {
        OverlayFile { node, listing: Mutex::new(None) }
    }
}

impl FileOps for OverlayFile {
    fn read(&self, _file: &File, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        match (self.node.content(), &self.node.lower) {
            (Some(content), _) => content.read(dst, offset),
            (None, Some(lower)) => lower.read_at(dst, offset),
            (None, None) => Ok(0),
        }
    }

    fn write(&self, _file: &File, src: &mut IoSrc<'_>, offset: u64) -> Result<usize> {
        let content = self.node.own_content(u64::MAX)?;
        let n = content.write(src, offset)?;
        self.node.modified();
        Ok(n)
    }

    fn append(&self, _file: &File, src: &mut IoSrc<'_>) -> Result<(usize, u64)> {
        // Two appends must not write over each other. No page fault takes this lock.
        let _changing = self.node.changing.lock();
        let content = self.node.own_content_locked(u64::MAX)?;
        let start = content.size();
        let n = content.write(src, start)?;
        self.node.modified();
        Ok((n, start + n as u64))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek_data(&self, _file: &File, offset: u64, data: bool) -> Result<Option<u64>> {
        match (self.node.content(), &self.node.lower) {
            (Some(content), _) => Ok(content.seek(offset, data)),
            (None, Some(lower)) => lower.seek_data(offset, data),
            (None, None) => Ok(None),
        }
    }

    fn readdir(&self, _file: &File, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let listing = {
            let mut known = self.listing.lock();
            match &*known {
                Some(listing) if cookie > FIRST => listing.clone(),
                _ => {
                    let listing = Arc::new(self.node.listing()?);
                    *known = Some(listing.clone());
                    listing
                }
            }
        };
        let start = usize::try_from(cookie.saturating_sub(FIRST)).unwrap_or(usize::MAX);
        for (at, entry) in listing.iter().enumerate().skip(start) {
            let (ino, file_type) = (entry.ino, entry.kind);
            if !emit(DirEntry { name: &entry.name, ino, file_type, next: FIRST + at as u64 + 1 }) {
                break;
            }
        }
        Ok(())
    }

    fn mmap(&self, file: &File) -> Result<Arc<dyn Pager>> {
        // Who may write may map shared and writable: that must not be the file below.
        let content = if file.writable() { Some(self.node.own_content(u64::MAX)?) } else { self.node.content() };
        match (content, &self.node.lower) {
            (Some(content), _) => Ok(content),
            (None, Some(lower)) => Ok(lower.clone()),
            (None, None) => Err(crate::errno::ENODEV),
        }
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn fallocate(&self, _file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        let _changing = self.node.changing.lock();
        let content = self.node.own_content_locked(u64::MAX)?;
        let end = offset.saturating_add(len);
        match mode {
            0 if end > content.size() => content.truncate(end),
            0 | KEEP_SIZE => {}
            mode if mode == KEEP_SIZE | PUNCH_HOLE => content.punch(offset, end),
            _ => return Err(ENOTSUP),
        }
        self.node.modified();
        Ok(())
    }
}
