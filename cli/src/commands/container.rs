//! What create, run and do share: from a plan to a sandbox with its state on disk.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use sentry_abi::config::{Mount, MountSource};

use crate::{
    args,
    boot::machine::Host,
    cgroup,
    flags::Settings,
    hooks::Point,
    platform,
    sandbox::{self, Launch, Sandbox, Surroundings, pid_file, stdio::Streams, terminal},
    spec::{
        bundle::{self, Bundle},
        mounts::HostRoot,
        translate::{self, Plan},
    },
    store::{Entry, Record, Store},
};

/// A container that is in place and has not begun.
pub struct Made {
    pub sandbox: Sandbox,
    pub entry: Entry,
    pub record: Record,
}

/// How create and run were called.
pub struct Call {
    pub id: String,
    pub bundle: Bundle,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    preserve_fds: u32,
}

impl Call {
    pub fn new(matches: &ArgMatches) -> Result<Call> {
        let id = super::id(matches)?;
        let dir = args::os(matches, "bundle").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let preserve_fds = match args::os(matches, "preserve-fds") {
            Some(n) => n.to_str().and_then(|n| n.parse().ok()).context("--preserve-fds: not a number")?,
            None => 0,
        };
        Ok(Call {
            id,
            bundle: bundle::load(&dir)?,
            pid_file: args::os(matches, "pid-file").map(PathBuf::from),
            console_socket: args::os(matches, "console-socket").map(PathBuf::from),
            preserve_fds,
        })
    }

    /// Makes the container of a bundle.
    pub fn make(&self, settings: Settings, mode: Mode) -> Result<Made> {
        let settings = self.overridden(settings)?;
        let store = Store::new(&settings.root);
        // Taken first: nothing else is worth doing under a name that is in use.
        let entry = store.create(&self.id)?;
        let (plan, streams) = match self.prepare(&settings, mode == Mode::Foreground) {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = entry.remove();
                return Err(error);
            }
        };
        let rootfs = plan.roots.first().map(|r| r.path.clone()).unwrap_or_default();
        let mut record = Record::new(&self.id, &self.bundle.dir, &rootfs);
        record.annotations = self.bundle.spec.annotations().clone().unwrap_or_default().into_iter().collect();
        record.hooks = plan.surroundings.hooks.clone();
        let making = Making {
            entry,
            record,
            config: plan.config,
            roots: &plan.roots,
            vcpus: plan.vcpus,
            streams,
            mode,
            own_terminal: self.console_socket.is_some(),
            cgroup: plan.cgroup,
            surroundings: plan.surroundings,
        };
        let made = make(making, settings)?;
        if let Some(path) = &self.pid_file
            && let Err(error) = pid_file::write(path, made.sandbox.process.pid)
        {
            made.undo();
            return Err(error);
        }
        Ok(made)
    }

    fn prepare(&self, settings: &Settings, foreground: bool) -> Result<(Plan, Streams)> {
        let plan = translate::plan(&self.id, &self.bundle, settings)?;
        for warning in &plan.warnings {
            log::warn!("{}: {warning}", self.bundle.dir.join("config.json").display());
        }
        let streams = self.streams(&plan, foreground)?;
        Ok((plan, streams))
    }

    /// Flags that annotations of the bundle set, where that is allowed.
    fn overridden(&self, settings: Settings) -> Result<Settings> {
        let annotations = self.bundle.spec.annotations().iter().flatten();
        let flags = annotations.filter_map(|(k, v)| Some((k.strip_prefix("dev.gvisor.flag.")?, v.as_str())));
        settings.with_overrides(flags)
    }

    fn streams(&self, plan: &Plan, foreground: bool) -> Result<Streams> {
        match (&self.console_socket, plan.terminal) {
            (Some(path), true) => {
                let tty = terminal::make(path, plan.console_size)?;
                Streams::terminal(&tty)
            }
            (Some(_), false) => bail!("--console-socket: process.terminal is false, the container has no terminal"),
            (None, true) if !foreground => {
                bail!("process.terminal is true: a container that is detached needs --console-socket")
            }
            (None, _) => Streams::inherit(self.preserve_fds),
        }
    }
}

/// What becomes of a container that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It ends with the command that makes it.
    Foreground,
    /// It is started by this command, and outlives it.
    Detached,
    /// It waits for a start by another command.
    Held,
}

/// What a container is made of.
pub struct Making<'a> {
    pub entry: Entry,
    pub record: Record,
    pub config: sentry_abi::config::SandboxConfig,
    pub roots: &'a [HostRoot],
    pub vcpus: u32,
    pub streams: Streams,
    pub mode: Mode,
    /// Its terminal is a new one.
    pub own_terminal: bool,
    /// Control groups to make.
    pub cgroup: Option<cgroup::Plan>,
    pub surroundings: Surroundings,
}

/// Makes a sandbox and writes its state; a failure leaves neither.
pub fn make(making: Making<'_>, settings: Settings) -> Result<Made> {
    let Making { entry, mut record, mut config, roots, vcpus, streams, mode, own_terminal, cgroup, surroundings } =
        making;
    let launched = (|| {
        let backend = platform::choose(settings.platform, &settings.root)?;
        let host_roots = roots;
        let roots = sandbox::open_roots(host_roots)?;
        if let (Some(root), Some(opened)) = (host_roots.first(), roots.first())
            && root.readonly
            && !config.container.mounts.first().is_some_and(is_overlay)
        {
            sandbox::mount_points::make(opened.fd.as_fd(), &config.container, |mount| match mount.source {
                MountSource::Gofer { index, .. } => host_roots.get(index as usize).is_some_and(|r| r.path.is_file()),
                _ => false,
            })?;
        }
        let control_path = entry.control_socket();
        let control = bind(&control_path)?;
        config.container.process.terminal &= streams.stdin_is_terminal();
        record.platform = backend.name().into();
        let cgroup = match cgroup {
            Some(plan) => plan.make(|cgroup| cgroup::save(&entry.dir, cgroup))?.join()?,
            None => cgroup::Join::default(),
        };
        let sandbox = sandbox::launch(Launch {
            id: record.id.clone(),
            config,
            roots,
            vcpus,
            host: Host::open(backend)?,
            streams,
            foreground: mode == Mode::Foreground,
            // Until its hooks have run, where they run beside it.
            hold: mode == Mode::Held || !record.hooks.at(Point::StartContainer).is_empty(),
            own_terminal,
            control,
            control_path,
            exit_file: entry.exit_file()?,
            settings,
            user: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            cgroup,
            surroundings,
        })?;
        record.process = Some(sandbox.process);
        // In the foreground nobody sees it before it is started.
        record.started = mode == Mode::Foreground;
        entry.save(&record)?;
        Ok(sandbox)
    })();
    match launched {
        Ok(sandbox) => Ok(Made { sandbox, entry, record }),
        Err(error) => {
            give_up(entry, &record);
            Err(error)
        }
    }
}

impl Made {
    /// Removes what there is of a container that did not come to be.
    pub fn undo(self) {
        drop(self.sandbox);
        give_up(self.entry, &self.record);
    }
}

fn give_up(entry: Entry, record: &Record) {
    record.hooks.run_poststop(&record.subject());
    if let Err(error) = entry.remove() {
        log::warn!("{error:#}");
    }
}

/// Listens at a path of any length, for its owner alone.
fn bind(path: &Path) -> Result<UnixListener> {
    let what = || format!("control socket {}", path.display());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { bail!("{}: not a path", what()) };
    let dir: OwnedFd = fs::File::open(parent).with_context(what)?.into();
    let short = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir))).join(name);
    UnixListener::bind(short).with_context(what)
}

/// Writes to it stay in memory, and with them the mount points that the sandbox makes.
fn is_overlay(mount: &Mount) -> bool {
    matches!(mount.source, MountSource::Gofer { overlay: true, .. })
}
