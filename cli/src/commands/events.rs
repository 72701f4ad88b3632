//! `runsc events`: what the host counts for a container, as runc prints it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;

use crate::{
    args, cgroup,
    flags::Settings,
    store::{Status, Store},
};

/// Longer pauses are a mistake.
const MAX_INTERVAL: u64 = 86_400;

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let id = super::id(matches)?;
    let store = Store::new(&settings.root);
    let interval = interval(matches)?;
    let once = args::is_set(matches, "stats");
    loop {
        let status = store.read(&id)?.status();
        if status == Status::Stopped {
            if once {
                bail!("container {id} is not running");
            }
            return Ok(0);
        }
        let stats = cgroup::load(&store.state_dir(&id)?)?.stats();
        let line = serde_json::json!({ "type": "stats", "id": id, "data": stats });
        super::print(&format!("{line}\n"))?;
        if once {
            return Ok(0);
        }
        std::thread::sleep(interval);
    }
}

/// Seconds, with or without the unit: `5s`, `2m`.
fn interval(matches: &ArgMatches) -> Result<Duration> {
    let text = args::os(matches, "interval").and_then(|t| t.to_str()).unwrap_or("5s");
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    let seconds = seconds.filter(|s| (1..=MAX_INTERVAL).contains(s));
    Ok(Duration::from_secs(seconds.with_context(|| format!("--interval: {text:?} is not a time such as 5s"))?))
}
