//! ptrace(2) and the wait4(2) that goes with it. A tracee belongs to the thread that seized it.

use std::{
    io, mem, ptr,
    time::{Duration, Instant},
};

use sentry_abi::context::Registers;

type Result<T> = io::Result<T>;

const PTRACE_PEEKDATA: u32 = 2;
const PTRACE_POKEUSER: u32 = 6;
const PTRACE_CONT: u32 = 7;
const PTRACE_GETREGS: u32 = 12;
const PTRACE_SETREGS: u32 = 13;
const PTRACE_DETACH: u32 = 17;
const PTRACE_SYSEMU: u32 = 31;
const PTRACE_GETEVENTMSG: u32 = 0x4201;
const PTRACE_GETSIGINFO: u32 = 0x4202;
const PTRACE_GETREGSET: u32 = 0x4204;
const PTRACE_SETREGSET: u32 = 0x4205;
const PTRACE_SEIZE: u32 = 0x4206;
const PTRACE_INTERRUPT: u32 = 0x4207;
const PTRACE_GET_SYSCALL_INFO: u32 = 0x420e;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;

const NT_X86_XSTATE: usize = 0x202;

pub const O_SYSGOOD: u64 = 1;
pub const O_TRACEFORK: u64 = 2;
pub const O_TRACECLONE: u64 = 8;
pub const O_EXITKILL: u64 = 0x10_0000;

pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Syscall,
    /// Signal-delivery stop: the signal goes away unless the tracer passes it on, which it never does.
    Signal(i32),
    /// PTRACE_EVENT_*.
    Event(i32),
    /// The thread is gone.
    Exited,
}

#[derive(Clone, Copy)]
pub enum Resume {
    /// Until a signal; system calls run on the host.
    Continue,
    /// Until a system call, which does not run, or a signal.
    Emulate,
}

#[derive(Clone, Copy, Debug)]
pub struct SyscallInfo {
    pub arch: u32,
    pub ip: u64,
    pub sp: u64,
    pub nr: u64,
    pub args: [u64; 6],
}

#[derive(Clone, Copy, Debug)]
pub struct SignalInfo {
    pub code: i32,
    pub address: u64,
    /// SIGSYS only: the system call number.
    pub syscall: i32,
}

fn request(request: u32, tid: i32, address: usize, data: usize) -> Result<i64> {
    // SAFETY: private; callers pass addresses of live buffers of the size the request wants, or plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, u64::from(request), tid as i64, address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub fn seize(tid: i32, options: u64) -> Result<()> {
    request(PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

pub fn interrupt(tid: i32) -> Result<()> {
    request(PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

pub fn detach(tid: i32) -> Result<()> {
    request(PTRACE_DETACH, tid, 0, 0).map(drop)
}

pub fn resume(tid: i32, how: Resume) -> Result<()> {
    let how = match how {
        Resume::Continue => PTRACE_CONT,
        Resume::Emulate => PTRACE_SYSEMU,
    };
    request(how, tid, 0, 0).map(drop)
}

/// Waits for the next stop of a tracee of this thread, or (not traced) for the end of a child.
pub fn wait(tid: i32) -> Result<Stop> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes the status; no usage is asked for.
        let result = unsafe { libc::syscall(libc::SYS_wait4, tid, &raw mut status, libc::__WALL, 0usize) };
        if result >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return Ok(Stop::Exited),
            _ => return Err(error),
        }
    }
    if !libc::WIFSTOPPED(status) {
        return Ok(Stop::Exited);
    }
    let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
    Ok(match (signal, event) {
        (_, 1..) => Stop::Event(event),
        (signal, _) if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        (signal, _) => Stop::Signal(signal),
    })
}

pub fn get_registers(tid: i32) -> Result<Registers> {
    let mut registers = Registers::default();
    request(PTRACE_GETREGS, tid, 0, &raw mut registers as usize)?;
    Ok(registers)
}

pub fn set_registers(tid: i32, registers: &Registers) -> Result<()> {
    request(PTRACE_SETREGS, tid, 0, ptr::from_ref(registers) as usize).map(drop)
}

/// Sets rax alone.
pub fn set_rax(tid: i32, value: u64) -> Result<()> {
    request(PTRACE_POKEUSER, tid, mem::offset_of!(Registers, rax), value as usize).map(drop)
}

/// Eight bytes of the tracee's memory.
pub fn peek(tid: i32, address: u64) -> Result<u64> {
    let mut word = 0u64;
    request(PTRACE_PEEKDATA, tid, address as usize, &raw mut word as usize)?;
    Ok(word)
}

/// The message of an event stop; for a clone event the new thread's id, in this process's pid namespace.
pub fn event_message(tid: i32) -> Result<u64> {
    let mut message = 0u64;
    request(PTRACE_GETEVENTMSG, tid, 0, &raw mut message as usize)?;
    Ok(message)
}

/// At a system call stop; none when the kernel says that it is not one.
pub fn syscall_info(tid: i32) -> Result<Option<SyscallInfo>> {
    #[repr(C)]
    #[derive(Default)]
    struct Raw {
        op: u8,
        _pad: [u8; 3],
        arch: u32,
        ip: u64,
        sp: u64,
        nr: u64,
        args: [u64; 6],
        _seccomp: u64,
    }
    const ENTRY: u8 = 1;
    let mut raw = Raw::default();
    request(PTRACE_GET_SYSCALL_INFO, tid, size_of::<Raw>(), &raw mut raw as usize)?;
    Ok((raw.op == ENTRY).then_some(SyscallInfo { arch: raw.arch, ip: raw.ip, sp: raw.sp, nr: raw.nr, args: raw.args }))
}

pub fn signal_info(tid: i32) -> Result<SignalInfo> {
    // SAFETY: all-zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    request(PTRACE_GETSIGINFO, tid, 0, &raw mut info as usize)?;
    // _sigsys is { call address, syscall, arch } at offset 16, where a fault has its address.
    // SAFETY: the kernel filled all 128 bytes.
    let (address, syscall) = unsafe {
        let base = (&raw const info).cast::<u8>();
        (base.add(16).cast::<u64>().read(), base.add(24).cast::<i32>().read())
    };
    Ok(SignalInfo { code: info.si_code, address, syscall })
}

/// Reads the XSAVE area (standard format) and says how long the host's is.
pub fn get_xstate(tid: i32, area: &mut [u8]) -> Result<usize> {
    let mut iov = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
    request(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &raw mut iov as usize)?;
    Ok(iov.iov_len)
}

/// `area` must be as long as the host's.
pub fn set_xstate(tid: i32, area: &[u8]) -> Result<()> {
    let mut iov = libc::iovec { iov_base: area.as_ptr().cast_mut().cast(), iov_len: area.len() };
    request(PTRACE_SETREGSET, tid, NT_X86_XSTATE, &raw mut iov as usize).map(drop)
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct RseqConfiguration {
    pub pointer: u64,
    pub size: u32,
    pub signature: u32,
    flags: u32,
    _pad: u32,
}

/// The restartable-sequence area that the thread has registered; pointer 0: none.
pub fn rseq_configuration(tid: i32) -> Result<RseqConfiguration> {
    let mut configuration = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>();
    request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, &raw mut configuration as usize)?;
    Ok(configuration)
}

/// Sends a signal to one thread.
pub fn kill_thread(pid: i32, tid: i32, signal: i32) {
    // SAFETY: only sends a signal. A thread that is gone is no error: whoever waits for it sees that.
    unsafe {
        libc::syscall(libc::SYS_tgkill, pid, tid, signal);
    }
}

pub fn kill_process(pid: i32) {
    // SAFETY: only sends a signal.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
    }
}

/// Takes the end of a killed tracee of this thread, if it has come; true when there is nothing more to wait for.
pub fn reap(tid: i32) -> bool {
    let mut status = 0;
    // SAFETY: the kernel writes the status.
    let result = unsafe { libc::syscall(libc::SYS_wait4, tid, &raw mut status, libc::__WALL | libc::WNOHANG, 0usize) };
    match result {
        0 => false,
        -1 => io::Error::last_os_error().raw_os_error() != Some(libc::EINTR),
        // Any stop on the way to the end is passed.
        _ => !libc::WIFSTOPPED(status),
    }
}

/// Takes the ends of killed tracees or children that come within `limit`.
pub fn reap_within(mut tids: Vec<i32>, limit: Duration) {
    let start = Instant::now();
    loop {
        tids.retain(|&tid| !reap(tid));
        if tids.is_empty() || start.elapsed() >= limit {
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
