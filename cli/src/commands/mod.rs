//! The commands. Each returns the exit code.

mod completion;
mod container;
mod create;
mod debug;
mod delete;
mod r#do;
mod events;
mod exec;
mod features;
mod flags;
mod help;
mod install;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod spec;
mod state;
pub mod update;
mod wait;

pub use help::overview as help_overview;

use anyhow::{Result, bail};
use clap::ArgMatches;

use crate::{args, flags::Settings};

pub fn dispatch(name: &str, settings: Settings, matches: &ArgMatches) -> Result<i32> {
    match name {
        "completion" => completion::run(matches),
        "create" => create::create(settings, matches),
        "debug" => debug::run(&settings, matches),
        "delete" => delete::run(&settings, matches),
        "do" => r#do::run(settings, matches),
        "events" => events::run(&settings, matches),
        "exec" => exec::run(settings, matches),
        "features" => features::run(),
        "flags" => flags::run(&settings),
        "help" => help::run(matches),
        "install" => install::install(matches),
        "kill" => kill::run(&settings, matches),
        "list" => list::run(&settings, matches),
        "pause" => pause::pause(&settings, matches),
        "ps" => ps::run(&settings, matches),
        "resume" => pause::resume(&settings, matches),
        "run" => run::run(settings, matches),
        "spec" => spec::run(matches),
        "start" => create::start(&settings, matches),
        "state" => state::run(&settings, matches),
        "uninstall" => install::uninstall(matches),
        "update" => update::run(&settings, matches),
        "wait" => wait::run(&settings, matches),
        "boot" | "gofer" => bail!("{name} is internal: run, create and do make the processes of a sandbox"),
        // Engines ask for the help of a command to find out whether it exists.
        later if args::LATER.contains(&later) && asks_for_help(matches) => {
            print(&format!("{later}: not supported by this version of runsc\n"))
        }
        later if args::LATER.contains(&later) => bail!("{later}: this command is not supported yet"),
        unknown => bail!("unknown command {unknown:?}; runsc help lists the commands"),
    }
}

/// Whether the arguments of a command that the command line does not describe ask for help.
fn asks_for_help(matches: &ArgMatches) -> bool {
    let mut args = matches.get_many::<std::ffi::OsString>("").into_iter().flatten();
    args.any(|arg| ["--help", "-help", "-h"].iter().any(|help| arg == help))
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
