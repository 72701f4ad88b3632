//! The commands. Each returns the exit code.

mod container;
mod create;
mod delete;
mod r#do;
mod exec;
mod flags;
mod help;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod spec;
mod state;
mod wait;

pub use help::overview as help_overview;

use anyhow::{Result, bail};
use clap::ArgMatches;

use crate::{args, flags::Settings};

pub fn dispatch(name: &str, settings: Settings, matches: &ArgMatches) -> Result<i32> {
    match name {
        "create" => create::create(settings, matches),
        "delete" => delete::run(&settings, matches),
        "do" => r#do::run(settings, matches),
        "exec" => exec::run(settings, matches),
        "flags" => flags::run(&settings),
        "help" => help::run(matches),
        "kill" => kill::run(&settings, matches),
        "list" => list::run(&settings, matches),
        "pause" => pause::pause(&settings, matches),
        "ps" => ps::run(&settings, matches),
        "resume" => pause::resume(&settings, matches),
        "run" => run::run(settings, matches),
        "spec" => spec::run(matches),
        "start" => create::start(&settings, matches),
        "state" => state::run(&settings, matches),
        "wait" => wait::run(&settings, matches),
        "boot" | "gofer" => bail!("{name} is internal: run, create and do make the processes of a sandbox"),
        later if args::LATER.contains(&later) => bail!("{later}: this command is not supported yet"),
        unknown => bail!("unknown command {unknown:?}; runsc help lists the commands"),
    }
}

/// The operand `id`.
fn id(matches: &ArgMatches) -> Result<String> {
    let Some(id) = args::os(matches, "id") else { bail!("container id is missing") };
    match id.to_str() {
        Some(id) => Ok(id.to_owned()),
        None => bail!("container id {id:?} is not valid: it may hold letters, digits, _, +, - and ."),
    }
}

/// Prints to standard output; a reader that has gone is no failure.
fn print(text: &str) -> Result<i32> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(0),
    }
}
