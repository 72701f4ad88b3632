//! `runsc wait`: until a container has ended.

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use devices::control::Client;

use crate::{args, flags::Settings, sandbox, store::Store};

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let id = super::id(matches)?;
    let store = Store::new(&settings.root);
    let record = store.read(&id)?;
    if let Some(pid) = args::os(matches, "pid") {
        let pid = pid.to_str().and_then(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0);
        let pid = pid.context("--pid: not a process id")?;
        return report(&id, Client::connect(&store.control_socket(&id)?)?.wait_process(&id, pid)?);
    }
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
    report(&id, status)
}

fn report(id: &str, status: i32) -> Result<i32> {
    let code = sandbox::exit_code(status);
    let text = serde_json::json!({"id": id, "exitStatus": code}).to_string();
    super::print(&format!("{text}\n"))?;
    Ok(code)
}
