//! The stubs' seccomp filter: a few calls, from the trampoline only.
//!
//! Application code never makes a host call, since PTRACE_SYSEMU stops it first. What passes by SYSEMU is the vsyscall page,
//! which cannot be unmapped: there the filter answers with SIGSYS, which the tracer turns into a system call trap.

use libc::sock_filter;

use crate::host::shared::{Call, PAGE, TRAMPOLINE};

/// What the trampoline makes, and why.
const ALLOWED: &[i64] = &[
    // Fills and flushes of the software TLB.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // New stubs and threads, which then wait.
    libc::SYS_clone,
    libc::SYS_pause,
    // PR_SET_PDEATHSIG of a new stub.
    libc::SYS_prctl,
    // Files of the window arrive by a socket, and go.
    libc::SYS_recvmsg,
    libc::SYS_close,
];

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

// Offsets in struct seccomp_data.
const NR: u32 = 0;
const ARCH: u32 = 4;
const IP_LOW: u32 = 8;
const IP_HIGH: u32 = 12;

pub fn program() -> Vec<sock_filter> {
    let op = |code, k| sock_filter { code, jt: 0, jf: 0, k };
    let skip = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    let low = TRAMPOLINE as u32;
    let mut program = vec![
        op(LOAD, IP_HIGH),
        skip(JUMP_EQ, (TRAMPOLINE >> 32) as u32, 0, 3),
        op(LOAD, IP_LOW),
        skip(JUMP_GE, low, 0, 1),
        skip(JUMP_GE, low + PAGE as u32, 0, 1),
        op(RETURN, libc::SECCOMP_RET_TRAP),
        op(LOAD, ARCH),
        skip(JUMP_EQ, crate::host::ptrace::AUDIT_ARCH_X86_64, 1, 0),
        op(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        op(LOAD, NR),
    ];
    for &nr in ALLOWED {
        program.push(skip(JUMP_EQ, nr as u32, 0, 1));
        program.push(op(RETURN, libc::SECCOMP_RET_ALLOW));
    }
    program.push(op(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    program
}

const HEADER: usize = 16;

/// `struct sock_fprog` at `address` with the program behind it, as bytes.
pub fn fprog(program: &[sock_filter], address: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + size_of_val(program));
    bytes.extend_from_slice(&(program.len() as u64).to_ne_bytes());
    bytes.extend_from_slice(&(address + HEADER as u64).to_ne_bytes());
    for op in program {
        bytes.extend_from_slice(&op.code.to_ne_bytes());
        bytes.extend_from_slice(&[op.jt, op.jf]);
        bytes.extend_from_slice(&op.k.to_ne_bytes());
    }
    bytes
}

/// Installs the `struct sock_fprog` at `address`.
pub fn install_call(address: u64) -> Call {
    let (option, mode) = (libc::PR_SET_SECCOMP as u64, u64::from(libc::SECCOMP_MODE_FILTER));
    Call::new(libc::SYS_prctl, [option, mode, address])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{ptrace::AUDIT_ARCH_X86_64, shared::DATA};

    /// Runs the program as the kernel does.
    fn run(nr: u32, arch: u32, ip: u64) -> u32 {
        let data = [nr, arch, ip as u32, (ip >> 32) as u32];
        let program = program();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let op = program[at];
            at += 1;
            match op.code {
                LOAD => accumulator = data[op.k as usize / 4],
                JUMP_EQ => at += usize::from(if accumulator == op.k { op.jt } else { op.jf }),
                JUMP_GE => at += usize::from(if accumulator >= op.k { op.jt } else { op.jf }),
                _ => return op.k,
            }
        }
    }

    #[test]
    fn only_listed_calls_from_the_trampoline() {
        let mmap = libc::SYS_mmap as u32;
        let inside = TRAMPOLINE + 0x20;
        assert_eq!(run(mmap, AUDIT_ARCH_X86_64, inside), libc::SECCOMP_RET_ALLOW);
        assert_eq!(run(libc::SYS_open as u32, AUDIT_ARCH_X86_64, inside), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(run(mmap, 0x4000_0003, inside), libc::SECCOMP_RET_KILL_PROCESS);
        for outside in [0x40_0000, TRAMPOLINE - 1, TRAMPOLINE + PAGE, inside - (1 << 32), 0xffff_ffff_ff60_0000] {
            assert_eq!(run(mmap, AUDIT_ARCH_X86_64, outside), libc::SECCOMP_RET_TRAP, "{outside:#x}");
        }
    }

    #[test]
    fn fits_the_command_page() {
        assert!(fprog(&program(), 0).len() <= DATA);
    }
}
