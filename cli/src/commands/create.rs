//! `runsc create` and `runsc start`: a container in two steps, as engines make them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use devices::control::{Client, SignalTarget};

use super::container::{Call, Mode};
use crate::{
    flags::Settings,
    hooks::inside,
    sandbox::InitError,
    store::{Record, Status, Store},
};

/// How long a sandbox that says nothing any more may take to end.
const LIMIT: Duration = Duration::from_secs(5);

pub fn create(settings: Settings, matches: &ArgMatches) -> Result<i32> {
    let call = Call::new(matches)?;
    let mut made = call.make(settings, Mode::Held)?;
    if let Err(error) = made.sandbox.ready().and_then(|()| made.sandbox.begun()) {
        made.undo();
        return Err(error);
    }
    made.sandbox.detach()?;
    Ok(0)
}

/// Whether the container has ended already, so soon that the answer to its start did not come.
pub fn has_run(store: &Store, record: &Record) -> bool {
    let Some(process) = record.process else { return false };
    matches!(process.wait(Some(LIMIT)), Ok(true)) && matches!(store.exit_status(&record.id), Ok(Some(_)))
}

pub fn start(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let id = super::id(matches)?;
    let store = Store::new(&settings.root);
    let entry = store.open(&id)?;
    let mut record = entry.load()?.with_context(|| format!("container {id} does not exist"))?;
    match record.status() {
        Status::Created => {}
        status => bail!("cannot start container {id}: it is {}", status.name()),
    }
    let control = entry.control_socket();
    if let Err(error) = inside::run(&record, &control, settings) {
        // The container does not outlive it either.
        let _ = record.process.map(|process| process.kill());
        return Err(error);
    }
    let mut client = Client::connect(&control)?;
    if let Err(error) = client.start(&id).map_err(InitError::from_control)
        && !has_run(&store, &record)
    {
        return Err(error);
    }
    record.started = true;
    entry.save(&record)?;
    if let Err(error) = record.poststart() {
        // The container does not outlive it; who waits for it sees its end.
        let _ = client.signal(&id, SignalTarget::Init, libc::SIGKILL as u32);
        return Err(error);
    }
    Ok(0)
}
