//! Hooks that run in the container: processes of the sandbox with the user and the capabilities of the container's own, which
//! has not begun. Their paths are the container's.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, bail};
use rustix::time::Timespec;

use super::{Hook, Point, process};
use crate::{
    cgroup,
    flags::Settings,
    sandbox::{
        exit_code,
        proxy::{self, Exec},
        stdio::Streams,
    },
    spec::{bundle, translate},
    store::Record,
};

/// Runs them in their order, up to the first that fails.
pub fn run(record: &Record, control: &Path, settings: &Settings) -> Result<()> {
    let hooks = record.hooks.at(Point::StartContainer);
    if hooks.is_empty() {
        return Ok(());
    }
    let state = record.subject().state(Point::StartContainer, record.pid());
    for (i, hook) in hooks.iter().enumerate() {
        log::debug!("hook startContainer #{i}: {}", hook.path.display());
        run_one(record, hook, &state, control, settings)
            .with_context(|| format!("error running startContainer hook #{i} ({})", hook.path.display()))?;
    }
    Ok(())
}

fn run_one(record: &Record, hook: &Hook, state: &[u8], control: &Path, settings: &Settings) -> Result<()> {
    let bundle = bundle::load(&record.bundle)?;
    let own = bundle.spec.process().as_ref().context("process: missing")?;
    let path = hook.path.to_str().context("path: not UTF-8")?.to_owned();
    let mut config = translate::process_config(own, settings)?;
    // The program is looked for by the first argument; what else it would be called is not to be had here.
    config.args = vec![path.into_bytes()];
    config.args.extend(hook.args.iter().flatten().skip(1).map(|arg| arg.clone().into_bytes()));
    config.env = hook.env.iter().flatten().map(|variable| variable.clone().into_bytes()).collect();
    config.cwd = b"/".to_vec();
    config.terminal = false;
    let input = process::memory_file_with(state)?;
    let (output, errors) = (process::memory_file()?, process::memory_file()?);
    let copy = |file: &std::fs::File| file.as_fd().try_clone_to_owned().context("output");
    let files: [OwnedFd; 3] = [input.into(), copy(&output)?, copy(&errors)?];
    let exec = Exec {
        id: record.id.clone(),
        process: config,
        streams: Streams::of(&files)?,
        own_terminal: false,
        settings: settings.clone(),
        cgroup: cgroup::Join::default(),
    };
    let limit = hook.timeout.map(|seconds| Timespec { tv_sec: seconds, tv_nsec: 0 });
    match proxy::to_the_end(exec, control, limit)? {
        Some(0) => Ok(()),
        Some(status) => bail!(
            "exit status {}, stdout: {}, stderr: {}",
            exit_code(status),
            process::text(output),
            process::text(errors)
        ),
        None => bail!("it ran past its timeout of {} s and was killed", hook.timeout.unwrap_or_default()),
    }
}
