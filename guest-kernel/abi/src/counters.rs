//! Counters that prove which path ran. One array of `AtomicU64` per sandbox in kernel memory, indexed by [`Counter`], and one
//! in the VMM for what only it sees. Tests assert them exactly.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        #[repr(usize)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[$doc])* $name,)* }
        /// Names as `runsc debug --counters` prints them, indexed by [`Counter`].
        pub const NAMES: &[&str] = &[$($text,)*];
    };
}

counters! {
    /// System calls of applications.
    Syscalls = "sentry.syscalls",
    PageFaults = "sentry.page_faults",
    Exceptions = "sentry.exceptions",
    Interrupts = "sentry.interrupts",
    ContextSwitches = "sentry.context_switches",
    Forks = "sentry.forks",
    Execs = "sentry.execs",
    TlbFlushes = "sentry.tlb_flushes",
    Shootdowns = "sentry.shootdowns",
    CowCopies = "sentry.cow_copies",
    GoferRequests = "sentry.gofer_requests",
    WindowMaps = "sentry.window_maps",
    IdleWaits = "sentry.idle_waits",
    UnknownSyscalls = "sentry.unknown_syscalls",
    HostCalls = "sentry.host_calls",
    OomKills = "sentry.oom_kills",
    /// VMM: exits by kind.
    ExitMmio = "vmm.exit_mmio",
    ExitPio = "vmm.exit_pio",
    ExitHalt = "vmm.exit_halt",
    ExitInterrupted = "vmm.exit_interrupted",
    /// ptrace: stops of stubs waited for.
    StubStops = "ptrace.stub_stops",
    StubFills = "ptrace.tlb_fills",
    StubFillPages = "ptrace.tlb_fill_pages",
    StubFlushes = "ptrace.tlb_flushes",
    StubRemoteCalls = "ptrace.remote_calls",
    StubsCreated = "ptrace.stubs_created",
    /// KVM: returns of KVM_RUN.
    KvmRuns = "kvm.runs",
}

pub const COUNT: usize = NAMES.len();
