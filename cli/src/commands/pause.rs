//! `runsc pause` and `runsc resume`.

use anyhow::{Result, bail};
use clap::ArgMatches;
use devices::control::Client;

use crate::{
    flags::Settings,
    store::{Status, Store},
};

pub fn pause(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    change(settings, matches, true)
}

pub fn resume(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    change(settings, matches, false)
}

fn change(settings: &Settings, matches: &ArgMatches, pause: bool) -> Result<i32> {
    let id = super::id(matches)?;
    let entry = Store::new(&settings.root).open(&id)?;
    let Some(mut record) = entry.load()? else { bail!("container {id} does not exist") };
    let (wanted, verb) = if pause { (Status::Running, "pause") } else { (Status::Paused, "resume") };
    let refused = |status: Status| format!("cannot {verb} container {id}: it is {}", status.name());
    if !matches!(record.status(), Status::Running | Status::Paused) {
        bail!(refused(record.status()));
    }
    let mut client = Client::connect(&entry.control_socket())?;
    // A command that was killed may not have written what it had done.
    record.paused = client.state(&id)?.1;
    if record.status() != wanted {
        bail!(refused(record.status()));
    }
    if pause {
        client.pause(&id)?
    } else {
        client.resume(&id)?
    }
    record.paused = pause;
    entry.save(&record)?;
    Ok(0)
}
