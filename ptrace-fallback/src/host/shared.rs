//! The memory that stubs and the VMM share: the trampoline that makes system calls in a stub, one command page a vCPU with
//! the list of them, and a scratch page a vCPU for answers.
//!
//! It is one memfd. A stub has the trampoline executable and the command pages readable, at the same addresses in every
//! stub; nothing of it is writable there, save a scratch page for the moment of one call in a stub that never runs
//! application code.

use std::{
    arch::global_asm,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    slice,
};

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, ProtFlags};
use sentry_abi::{boot::MAX_CPUS, layout::USER_TOP};

pub const PAGE: u64 = 4096;
/// Where a stub has the trampoline.
pub const TRAMPOLINE: u64 = USER_TOP;
const COMMANDS: u64 = USER_TOP + 0x1_0000;
const SCRATCH: u64 = USER_TOP + 0x8_0000;

/// Offsets in the memfd.
pub const COMMANDS_OFFSET: u64 = PAGE;
pub const COMMANDS_SIZE: u64 = MAX_CPUS as u64 * PAGE;
const SCRATCH_OFFSET: u64 = COMMANDS_OFFSET + COMMANDS_SIZE;
const SIZE: u64 = SCRATCH_OFFSET + MAX_CPUS as u64 * PAGE;

/// Calls that fit a list.
pub const MAX_CALLS: usize = (PAGE as usize - DATA) / size_of::<Call>();
/// Bytes at the start of a command page for arguments in memory.
pub const DATA: usize = 512;

// Position independent, no stack. `list`: rbx points at rbp calls; int3 at the end or behind the first that fails, whose
// result is in rax. `fork`: clone as the registers say; the parent meets int3, the child waits to be traced.
global_asm!(
    ".pushsection .text.runsc_trampoline,\"ax\",@progbits",
    // Other code generation units refer to them.
    ".globl runsc_trampoline_start, runsc_trampoline_fork, runsc_trampoline_pause, runsc_trampoline_end",
    ".hidden runsc_trampoline_start, runsc_trampoline_fork, runsc_trampoline_pause, runsc_trampoline_end",
    ".balign 16",
    "runsc_trampoline_start:",
    "2:  test rbp, rbp",
    "    jz 3f",
    "    mov rax, [rbx]",
    "    mov rdi, [rbx + 8]",
    "    mov rsi, [rbx + 16]",
    "    mov rdx, [rbx + 24]",
    "    mov r10, [rbx + 32]",
    "    mov r8, [rbx + 40]",
    "    mov r9, [rbx + 48]",
    "    syscall",
    "    cmp rax, -4095",
    "    jae 3f",
    "    add rbx, 56",
    "    dec rbp",
    "    jmp 2b",
    "3:  int3",
    "    jmp 3b",
    ".balign 16",
    "runsc_trampoline_fork:",
    "    syscall",
    "    test rax, rax",
    "    jnz 3b",
    "    mov eax, {prctl}",
    "    mov edi, {set_pdeathsig}",
    "    mov esi, {sigkill}",
    "    syscall",
    ".balign 16",
    "runsc_trampoline_pause:",
    "    mov eax, {pause}",
    "    syscall",
    "    jmp runsc_trampoline_pause",
    "runsc_trampoline_end:",
    ".popsection",
    prctl = const libc::SYS_prctl,
    set_pdeathsig = const libc::PR_SET_PDEATHSIG,
    sigkill = const libc::SIGKILL,
    pause = const libc::SYS_pause,
);

unsafe extern "C" {
    static runsc_trampoline_start: u8;
    static runsc_trampoline_fork: u8;
    static runsc_trampoline_pause: u8;
    static runsc_trampoline_end: u8;
}

/// Offset of the trampoline's `fork` entry.
pub fn fork_offset() -> u64 {
    (&raw const runsc_trampoline_fork) as u64 - (&raw const runsc_trampoline_start) as u64
}

/// Offset of the loop in which a stub waits untraced.
pub fn pause_offset() -> u64 {
    (&raw const runsc_trampoline_pause) as u64 - (&raw const runsc_trampoline_start) as u64
}

/// A system call for a stub to make.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub nr: u64,
    pub args: [u64; 6],
}

impl Call {
    pub fn new<const N: usize>(nr: i64, args: [u64; N]) -> Call {
        let mut all = [0; 6];
        all[..N].copy_from_slice(&args);
        Call { nr: nr as u64, args: all }
    }
}

/// The memfd and its mapping here.
pub struct SharedPages {
    fd: OwnedFd,
    base: NonNull<u8>,
}

// SAFETY: the mapping is plain memory; parts of it are handed out one page a vCPU (`command_page`).
unsafe impl Send for SharedPages {}
// SAFETY: as above.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    pub fn new() -> Result<SharedPages> {
        let fd = rustix::fs::memfd_create("runsc-stub", rustix::fs::MemfdFlags::CLOEXEC).context("memfd_create")?;
        rustix::fs::ftruncate(&fd, SIZE).context("sizing the stubs' shared pages")?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                SIZE as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
            .context("mapping the stubs' shared pages")?
        };
        let base = NonNull::new(base.cast::<u8>()).context("mmap returned address 0")?;
        // SAFETY: the code between the two symbols is part of this program and less than a page; the destination is the
        // first page of the mapping.
        unsafe {
            let start = &raw const runsc_trampoline_start;
            let len = (&raw const runsc_trampoline_end).offset_from(start) as usize;
            ptr::copy_nonoverlapping(start, base.as_ptr(), len);
            rustix::mm::mprotect(base.as_ptr().cast(), PAGE as usize, rustix::mm::MprotectFlags::READ)
                .context("protecting the trampoline")?;
        }
        Ok(SharedPages { fd, base })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The calls that give a stub its view, while the memfd is its descriptor `fd`.
    pub fn map_calls(fd: u64) -> [Call; 2] {
        let (read, exec) = (libc::PROT_READ as u64, libc::PROT_EXEC as u64);
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
        [
            Call::new(libc::SYS_mmap, [TRAMPOLINE, PAGE, read | exec, flags, fd, 0]),
            Call::new(libc::SYS_mmap, [COMMANDS, COMMANDS_SIZE, read, flags, fd, COMMANDS_OFFSET]),
        ]
    }

    /// The page of a vCPU; its owner must ask for it once.
    pub fn command_page(&self, cpu: u32) -> CommandPage {
        let cpu = u64::from(cpu).min(MAX_CPUS as u64 - 1);
        CommandPage {
            // SAFETY: both are inside the mapping.
            page: unsafe { self.base.add((COMMANDS_OFFSET + cpu * PAGE) as usize) },
            // SAFETY: as above.
            scratch: unsafe { self.base.add((SCRATCH_OFFSET + cpu * PAGE) as usize) },
            stub_address: COMMANDS + cpu * PAGE,
            scratch_address: SCRATCH + cpu * PAGE,
            scratch_offset: SCRATCH_OFFSET + cpu * PAGE,
        }
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: the mapping `new` made. Command pages do not outlive their VM's vCPUs, which hold it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), SIZE as usize) };
    }
}

/// A vCPU's command page: arguments in memory first, then the list of calls. And its scratch page.
pub struct CommandPage {
    page: NonNull<u8>,
    scratch: NonNull<u8>,
    /// Where stubs see the page.
    pub stub_address: u64,
    /// Where a stub maps the scratch page when it needs it.
    pub scratch_address: u64,
    pub scratch_offset: u64,
}

// SAFETY: plain memory that one thread at a time uses.
unsafe impl Send for CommandPage {}

impl CommandPage {
    /// Where stubs see the list of calls.
    pub fn list_address(&self) -> u64 {
        self.stub_address + DATA as u64
    }

    pub fn write_calls(&mut self, calls: &[Call]) {
        let calls = &calls[..calls.len().min(MAX_CALLS)];
        // SAFETY: `MAX_CALLS` calls fit behind DATA, which keeps the alignment; stubs only read the page.
        unsafe {
            let list = self.page.add(DATA).cast::<Call>();
            ptr::copy_nonoverlapping(calls.as_ptr(), list.as_ptr(), calls.len());
        }
    }

    pub fn write_data(&mut self, data: &[u8]) {
        let len = data.len().min(DATA);
        // SAFETY: the first DATA bytes of the page.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.page.as_ptr(), len) };
    }

    /// The scratch page; only while no stub is running with it mapped.
    pub fn scratch(&mut self) -> &mut [u8] {
        // SAFETY: one page, this vCPU's alone; stubs that map it are stopped (the caller's business, and only bytes).
        unsafe { slice::from_raw_parts_mut(self.scratch.as_ptr(), PAGE as usize) }
    }
}
