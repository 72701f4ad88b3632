//! Faults of sentry code: the signal handlers that resume a listed instruction at its fixup, or end the sentry with a
//! report of its registers.
//!
//! The handlers are process-wide and serve only threads that run a coroutine at that moment; other faults go to whoever
//! handled them before.

use std::{
    cell::RefCell,
    fmt::Write,
    mem, ptr,
    sync::{
        Once, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, ProtFlags};
use sentry_abi::para::FixupEntry;

use super::coroutine::{OP_CRASH, current, leave_sentry};

const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];
/// An XSAVE area with AVX-512 and AMX fits several times.
const ALTERNATE_STACK: usize = 64 << 10;

/// The table the sentry registers once at boot. Read in signal handlers, hence atomics only.
#[derive(Default)]
pub struct FixupTable {
    table: AtomicU64,
    count: AtomicU64,
}

impl FixupTable {
    /// `table` must be mapped for as long as the sandbox lives: the caller checks that it lies in kernel memory.
    pub fn set(&self, table: u64, count: u64) {
        self.count.store(0, Ordering::Release);
        self.table.store(table, Ordering::Release);
        self.count.store(count, Ordering::Release);
    }

    fn lookup(&self, rip: u64) -> Option<u64> {
        let count = self.count.load(Ordering::Acquire);
        let table = self.table.load(Ordering::Acquire);
        (0..count).find_map(|index| {
            let at = table + index * size_of::<FixupEntry>() as u64;
            // SAFETY: `set`'s caller checked that the table is in kernel memory, which stays mapped and readable.
            let entry = unsafe { ptr::read_unaligned(at as *const FixupEntry) };
            // Every offset counts from the entry's own address.
            let absolute = |offset: i32| at.wrapping_add_signed(i64::from(offset));
            (absolute(entry.start)..absolute(entry.end)).contains(&rip).then(|| absolute(entry.fixup))
        })
    }
}

/// The fault that ended a sentry.
#[derive(Clone)]
pub struct Crash {
    pub signal: i32,
    pub code: i32,
    pub address: u64,
    /// As in `ucontext`: r8-r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags, ...
    registers: [i64; 23],
}

impl Crash {
    pub fn rip(&self) -> u64 {
        self.registers[libc::REG_RIP as usize] as u64
    }

    pub fn rbp(&self) -> u64 {
        self.registers[libc::REG_RBP as usize] as u64
    }

    pub fn name(&self) -> &'static str {
        match self.signal {
            libc::SIGSEGV => "SIGSEGV",
            libc::SIGBUS => "SIGBUS",
            libc::SIGFPE => "SIGFPE",
            libc::SIGILL => "SIGILL",
            _ => "SIGTRAP",
        }
    }

    pub fn dump(&self) -> String {
        const NAMES: [&str; 18] = [
            "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx",
            "rsp", "rip", "rflags",
        ];
        let mut text = String::new();
        for (index, (name, value)) in NAMES.iter().zip(self.registers).enumerate() {
            let separator = if index % 4 == 3 { '\n' } else { ' ' };
            let _ = write!(text, "{name:>6} {value:016x}{separator}");
        }
        text
    }
}

/// What handled the signals before; written once, before the handlers are in place.
static PREVIOUS: [OnceLock<libc::sigaction>; SIGNALS.len()] = [const { OnceLock::new() }; SIGNALS.len()];
static INSTALL: Once = Once::new();

struct AlternateStack(*mut libc::c_void);

impl Drop for AlternateStack {
    fn drop(&mut self) {
        // SAFETY: disables this thread's alternate stack, then unmaps the memory it used. Thread-local destructors do not
        // run on it.
        unsafe {
            let mut off: libc::stack_t = mem::zeroed();
            off.ss_flags = libc::SS_DISABLE;
            libc::sigaltstack(&off, ptr::null_mut());
            let _ = rustix::mm::munmap(self.0, ALTERNATE_STACK);
        }
    }
}

thread_local! {
    static STACK: RefCell<Option<AlternateStack>> = const { RefCell::new(None) };
}

/// Makes this thread able to run a coroutine: the process's handlers, and an alternate signal stack of its own.
pub fn prepare_thread() -> Result<()> {
    INSTALL.call_once(install);
    if STACK.with_borrow(Option::is_some) {
        return Ok(());
    }
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe {
        rustix::mm::mmap_anonymous(
            ptr::null_mut(),
            ALTERNATE_STACK,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
        .context("mapping a signal stack")?
    };
    let stack = libc::stack_t { ss_sp: base, ss_flags: 0, ss_size: ALTERNATE_STACK };
    // SAFETY: the memory lives until `AlternateStack` is dropped with the thread.
    if unsafe { libc::sigaltstack(&stack, ptr::null_mut()) } != 0 {
        return Err(std::io::Error::last_os_error()).context("sigaltstack");
    }
    STACK.set(Some(AlternateStack(base)));
    Ok(())
}

fn install() {
    for (index, &signal) in SIGNALS.iter().enumerate() {
        // SAFETY: `handler` is async-signal-safe for the threads that run coroutines and passes everything else on.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let mut previous: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut previous);
            PREVIOUS[index].get_or_init(|| previous);
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
    // A stop of a stub is noticed by wait4; without this each would also queue a SIGCHLD.
    // SAFETY: keeps the disposition that is there and adds a flag.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        if libc::sigaction(libc::SIGCHLD, ptr::null(), &mut action) == 0 && action.sa_flags & libc::SA_NOCLDSTOP == 0 {
            action.sa_flags |= libc::SA_NOCLDSTOP;
            libc::sigaction(libc::SIGCHLD, &action, ptr::null_mut());
        }
    }
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let switch = current();
    // SAFETY: the kernel passes valid pointers; `switch` is this thread's, alive while `in_sentry` is set, and the code that
    // was interrupted is the sentry's, so nothing else borrows it.
    unsafe {
        if switch.is_null() || !(*switch).in_sentry.load(Ordering::Relaxed) {
            return pass_on(signal, info, context);
        }
        let context = context.cast::<libc::ucontext_t>();
        let registers = &mut (*context).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        let fixups = (*switch).fixups.load(Ordering::Relaxed);
        if let Some(fixup) = fixups.as_ref().and_then(|table| table.lookup(rip)) {
            registers[libc::REG_RIP as usize] = fixup as i64;
            return;
        }
        let address = if matches!(signal, libc::SIGSEGV | libc::SIGBUS) { (*info).si_addr() as u64 } else { 0 };
        (*switch).crash = Some(Crash { signal, code: (*info).si_code, address, registers: *registers });
        (*switch).op = OP_CRASH;
        registers[libc::REG_RIP as usize] = leave_sentry as *const () as i64;
        registers[libc::REG_RDI as usize] = switch as i64;
        // Trap, direction and alignment flags of the crashed code must not follow.
        registers[libc::REG_EFL as usize] &= !0x4_0500;
    }
}

/// # Safety
/// Only from the handler, with what the kernel passed to it.
unsafe fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = SIGNALS.iter().position(|&known| known == signal);
    let Some(previous) = index.and_then(|index| PREVIOUS[index].get()) else { return };
    // SAFETY: the function pointers are those of the process's earlier handlers and have the types their flags say.
    unsafe {
        match previous.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                // The instruction faults again and meets the default action.
                let mut action: libc::sigaction = mem::zeroed();
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &action, ptr::null_mut());
            }
            function if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                let function: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    mem::transmute(function);
                function(signal, info, context);
            }
            function => {
                let function: extern "C" fn(libc::c_int) = mem::transmute(function);
                function(signal);
            }
        }
    }
}
