//! Extended attributes in memory (xattr(7)).

use alloc::{collections::BTreeMap, vec::Vec};

use super::FileType;
use crate::{
    errno::{EEXIST, ENODATA, ENOSPC, ENOTSUP, EPERM, Result},
    mm::kmem,
};

/// Bytes of names and values that an inode may have.
const MAX: usize = 64 << 10;

#[derive(Default)]
pub struct Xattrs(BTreeMap<Vec<u8>, Vec<u8>>);

impl Xattrs {
    pub fn get(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.0.get(name).cloned().ok_or(ENODATA)
    }

    /// `flags`: XATTR_CREATE 1, XATTR_REPLACE 2. ENOTSUP for a name space that there is not.
    pub fn set(&mut self, owner: FileType, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        if name.starts_with(b"user.") && !matches!(owner, FileType::Regular | FileType::Directory) {
            return Err(EPERM);
        }
        if ![&b"user."[..], b"trusted.", b"security."].iter().any(|space| name.starts_with(space)) {
            return Err(ENOTSUP);
        }
        match (self.0.contains_key(name), flags) {
            (true, 1) => return Err(EEXIST),
            (false, 2) => return Err(ENODATA),
            _ => {}
        }
        let total: usize = self.0.iter().filter(|(k, _)| *k != name).map(|(k, v)| k.len() + v.len()).sum();
        if total + name.len() + value.len() > MAX || kmem::under_pressure() {
            return Err(ENOSPC);
        }
        self.0.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    /// Takes what is known from elsewhere, without checks.
    pub fn adopt(&mut self, name: &[u8], value: Vec<u8>) {
        self.0.insert(name.to_vec(), value);
    }

    /// Names, each ended by NUL.
    pub fn list(&self) -> Vec<u8> {
        self.0.keys().flat_map(|name| name.iter().copied().chain([0])).collect()
    }

    pub fn remove(&mut self, name: &[u8]) -> Result<()> {
        self.0.remove(name).map(drop).ok_or(ENODATA)
    }
}
