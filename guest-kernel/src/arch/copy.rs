//! Copies that may fault, and the exception table that makes the fault an answer.
//!
//! A page of the window faults when its file has shrunk; an XRSTOR or IRET faults on what a program edited. Instructions
//! that may do so have an entry here: both backends resume a fault in `[start, end)` at `fixup`.

use core::arch::global_asm;

use sentry_abi::para::FixupEntry;

// `rep movsb` keeps rcx exact, so at the fixup rcx holds the bytes not copied.
global_asm!(
    ".pushsection .text",
    ".balign 16",
    ".globl sentry_copy_fallible",
    ".hidden sentry_copy_fallible",
    "sentry_copy_fallible:",
    "    mov rcx, rdx",
    "91: rep movsb",
    "92: mov rax, rcx",
    "    ret",
    ".globl sentry_zero_fallible",
    ".hidden sentry_zero_fallible",
    "sentry_zero_fallible:",
    "    mov rcx, rsi",
    "    xor eax, eax",
    "93: rep stosb",
    "94: mov rax, rcx",
    "    ret",
    // (dst: *mut u32, old, new, out: *mut u32) -> 0, or 1 on a fault
    ".globl sentry_cmpxchg32_fallible",
    ".hidden sentry_cmpxchg32_fallible",
    "sentry_cmpxchg32_fallible:",
    "    mov eax, esi",
    "95: lock cmpxchg dword ptr [rdi], edx",
    "96: mov dword ptr [rcx], eax",
    "    xor eax, eax",
    "    ret",
    "97: mov eax, 1",
    "    ret",
    // (src: *const u32, out: *mut u32) -> 0, or 1 on a fault
    ".globl sentry_load32_fallible",
    ".hidden sentry_load32_fallible",
    "sentry_load32_fallible:",
    "98: mov eax, dword ptr [rdi]",
    "99: mov dword ptr [rsi], eax",
    "    xor eax, eax",
    "    ret",
    ".popsection",
    // Entries are aligned to 4; the section is kept by the references below.
    ".pushsection .fixup_table, \"a\"",
    ".balign 4",
    ".globl sentry_fixups_start",
    ".hidden sentry_fixups_start",
    "sentry_fixups_start:",
    ".long 91b - .",
    ".long 92b - (. - 4)",
    ".long 92b - (. - 8)",
    ".long 93b - .",
    ".long 94b - (. - 4)",
    ".long 94b - (. - 8)",
    ".long 95b - .",
    ".long 96b - (. - 4)",
    ".long 97b - (. - 8)",
    ".long 98b - .",
    ".long 99b - (. - 4)",
    ".long 97b - (. - 8)",
    ".globl sentry_fixups_end",
    ".hidden sentry_fixups_end",
    "sentry_fixups_end:",
    ".popsection",
);

unsafe extern "sysv64" {
    fn sentry_copy_fallible(dst: *mut u8, src: *const u8, len: usize) -> usize;
    fn sentry_zero_fallible(dst: *mut u8, len: usize) -> usize;
    fn sentry_cmpxchg32_fallible(dst: *mut u32, old: u32, new: u32, out: *mut u32) -> u32;
    fn sentry_load32_fallible(src: *const u32, out: *mut u32) -> u32;
    static sentry_fixups_start: FixupEntry;
    static sentry_fixups_end: FixupEntry;
}

/// All offsets of an entry are relative to the address of the entry itself.
pub fn fixup_table() -> &'static [FixupEntry] {
    // SAFETY: the two symbols bracket the section of entries above, which is read-only.
    unsafe {
        let start = &raw const sentry_fixups_start;
        let count = (&raw const sentry_fixups_end).offset_from(start);
        core::slice::from_raw_parts(start, count as usize)
    }
}

/// Copies `len` bytes; returns how many were not copied because an access faulted.
///
/// # Safety
/// Both ranges must be memory of the sentry, a user page or a window page: the copy may fault, but must not reach memory
/// that Rust references cover elsewhere (user memory changes under our feet; it is only ever copied).
#[inline]
pub unsafe fn copy_fallible(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: the caller's contract; a fault is resumed at the fixup.
    unsafe { sentry_copy_fallible(dst, src, len) }
}

/// Zeroes `len` bytes; returns how many were left.
///
/// # Safety
/// As for [`copy_fallible`].
#[inline]
pub unsafe fn zero_fallible(dst: *mut u8, len: usize) -> usize {
    // SAFETY: the caller's contract.
    unsafe { sentry_zero_fallible(dst, len) }
}

/// Compare and exchange on a user word: `Some(value found)`, `None` on a fault.
///
/// # Safety
/// `dst` is 4-byte aligned; otherwise as for [`copy_fallible`].
#[inline]
pub unsafe fn cmpxchg32(dst: *mut u32, old: u32, new: u32) -> Option<u32> {
    let mut found = 0;
    // SAFETY: the caller's contract; `found` is ours.
    (unsafe { sentry_cmpxchg32_fallible(dst, old, new, &mut found) } == 0).then_some(found)
}

/// Loads a user word.
///
/// # Safety
/// As for [`cmpxchg32`].
#[inline]
pub unsafe fn load32(src: *const u32) -> Option<u32> {
    let mut found = 0;
    // SAFETY: the caller's contract.
    (unsafe { sentry_load32_fallible(src, &mut found) } == 0).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_points_at_the_copies() {
        let table = fixup_table();
        assert_eq!(table.len(), 4);
        for entry in table {
            assert!(entry.start < entry.end);
            let base = entry as *const _ as i64;
            let code = sentry_copy_fallible as *const () as i64;
            assert!((base + entry.start as i64 - code).abs() < 256);
        }
    }

    #[test]
    fn copies_all() {
        let (a, mut b) = ([7u8; 100], [0u8; 100]);
        // SAFETY: both are local arrays of 100 bytes.
        assert_eq!(unsafe { copy_fallible(b.as_mut_ptr(), a.as_ptr(), 100) }, 0);
        assert_eq!(a, b);
    }
}
