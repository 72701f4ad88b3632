//! `runsc help`: commands, the system call table, platforms.

use std::fmt::Write;

use anyhow::{Result, bail};
use clap::ArgMatches;
use guest_kernel::syscall::{Level, TABLE};
use serde::Serialize;

use crate::{args, platform};

pub fn run(matches: &ArgMatches) -> Result<i32> {
    let mut topics = matches.get_many::<std::ffi::OsString>("topic").into_iter().flatten();
    let format = matches.get_one::<String>("format").map_or("text", String::as_str);
    let topic = topics.next().map(|t| t.to_string_lossy().into_owned());
    let text = match topic.as_deref() {
        None => overview(),
        Some("syscalls") => syscalls(format)?,
        Some("platforms") => platforms(),
        Some("flags" | "help") => command(topic.as_deref().unwrap_or_default()).unwrap_or_default(),
        Some(name) => match command(name) {
            Some(text) => text,
            None => bail!("help: unknown topic {name:?}; runsc help lists commands and topics"),
        },
    };
    super::print(&text)
}

/// The list of commands and topics.
pub fn overview() -> String {
    let mut out = String::from("Usage: runsc [FLAGS] COMMAND [ARGUMENTS]\n\nCommands:\n");
    for sub in args::command().get_subcommands().filter(|s| !s.is_hide_set()) {
        let about = sub.get_about().map(|a| a.to_string()).unwrap_or_default();
        let _ = writeln!(out, "  {:10} {about}", sub.get_name());
    }
    out.push_str(
        "\nTopics:\n  help COMMAND    describe a command\n  help syscalls   the system calls that the sandbox's kernel has \
         (--format text, json or csv)\n  help platforms  what can run a sandbox here\n\nGlobal flags come before the \
         command, with one dash or two; runsc flags lists them.\n",
    );
    out
}

fn command(name: &str) -> Option<String> {
    let root = args::command();
    let mut sub = root.find_subcommand(name)?.clone().bin_name(format!("runsc {name}"));
    Some(sub.render_long_help().to_string())
}

fn platforms() -> String {
    let kvm = match platform::usable(None) {
        Ok(()) => "usable".to_owned(),
        Err(reason) => format!("not usable here: {reason}"),
    };
    format!(
        "kvm     the sandbox's kernel runs in a virtual machine ({kvm})\nptrace  the sandbox's kernel runs as a process and \
         traces the application (usable)\nsystrap accepted for compatibility; ptrace is used\n\nThe default is kvm where it \
         is usable, else ptrace.\n"
    )
}

/// A row of the compatibility table.
#[derive(Serialize)]
struct Row {
    number: u32,
    name: &'static str,
    level: &'static str,
    note: &'static str,
    /// The program of tests/abi that fails when the call answers ENOSYS.
    test: &'static str,
}

fn syscalls(format: &str) -> Result<String> {
    let rows: Vec<Row> = TABLE
        .iter()
        .flatten()
        .map(|call| Row {
            number: call.number,
            name: call.name,
            level: match call.level {
                Level::Full => "full",
                Level::Partial => "partial",
                Level::Unsupported => "unsupported",
            },
            note: call.note,
            test: call.test,
        })
        .collect();
    let mut out = String::new();
    match format {
        "json" => {
            out = serde_json::to_string_pretty(&rows)?;
            out.push('\n');
        }
        "csv" => {
            out.push_str("number,name,support,note\n");
            for row in &rows {
                writeln!(out, "{},{},{},\"{}\"", row.number, row.name, row.level, row.note.replace('"', "\"\""))?;
            }
        }
        _ => {
            writeln!(out, "{:<8}{:<24}{:<13}NOTE", "NUMBER", "NAME", "SUPPORT")?;
            for row in &rows {
                writeln!(out, "{:<8}{:<24}{:<13}{}", row.number, row.name, row.level, row.note)?;
            }
            writeln!(out, "\n{} system calls; any other answers ENOSYS.", rows.len())?;
        }
    }
    Ok(out)
}
