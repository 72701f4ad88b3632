//! Open files of proc: text made when it is read from its start, and a process's memory.

use alloc::{sync::Arc, vec::Vec};

use super::{Make, Subject};
use crate::{
    errno::{EINVAL, EIO, ENOMEM, EPERM, Result},
    fs::{File, FileOps},
    mm::{
        AddressSpace,
        io::{IoDst, IoSrc},
        kmem,
        user::UserAddr,
    },
    sync::Mutex,
};

/// Longest write that a setting takes.
const MAX_SETTING: usize = 4096;

type Set = fn(&Subject, &[u8]) -> Result<()>;

pub(super) struct TextFile {
    subject: Subject,
    make: Make,
    set: Option<Set>,
    /// What the reader at offset 0 was given; reads behind it continue the same text.
    text: Mutex<Arc<Vec<u8>>>,
}

impl TextFile {
    pub fn new(subject: Subject, make: Make, set: Option<Set>) -> Self {
        TextFile { subject, make, set, text: Mutex::new(Arc::new(Vec::new())) }
    }
}

impl FileOps for TextFile {
    fn read(&self, _file: &File, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        if kmem::under_pressure() {
            return Err(ENOMEM);
        }
        let text = if offset == 0 {
            let text = Arc::new((self.make)(&self.subject)?);
            *self.text.lock() = text.clone();
            text
        } else {
            let mut text = self.text.lock();
            if text.is_empty() {
                *text = Arc::new((self.make)(&self.subject)?);
            }
            text.clone()
        };
        match usize::try_from(offset).ok().and_then(|at| text.get(at..)) {
            Some(rest) => dst.put(rest),
            None => Ok(0),
        }
    }

    fn write(&self, _file: &File, src: &mut IoSrc<'_>, offset: u64) -> Result<usize> {
        let set = self.set.ok_or(EPERM)?;
        let len = src.remaining();
        if len > MAX_SETTING || offset != 0 {
            return Err(EINVAL);
        }
        let mut bytes = alloc::vec![0; len];
        let got = src.get(&mut bytes)?;
        set(&self.subject, bytes[..got].trim_ascii_end())?;
        Ok(got)
    }

    fn append(&self, file: &File, src: &mut IoSrc<'_>) -> Result<(usize, u64)> {
        Ok((self.write(file, src, 0)?, 0))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> Result<()> {
        Ok(())
    }
}

/// /proc/pid/mem: offsets are addresses.
pub(super) struct MemoryFile {
    mm: Arc<AddressSpace>,
}

impl MemoryFile {
    pub fn new(mm: Arc<AddressSpace>) -> Self {
        MemoryFile { mm }
    }
}

impl FileOps for MemoryFile {
    fn read(&self, _file: &File, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        let mut done = 0;
        let mut page = alloc::vec![0; 4096];
        while dst.remaining() > 0 {
            let at = offset + done as u64;
            let len = page.len().min(dst.remaining()).min(4096 - (at % 4096) as usize);
            let got = match self.mm.read_partial(UserAddr(at), &mut page[..len]) {
                Ok(got) => got,
                Err(_) if done == 0 => return Err(EIO),
                Err(_) => break,
            };
            let put = dst.put(&page[..got])?;
            done += put;
            if put < len {
                break;
            }
        }
        Ok(done)
    }

    fn write(&self, _file: &File, src: &mut IoSrc<'_>, offset: u64) -> Result<usize> {
        let mut page = alloc::vec![0; 4096];
        let len = page.len().min(src.remaining());
        let got = src.get(&mut page[..len])?;
        self.mm.write_partial(UserAddr(offset), &page[..got]).map_err(|_| EIO)
    }

    fn seekable(&self) -> bool {
        true
    }
}
