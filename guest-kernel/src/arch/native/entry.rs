//! The way into user mode and out of it: [`run_user`] loads the registers of a context and leaves; a SYSCALL or a trap stores
//! them back and returns from `run_user`, on the stack it was called on.
//!
//! The kernel uses SSE, so XMM0-15 and MXCSR go to the context at each trap; the upper halves and the rest of the extended
//! state stay in the CPU, which legacy SSE code does not touch.

use core::arch::global_asm;
use core::mem::offset_of;

use sentry_abi::context::{Registers, USER_CS, USER_SS, UserContext, vector};

use super::{
    super::percpu::PerCpu,
    CpuState,
    descriptors::{KERNEL_CS, STACK_SIZE, SYSRET_BASE},
    registers::write_msr,
    trap,
};

/// What `run_user` returns: a system call, or a vector in the context.
pub(super) const SYSCALL: u32 = 1;
const VECTOR: u32 = 2;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_FMASK: u32 = 0xc000_0084;
/// TF, IF, DF, IOPL, NT, AC.
const CLEARED_FLAGS: u64 = 0x4_7700;

const fn cpu(offset: usize) -> usize {
    offset_of!(PerCpu, native) + offset
}

const fn reg(offset: usize) -> usize {
    offset_of!(UserContext, regs) + offset
}

global_asm!(
    ".pushsection .rodata",
    ".balign 4",
    // Every exception masked, round to nearest.
    "sentry_mxcsr: .long 0x1f80",
    ".popsection",
    //
    ".macro sentry_xmm op, base",
    "    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "    .ifc \\op, save",
    "    movups [\\base + {xmm} + 16 * \\n], xmm\\n",
    "    .else",
    "    movups xmm\\n, [\\base + {xmm} + 16 * \\n]",
    "    .endif",
    "    .endr",
    ".endm",
    //
    ".pushsection .text",
    ".balign 64",
    // (context: *mut UserContext, fast: bool) -> u32
    ".globl sentry_run_user", ".hidden sentry_run_user",
    "sentry_run_user:",
    "    push rbp",
    "    push rbx",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    mov gs:[{context}], rdi",
    "    mov gs:[{stack}], rsp",
    "    sentry_xmm load, rdi",
    "    ldmxcsr [rdi + {mxcsr}]",
    "    mov r15, [rdi + {r15}]",
    "    mov r14, [rdi + {r14}]",
    "    mov r13, [rdi + {r13}]",
    "    mov r12, [rdi + {r12}]",
    "    mov rbp, [rdi + {rbp}]",
    "    mov rbx, [rdi + {rbx}]",
    "    mov r10, [rdi + {r10}]",
    "    mov r9, [rdi + {r9}]",
    "    mov r8, [rdi + {r8}]",
    "    mov rdx, [rdi + {rdx}]",
    "    mov rax, [rdi + {rax}]",
    "    test sil, sil",
    "    jz 2f",
    "    mov rcx, [rdi + {rip}]",
    "    mov r11, [rdi + {rflags}]",
    "    mov rsi, [rdi + {rsi}]",
    "    mov rsp, [rdi + {rsp}]",
    "    mov rdi, [rdi + {rdi}]",
    "    swapgs",
    "    sysretq",
    "2:  push {user_ss}",
    "    push qword ptr [rdi + {rsp}]",
    "    push qword ptr [rdi + {rflags}]",
    "    push {user_cs}",
    "    push qword ptr [rdi + {rip}]",
    "    mov rcx, [rdi + {rcx}]",
    "    mov r11, [rdi + {r11}]",
    "    mov rsi, [rdi + {rsi}]",
    "    mov rdi, [rdi + {rdi}]",
    "    swapgs",
    ".globl sentry_iret", ".hidden sentry_iret",
    "sentry_iret:",
    "    iretq",
    // The IRET faulted (an address that is not canonical): the context, unchanged, becomes a trap of the program.
    ".globl sentry_iret_fault", ".hidden sentry_iret_fault",
    "sentry_iret_fault:",
    "    swapgs",
    "    mov rdi, gs:[{context}]",
    "    mov dword ptr [rdi + {vector}], {gp}",
    "    mov dword ptr [rdi + {error_code}], 0",
    "    mov eax, {kind_vector}",
    "    jmp 9f",
    //
    ".balign 64",
    ".globl sentry_syscall", ".hidden sentry_syscall",
    "sentry_syscall:",
    "    swapgs",
    "    mov gs:[{scratch}], rsp",
    "    mov rsp, gs:[{context}]",
    "    mov [rsp + {rax}], rax",
    "    mov [rsp + {orig_rax}], rax",
    "    mov [rsp + {rcx}], rcx",
    "    mov [rsp + {rip}], rcx",
    "    mov [rsp + {r11}], r11",
    "    mov [rsp + {rflags}], r11",
    "    mov rcx, gs:[{scratch}]",
    "    mov [rsp + {rsp}], rcx",
    "    mov [rsp + {rdx}], rdx",
    "    mov [rsp + {rsi}], rsi",
    "    mov [rsp + {rdi}], rdi",
    "    mov [rsp + {r8}], r8",
    "    mov [rsp + {r9}], r9",
    "    mov [rsp + {r10}], r10",
    "    mov [rsp + {rbx}], rbx",
    "    mov [rsp + {rbp}], rbp",
    "    mov [rsp + {r12}], r12",
    "    mov [rsp + {r13}], r13",
    "    mov [rsp + {r14}], r14",
    "    mov [rsp + {r15}], r15",
    "    sentry_xmm save, rsp",
    "    stmxcsr [rsp + {mxcsr}]",
    "    mov eax, {kind_syscall}",
    // Back to the caller of sentry_run_user.
    "9:  ldmxcsr [rip + sentry_mxcsr]",
    "    mov rsp, gs:[{stack}]",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    //
    // One stub of 16 bytes a vector: makes the frame uniform and says which vector it is.
    ".balign 16",
    ".globl sentry_vectors", ".hidden sentry_vectors",
    "sentry_vectors:",
    ".set sentry_vector, 0",
    ".rept 256",
    "    .balign 16",
    "    .if sentry_vector < 32",
    // Vectors for which the CPU pushes an error code: 8, 10-14, 17, 21, 29, 30.
    "    .if ((0x60227d00 >> sentry_vector) & 1) == 0",
    "    push 0",
    "    .endif",
    "    .else",
    "    push 0",
    "    .endif",
    "    push sentry_vector",
    "    jmp sentry_trap",
    "    .set sentry_vector, sentry_vector + 1",
    ".endr",
    //
    // On the stack: vector, error code, rip, cs, rflags, rsp, ss.
    ".balign 64",
    "sentry_trap:",
    "    test byte ptr [rsp + 24], 3",
    "    jz sentry_kernel_trap",
    "    swapgs",
    "    mov gs:[{scratch}], rax",
    "    mov rax, gs:[{context}]",
    "    mov [rax + {rcx}], rcx",
    "    mov [rax + {rdx}], rdx",
    "    mov rcx, gs:[{scratch}]",
    "    mov [rax + {rax}], rcx",
    "    pop rcx",
    "    mov [rax + {vector}], ecx",
    "    pop rcx",
    "    mov [rax + {error_code}], ecx",
    "    pop qword ptr [rax + {rip}]",
    "    pop rcx",
    "    pop qword ptr [rax + {rflags}]",
    "    pop qword ptr [rax + {rsp}]",
    "    mov rcx, cr2",
    "    mov [rax + {address}], rcx",
    "    mov qword ptr [rax + {orig_rax}], -1",
    "    mov [rax + {rsi}], rsi",
    "    mov [rax + {rdi}], rdi",
    "    mov [rax + {r8}], r8",
    "    mov [rax + {r9}], r9",
    "    mov [rax + {r10}], r10",
    "    mov [rax + {r11}], r11",
    "    mov [rax + {rbx}], rbx",
    "    mov [rax + {rbp}], rbp",
    "    mov [rax + {r12}], r12",
    "    mov [rax + {r13}], r13",
    "    mov [rax + {r14}], r14",
    "    mov [rax + {r15}], r15",
    "    sentry_xmm save, rax",
    "    stmxcsr [rax + {mxcsr}]",
    "    mov rsp, gs:[{stack}]",
    // An interrupt gate clears IF and TF only.
    "    push 2",
    "    popfq",
    "    mov eax, {kind_vector}",
    "    jmp 9b",
    //
    // A trap in the kernel. GS may be either side's: the CPU's block is at the top of the stack.
    "sentry_kernel_trap:",
    "    push rax",
    "    push rcx",
    "    push rdx",
    "    push rbx",
    "    push rbp",
    "    push rsi",
    "    push rdi",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    mov rdi, rsp",
    "    rdgsbase r12",
    "    mov rax, rsp",
    "    or rax, {stack_mask}",
    "    mov rax, [rax - 15]",
    "    wrgsbase rax",
    "    sub rsp, 272",
    "    mov rbx, rsp",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "    movups [rbx + 16 * \\n], xmm\\n",
    ".endr",
    "    stmxcsr [rbx + 256]",
    "    ldmxcsr [rip + sentry_mxcsr]",
    "    cld",
    "    call {kernel_trap}",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "    movups xmm\\n, [rbx + 16 * \\n]",
    ".endr",
    "    ldmxcsr [rbx + 256]",
    "    add rsp, 272",
    "    wrgsbase r12",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop r11",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rdi",
    "    pop rsi",
    "    pop rbp",
    "    pop rbx",
    "    pop rdx",
    "    pop rcx",
    "    pop rax",
    "    add rsp, 16",
    "    iretq",
    ".popsection",
    scratch = const cpu(offset_of!(CpuState, scratch)),
    context = const cpu(offset_of!(CpuState, context)),
    stack = const cpu(offset_of!(CpuState, stack)),
    r15 = const reg(offset_of!(Registers, r15)),
    r14 = const reg(offset_of!(Registers, r14)),
    r13 = const reg(offset_of!(Registers, r13)),
    r12 = const reg(offset_of!(Registers, r12)),
    rbp = const reg(offset_of!(Registers, rbp)),
    rbx = const reg(offset_of!(Registers, rbx)),
    r11 = const reg(offset_of!(Registers, r11)),
    r10 = const reg(offset_of!(Registers, r10)),
    r9 = const reg(offset_of!(Registers, r9)),
    r8 = const reg(offset_of!(Registers, r8)),
    rax = const reg(offset_of!(Registers, rax)),
    rcx = const reg(offset_of!(Registers, rcx)),
    rdx = const reg(offset_of!(Registers, rdx)),
    rsi = const reg(offset_of!(Registers, rsi)),
    rdi = const reg(offset_of!(Registers, rdi)),
    orig_rax = const reg(offset_of!(Registers, orig_rax)),
    rip = const reg(offset_of!(Registers, rip)),
    rflags = const reg(offset_of!(Registers, rflags)),
    rsp = const reg(offset_of!(Registers, rsp)),
    vector = const offset_of!(UserContext, vector),
    error_code = const offset_of!(UserContext, error_code),
    address = const offset_of!(UserContext, address),
    xmm = const offset_of!(UserContext, xmm),
    mxcsr = const offset_of!(UserContext, mxcsr),
    user_ss = const USER_SS,
    user_cs = const USER_CS,
    gp = const vector::GP,
    kind_syscall = const SYSCALL,
    kind_vector = const VECTOR,
    stack_mask = const STACK_SIZE - 1,
    kernel_trap = sym trap::kernel,
);

unsafe extern "sysv64" {
    fn sentry_run_user(ctx: *mut UserContext, fast: bool) -> u32;
    static sentry_syscall: u8;
    static sentry_vectors: u8;
    static sentry_iret: u8;
    static sentry_iret_fault: u8;
}

/// Runs user code until it stops; `fast` leaves by SYSRET, which needs rcx = rip and r11 = rflags.
///
/// # Safety
/// The page table in force maps the kernel; interrupts are off; the CPU's tables are loaded.
#[inline]
pub(super) unsafe fn run_user(ctx: &mut UserContext, fast: bool) -> u32 {
    // SAFETY: the caller's contract.
    unsafe { sentry_run_user(ctx, fast) }
}

/// Where an instruction of this module that faults goes on.
pub(super) fn fixup(rip: u64) -> Option<u64> {
    (rip == &raw const sentry_iret as u64).then_some(&raw const sentry_iret_fault as u64)
}

pub(super) fn vector_address(vector: u64) -> u64 {
    &raw const sentry_vectors as u64 + vector * 16
}

/// Points SYSCALL at the entry code.
pub(super) fn init() {
    let star = u64::from(SYSRET_BASE) << 48 | u64::from(KERNEL_CS) << 32;
    // SAFETY: the selectors are those of the descriptor table just loaded, the address that of the entry code.
    unsafe {
        write_msr(MSR_STAR, star);
        write_msr(MSR_LSTAR, &raw const sentry_syscall as u64);
        write_msr(MSR_FMASK, CLEARED_FLAGS);
    }
}
