//! `runsc wait`: until a container has ended.

use anyhow::{Result, bail};
use clap::ArgMatches;
use devices::control::Client;

use crate::{args, flags::Settings, sandbox, store::Store};

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let id = super::id(matches)?;
    if args::os(matches, "pid").is_some() {
        bail!("--pid: waiting for one process of a container is not supported yet");
    }
    let store = Store::new(&settings.root);
    let record = store.read(&id)?;
    let Some(process) = record.process else { bail!("container {id} is being made") };
    let asked = if process.alive() {
        let socket = store.control_socket(&id)?;
        // It may end at any moment; then the file knows.
        Client::connect(&socket).and_then(|mut client| client.wait(&id)).ok()
    } else {
        None
    };
    process.wait(None)?;
    let status = match asked {
        Some(status) => status,
        None => match store.exit_status(&id)? {
            Some(status) => status,
            None => bail!("container {id}: its sandbox ended without a status"),
        },
    };
    let code = sandbox::exit_code(status);
    let text = serde_json::json!({"id": id, "exitStatus": code}).to_string();
    super::print(&format!("{text}\n"))?;
    Ok(code)
}
