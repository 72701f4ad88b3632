//! `runsc delete`: removes what is left of a container.

use std::{ffi::OsString, time::Duration};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;

use crate::{
    args,
    flags::Settings,
    store::{Status, Store},
};

/// How long a killed sandbox may take to be gone.
const LIMIT: Duration = Duration::from_secs(10);

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let force = args::is_set(matches, "force");
    let mut failure = None;
    for id in matches.get_many::<OsString>("id").into_iter().flatten() {
        let id = id.to_string_lossy();
        if let Err(error) = delete(&Store::new(&settings.root), &id, force) {
            log::error!("{error:#}");
            failure = Some(error);
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(0),
    }
}

/// With `force` whatever state it is in; then a container that is not there is no error.
pub fn delete(store: &Store, id: &str, force: bool) -> Result<()> {
    let Some(entry) = store.find(id)? else {
        if force {
            return Ok(());
        }
        bail!("container {id} does not exist");
    };
    let record = match entry.load() {
        Ok(record) => record,
        Err(error) if force => {
            log::warn!("{error:#}");
            None
        }
        Err(error) => return Err(error),
    };
    let Some(record) = record else {
        if force {
            return entry.remove();
        }
        bail!("container {id} does not exist");
    };
    if !force && matches!(record.status(), Status::Running | Status::Paused) {
        bail!("cannot delete container {id} that is not stopped: {}", record.status().name());
    }
    if let Some(process) = record.process
        && process.kill().with_context(|| format!("container {id}"))?
        && !process.wait(Some(LIMIT))?
    {
        bail!("container {id}: its sandbox (pid {}) does not end", process.pid);
    }
    record.hooks.run_poststop(&record.subject());
    entry.remove()
}
