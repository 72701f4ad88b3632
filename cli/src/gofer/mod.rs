//! The gofer's process: it may reach the container's files and nothing else.

mod filter;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use devices::gofer::{GoferConfig, Root, serve};

use crate::{
    boot::machine::Events,
    flags::Settings,
    logging,
    namespaces::IdMaps,
    sandbox::{confine, handover, process, signals},
};

/// What the VMM gives the gofer it makes.
pub struct Gofer {
    /// It is in a user namespace with ids of its own.
    pub mapped: bool,
    pub roots: Vec<Root>,
    pub events: Events,
    pub vmm_socket: OwnedFd,
    pub settings: Settings,
    pub id: String,
}

/// In the new process; never returns to what it was forked from.
pub fn main(gofer: Gofer) -> ! {
    confine::die_with_parent();
    let code = match run(gofer) {
        Ok(()) => 0,
        Err(error) => {
            log::error!("gofer: {error:#}");
            1
        }
    };
    process::exit_now(code)
}

fn run(gofer: Gofer) -> Result<()> {
    signals::reset();
    logging::init(&gofer.settings, "gofer", &gofer.id)?;
    let mut keep = vec![0, 1, 2];
    keep.extend(logging::descriptors());
    keep.extend(gofer.roots.iter().map(|r| r.fd.as_raw_fd()));
    keep.extend(gofer.events.descriptors());
    keep.push(gofer.vmm_socket.as_raw_fd());
    process::close_all_but(&keep)?;
    if gofer.mapped {
        IdMaps::become_root()?;
        // A change of user has undone it.
        confine::die_with_parent();
    }

    confine::limits();
    confine::empty_root(true);
    confine::keep_capabilities(confine::file_capabilities());
    let device_fd = handover::receive(gofer.vmm_socket.as_fd()).context("wait for the VMM")?;
    confine::layer("system call filter", filter::install());
    let Events { kicks, call } = gofer.events;
    let kick = kicks.into_iter().next().context("the queue has no doorbell")?;
    serve(GoferConfig { roots: gofer.roots, device_fd, kick, call, vmm_socket: gofer.vmm_socket })
}
