//! The image's entry point, self-relocation, and what the compiler expects of a C library.

use core::arch::global_asm;

use sentry_abi::boot::{BootParams, MAX_CPUS};

const BOOT_STACK: usize = 32 << 10;

#[repr(C, align(4096))]
struct BootStacks(core::cell::UnsafeCell<[[u8; BOOT_STACK]; MAX_CPUS]>);
// SAFETY: each CPU uses only its own element, as its stack.
unsafe impl Sync for BootStacks {}

static BOOT_STACKS: BootStacks = BootStacks(core::cell::UnsafeCell::new([[0; BOOT_STACK]; MAX_CPUS]));

// rdi: boot parameters, rsi: CPU index. CPU 0 relocates the image before any Rust code that could need it.
global_asm!(
    ".pushsection .text",
    ".globl _start",
    "_start:",
    "    cld",
    "    lea rsp, [rip + {stacks}]",
    "    mov rax, rsi",
    "    inc rax",
    "    imul rax, rax, {size}",
    "    add rsp, rax",
    "    xor ebp, ebp",
    "    test rsi, rsi",
    "    jnz 2f",
    "    lea rdx, [rip + _DYNAMIC]",
    "    lea r8, [rip + __ehdr_start]",
    // Dynamic section: find DT_RELA (7) and DT_RELASZ (8).
    "    xor r9d, r9d",
    "    xor r10d, r10d",
    "3:  mov rax, [rdx]",
    "    mov rcx, [rdx + 8]",
    "    add rdx, 16",
    "    test rax, rax",
    "    jz 4f",
    "    cmp rax, 7",
    "    cmove r9, rcx",
    "    cmp rax, 8",
    "    cmove r10, rcx",
    "    jmp 3b",
    // Elf64_Rela {{ offset, info, addend }}; only R_X86_64_RELATIVE (8) occurs in a static PIE.
    "4:  add r9, r8",
    "    add r10, r9",
    "5:  cmp r9, r10",
    "    jae 2f",
    "    mov rax, [r9]",
    "    mov rcx, [r9 + 16]",
    "    cmp dword ptr [r9 + 8], 8",
    "    jne 6f",
    "    add rcx, r8",
    "    mov [r8 + rax], rcx",
    "    add r9, 24",
    "    jmp 5b",
    "6:  ud2",
    "2:  call {main}",
    "    ud2",
    ".popsection",
    stacks = sym BOOT_STACKS,
    size = const BOOT_STACK,
    main = sym entry,
);

extern "sysv64" fn entry(params: *const BootParams, cpu: u64) -> ! {
    // SAFETY: the VMM passes the address of initialised boot parameters that stay in place for the sandbox's life; what
    // the VMM writes later (host call results) is read with volatile accesses only.
    let params = unsafe { &*params };
    crate::boot::start(params, cpu as usize)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::boot::panic(info)
}

// The memory functions the compiler calls. `rep movsb` and `rep stosb` are fast on every CPU with ERMS; short lengths, which
// dominate, take plain loops.
global_asm!(
    ".pushsection .text",
    ".globl memcpy",
    "memcpy:",
    "    mov rax, rdi",
    "    mov rcx, rdx",
    "    rep movsb",
    "    ret",
    ".globl memmove",
    "memmove:",
    "    mov rax, rdi",
    "    mov rcx, rdx",
    "    mov r8, rdi",
    "    sub r8, rsi",
    "    cmp r8, rdx",
    "    jb 2f",
    "    rep movsb",
    "    ret",
    "2:  lea rdi, [rdi + rdx - 1]",
    "    lea rsi, [rsi + rdx - 1]",
    "    std",
    "    rep movsb",
    "    cld",
    "    ret",
    ".globl memset",
    "memset:",
    "    mov r8, rdi",
    "    mov eax, esi",
    "    mov rcx, rdx",
    "    rep stosb",
    "    mov rax, r8",
    "    ret",
    ".globl memcmp",
    "memcmp:",
    ".globl bcmp",
    "bcmp:",
    "    xor eax, eax",
    "    xor ecx, ecx",
    "2:  cmp rcx, rdx",
    "    je 3f",
    "    movzx eax, byte ptr [rdi + rcx]",
    "    movzx r8d, byte ptr [rsi + rcx]",
    "    inc rcx",
    "    sub eax, r8d",
    "    jz 2b",
    "3:  ret",
    ".globl strlen",
    "strlen:",
    "    xor eax, eax",
    "2:  cmp byte ptr [rdi + rax], 0",
    "    je 3f",
    "    inc rax",
    "    jmp 2b",
    "3:  ret",
    // Unwinding never happens: panic = abort.
    ".globl rust_eh_personality",
    "rust_eh_personality:",
    ".globl _Unwind_Resume",
    "_Unwind_Resume:",
    "    ud2",
    ".popsection",
);
