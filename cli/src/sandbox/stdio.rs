//! The descriptors that a container gets from its caller.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{OFlags, fcntl_getfl, fstat},
    io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd},
};
use sentry_abi::config::Stdio;

/// The flags of a descriptor that the application sees.
const STATUS_FLAGS: OFlags = OFlags::ACCMODE.union(OFlags::APPEND).union(OFlags::NONBLOCK);
/// More than any caller passes on.
const MAX_PRESERVED: u32 = 1024;

/// Descriptors of the container and what the sandbox is told about them.
#[derive(Default)]
pub struct Streams {
    pub files: Vec<OwnedFd>,
    pub config: Vec<Stdio>,
}

impl Streams {
    /// 0-2 and `preserve` descriptors from 3 on, duplicated away from their numbers. A closed one of 0-2 stays closed.
    pub fn inherit(preserve: u32) -> Result<Streams> {
        if preserve > MAX_PRESERVED {
            bail!("--preserve-fds={preserve}: at most {MAX_PRESERVED}");
        }
        let mut streams = Streams::default();
        for number in 0..3 + preserve {
            // SAFETY: the number is only used for fcntl, which reports a closed one.
            let borrowed = unsafe { BorrowedFd::borrow_raw(number as RawFd) };
            match fcntl_getfd(borrowed) {
                Ok(flags) => {
                    if number > 2 && flags.contains(FdFlags::CLOEXEC) {
                        bail!("--preserve-fds={preserve}: descriptor {number} was not passed by the caller");
                    }
                    streams.add(borrowed, number)?;
                }
                Err(_) if number < 3 => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("--preserve-fds={preserve}: descriptor {number}"));
                }
            }
        }
        Ok(streams)
    }

    /// These as 0, 1 and 2.
    pub fn of(files: &[OwnedFd; 3]) -> Result<Streams> {
        let mut streams = Streams::default();
        for (number, file) in (0..).zip(files) {
            streams.add(file.as_fd(), number)?;
        }
        Ok(streams)
    }

    /// One terminal as 0, 1 and 2.
    pub fn terminal(tty: &OwnedFd) -> Result<Streams> {
        let mut streams = Streams::default();
        for number in 0..3 {
            streams.add(tty.as_fd(), number)?;
        }
        Ok(streams)
    }

    fn add(&mut self, fd: BorrowedFd<'_>, number: u32) -> Result<()> {
        let what = || format!("descriptor {number}");
        let stat = fstat(fd).with_context(what)?;
        let flags = fcntl_getfl(fd).with_context(what)? & STATUS_FLAGS;
        self.config.push(Stdio {
            index: u32::try_from(self.files.len())?,
            fd: number,
            mode: stat.st_mode,
            rdev: stat.st_rdev,
            flags: flags.bits(),
            tty: rustix::termios::isatty(fd),
        });
        self.files.push(fcntl_dupfd_cloexec(fd, 10).with_context(what)?);
        Ok(())
    }

    /// Whether standard input is a terminal.
    pub fn stdin_is_terminal(&self) -> bool {
        self.config.first().is_some_and(|s| s.fd == 0 && s.tty)
    }
}

/// Fills closed ones of 0-2, so that no descriptor of ours takes their place.
pub fn reserve_standard() {
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        match null {
            Ok(fd) if fd.as_raw_fd() <= 2 => std::mem::forget(fd),
            _ => return,
        }
    }
}
