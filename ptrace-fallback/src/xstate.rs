//! Extended state between the sentry's areas and stubs.
//!
//! The sentry's area holds the components that sandboxes are offered; the host's is larger where it has more (AMX, protection
//! keys). Both are in the standard format, so one is a prefix of the other.

use std::io;

use vmm::xstate::OFFERED;

use crate::host::ptrace;

/// The longest area a host may have, with AMX and room.
const LONGEST: usize = 16 << 10;
/// Offset of XSTATE_BV; XCOMP_BV and reserved words follow.
const HEADER: usize = 512;
const HEADER_END: usize = 576;

pub struct XstateBuffer {
    host: Vec<u8>,
}

impl XstateBuffer {
    /// Asks a stopped stub how long the host's area is.
    pub fn new(tid: i32) -> io::Result<XstateBuffer> {
        let mut host = vec![0; LONGEST];
        let len = ptrace::get_xstate(tid, &mut host)?;
        host.truncate(len.max(HEADER_END));
        Ok(XstateBuffer { host })
    }

    /// Whether the x87 unit has an exception to report (the status word's summary bit): else it was an SSE instruction.
    pub fn x87_exception(&mut self, tid: i32) -> io::Result<bool> {
        ptrace::get_xstate(tid, &mut self.host)?;
        Ok(self.host[2] & 0x80 != 0)
    }

    /// Copies a stub's state to `area`.
    pub fn save(&mut self, tid: i32, area: &mut [u8]) -> io::Result<()> {
        ptrace::get_xstate(tid, &mut self.host)?;
        let len = area.len().min(self.host.len());
        area[..len].copy_from_slice(&self.host[..len]);
        area[len..].fill(0);
        mask_components(area);
        Ok(())
    }

    /// Loads a stub's state from `area`; none: the state a CPU starts with.
    pub fn load(&mut self, tid: i32, area: Option<&[u8]>) -> io::Result<()> {
        self.host.fill(0);
        match area {
            Some(area) => {
                let len = area.len().min(self.host.len());
                self.host[..len].copy_from_slice(&area[..len]);
            }
            None => {
                // x87 control word and MXCSR: all exceptions masked.
                self.host[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
                self.host[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
            }
        }
        mask_components(&mut self.host);
        ptrace::set_xstate(tid, &self.host)
    }
}

/// Keeps the offered components' bits of XSTATE_BV and clears the rest of the header, where bits are refused.
fn mask_components(area: &mut [u8]) {
    if area.len() < HEADER_END {
        return;
    }
    let components = u64::from_le_bytes(std::array::from_fn(|index| area[HEADER + index])) & OFFERED;
    area[HEADER..HEADER + 8].copy_from_slice(&components.to_le_bytes());
    area[HEADER + 8..HEADER_END].fill(0);
}
