//! Whether an instruction writes to memory: ptrace does not say what an access was.
//!
//! Only a guess for faults on missing pages, so that a write is reported as one at once: instructions that are not known
//! here count as reads, and a wrong guess comes back as a protection fault.

/// Whether the instruction at the start of `code` writes to `address` when it faults there. `rdi` and `rsp` are the
/// task's: they tell the destination of a string move, and a push, from its source.
pub fn writes(code: &[u8], address: u64, rdi: u64, rsp: u64) -> bool {
    let mut bytes = code.iter().copied();
    let mut operand_size = false;
    let mut byte = loop {
        match bytes.next() {
            Some(0x66) => operand_size = true,
            Some(0xf0 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x67) => {}
            Some(byte) => break byte,
            None => return false,
        }
    };
    if byte & 0xf0 == 0x40 {
        match bytes.next() {
            Some(next) => byte = next,
            None => return false,
        }
    }
    let near = |base: u64| address.wrapping_sub(base) < 64 || base.wrapping_sub(address) < 64;
    let mut reg = || bytes.next().map(|modrm| modrm >> 3 & 7);
    match byte {
        0x0f => match bytes.next() {
            Some(0x38) => bytes.next().is_some_and(|op| op == 0xf1 && !operand_size),
            Some(op @ (0xba | 0xc7 | 0xae)) => match (op, bytes.next().map(|modrm| modrm >> 3 & 7)) {
                (0xba, Some(bit)) => bit > 4,
                (0xc7, Some(1 | 4 | 5)) => true,
                // fxsave, stmxcsr, xsave, xsaveopt.
                (0xae, Some(0 | 3 | 4 | 6)) => true,
                _ => false,
            },
            Some(op) => {
                store_0f(op)
                    || matches!(
                        op,
                        0x90..=0x9f | 0xa4 | 0xa5 | 0xab | 0xac | 0xad | 0xb0 | 0xb1 | 0xb3 | 0xbb | 0xc0 | 0xc1
                    )
                    || (matches!(op, 0xa0 | 0xa8) && near(rsp))
            }
            None => false,
        },
        // add, or, adc, sbb, and, sub, xor (cmp only reads) with a memory destination.
        0x00..=0x35 => byte & 7 < 2,
        0x50..=0x57 | 0x68 | 0x6a | 0xe8 | 0x9c | 0xc8 => near(rsp),
        0x80..=0x83 => reg().is_some_and(|op| op != 7),
        0x86..=0x89 | 0xc6 | 0xc7 | 0x8c | 0x8f | 0xa2 | 0xa3 => true,
        0xa4 | 0xa5 | 0x6c | 0x6d => near(rdi),
        0xaa | 0xab => true,
        0xc0 | 0xc1 | 0xd0..=0xd3 => true,
        0xd9 | 0xdd | 0xdb | 0xdf => reg().is_some_and(|op| matches!(op, 1 | 2 | 3 | 6 | 7)),
        0xf6 | 0xf7 => reg().is_some_and(|op| matches!(op, 2 | 3)),
        0xfe => true,
        0xff => match reg() {
            Some(0 | 1) => true,
            // call and push: the target is read, the stack is written.
            Some(2 | 3 | 6) => near(rsp),
            _ => false,
        },
        // VEX: the map in the low bits of the second byte, or map 1 in the short form.
        0xc5 => {
            let Some(_) = bytes.next() else { return false };
            bytes.next().is_some_and(store_0f)
        }
        0xc4 => {
            let (Some(map), Some(_), Some(op)) = (bytes.next(), bytes.next(), bytes.next()) else { return false };
            match map & 0x1f {
                1 => store_0f(op),
                2 => matches!(op, 0x2e | 0x2f | 0x8e),
                3 => matches!(op, 0x14..=0x17 | 0x19 | 0x1d | 0x39),
                _ => false,
            }
        }
        // EVEX.
        0x62 => {
            let (Some(map), Some(_), Some(_), Some(op)) = (bytes.next(), bytes.next(), bytes.next(), bytes.next())
            else {
                return false;
            };
            map & 7 == 1 && store_0f(op)
        }
        _ => false,
    }
}

/// Stores of the two-byte map that exist with and without VEX.
fn store_0f(op: u8) -> bool {
    matches!(op, 0x11 | 0x13 | 0x17 | 0x29 | 0x2b | 0x7e | 0x7f | 0xc3 | 0xd6 | 0xe7)
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
