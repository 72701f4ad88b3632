//! The user register context and the reasons user code stops for.

/// General registers in the order of ptrace's `user_regs_struct` (see <sys/user.h>), so that the ptrace backend moves it
/// with one PTRACE_GETREGS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// System call number at entry; -1 otherwise.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// Which parts of [`UserContext::regs`] are good.
pub mod state {
    /// Every field holds the task's value. Without it only `orig_rax`, the argument registers (rdi, rsi, rdx, r10, r8,
    /// r9), `rip` and `rsp` do, and `load_registers` must come before anything else is read.
    pub const LOADED: u32 = 1;
    /// A field other than `rax` differs from what the vCPU holds: `enter_user` loads all of them.
    pub const DIRTY: u32 = 2;
}

/// What user code stopped for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapKind {
    /// `syscall` in 64-bit mode. The number is in `orig_rax`; `rip` is behind the instruction.
    Syscall = 1,
    /// An exception: `vector`, `error_code`, and for #PF `address`.
    Exception = 2,
    /// An interrupt or kick: look at the pending word.
    Interrupt = 3,
    /// `int 0x80` or another entry that this kernel does not serve.
    ForeignSyscall = 4,
    /// The address space's stub is gone or its mappings are exhausted: the task cannot go on.
    Dead = 5,
}

/// One task's user-mode state, in kernel memory. The extended state lies in an XSAVE area of its own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct UserContext {
    pub regs: Registers,
    /// [`state`] bits.
    pub state: u32,
    pub trap: u32,
    pub vector: u32,
    pub error_code: u32,
    pub address: u64,
    /// Which task this is (non-zero, unique while it lives): a vCPU whose hardware (or stub thread) last ran another one
    /// loads everything.
    pub task: u64,
    /// Virtual address of the task's XSAVE area (standard format, 64-byte aligned, `xsave_size` long).
    pub xsave: u64,
    /// 1 while the area at `xsave` is newer than the vCPU's registers: `enter_user` restores it and clears this.
    pub xsave_dirty: u32,
    /// The backend's: which vCPU holds the task's state (index + 1). The sentry leaves it alone.
    pub holder: u32,
    /// Under KVM: XMM0-15 and MXCSR as the entry saved them.
    pub xmm: [[u64; 2]; 16],
    pub mxcsr: u32,
    pub _pad2: u32,
}

impl UserContext {
    pub const fn new() -> Self {
        UserContext {
            regs: Registers {
                r15: 0,
                r14: 0,
                r13: 0,
                r12: 0,
                rbp: 0,
                rbx: 0,
                r11: 0,
                r10: 0,
                r9: 0,
                r8: 0,
                rax: 0,
                rcx: 0,
                rdx: 0,
                rsi: 0,
                rdi: 0,
                orig_rax: u64::MAX,
                rip: 0,
                cs: USER_CS,
                rflags: 0x202,
                rsp: 0,
                ss: USER_SS,
                fs_base: 0,
                gs_base: 0,
                ds: 0,
                es: 0,
                fs: 0,
                gs: 0,
            },
            state: state::LOADED | state::DIRTY,
            trap: 0,
            vector: 0,
            error_code: 0,
            address: 0,
            task: 0,
            xsave: 0,
            xsave_dirty: 1,
            holder: 0,
            xmm: [[0; 2]; 16],
            mxcsr: 0x1f80,
            _pad2: 0,
        }
    }
}

impl Default for UserContext {
    fn default() -> Self {
        Self::new()
    }
}

/// Linux's __USER_CS and __USER_DS: programs see them in signal frames and ptrace.
pub const USER_CS: u64 = 0x33;
pub const USER_SS: u64 = 0x2b;

/// Exception vectors (Intel SDM volume 3, 6.3.1).
pub mod vector {
    pub const DE: u32 = 0;
    pub const DB: u32 = 1;
    pub const BP: u32 = 3;
    pub const OF: u32 = 4;
    pub const BR: u32 = 5;
    pub const UD: u32 = 6;
    pub const NM: u32 = 7;
    pub const NP: u32 = 11;
    pub const SS: u32 = 12;
    pub const GP: u32 = 13;
    pub const PF: u32 = 14;
    pub const MF: u32 = 16;
    pub const AC: u32 = 17;
    pub const XM: u32 = 19;
    /// Not a CPU vector: a page whose file ends before it (SIGBUS to the application).
    pub const FILE_PAST_END: u32 = 64;
}

/// Page-fault error code bits.
pub mod pf {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const USER: u32 = 4;
    pub const RESERVED: u32 = 8;
    pub const FETCH: u32 = 16;
}
