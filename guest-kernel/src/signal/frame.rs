//! Signal frames: what a handler finds on its stack and what rt_sigreturn(2) takes from it (<asm/sigcontext.h>,
//! <asm/ucontext.h>). Programs may inspect and change all of it, so everything read back is checked.

use alloc::vec;

use sentry_abi::{
    context::{Registers, USER_CS, USER_SS},
    layout::USER_TOP,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{
    action::{Action, SA_ONSTACK, SA_RESTORER},
    altstack::StackT,
    info::{SIGINFO_SIZE, SigInfo},
    set::SigSet,
};
use crate::{
    arch::xstate,
    errno::{EFAULT, EINVAL, Result},
    mm::user::{UserAddr, UserPtr},
    task::Current,
};

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
const MAGIC2_SIZE: usize = 4;
/// Where struct _fpx_sw_bytes lies in the legacy region.
const SW_BYTES: usize = 464;
const REDZONE: u64 = 128;
/// Flags a program may set by sigreturn: AC OF DF TF SF ZF AF PF CF RF.
const USER_FLAGS: u64 = 0x4_0000 | 0x800 | 0x400 | 0x100 | 0x80 | 0x40 | 0x10 | 0x4 | 0x1 | 0x1_0000;
/// DF, TF and RF are clear when a handler starts.
const HANDLER_CLEARS: u64 = 0x400 | 0x100 | 0x1_0000;

#[derive(FromBytes, IntoBytes, Immutable, Clone, Copy)]
#[repr(C)]
struct SigContext {
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
}

#[derive(FromBytes, IntoBytes, Immutable, Clone, Copy)]
#[repr(C)]
struct UContext {
    flags: u64,
    link: u64,
    stack: StackT,
    mcontext: SigContext,
    sigmask: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, Clone, Copy)]
#[repr(C)]
struct Frame {
    restorer: u64,
    uc: UContext,
    info: [u8; SIGINFO_SIZE],
}

#[derive(FromBytes, IntoBytes, Immutable, Clone, Copy)]
#[repr(C)]
struct SwBytes {
    magic1: u32,
    extended_size: u32,
    xfeatures: u64,
    xstate_size: u32,
    padding: [u32; 7],
}

const _: () = assert!(size_of::<SigContext>() == 256 && size_of::<Frame>() == 440 && size_of::<SwBytes>() == 48);

/// What the last exception was, for the frame.
#[derive(Clone, Copy, Default, Debug)]
pub struct LastTrap {
    pub number: u32,
    pub error: u32,
    pub address: u64,
}

/// Makes the task run the handler: writes the frame and changes the registers. `mask` is what sigreturn restores.
pub fn push(cur: &mut Current, info: &SigInfo, action: &Action, mask: SigSet) -> Result<()> {
    if action.flags & SA_RESTORER == 0 {
        return Err(EFAULT);
    }
    let regs = *cur.registers();
    let stack = cur.altstack;
    let switch = action.flags & SA_ONSTACK != 0 && stack.usable_from(regs.rsp);
    let on_stack = switch || stack.contains(regs.rsp);
    let top = if switch { stack.top() } else { regs.rsp.wrapping_sub(REDZONE) };

    let size = xstate::size();
    let fpstate = top.checked_sub((size + MAGIC2_SIZE) as u64).ok_or(EFAULT)? & !63;
    let frame_at = (fpstate.checked_sub(size_of::<Frame>() as u64).ok_or(EFAULT)? & !15).wrapping_sub(8);
    if on_stack && !stack.holds(frame_at) {
        return Err(EFAULT);
    }

    let sw = SwBytes {
        magic1: FP_XSTATE_MAGIC1,
        extended_size: (size + MAGIC2_SIZE) as u32,
        xfeatures: xstate::xcr0(),
        xstate_size: size as u32,
        padding: [0; 7],
    };
    let mut area = vec![0u8; size + MAGIC2_SIZE];
    area[..size].copy_from_slice(cur.xstate().bytes());
    area[SW_BYTES..SW_BYTES + size_of::<SwBytes>()].copy_from_slice(sw.as_bytes());
    area[size..].copy_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    cur.mm.write(UserAddr(fpstate), &area)?;

    let trap = cur.last_trap;
    let frame = Frame {
        restorer: action.restorer,
        uc: UContext {
            flags: UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
            link: 0,
            stack: stack.to_user(regs.rsp),
            mcontext: SigContext {
                r8: regs.r8,
                r9: regs.r9,
                r10: regs.r10,
                r11: regs.r11,
                r12: regs.r12,
                r13: regs.r13,
                r14: regs.r14,
                r15: regs.r15,
                rdi: regs.rdi,
                rsi: regs.rsi,
                rbp: regs.rbp,
                rbx: regs.rbx,
                rdx: regs.rdx,
                rax: regs.rax,
                rcx: regs.rcx,
                rsp: regs.rsp,
                rip: regs.rip,
                rflags: regs.rflags,
                cs: regs.cs as u16,
                gs: regs.gs as u16,
                fs: regs.fs as u16,
                ss: regs.ss as u16,
                err: trap.error as u64,
                trapno: trap.number as u64,
                oldmask: mask.0,
                cr2: trap.address,
                fpstate,
                reserved: [0; 8],
            },
            sigmask: mask.0,
        },
        info: info.to_user(),
    };
    cur.mm.write(UserAddr(frame_at), frame.as_bytes())?;

    let info_at = frame_at + core::mem::offset_of!(Frame, info) as u64;
    let uc_at = frame_at + core::mem::offset_of!(Frame, uc) as u64;
    cur.altstack.entered();
    cur.xstate_mut().reset();
    let r = cur.registers_mut();
    r.rdi = info.signo as u64;
    r.rsi = info_at;
    r.rdx = uc_at;
    r.rax = 0;
    r.rsp = frame_at;
    r.rip = action.handler;
    r.rflags = regs.rflags & !HANDLER_CLEARS;
    r.cs = USER_CS;
    r.ss = USER_SS;
    r.orig_rax = u64::MAX;
    Ok(())
}

/// rt_sigreturn: takes the frame below the stack pointer back. Gives the signal mask to restore. An error means SIGSEGV.
pub fn pop(cur: &mut Current) -> Result<SigSet> {
    let rsp = cur.registers().rsp;
    let frame_at = rsp.checked_sub(8).ok_or(EFAULT)?;
    let uc: UContext =
        cur.mm.read_value(UserPtr::new(UserAddr(frame_at).offset(core::mem::offset_of!(Frame, uc) as u64)?))?;
    let m = &uc.mcontext;
    // Linux loads what the frame says and faults on what is no 64-bit user segment.
    let strict = uc.flags & UC_STRICT_RESTORE_SS != 0;
    if u64::from(m.cs) | 3 != USER_CS || (strict && u64::from(m.ss) | 3 != USER_SS) {
        return Err(EFAULT);
    }
    load_fpstate(cur, m.fpstate)?;
    let old = *cur.registers();
    let new = Registers {
        r15: m.r15,
        r14: m.r14,
        r13: m.r13,
        r12: m.r12,
        rbp: m.rbp,
        rbx: m.rbx,
        r11: m.r11,
        r10: m.r10,
        r9: m.r9,
        r8: m.r8,
        rax: m.rax,
        rcx: m.rcx,
        rdx: m.rdx,
        rsi: m.rsi,
        rdi: m.rdi,
        orig_rax: u64::MAX,
        // A return to an address that no mapping can have faults there; the CPU must not be asked to.
        rip: if m.rip >= USER_TOP { USER_TOP } else { m.rip },
        rsp: m.rsp,
        rflags: (old.rflags & !USER_FLAGS) | (m.rflags & USER_FLAGS) | 0x202,
        cs: USER_CS,
        ss: USER_SS,
        ..old
    };
    *cur.registers_mut() = new;
    // As on Linux, a bad stack_t is ignored.
    let _ = cur.altstack.set(&uc.stack, m.rsp);
    Ok(SigSet(uc.sigmask))
}

fn load_fpstate(cur: &mut Current, at: u64) -> Result<()> {
    if at == 0 {
        cur.xstate_mut().reset();
        return Ok(());
    }
    if !at.is_multiple_of(64) {
        return Err(EINVAL);
    }
    let size = xstate::size();
    let mut area = vec![0u8; size];
    let legacy = xstate::LEGACY_SIZE;
    cur.mm.read(UserAddr(at), &mut area[..legacy])?;
    let sw = match SwBytes::read_from_prefix(&area[SW_BYTES..]) {
        Ok((sw, _)) => sw,
        Err(_) => SwBytes::new_zeroed(),
    };
    let whole = legacy + xstate::HEADER_SIZE;
    let extended = sw.magic1 == FP_XSTATE_MAGIC1
        && (whole..=size).contains(&(sw.xstate_size as usize))
        && sw.extended_size as usize >= sw.xstate_size as usize
        && {
            let magic2 = UserPtr::<u32>::new(UserAddr(at).offset(sw.xstate_size as u64)?);
            cur.mm.read_value(magic2)? == FP_XSTATE_MAGIC2
        };
    if extended {
        let rest = sw.xstate_size as usize;
        cur.mm.read(UserAddr(at).offset(legacy as u64)?, &mut area[legacy..rest])?;
        // Only what the frame claims to hold; the rest becomes initial.
        let mut present = [0; 8];
        present.copy_from_slice(&area[legacy..legacy + 8]);
        let present = u64::from_le_bytes(present) & sw.xfeatures;
        area[legacy..legacy + 8].copy_from_slice(&present.to_le_bytes());
    } else {
        // An FXSAVE image: x87 and SSE only.
        area[legacy..legacy + 8].copy_from_slice(&3u64.to_le_bytes());
    }
    area[SW_BYTES..SW_BYTES + size_of::<SwBytes>()].fill(0);
    let xsave = cur.xstate_mut();
    xsave.bytes_mut().copy_from_slice(&area);
    xsave.sanitize();
    Ok(())
}
