//! What engines are to see when a container has run out of memory: the host's count of such kills in its control group.
//!
//! The sandbox's kernel ends a process of the application while the group still has room for the sandbox, so the host would
//! count nothing. A small process, made when the group has a limit, stands by to be the victim: when it is told, it takes
//! memory until the host kills it, which by its oom_score_adj it does before anything else.

use std::{
    fs,
    hint::black_box,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::{
    logging,
    sandbox::{
        confine,
        process::{self, Fork, exit_now},
    },
};

const SCORE: &str = "/proc/self/oom_score_adj";
const STEP: usize = 1 << 20;
/// Beyond the group's limit it has failed, on a host with swap to spare.
const SLACK: u64 = 64 << 20;
/// How long the host may take; the container's end waits for it.
const LIMIT: Duration = Duration::from_secs(5);

/// The victim, until it is needed.
pub struct Victim(Mutex<Option<OwnedFd>>);

impl Victim {
    /// Makes it, for a group of `limit` bytes. Files of the host are still in reach.
    pub fn new(limit: u64) -> Result<Victim> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context("make a socket pair")?;
        set_socket_timeout(&ours, Timeout::Recv, Some(LIMIT)).context("time limit of a socket")?;
        // It inherits the value; on its own it would have to be quicker than this process is in leaving /proc behind.
        let before = fs::read_to_string(SCORE).context(SCORE)?;
        fs::write(SCORE, "1000").context(SCORE)?;
        let made = process::fork(0).context("make the process that marks the end of memory");
        if !matches!(made, Ok(Fork::Child)) {
            fs::write(SCORE, before.trim()).context(SCORE)?;
        }
        match made? {
            Fork::Parent(_) => Ok(Victim(Mutex::new(Some(ours)))),
            Fork::Child => {
                drop(ours);
                let ended = stand_by(&theirs, limit);
                if let Err(error) = &ended {
                    log::debug!("mark of the end of memory: {error:#}");
                }
                exit_now(i32::from(ended.is_err()))
            }
        }
    }

    pub fn descriptor(&self) -> Option<i32> {
        self.0.lock().ok()?.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The application has run out of memory. Only the first time counts.
    pub fn give(&self) {
        let Some(socket) = self.0.lock().ok().and_then(|mut s| s.take()) else { return };
        if let Err(error) = rustix::io::write(&socket, b"m") {
            return log::warn!("out of memory: the engine is not told ({error})");
        }
        // Its end closes the socket.
        match rustix::io::read(&socket, &mut [0u8]) {
            Ok(0) | Err(Errno::CONNRESET) => log::debug!("out of memory: marked for the engine"),
            other => log::warn!("out of memory: the engine is not told ({other:?})"),
        }
    }
}

fn stand_by(socket: &OwnedFd, limit: u64) -> Result<()> {
    confine::die_with_parent();
    let mut keep = vec![socket.as_fd().as_raw_fd()];
    keep.extend(logging::descriptors());
    process::close_all_but(&keep)?;
    confine::drop_privileges();
    confine::die_with_parent();
    let mut byte = [0u8];
    loop {
        match rustix::io::read(socket, &mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut taken: Vec<Vec<u8>> = Vec::new();
    while (taken.len() * STEP) as u64 <= limit.saturating_add(SLACK) {
        taken.push(black_box(vec![1u8; STEP]));
    }
    Ok(())
}
