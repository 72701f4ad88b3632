//! `runsc ps`: the processes of a container.

use std::fmt::Write;

use anyhow::{Result, bail};
use clap::ArgMatches;
use devices::control::Client;
use sentry_abi::control::Process;

use crate::{
    flags::Settings,
    logging,
    store::{Status, Store},
};

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let id = super::id(matches)?;
    let store = Store::new(&settings.root);
    let record = store.read(&id)?;
    let json = matches.get_one::<String>("format").is_some_and(|f| f == "json");
    if matches!(record.status(), Status::Creating | Status::Stopped) {
        bail!("container {id} is not running: it is {}", record.status().name());
    }
    let mut client = Client::connect(&store.control_socket(&id)?)?;
    if json {
        let mut pids = vec![record.pid()];
        pids.extend(client.proxies(&id)?.iter().map(|proxy| proxy.host));
        return super::print(&serde_json::to_string(&pids)?);
    }
    super::print(&table(&client.ps(&id)?)?)
}

/// Columns of ps(1) -f; the pids are those that the container sees.
pub fn table(processes: &[Process]) -> Result<String> {
    let mut out = String::from("UID       PID       PPID      C         TTY       STIME     TIME       CMD\n");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    for process in processes {
        let age = (now.as_nanos() as u64).saturating_sub(process.start).max(1);
        let percent = process.cpu.saturating_mul(100) / age;
        let seconds = process.cpu / 1_000_000_000;
        let tty = if process.tty.is_empty() { "?" } else { &process.tty };
        let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        writeln!(
            out,
            "{:<10}{:<10}{:<10}{:<10}{:<10}{:<10}{:<11}{}",
            process.uid,
            process.pid,
            process.ppid,
            percent,
            tty,
            logging::clock(process.start),
            time,
            process.command
        )?;
    }
    Ok(out)
}
