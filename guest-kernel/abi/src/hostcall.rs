//! Host calls: synchronous requests of the sentry to the VMM, the same in both backends.
//!
//! The sentry fills its vCPU's [`HostCall`] block and writes the vCPU index to [`crate::layout::HOSTCALL_PORT`] (a port exit
//! under KVM, a para call under ptrace). When the write returns, `result` is set. They are for rare things; devices use
//! virtio queues. The VMM checks every field: the sandbox is hostile.

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct HostCall {
    pub op: u64,
    pub args: [u64; 6],
    /// Zero or a positive value; a negative errno on failure.
    pub result: i64,
}

#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `(level, gpa, len)`: a log line (no newline needed). Levels are [`LogLevel`].
    Log = 1,
    /// `(wait status, gpa)`: the sandbox has ended; the status is the init process's, as wait(2) encodes it. At `gpa` (0:
    /// nowhere) are the sentry's counters, [`crate::counters::COUNT`] words.
    Exit = 2,
    /// `(gpa, len)`: the sentry has failed; the text is the report. Does not return.
    Panic = 3,
    /// `(cpu)`: starts a vCPU at the image's entry.
    StartCpu = 4,
    /// `(gpa of a ClockSample)`.
    ClockSample = 5,
    /// `(handle, file offset, length, window offset, writable)`: places a file the gofer has handed over into the window.
    WindowMap = 6,
    /// `(window offset, length)`: zero pages again.
    WindowUnmap = 7,
    /// `(gpa, len)` of user memory: the host may take the pages back; they read as zeros afterwards.
    ReleaseMemory = 8,
    /// `(gpa, len)`: fills with host entropy.
    Entropy = 9,
    /// `(handle)`: the file handle is not needed any more.
    WindowForget = 10,
    /// `(errno, gpa, len)`: the container's init has begun its program (0), or that failed with a positive errno; the text
    /// is the error's message. A failure is followed by [`Op::Exit`] with status 127 << 8 or 126 << 8.
    InitResult = 11,
    /// `()`: a process of the application was ended because user memory ran out.
    OutOfMemory = 12,
}

#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
    /// `--strace` lines.
    Strace = 5,
}
