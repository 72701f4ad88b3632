//! Signals of a foreground command, which go on to the container: blocked, and read from a descriptor.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, FromRawFd},
};

use anyhow::{Context, Result};

/// What a user, a terminal or a supervisor sends to a foreground command.
const FORWARDED: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGWINCH,
    libc::SIGCONT,
    libc::SIGTSTP,
];

pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks the signals for this process and what it makes.
    pub fn new() -> Result<Signals> {
        // SAFETY: the set is initialised by sigemptyset before use; the calls take plain values and pointers to it.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in FORWARDED {
                libc::sigaddset(&mut set, *signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error()).context("sigprocmask");
            }
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("signalfd");
        }
        // SAFETY: a new descriptor that nothing else owns.
        Ok(Signals { file: unsafe { File::from_raw_fd(fd) } })
    }

    /// The next signal that has come.
    pub fn next(&mut self) -> Option<u32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.file.read_exact(&mut info).ok()?;
        // ssi_signo is the first field.
        Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What is sent to a whole group of processes (by a terminal, or by a service manager that stops a service): the command
/// alone answers for the container. Our other processes end when it does.
const IGNORED: &[i32] =
    &[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// In a process made by the command: no signal is blocked, and a terminal of the caller is not its business.
pub fn reset() {
    // SAFETY: plain values and pointers to an initialised set; ignoring a signal installs no code.
    unsafe {
        for signal in IGNORED {
            libc::signal(*signal, libc::SIG_IGN);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
    let _ = rustix::process::setsid();
}

/// Ends this process by a signal, if its default action does that.
pub fn raise(signal: i32) {
    // SAFETY: plain values and pointers to an initialised set; the default action installs no code.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::kill(libc::getpid(), signal);
    }
}

/// A signal by number or name, with or without SIG. 0 asks whether there is somebody to get one.
pub fn parse(text: &str) -> Result<u32> {
    const NAMES: &[(&str, i32)] = &[
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("IOT", libc::SIGIOT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("STKFLT", libc::SIGSTKFLT),
        ("CHLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("POLL", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
        ("RTMIN", 34),
        ("RTMAX", 64),
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = if let Ok(number) = name.parse::<u32>() {
        Some(number).filter(|_| name == upper)
    } else if let Some((_, number)) = NAMES.iter().find(|(n, _)| *n == name) {
        u32::try_from(*number).ok()
    } else if let Some(offset) = name.strip_prefix("RTMIN+") {
        offset.parse::<u32>().ok().and_then(|n| n.checked_add(34))
    } else if let Some(offset) = name.strip_prefix("RTMAX-") {
        offset.parse::<u32>().ok().and_then(|n| 64u32.checked_sub(n)).filter(|n| *n >= 34)
    } else {
        None
    };
    number.filter(|n| (0..=64).contains(n)).with_context(|| format!("unknown signal {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals() {
        for (text, number) in [
            ("0", 0),
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse(text).expect(text), number);
        }
        for text in ["", "65", "-1", "SIG9", "FOO", "SIGRTMIN+99", "99999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
