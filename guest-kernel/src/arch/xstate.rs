//! XSAVE areas: a task's extended registers in memory (standard format, Intel SDM volume 1 chapter 13).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::{
    errno::{ENOMEM, Result},
    mm::kmem::KernelPages,
};

static SIZE: AtomicU32 = AtomicU32::new(576);
static XCR0: AtomicU64 = AtomicU64::new(3);

pub(crate) fn init(params: &sentry_abi::boot::BootParams) {
    SIZE.store(params.xsave_size.clamp(576, 4096), Relaxed);
    XCR0.store(params.xcr0 | 3, Relaxed);
}

/// Bytes of an area; the same for every task of the sandbox.
pub fn size() -> usize {
    SIZE.load(Relaxed) as usize
}

/// Features that applications may use.
pub fn xcr0() -> u64 {
    XCR0.load(Relaxed)
}

const MXCSR_OFFSET: usize = 24;
const XSTATE_BV_OFFSET: usize = 512;
/// Bytes of the legacy region (FXSAVE) and of the XSAVE header.
pub const LEGACY_SIZE: usize = 512;
pub const HEADER_SIZE: usize = 64;

pub struct XsaveArea {
    pages: KernelPages,
}

impl XsaveArea {
    /// The state after execve(2): FCW 0x37f, MXCSR 0x1f80, everything else initial.
    pub fn new() -> Result<Self> {
        let mut area = XsaveArea { pages: KernelPages::zeroed(size()).ok_or(ENOMEM)? };
        area.reset();
        Ok(area)
    }

    pub fn reset(&mut self) {
        let bytes = self.bytes_mut();
        bytes.fill(0);
        bytes[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        bytes[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&0x1f80u32.to_le_bytes());
        // XSTATE_BV: x87 and SSE present, so that MXCSR is loaded.
        bytes[XSTATE_BV_OFFSET] = 3;
    }

    /// A copy, for a new thread.
    pub fn duplicate(&self) -> Result<Self> {
        let mut area = XsaveArea { pages: KernelPages::new(size()).ok_or(ENOMEM)? };
        area.bytes_mut().copy_from_slice(self.bytes());
        Ok(area)
    }

    /// For `UserContext::xsave`.
    pub fn address(&self) -> u64 {
        self.pages.as_ptr() as u64
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the pages are ours and hold at least `size()` initialised bytes.
        unsafe { core::slice::from_raw_parts(self.pages.as_ptr(), size()) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.pages.as_ptr(), size()) }
    }

    /// Makes an area that a program edited loadable: reserved bits cleared, as Linux's signal return does.
    pub fn sanitize(&mut self) {
        let features = xcr0();
        let bytes = self.bytes_mut();
        let mut mxcsr = u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
        mxcsr &= 0xffff;
        bytes[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&mxcsr.to_le_bytes());
        let header = &mut bytes[XSTATE_BV_OFFSET..XSTATE_BV_OFFSET + HEADER_SIZE];
        let mut present = [0; 8];
        present.copy_from_slice(&header[..8]);
        header.fill(0);
        header[..8].copy_from_slice(&(u64::from_le_bytes(present) & features).to_le_bytes());
    }
}
