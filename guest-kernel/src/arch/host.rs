//! Host calls (`sentry_abi::hostcall`) as functions.

use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use sentry_abi::{
    boot::{BootParams, ClockSample},
    hostcall::{HostCall, LogLevel, Op},
    layout::HOSTCALL_PORT,
};

use super::{Backend, backend, cpu_index, gpa_of, pio_write32};
use crate::{
    counters::{Counter, count},
    errno::{Errno, Error, Result},
};

/// The array of host call blocks in the boot parameters.
static BLOCKS: AtomicPtr<HostCall> = AtomicPtr::new(core::ptr::null_mut());

/// Remembers where the blocks are.
pub fn init(params: &BootParams) {
    BLOCKS.store(params.hostcalls.as_ptr().cast_mut(), Relaxed);
}

/// The configuration behind the boot parameters.
pub fn config(params: &BootParams) -> Option<sentry_abi::config::SandboxConfig> {
    // SAFETY: the VMM wrote `config.size` bytes there before the sentry started and does not change them.
    let bytes =
        unsafe { core::slice::from_raw_parts(super::direct_map(params.config.base), params.config.size as usize) };
    postcard::from_bytes(bytes).ok()
}

fn call(op: Op, args: [u64; 6]) -> i64 {
    if backend() == Backend::Hosted {
        // Unit tests have no window: files are read by request.
        return if matches!(op, Op::WindowMap) { -38 } else { 0 };
    }
    count(Counter::HostCalls);
    let cpu = cpu_index();
    // SAFETY: `init` stored the array's address before the backend was set; each CPU uses only its own element, and the
    // VMM only while this CPU waits in the port write.
    unsafe {
        let block = BLOCKS.load(Relaxed).add(cpu);
        block.write_volatile(HostCall { op: op as u64, args, result: 0 });
        pio_write32(HOSTCALL_PORT, cpu as u32);
        (&raw const (*block).result).read_volatile()
    }
}

fn checked(result: i64) -> Result<u64> {
    if result < 0 { Err(Error::Errno(Errno((-result).min(4095) as u16))) } else { Ok(result as u64) }
}

pub fn log(level: LogLevel, line: &[u8]) {
    call(Op::Log, [level as u64, gpa_of(line.as_ptr()), line.len() as u64, 0, 0, 0]);
    #[cfg(test)]
    std::eprintln!("{}", std::string::String::from_utf8_lossy(line));
}

/// Ends the sandbox with the init process's wait status.
pub fn exit(status: u32) -> ! {
    call(Op::Exit, [status as u64, gpa_of(crate::counters::all().as_ptr()), 0, 0, 0, 0]);
    super::halt()
}

/// Tells whether init's program has begun: 0 or an errno, and what was to be run.
pub fn init_result(errno: u16, what: &[u8]) {
    call(Op::InitResult, [u64::from(errno), gpa_of(what.as_ptr()), what.len() as u64, 0, 0, 0]);
}

/// Tells that a process was ended because user memory ran out.
pub fn out_of_memory() {
    call(Op::OutOfMemory, [0; 6]);
}

pub fn panic(report: &[u8]) -> ! {
    call(Op::Panic, [gpa_of(report.as_ptr()), report.len() as u64, 0, 0, 0, 0]);
    super::halt()
}

/// Starts CPU `cpu` at the image's entry point.
pub fn start_cpu(cpu: usize) -> Result<()> {
    checked(call(Op::StartCpu, [cpu as u64, 0, 0, 0, 0, 0])).map(drop)
}

pub fn clock_sample() -> ClockSample {
    let sample = ClockSample::default();
    let cell = core::cell::UnsafeCell::new(sample);
    call(Op::ClockSample, [gpa_of(cell.get()), 0, 0, 0, 0, 0]);
    cell.into_inner()
}

/// Places `len` bytes of the gofer's file `handle` from `offset` at `window_offset`; all page aligned.
pub fn window_map(handle: u64, offset: u64, len: u64, window_offset: u64, writable: bool) -> Result<()> {
    checked(call(Op::WindowMap, [handle, offset, len, window_offset, writable as u64, 0])).map(drop)
}

pub fn window_unmap(window_offset: u64, len: u64) -> Result<()> {
    checked(call(Op::WindowUnmap, [window_offset, len, 0, 0, 0, 0])).map(drop)
}

pub fn window_forget(handle: u64) {
    call(Op::WindowForget, [handle, 0, 0, 0, 0, 0]);
}

/// Gives user memory back to the host; it reads as zeros afterwards.
pub fn release_memory(gpa: u64, len: u64) -> Result<()> {
    checked(call(Op::ReleaseMemory, [gpa, len, 0, 0, 0, 0])).map(drop)
}

pub fn entropy(buffer: &mut [u8]) -> Result<()> {
    checked(call(Op::Entropy, [gpa_of(buffer.as_ptr()), buffer.len() as u64, 0, 0, 0, 0])).map(drop)
}
