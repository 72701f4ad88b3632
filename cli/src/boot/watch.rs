//! Watches those that a sandbox must not outlive: the command that makes it, until it says that it leaves, and the gofer.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc::Sender},
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use vmm::machine::{MachineHandle, Outcome};

use crate::sandbox::{
    FAILURE,
    channel::{Channel, Command, Report},
    process::exit_now,
};

pub fn spawn(channel: Arc<Channel>, gofer: Arc<OwnedFd>, machine: MachineHandle, start: Sender<()>) -> Result<()> {
    std::thread::Builder::new()
        .name("watch".into())
        .stack_size(128 << 10)
        .spawn(move || watch(&channel, &gofer, &machine, &start))
        .context("watch thread")?;
    Ok(())
}

fn watch(channel: &Channel, gofer: &OwnedFd, machine: &MachineHandle, start: &Sender<()>) {
    let mut attached = true;
    loop {
        let gofer = gofer.as_fd();
        // Only its end is of interest: what the gofer sends is read elsewhere.
        let mut fds = vec![PollFd::new(&gofer, PollFlags::empty())];
        if attached {
            fds.push(PollFd::new(channel, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => {
                machine.stop(Outcome::Failed(format!("watch: {error}")));
                return;
            }
        }
        if !fds[0].revents().is_empty() {
            machine.stop(Outcome::Failed("the gofer has ended".into()));
            // The main thread may still wait for the start.
            let _ = start.send(());
            return;
        }
        if fds.get(1).is_none_or(|fd| fd.revents().is_empty()) {
            continue;
        }
        match channel.receive() {
            Ok(Some(Command::Start)) => {
                let _ = start.send(());
            }
            // It came before this thread began.
            Ok(Some(Command::Proceed { .. })) => {}
            Ok(Some(Command::Detach)) => {
                attached = false;
                let _ = channel.send(&Report::Detached);
            }
            // The command is gone, and nobody else answers for the sandbox.
            Ok(None) => exit_now(FAILURE),
            Err(error) => {
                log::error!("the command's channel: {error:#}");
                exit_now(FAILURE);
            }
        }
    }
}
