//! `runsc`: an OCI container runtime that gives every container its own kernel.
mod args;
mod boot;
mod cgroup;
mod commands;
mod flags;
mod gofer;
mod hooks;
mod host;
mod logging;
mod namespaces;
mod platform;
mod sandbox;
mod spec;
mod store;
mod version;

use std::ffi::OsString;

use anyhow::{Context, Result};
use clap::error::ErrorKind;

use flags::{
    normalize::normalize,
    settings::{Settings, Values},
};

fn main() {
    // A sandbox measures the TSC from here on, instead of waiting for it later.
    vmm::clock::start();
    sandbox::stdio::reserve_standard();
    let code = match run() {
        Ok(code) => code,
        Err(error) => {
            logging::fatal(&format!("{error:#}"));
            sandbox::FAILURE
        }
    };
    std::process::exit(code);
}

fn run() -> Result<i32> {
    let command = args::command();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let normal = normalize(&command, &args);
    let matches = match command.try_get_matches_from(std::iter::once(OsString::from("runsc")).chain(normal.clone())) {
        Ok(matches) => matches,
        Err(error) => return usage(&error, &normal),
    };
    let values = Values::from_matches(&matches);
    let (name, sub) = match matches.subcommand() {
        Some((name, sub)) => (name, Some(sub)),
        None => ("", None),
    };
    let settings = Settings::new(values, matches!(name, "boot" | "gofer"))?;
    if settings.version {
        print!("{}", version::print());
        return Ok(0);
    }
    let Some(sub) = sub else {
        print!("{}", commands::help_overview());
        return Ok(sandbox::FAILURE);
    };
    let id = sub.try_get_one::<OsString>("id").ok().flatten().map(|id| id.to_string_lossy().into_owned());
    logging::init(&settings, name, id.as_deref().unwrap_or_default()).context("logging")?;
    commands::dispatch(name, settings, sub)
}

/// What clap says about a command line; help is no failure.
fn usage(error: &clap::Error, args: &[OsString]) -> Result<i32> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        print!("{}", error.render());
        return Ok(0);
    }
    // An engine looks for the reason in its log.
    if let Ok(settings) = Settings::new(Values::of_log(args), false) {
        logging::init(&settings, "", "").context("logging")?;
    }
    // The first paragraph says what is wrong; the rest is a manual.
    let text = error.render().to_string();
    let what: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let what = what.join(" ");
    anyhow::bail!("{} (see runsc help)", what.strip_prefix("error: ").unwrap_or(&what))
}
