//! `runsc run`: create and start; in the foreground also wait and delete.

use anyhow::Result;
use clap::ArgMatches;

use super::{
    container::{Call, Made, Mode},
    delete,
};
use crate::{
    args,
    flags::Settings,
    sandbox::{self, signals::Signals},
    store::Store,
};

pub fn run(settings: Settings, matches: &ArgMatches) -> Result<i32> {
    let call = Call::new(matches)?;
    let store = Store::new(&settings.root);
    if args::is_set(matches, "detach") {
        let mut made = call.make(settings, Mode::Detached)?;
        let begun = made.sandbox.ready().and_then(|()| made.sandbox.start()).and_then(|()| made.sandbox.begun());
        if let Err(error) = begun.and_then(|()| started(&mut made)) {
            made.undo();
            return Err(error);
        }
        made.sandbox.detach()?;
        return Ok(0);
    }
    let mut signals = Signals::new()?;
    let made = call.make(settings, Mode::Foreground)?;
    foreground(made, &store, &mut signals, args::is_set(matches, "keep"))
}

/// Records that the container's process runs.
fn started(made: &mut Made) -> Result<()> {
    made.record.started = true;
    made.entry.save(&made.record)?;
    made.record.poststart()
}

/// From the start of a container to its end; the exit code.
pub fn foreground(mut made: Made, store: &Store, signals: &mut Signals, keep: bool) -> Result<i32> {
    if let Err(error) = made.sandbox.start() {
        // It has ended already, and has told why.
        let error = made.sandbox.ready().err().unwrap_or(error);
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
