//! Whether an instruction writes to memory: ptrace does not say what an access was.
//!
//! Only a guess for faults on missing pages, so that a write is reported as one at once: instructions that are not known
//! here count as reads, and a wrong guess comes back as a protection fault.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use sentry_abi::context::Registers;

/// Whether the instruction at the start of `code` writes to `address` when it faults there. `rdi` and `rsp` are the
/// task's: they tell the destination of a string move, and a push, from its source.
pub fn writes(code: &[u8], address: u64, rdi: u64, rsp: u64) -> bool {
    let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        return false;
    }
    let near = |base: u64| address.wrapping_sub(base) < 64 || base.wrapping_sub(address) < 64;
    let mut factory = InstructionInfoFactory::new();
    let memory = factory.info(&instruction).used_memory();
    let is_write = |access| {
        matches!(access, OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite)
    };
    match memory {
        [only] => is_write(only.access()),
        // One is read and another written: the written one is where RDI or RSP points.
        several => several.iter().filter(|m| is_write(m.access())).any(|m| match m.base() {
            Register::RSP | Register::ESP => near(rsp),
            Register::RDI | Register::EDI => near(rdi),
            _ => true,
        }),
    }
}

/// The error code of a general protection fault at `code`: the selector that could not be loaded, or the vector that user
/// code may not call. 0 otherwise, as it is for most.
pub fn protection_error(code: &[u8], regs: &Registers) -> u32 {
    let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
    match instruction.mnemonic() {
        Mnemonic::Int => u32::from(instruction.immediate8()) * 8 + 2,
        Mnemonic::Mov
            if instruction.op0_register().is_segment_register() && instruction.op1_kind() == OpKind::Register =>
        {
            let by_number = [
                regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
                regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
            ];
            by_number[instruction.op1_register().full_register().number() & 15] as u32 & 0xfffc
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores(code: &[u8]) -> bool {
        writes(code, 0x1000, 0x1000, 0x1008)
    }

    #[test]
    fn stores_are_writes() {
        let cases: &[&[u8]] = &[
            &[0x89, 0x07],                         // mov [rdi], eax
            &[0x48, 0x89, 0x07],                   // mov [rdi], rax
            &[0x66, 0x89, 0x07],                   // mov [rdi], ax
            &[0xc6, 0x07, 0x01],                   // mov byte [rdi], 1
            &[0x48, 0xc7, 0x00, 0, 0, 0, 0],       // mov qword [rax], 0
            &[0xf0, 0x48, 0xff, 0x07],             // lock inc qword [rdi]
            &[0xf3, 0x48, 0xab],                   // rep stosq
            &[0xf3, 0xa4],                         // rep movsb
            &[0x55],                               // push rbp
            &[0xe8, 0, 0, 0, 0],                   // call
            &[0x0f, 0x11, 0x07],                   // movups [rdi], xmm0
            &[0x0f, 0x29, 0x07],                   // movaps [rdi], xmm0
            &[0xc5, 0xfe, 0x7f, 0x07],             // vmovdqu [rdi], ymm0
            &[0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x07], // vmovdqu64 [rdi], zmm0
            &[0xf0, 0x0f, 0xb1, 0x17],             // lock cmpxchg [rdi], edx
            &[0x83, 0x07, 0x01],                   // add dword [rdi], 1
            &[0x01, 0x07],                         // add [rdi], eax
            &[0xff, 0x30],                         // push [rax], at the stack
        ];
        for code in cases {
            assert!(stores(code), "{code:x?}");
        }
    }

    #[test]
    fn protection_errors_name_selector_or_vector() {
        let regs = Registers { rax: 0xfff8, r9: 0x13, ..Registers::default() };
        assert_eq!(protection_error(&[0x8e, 0xd8], &regs), 0xfff8);
        assert_eq!(protection_error(&[0x41, 0x8e, 0xd9], &regs), 0x10);
        assert_eq!(protection_error(&[0xcd, 0x21], &regs), 0x10a);
        assert_eq!(protection_error(&[0xfa], &regs), 0);
        assert_eq!(protection_error(&[], &regs), 0);
    }

    #[test]
    fn loads_are_not() {
        let cases: &[&[u8]] = &[
            &[0x8b, 0x07],             // mov eax, [rdi]
            &[0x48, 0x8b, 0x07],       // mov rax, [rdi]
            &[0x0f, 0xb6, 0x07],       // movzx eax, byte [rdi]
            &[0x3b, 0x07],             // cmp eax, [rdi]
            &[0x39, 0x07],             // cmp [rdi], eax
            &[0x83, 0x3f, 0x01],       // cmp dword [rdi], 1
            &[0x03, 0x07],             // add eax, [rdi]
            &[0x0f, 0x10, 0x07],       // movups xmm0, [rdi]
            &[0xc5, 0xfe, 0x6f, 0x07], // vmovdqu ymm0, [rdi]
            &[0xf3, 0x0f, 0x7e, 0x07], // movq xmm0, [rdi]
            &[0xf6, 0x07, 0x01],       // test byte [rdi], 1
            &[],
            &[0x48],
            &[0xc4, 0xe2],
        ];
        for code in cases {
            assert!(!stores(code), "{code:x?}");
        }
        // The source of a string move, and the operand of an indirect call away from the stack.
        assert!(!writes(&[0xf3, 0xa4], 0x1000, 0x9000, 0));
        assert!(!writes(&[0xff, 0x10], 0x1000, 0, 0x9000));
    }
}
