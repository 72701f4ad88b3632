//! Socket addresses as applications pass them: a family and what it makes of the rest.

use arrayvec::ArrayVec;

use crate::{
    errno::{EINVAL, Result},
    mm::user::{UserAddr, UserPtr},
    task::Current,
};

pub const AF_UNSPEC: u16 = 0;
pub const AF_UNIX: u16 = 1;

/// Bytes of a struct sockaddr_storage.
pub const MAX: usize = 128;

/// A struct sockaddr of any family, with the length that came with it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SockAddr(ArrayVec<u8, MAX>);

impl SockAddr {
    /// The first [`MAX`] of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        SockAddr(bytes.iter().copied().take(MAX).collect())
    }

    /// A family and what follows it.
    pub fn of(family: u16, rest: &[u8]) -> Self {
        SockAddr(family.to_ne_bytes().iter().chain(rest).copied().take(MAX).collect())
    }

    /// From user memory; EINVAL for lengths that no address has.
    pub fn read(cur: &Current, addr: UserAddr, len: i32) -> Result<Self> {
        let len = usize::try_from(len).ok().filter(|&len| len <= MAX).ok_or(EINVAL)?;
        let mut bytes = [0; MAX];
        cur.mm.read(addr, &mut bytes[..len])?;
        Ok(Self::new(&bytes[..len]))
    }

    /// To user memory, cut to what `len` says there is room for; `len` becomes the whole length.
    pub fn write(&self, cur: &Current, addr: UserAddr, len: UserPtr<i32>) -> Result<()> {
        let room = usize::try_from(cur.mm.read_value(len)?).map_err(|_| EINVAL)?;
        cur.mm.write(addr, &self.0[..room.min(self.0.len())])?;
        cur.mm.write_value(len, &(self.0.len() as i32))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// None when it is too short to have one.
    pub fn family(&self) -> Option<u16> {
        self.0.first_chunk().map(|family| u16::from_ne_bytes(*family))
    }

    /// What follows the family.
    pub fn rest(&self) -> &[u8] {
        self.0.get(2..).unwrap_or(&[])
    }
}
