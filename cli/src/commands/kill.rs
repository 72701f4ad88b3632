//! `runsc kill`: a signal for a container.

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use devices::control::{Client, SignalTarget};

use crate::{
    args,
    flags::Settings,
    sandbox::signals,
    store::{Status, Store},
};

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let id = super::id(matches)?;
    let signal = match args::os(matches, "signal") {
        Some(text) => signals::parse(&text.to_string_lossy())?,
        None => libc::SIGTERM as u32,
    };
    let target = match args::os(matches, "pid") {
        Some(pid) => {
            let pid = pid.to_str().and_then(|p| p.parse::<i32>().ok()).filter(|p| *p > 0);
            SignalTarget::Pid(pid.context("--pid: not a process id")?)
        }
        None if args::is_set(matches, "all") => SignalTarget::All,
        None => SignalTarget::Init,
    };
    let store = Store::new(&settings.root);
    let record = store.read(&id)?;
    match record.status() {
        Status::Running | Status::Created | Status::Paused => {}
        // Engines kill all that may be left of a container that has ended; nothing is.
        Status::Stopped if target == SignalTarget::All => return Ok(0),
        status => bail!("cannot kill container {id}: container not running (it is {})", status.name()),
    }
    let ended = || record.process.is_none_or(|process| !process.alive());
    let socket = store.control_socket(&id)?;
    match Client::connect(&socket).and_then(|mut client| client.signal(&id, target, signal)) {
        Ok(()) => Ok(0),
        Err(_) if ended() => bail!("cannot kill container {id}: container not running (it has ended)"),
        Err(error) => Err(error.context(format!("cannot kill container {id}"))),
    }
}
