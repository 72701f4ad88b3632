//! The VMM's process: makes the gofer, gives up what it does not need, puts the machine together and runs it.

mod control;
mod machine;
mod watch;

use std::{
    io::{Seek, Write},
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, mpsc},
};

use anyhow::{Context, Result};
use devices::virtio::Transport;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vmm::machine::Outcome;

use crate::{
    gofer::{self, Gofer},
    logging,
    sandbox::{
        self, FAILURE, Launch,
        channel::{Channel, Report},
        confine, handover,
        process::{self, Fork},
        signals,
    },
};
use control::Control;

/// In the new process; never returns to what it was forked from.
pub fn main(launch: Launch, channel: Channel, namespaces: libc::c_int) -> ! {
    let channel = Arc::new(channel);
    let code = match run(launch, &channel, namespaces) {
        Ok(code) => code,
        Err(error) => {
            let message = format!("{error:#}");
            log::debug!("sandbox: {message}");
            // The command that would have read it may be gone.
            let _ = channel.send(&Report::Failed { message });
            FAILURE
        }
    };
    process::exit_now(code)
}

fn run(launch: Launch, channel: &Arc<Channel>, namespaces: libc::c_int) -> Result<i32> {
    if launch.foreground {
        confine::die_with_parent();
    }
    signals::reset();
    logging::init(&launch.settings, "boot", &launch.id)?;
    if namespaces & libc::CLONE_NEWUSER != 0 {
        confine::map_own_user(&launch.caller);
    }
    if namespaces & libc::CLONE_NEWNS == 0 {
        confine::own_mounts();
    }
    confine::null_streams()?;

    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context("make a socket pair")?;
    let (kicks, call) = Transport::events(1)?;
    let Launch { id, mut config, roots, vcpus, backend, streams, foreground, control, mut exit_file, settings, .. } = launch;
    match process::fork(0).context("make the gofer")? {
        Fork::Child => {
            drop(ours);
            let Some(kick) = kicks.into_iter().next() else { process::exit_now(FAILURE) };
            gofer::main(Gofer { roots, kick, call, vmm_socket: theirs, settings, id })
        }
        Fork::Parent(_) => {}
    }
    drop((theirs, roots));
    let host = machine::Host::open(backend)?;

    let mut keep = vec![0, 1, 2, channel.as_fd().as_raw_fd(), ours.as_raw_fd(), call.as_raw_fd()];
    keep.extend(kicks.iter().map(|k| k.as_raw_fd()));
    keep.extend([control.as_raw_fd(), exit_file.as_raw_fd()]);
    keep.extend(sandbox::raw(&streams.files));
    keep.extend(logging::descriptors());
    keep.extend(host.descriptor());
    process::close_all_but(&keep)?;
    confine::limits();
    confine::empty_root(false);
    confine::drop_privileges();
    if foreground {
        // A change of user has undone it.
        confine::die_with_parent();
    }

    config.container.process.stdio = streams.config;
    let parts = machine::Parts { host, config, vcpus, streams: streams.files, gofer: ours, kicks, call };
    let made = machine::build(parts, channel)?;
    handover::send(made.gofer.as_fd(), made.memory.device_fd())?;
    let (start, started) = mpsc::channel();
    let control_handler = Arc::new(Control::new(id, made.machine.handle(), made.init.clone(), made.link, start.clone()));
    devices::control::Server::from_listener(control).spawn(control_handler.clone())?;
    watch::spawn(channel.clone(), made.gofer.clone(), made.machine.handle(), start)?;
    channel.send(&Report::Ready)?;

    // Nobody who could ask for the start is left when this fails.
    started.recv().context("wait for the start")?;
    let outcome = made.machine.run()?;
    let status = match outcome {
        Outcome::Exited(status) => status,
        Outcome::Panicked(report) => {
            logging::last_words(&report);
            let first = report.lines().next().unwrap_or_default();
            anyhow::bail!("the sandbox's kernel has failed: {first}")
        }
        Outcome::Failed(report) => {
            logging::last_words(&report);
            let first = report.lines().next().unwrap_or_default();
            anyhow::bail!("the sandbox has failed: {first}")
        }
    };
    made.counters.log();
    // First the file: who is told of the end may look at it.
    let recorded = exit_file.rewind().and_then(|()| exit_file.write_all(format!("{status}\n").as_bytes()));
    if let Err(error) = recorded {
        log::warn!("record the exit status: {error}");
    }
    control_handler.ended(status);
    let _ = channel.send(&Report::Ended { status });
    Ok(sandbox::exit_code(status))
}
