//! Machine code of the vDSO: position independent, copied into a user page, run by applications in user mode.
//!
//! The data page lies directly before the image's page (see `time::vdso`): sequence 0, base TSC 8, multiplier 16, monotonic
//! 24, realtime offset 32, boottime offset 40, longest trusted distance from the base in ticks 48 (0: never trust the TSC).

use core::arch::global_asm;

/// Where in the image's page the code is put: the code finds the data page by that.
pub const CODE_OFFSET: usize = 0x400;

global_asm!(
    ".pushsection .rodata.vdso, \"a\"",
    // Seen by the other code generation units.
    ".globl sentry_vdso_start",
    ".hidden sentry_vdso_start",
    ".globl sentry_vdso_end",
    ".hidden sentry_vdso_end",
    ".globl sentry_vdso_clock_gettime",
    ".hidden sentry_vdso_clock_gettime",
    ".globl sentry_vdso_gettimeofday",
    ".hidden sentry_vdso_gettimeofday",
    ".globl sentry_vdso_time",
    ".hidden sentry_vdso_time",
    ".globl sentry_vdso_getcpu",
    ".hidden sentry_vdso_getcpu",
    ".globl sentry_vdso_clock_getres",
    ".hidden sentry_vdso_clock_getres",
    ".balign 16",
    "sentry_vdso_start:",
    // edi: clock, rsi: timespec
    "sentry_vdso_clock_gettime:",
    "    mov r9d, 24", // offset 0: CLOCK_MONOTONIC and its kin
    "    cmp edi, 1",
    "    je 10f",
    "    cmp edi, 4",
    "    je 10f",
    "    cmp edi, 6",
    "    je 10f",
    "    mov r9d, 32",
    "    test edi, edi",
    "    je 10f",
    "    cmp edi, 5",
    "    je 10f",
    "    mov r9d, 40",
    "    cmp edi, 7",
    "    jne 20f",
    "10: call sentry_vdso_read",
    "    jc 20f",
    "    xor edx, edx",
    "    mov ecx, 1000000000",
    "    div rcx",
    "    mov [rsi], rax",
    "    mov [rsi + 8], rdx",
    "    xor eax, eax",
    "    ret",
    "20: mov eax, 228",
    "    syscall",
    "    ret",
    ".balign 16",
    // rdi: timeval, rsi: timezone
    "sentry_vdso_gettimeofday:",
    "    test rdi, rdi",
    "    jz 20f",
    "    mov r9d, 32",
    "    call sentry_vdso_read",
    "    jc 20f",
    "    xor edx, edx",
    "    mov ecx, 1000000000",
    "    div rcx",
    "    mov [rdi], rax",
    "    mov eax, edx",
    "    xor edx, edx",
    "    mov ecx, 1000",
    "    div ecx",
    "    mov [rdi + 8], rax",
    "    test rsi, rsi",
    "    jz 10f",
    "    mov qword ptr [rsi], 0",
    "10: xor eax, eax",
    "    ret",
    "20: mov eax, 96",
    "    syscall",
    "    ret",
    ".balign 16",
    // rdi: time_t
    "sentry_vdso_time:",
    "    mov r9d, 32",
    "    call sentry_vdso_read",
    "    jc 20f",
    "    xor edx, edx",
    "    mov ecx, 1000000000",
    "    div rcx",
    "    test rdi, rdi",
    "    jz 10f",
    "    mov [rdi], rax",
    "10: ret",
    "20: mov eax, 201",
    "    syscall",
    "    ret",
    ".balign 16",
    "sentry_vdso_getcpu:",
    "    mov eax, 309",
    "    syscall",
    "    ret",
    ".balign 16",
    "sentry_vdso_clock_getres:",
    "    mov eax, 229",
    "    syscall",
    "    ret",
    ".balign 16",
    // r9: which offset is added (24: none). Gives ns in rax with carry clear, or carry set. Changes rax, rcx, rdx, r8, r10.
    "sentry_vdso_read:",
    "    lea r8, [rip + sentry_vdso_start - 0x1400]",
    "30: mov r10, [r8]",
    "    test r10b, 1",
    "    jnz 31f",
    "    lfence",
    "    rdtsc",
    "    shl rdx, 32",
    "    or rax, rdx",
    "    xor ecx, ecx",
    "    sub rax, [r8 + 8]",
    "    cmovb rax, rcx",
    "    cmp rax, [r8 + 48]",
    "    jae 32f",
    "    mul qword ptr [r8 + 16]",
    "    shrd rax, rdx, 32",
    "    add rax, [r8 + 24]",
    "    cmp r9d, 24",
    "    je 33f",
    "    add rax, [r8 + r9]",
    "33: cmp r10, [r8]",
    "    jne 30b",
    "    clc",
    "    ret",
    "31: pause",
    "    jmp 30b",
    "32: stc",
    "    ret",
    "sentry_vdso_end:",
    ".popsection",
);

unsafe extern "C" {
    static sentry_vdso_start: [u8; 0];
    static sentry_vdso_end: [u8; 0];
    static sentry_vdso_clock_gettime: [u8; 0];
    static sentry_vdso_gettimeofday: [u8; 0];
    static sentry_vdso_time: [u8; 0];
    static sentry_vdso_getcpu: [u8; 0];
    static sentry_vdso_clock_getres: [u8; 0];
}

/// The code.
pub fn code() -> &'static [u8] {
    // SAFETY: both labels are in the block above, the end behind the start, and nothing writes there.
    unsafe {
        let start = &raw const sentry_vdso_start as *const u8;
        let end = &raw const sentry_vdso_end as *const u8;
        core::slice::from_raw_parts(start, end as usize - start as usize)
    }
}

/// Functions and where in the code they start.
pub fn functions() -> [(&'static str, usize); 5] {
    let start = &raw const sentry_vdso_start as usize;
    let at = |label: *const [u8; 0]| label as usize - start;
    [
        ("__vdso_clock_gettime", at(&raw const sentry_vdso_clock_gettime)),
        ("__vdso_gettimeofday", at(&raw const sentry_vdso_gettimeofday)),
        ("__vdso_time", at(&raw const sentry_vdso_time)),
        ("__vdso_getcpu", at(&raw const sentry_vdso_getcpu)),
        ("__vdso_clock_getres", at(&raw const sentry_vdso_clock_getres)),
    ]
}
