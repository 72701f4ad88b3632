//! `runsc exec`: another process in a running container.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use oci_spec::runtime::Process;

use crate::{
    args, cgroup,
    flags::Settings,
    sandbox::{
        self, pid_file,
        proxy::{self, Exec},
        stdio::Streams,
        terminal,
    },
    spec::{bundle, process, translate},
    store::{Record, Status, Store},
};

pub fn run(settings: Settings, matches: &ArgMatches) -> Result<i32> {
    let id = super::id(matches)?;
    let store = Store::new(&settings.root);
    let record = store.read(&id)?;
    match record.status() {
        Status::Running => {}
        Status::Paused if args::is_set(matches, "ignore-paused") => {}
        Status::Paused => bail!("cannot exec in a paused container (use --ignore-paused to override)"),
        status => bail!("cannot exec in a container that is not running: container {id} is {}", status.name()),
    }
    let spec = process_of(&record, matches)?;
    let detach = args::is_set(matches, "detach");
    let (streams, own_terminal) = streams(matches, &spec, detach)?;
    let mut process = translate::process_config(&spec, &settings)?;
    process.terminal &= streams.stdin_is_terminal();
    let control = store.control_socket(&id)?;
    let pid_file = ["pid-file", "internal-pid-file"].into_iter().filter_map(|name| args::os(matches, name));
    let pid_files: Vec<PathBuf> = pid_file.map(PathBuf::from).collect();
    let write = |pid: i32| pid_files.iter().try_for_each(|path: &PathBuf| pid_file::write(path, pid));
    // A command that stays is its caller's, wherever that runs.
    let cgroup = if detach { cgroup::load(&store.state_dir(&id)?)?.join()? } else { cgroup::Join::default() };
    let exec = Exec { id, process, streams, own_terminal, settings, cgroup };
    if detach {
        write(proxy::detached(exec, &control)?)?;
        return Ok(0);
    }
    let own = i32::try_from(std::process::id())?;
    let status = proxy::foreground(exec, &control, || write(own))?;
    Ok(sandbox::exit_code(status))
}

fn process_of(record: &Record, matches: &ArgMatches) -> Result<Process> {
    let texts = |name: &str| -> Result<Vec<String>> {
        let values = matches.get_many::<OsString>(name).into_iter().flatten();
        let text =
            |value: &OsString| value.to_str().map(str::to_owned).with_context(|| format!("{value:?} is not UTF-8"));
        values.map(text).collect()
    };
    let command = texts("command")?;
    if let Some(path) = args::os(matches, "process") {
        if !command.is_empty() {
            bail!("--process: the command is in the file, and another one is given");
        }
        let (process, warnings) = process::load(Path::new(path))?;
        for warning in warnings {
            log::warn!("--process: {warning}");
        }
        return Ok(process);
    }
    if command.is_empty() {
        bail!("exec: a command or --process is needed");
    }
    let one = |name: &str| -> Result<Option<String>> { Ok(texts(name)?.pop()) };
    let changes = process::Changes {
        args: command,
        cwd: one("cwd")?,
        env: texts("env")?,
        terminal: args::is_set(matches, "tty"),
        user: one("user")?,
        additional_gids: texts("additional-gids")?.iter().flat_map(|l| l.split(',')).map(str::to_owned).collect(),
        capabilities: texts("cap")?.iter().flat_map(|l| l.split(',')).map(str::to_owned).collect(),
        no_new_privileges: args::is_set(matches, "no-new-privs"),
    };
    let bundle = bundle::load(&record.bundle)?;
    let own = bundle.spec.process().clone().context("config.json: process: missing")?;
    changes.apply(own)
}

/// The descriptors of the process, and whether a terminal among them is a new one.
fn streams(matches: &ArgMatches, spec: &Process, detach: bool) -> Result<(Streams, bool)> {
    let wants_terminal = spec.terminal().unwrap_or(false);
    match args::os(matches, "console-socket") {
        Some(socket) if wants_terminal => {
            let size = translate::console_size(spec);
            Ok((Streams::terminal(&terminal::make(Path::new(socket), size)?)?, true))
        }
        Some(_) => bail!("--console-socket: the process has no terminal"),
        None if wants_terminal && detach => bail!("a process with a terminal that is detached needs --console-socket"),
        None => {
            let preserve = match args::os(matches, "preserve-fds") {
                Some(n) => n.to_str().and_then(|n| n.parse().ok()).context("--preserve-fds: not a number")?,
                None => 0,
            };
            Ok((Streams::inherit(preserve)?, false))
        }
    }
}
