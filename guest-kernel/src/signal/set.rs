//! Signal numbers and sets of them.

/// Numbers of signal(7) on x86-64.
pub const SIGHUP: u32 = 1;
pub const SIGINT: u32 = 2;
pub const SIGQUIT: u32 = 3;
pub const SIGILL: u32 = 4;
pub const SIGTRAP: u32 = 5;
pub const SIGABRT: u32 = 6;
pub const SIGBUS: u32 = 7;
pub const SIGFPE: u32 = 8;
pub const SIGKILL: u32 = 9;
pub const SIGUSR1: u32 = 10;
pub const SIGSEGV: u32 = 11;
pub const SIGUSR2: u32 = 12;
pub const SIGPIPE: u32 = 13;
pub const SIGALRM: u32 = 14;
pub const SIGTERM: u32 = 15;
pub const SIGCHLD: u32 = 17;
pub const SIGCONT: u32 = 18;
pub const SIGSTOP: u32 = 19;
pub const SIGTSTP: u32 = 20;
pub const SIGTTIN: u32 = 21;
pub const SIGTTOU: u32 = 22;
pub const SIGURG: u32 = 23;
pub const SIGXCPU: u32 = 24;
pub const SIGXFSZ: u32 = 25;
pub const SIGVTALRM: u32 = 26;
pub const SIGPROF: u32 = 27;
pub const SIGWINCH: u32 = 28;
pub const SIGIO: u32 = 29;
pub const SIGSYS: u32 = 31;
/// First real-time signal, and one past the last.
pub const SIGRTMIN: u32 = 32;
pub const SIGNALS: u32 = 65;

/// A set of signals: bit `n - 1` for signal `n`, as the kernel's sigset_t.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SigSet(pub u64);

impl SigSet {
    pub const EMPTY: SigSet = SigSet(0);
    /// What cannot be caught, blocked or ignored.
    pub const UNBLOCKABLE: SigSet = SigSet::of(&[SIGKILL, SIGSTOP]);
    pub const STOPS: SigSet = SigSet::of(&[SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU]);
    /// What faults raise: delivered before others.
    pub const SYNCHRONOUS: SigSet = SigSet::of(&[SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS]);
    const IGNORED_BY_DEFAULT: SigSet = SigSet::of(&[SIGCHLD, SIGCONT, SIGURG, SIGWINCH]);
    /// Default action "core".
    const CORE: SigSet =
        SigSet::of(&[SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGXCPU, SIGXFSZ, SIGSYS]);

    pub const fn of(signals: &[u32]) -> SigSet {
        let mut bits = 0;
        let mut i = 0;
        while i < signals.len() {
            bits |= 1 << (signals[i] - 1);
            i += 1;
        }
        SigSet(bits)
    }

    #[inline]
    pub const fn contains(self, signal: u32) -> bool {
        signal >= 1 && signal < SIGNALS && self.0 & (1 << (signal - 1)) != 0
    }

    pub const fn with(self, signal: u32) -> SigSet {
        SigSet(self.0 | 1 << (signal - 1))
    }

    pub const fn without(self, other: SigSet) -> SigSet {
        SigSet(self.0 & !other.0)
    }

    pub const fn union(self, other: SigSet) -> SigSet {
        SigSet(self.0 | other.0)
    }

    pub const fn intersection(self, other: SigSet) -> SigSet {
        SigSet(self.0 & other.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest signal of the set; faults first.
    pub fn first(self) -> Option<u32> {
        let faults = self.intersection(SigSet::SYNCHRONOUS);
        let from = if faults.is_empty() { self } else { faults };
        (from.0 != 0).then(|| from.0.trailing_zeros() + 1)
    }
}

pub const fn is_valid(signal: u32) -> bool {
    signal >= 1 && signal < SIGNALS
}

/// What happens without a handler (signal(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DefaultAction {
    Terminate,
    /// Terminates; Linux would also write a core file if the limit allowed.
    Core,
    Ignore,
    Stop,
    Continue,
}

pub fn default_action(signal: u32) -> DefaultAction {
    if signal == SIGCONT {
        DefaultAction::Continue
    } else if SigSet::IGNORED_BY_DEFAULT.contains(signal) {
        DefaultAction::Ignore
    } else if SigSet::STOPS.contains(signal) {
        DefaultAction::Stop
    } else if SigSet::CORE.contains(signal) {
        DefaultAction::Core
    } else {
        DefaultAction::Terminate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_first_then_the_lowest() {
        let set = SigSet::of(&[SIGHUP, SIGSEGV, SIGTERM]);
        assert_eq!(set.first(), Some(SIGSEGV));
        assert_eq!(set.without(SigSet::of(&[SIGSEGV])).first(), Some(SIGHUP));
        assert_eq!(SigSet::EMPTY.first(), None);
        assert_eq!(SigSet(1 << 63).first(), Some(64));
    }

    #[test]
    fn defaults() {
        assert_eq!(default_action(SIGCHLD), DefaultAction::Ignore);
        assert_eq!(default_action(SIGTSTP), DefaultAction::Stop);
        assert_eq!(default_action(SIGCONT), DefaultAction::Continue);
        assert_eq!(default_action(SIGABRT), DefaultAction::Core);
        assert_eq!(default_action(SIGRTMIN + 3), DefaultAction::Terminate);
        assert!(!SigSet(u64::MAX).contains(0) && !SigSet(u64::MAX).contains(65));
    }
}
