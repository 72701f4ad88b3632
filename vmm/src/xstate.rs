//! The extended state (XSAVE) that applications may use, and the size of its area in the standard format.

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

/// x87, SSE, AVX and AVX-512. No AMX (8 KB of state a task), no MPX (gone from CPUs), no protection keys.
pub const OFFERED: u64 = 0b1110_0111;
const X87_SSE: u64 = 0b11;
/// Legacy region and XSAVE header.
const HEADER_END: u32 = 576;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xstate {
    /// XCR0 for applications.
    pub xcr0: u64,
    /// Bytes of an area in the standard format with all of `xcr0`.
    pub size: u32,
}

/// What this host has enabled, cut to what is offered to sandboxes and to `supported`.
pub fn host(supported: u64) -> Xstate {
    let xcr0 = (host_xcr0() & OFFERED & supported) | X87_SSE;
    // AVX-512's three components are of use only together, and on top of AVX.
    let xcr0 = if xcr0 & 0b1110_0100 == 0b1110_0100 { xcr0 } else { xcr0 & 0b111 };
    let end = |component: u32| {
        let leaf = __cpuid_count(0xd, component);
        leaf.ebx + leaf.eax
    };
    let size = (2..63).filter(|&component| xcr0 & (1 << component) != 0).map(end).max().unwrap_or(0).max(HEADER_END);
    Xstate { xcr0, size }
}

fn host_xcr0() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return X87_SSE;
    }
    // SAFETY: OSXSAVE says that the instruction is enabled.
    unsafe { xgetbv() }
}

#[target_feature(enable = "xsave")]
fn xgetbv() -> u64 {
    // SAFETY: register 0 (XCR0) exists on every CPU that has the instruction.
    unsafe { _xgetbv(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_covers_the_components() {
        let all = host(u64::MAX);
        assert_eq!(all.xcr0 & !OFFERED, 0);
        assert_eq!(all.xcr0 & X87_SSE, X87_SSE);
        assert!(all.size >= HEADER_END && all.size < 16384);
        assert_eq!(host(X87_SSE), Xstate { xcr0: X87_SSE, size: HEADER_END });
        assert!(host(0b111).size <= all.size);
    }
}
