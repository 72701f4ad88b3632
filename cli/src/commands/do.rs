//! `runsc do`: a command in a sandbox over the host's root. Nothing that it writes there reaches the host.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use sentry_abi::config::{Capabilities, ContainerConfig, ProcessConfig, Rlimit};

use super::{container, run};
use crate::{
    args,
    flags::Settings,
    host,
    sandbox::{InitError, Surroundings, signals::Signals, stdio::Streams},
    spec::{mounts::Mounts, names, translate},
    store::{Record, Store},
};

/// What names of these containers begin with.
const PREFIX: &str = "do-";

pub fn run(settings: Settings, matches: &ArgMatches) -> Result<i32> {
    let command: Vec<Vec<u8>> =
        matches.get_many::<OsString>("command").into_iter().flatten().map(|a| a.clone().into_vec()).collect();
    if command.first().is_none_or(|first| first.is_empty()) {
        bail!("do: the command is empty");
    }
    if args::os(matches, "ip").is_some() {
        log::warn!("do --ip: ignored: there is no network yet");
    }
    let root = args::os(matches, "root").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let root = std::fs::canonicalize(&root).with_context(|| format!("--root {}", root.display()))?;
    let cwd = match args::os(matches, "cwd") {
        Some(cwd) => PathBuf::from(cwd),
        None if root == Path::new("/") => std::env::current_dir().context("working directory")?,
        None => PathBuf::from("/"),
    };
    if !cwd.is_absolute() {
        bail!("--cwd {}: not an absolute path", cwd.display());
    }

    let policy = translate::policy(&settings);
    let mut mounts = Mounts::root(root.clone(), "--root", false, true, policy);
    mounts.add_standard();
    for volume in matches.get_many::<OsString>("volume").into_iter().flatten() {
        add_volume(&mut mounts, volume, policy)?;
    }
    let streams = Streams::inherit(0)?;
    let in_terminal = streams.stdin_is_terminal();
    let id = random_id()?;
    let container = ContainerConfig {
        id: id.clone(),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        process: process(command, cwd, &settings),
        mounts: mounts.mounts,
        ..ContainerConfig::default()
    };
    let config = translate::sandbox_config(&settings, container);
    let store = Store::new(&settings.root);
    store.sweep(PREFIX);
    let mut signals = Signals::new()?;
    let entry = store.create(&id)?;
    let record = Record::new(&id, &root, &root);
    let making = container::Making {
        entry,
        record,
        config,
        roots: &mounts.roots,
        vcpus: host::allowed_cpus(),
        streams,
        mode: container::Mode::Foreground,
        own_terminal: false,
        cgroup: None,
        surroundings: Surroundings::default(),
    };
    let made = container::make(making, settings.clone())?;
    match run::foreground(made, &settings, &store, &mut signals, false) {
        // In a terminal as a shell would tell; for a program the exit code is ours.
        Err(error) if in_terminal => match error.downcast_ref::<InitError>().map(|e| e.errno) {
            Some(libc::ENOENT) => {
                crate::logging::fatal(&format!("{error:#}"));
                Ok(127)
            }
            Some(libc::EACCES | libc::ENOEXEC) => {
                crate::logging::fatal(&format!("{error:#}"));
                Ok(126)
            }
            _ => Err(error),
        },
        result => result,
    }
}

/// `SRC[:DST]`, writable.
fn add_volume(mounts: &mut Mounts, volume: &OsStr, policy: crate::spec::mounts::Policy) -> Result<()> {
    let bytes = volume.as_bytes();
    let (source, target) = match bytes.iter().position(|b| *b == b':') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, bytes),
    };
    let what = format!("--volume {}", volume.display());
    let source = std::fs::canonicalize(OsStr::from_bytes(source)).with_context(|| what.clone())?;
    let target = crate::spec::mounts::target(Path::new(OsStr::from_bytes(target))).with_context(|| what.clone())?;
    mounts.bind(target, source, 0, what, policy)
}

/// The command as the caller would run it.
fn process(args: Vec<Vec<u8>>, cwd: PathBuf, settings: &Settings) -> ProcessConfig {
    let env = std::env::vars_os().map(|(name, value)| {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        entry
    });
    let uid = rustix::process::geteuid();
    let net_raw = if settings.net_raw { names::CAP_NET_RAW } else { 0 };
    let all = (names::ALL_CAPABILITIES & !names::CAP_NET_RAW) | net_raw;
    let held = if uid.is_root() { all } else { 0 };
    ProcessConfig {
        args,
        env: env.collect(),
        cwd: cwd.into_os_string().into_vec(),
        uid: uid.as_raw(),
        gid: rustix::process::getegid().as_raw(),
        additional_gids: rustix::process::getgroups().unwrap_or_default().iter().map(|g| g.as_raw()).collect(),
        umask: Some(umask()),
        capabilities: Capabilities { bounding: all, effective: held, permitted: held, ..Capabilities::default() },
        rlimits: limits(),
        terminal: true,
        ..ProcessConfig::default()
    }
}

fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    mask.bits() & 0o777
}

/// The caller's limits.
fn limits() -> Vec<Rlimit> {
    use rustix::process::{Resource, getrlimit};
    let all = [
        (Resource::Cpu, libc::RLIMIT_CPU),
        (Resource::Fsize, libc::RLIMIT_FSIZE),
        (Resource::Data, libc::RLIMIT_DATA),
        (Resource::Stack, libc::RLIMIT_STACK),
        (Resource::Core, libc::RLIMIT_CORE),
        (Resource::Rss, libc::RLIMIT_RSS),
        (Resource::Nproc, libc::RLIMIT_NPROC),
        (Resource::Nofile, libc::RLIMIT_NOFILE),
        (Resource::Memlock, libc::RLIMIT_MEMLOCK),
        (Resource::As, libc::RLIMIT_AS),
        (Resource::Locks, libc::RLIMIT_LOCKS),
        (Resource::Sigpending, libc::RLIMIT_SIGPENDING),
        (Resource::Msgqueue, libc::RLIMIT_MSGQUEUE),
        (Resource::Nice, libc::RLIMIT_NICE),
        (Resource::Rtprio, libc::RLIMIT_RTPRIO),
        (Resource::Rttime, libc::RLIMIT_RTTIME),
    ];
    all.into_iter()
        .map(|(resource, number)| {
            let limit = getrlimit(resource);
            Rlimit {
                resource: number,
                soft: limit.current.unwrap_or(libc::RLIM_INFINITY),
                hard: limit.maximum.unwrap_or(libc::RLIM_INFINITY),
            }
        })
        .collect()
}

fn random_id() -> Result<String> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).context("random numbers")?;
    Ok(format!("{PREFIX}{:016x}", u64::from_ne_bytes(bytes)))
}
