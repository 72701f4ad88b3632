//! `runsc run`: create and start; in the foreground also wait and delete.

use anyhow::Result;
use clap::ArgMatches;
use devices::control::Client;

use super::{
    container::{Call, Made, Mode},
    create::has_run,
    delete,
};
use crate::{
    args,
    flags::Settings,
    hooks::{Point, inside},
    sandbox::{self, InitError, signals::Signals},
    store::Store,
};

pub fn run(settings: Settings, matches: &ArgMatches) -> Result<i32> {
    let call = Call::new(matches)?;
    let store = Store::new(&settings.root);
    if args::is_set(matches, "detach") {
        let mut made = call.make(settings.clone(), Mode::Detached)?;
        let begun = begin(&mut made, &settings, &store);
        if let Err(error) = begun.and_then(|()| started(&mut made)) {
            made.undo();
            return Err(error);
        }
        made.sandbox.detach()?;
        return Ok(0);
    }
    let mut signals = Signals::new()?;
    let made = call.make(settings.clone(), Mode::Foreground)?;
    foreground(made, &settings, &store, &mut signals, args::is_set(matches, "keep"))
}

/// Starts a container, behind the hooks that run beside it.
fn begin(made: &mut Made, settings: &Settings, store: &Store) -> Result<()> {
    made.sandbox.ready()?;
    if made.record.hooks.at(Point::StartContainer).is_empty() {
        made.sandbox.start()?;
        return made.sandbox.begun();
    }
    made.sandbox.begun()?;
    let control = made.entry.control_socket();
    inside::run(&made.record, &control, settings)?;
    match Client::connect(&control)?.start(&made.record.id).map_err(InitError::from_control) {
        Err(error) if !has_run(store, &made.record) => Err(error),
        _ => Ok(()),
    }
}

/// Records that the container's process runs.
fn started(made: &mut Made) -> Result<()> {
    made.record.started = true;
    made.entry.save(&made.record)?;
    made.record.poststart()
}

/// From the start of a container to its end; the exit code.
pub fn foreground(
    mut made: Made,
    settings: &Settings,
    store: &Store,
    signals: &mut Signals,
    keep: bool,
) -> Result<i32> {
    if made.record.hooks.at(Point::StartContainer).is_empty() {
        if let Err(error) = made.sandbox.start() {
            // It has ended already, and has told why.
            let error = made.sandbox.ready().err().unwrap_or(error);
            made.undo();
            return Err(error);
        }
    } else if let Err(error) = begin(&mut made, settings, store) {
        made.undo();
        return Err(error);
    }
    let Made { mut sandbox, entry, record } = made;
    // Other commands may look at it while it runs.
    entry.unlock();
    let status = sandbox.wait(signals);
    if (!keep || status.is_err())
        && let Err(error) = delete::delete(store, &record.id, true)
    {
        log::warn!("{error:#}");
    }
    Ok(sandbox::exit_code(status?))
}
