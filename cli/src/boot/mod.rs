//! The VMM's process: makes the gofer, gives up what it does not need, puts the machine together and runs it.

mod control;
mod exec;
pub mod machine;
mod oom;
mod signal;
mod watch;

use std::{
    io::{Seek, Write},
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, mpsc},
};

use anyhow::{Context, Result};
use devices::{console::Stream, control::Server};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vmm::machine::{MachineHandle, Outcome};

use crate::{
    gofer::{self, Gofer},
    hooks::Point,
    logging,
    namespaces::IdMaps,
    sandbox::{
        self, FAILURE, Launch,
        channel::{Channel, Command, Report},
        confine, handover,
        process::{self, Fork},
        signals::{self, Signals},
        terminal, title,
    },
};
use control::{Control, ControlParts};
use machine::{Events, Parts};

/// In the new process; never returns to what it was forked from.
pub fn main(launch: Launch, channel: Channel, namespaces: libc::c_int, in_group: bool) -> ! {
    let channel = Arc::new(channel);
    let code = match run(launch, &channel, namespaces, in_group) {
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

fn run(mut launch: Launch, channel: &Arc<Channel>, namespaces: libc::c_int, in_group: bool) -> Result<i32> {
    if launch.foreground {
        confine::die_with_parent();
    }
    // Before anything is done that the groups should count.
    std::mem::take(&mut launch.cgroup).enter(in_group)?;
    signals::reset();
    // In the foreground the command passes them on.
    let caught = if launch.foreground { None } else { Some(Signals::new()?) };
    logging::init(&launch.settings, "boot", &launch.id)?;
    if let Some(score) = launch.config.container.process.oom_score_adj {
        // The host's memory is the sandbox's first of all. Lowering it takes a capability.
        let set = std::fs::write("/proc/self/oom_score_adj", score.to_string());
        confine::layer("oom_score_adj", set.context("write"));
    }
    if launch.surroundings.waits() {
        settle(&mut launch, channel)?;
    } else if namespaces & libc::CLONE_NEWUSER != 0 {
        confine::map_user(launch.user);
    }
    if namespaces & libc::CLONE_NEWNS == 0 {
        confine::own_mounts();
    }
    if !launch.foreground {
        // The host knows the container by this process.
        confine::layer("command line", title::set(&launch.config.container.process.args));
    }
    confine::null_streams()?;

    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context("make a socket pair")?;
    let gofer_events = Events::new(1)?;
    let limit = launch.surroundings.memory_limit;
    let mapped = launch.surroundings.namespaces.user.is_some();
    let Launch {
        id,
        mut config,
        roots,
        vcpus,
        host,
        streams,
        foreground,
        hold,
        own_terminal,
        control,
        mut exit_file,
        settings,
        ..
    } = launch;
    // A mount namespace from birth: this process leaves the shared root behind soon.
    let made = process::fork(libc::CLONE_NEWNS).or_else(|_| process::fork(0));
    match made.context("make the gofer")? {
        Fork::Child => {
            drop(ours);
            drop(host);
            gofer::main(Gofer { mapped, roots, events: gofer_events, vmm_socket: theirs, settings, id })
        }
        Fork::Parent(_) => {}
    }
    drop((theirs, roots));

    let victim = limit.map(oom::Victim::new).transpose()?;
    let mut keep = vec![0, 1, 2, channel.as_fd().as_raw_fd(), ours.as_raw_fd()];
    keep.extend(gofer_events.descriptors());
    keep.extend([control.as_raw_fd(), exit_file.as_raw_fd()]);
    keep.extend(streams.files.iter().map(|fd| fd.as_raw_fd()));
    keep.extend(caught.as_ref().map(|signals| signals.as_fd().as_raw_fd()));
    keep.extend(logging::descriptors());
    keep.extend(host.descriptor());
    keep.extend(victim.as_ref().and_then(oom::Victim::descriptor));
    process::close_all_but(&keep)?;
    if let Some(tty) = streams.files.first().filter(|_| own_terminal) {
        terminal::take(tty.as_fd())?;
    }
    let mut opened = Vec::new();
    for (fd, stream) in streams.files.into_iter().zip(&streams.config) {
        opened.push(Stream::new(fd).with_context(|| format!("descriptor {}", stream.fd))?);
    }
    config.container.process.stdio = streams.config;
    config.hold = hold;
    let strace_size = config.strace.max_size;

    if mapped {
        // Until here it was the host's root, whose logs and streams were to be opened.
        IdMaps::become_root()?;
    }
    confine::limits();
    confine::empty_root(false);
    confine::drop_privileges();
    if foreground {
        // A change of user has undone it.
        confine::die_with_parent();
    }

    let gofer = Arc::new(ours);
    let built = machine::build(
        Parts {
            host,
            config,
            vcpus,
            streams: opened,
            gofer: gofer.clone(),
            gofer_events,
            console_events: Events::new(2)?,
            control_events: Events::new(2)?,
            victim,
        },
        channel,
    )?;
    handover::send(gofer.as_fd(), built.memory.device_fd())?;
    let (start, started) = mpsc::channel();
    let progress = built.progress;
    let handler = Control::new(ControlParts {
        id,
        machine: built.machine.handle(),
        progress: progress.clone(),
        sentry: built.sentry,
        streams: built.streams,
        strace_size,
        start: (!hold).then(|| start.clone()),
    });
    let handler = Arc::new(handler);
    if let Some(caught) = caught {
        signal::spawn(caught, handler.clone(), own_terminal)?;
    }
    Server::from_listener(control).spawn(handler)?;
    watch::spawn(channel.clone(), gofer, built.machine.handle(), start)?;
    log::debug!("sentry image sha256={}", vmm::image::SENTRY_SHA256);
    channel.send(&Report::Ready)?;

    if !hold {
        // Nobody who could ask for the start is left when this fails.
        started.recv().context("wait for the start")?;
    }
    let machine = built.machine.handle();
    let outcome = built.machine.run()?;
    log_counters(&machine);
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
    // First the file: who is told of the end may look at it.
    let recorded = exit_file.rewind().and_then(|()| exit_file.write_all(format!("{status}\n").as_bytes()));
    if let Err(error) = recorded {
        log::warn!("record the exit status: {error}");
    }
    progress.ended(status);
    let _ = channel.send(&Report::Ended { status });
    Ok(sandbox::exit_code(status))
}

/// Waits for the host's part and runs the hooks that belong here: in the container's namespaces, with the host's files
/// still in reach.
fn settle(launch: &mut Launch, channel: &Channel) -> Result<()> {
    let pid = match channel.receive()? {
        Some(Command::Proceed { pid }) => pid,
        other => anyhow::bail!("expected to be told to proceed, not {other:?}"),
    };
    let surroundings = &launch.surroundings;
    if let Some(subject) = &surroundings.subject
        && !surroundings.hooks.at(Point::CreateContainer).is_empty()
    {
        // What they mount is this container's.
        confine::private_mounts()?;
        let as_root = surroundings.namespaces.user.is_some();
        surroundings.hooks.run_inside(subject, pid, as_root)?;
        launch.roots = sandbox::clone_roots(&surroundings.roots)?;
    }
    Ok(())
}

/// What tests read to know which path ran.
fn log_counters(machine: &MachineHandle) {
    if !log::log_enabled!(log::Level::Debug) {
        return;
    }
    let names = sentry_abi::counters::NAMES;
    let zeros = names.iter().map(|name| ((*name).to_owned(), 0)).collect();
    let mut all: Vec<(String, u64)> = zeros;
    for ((_, value), sentry) in all.iter_mut().zip(machine.sentry_counters()) {
        *value = sentry;
    }
    let line: Vec<String> =
        control::with_own(machine, all).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    log::debug!("counters: {}", line.join(" "));
}
