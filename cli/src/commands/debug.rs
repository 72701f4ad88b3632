//! `runsc debug`: a look into a running sandbox.

use std::fmt::Write;

use anyhow::{Result, bail};
use clap::ArgMatches;
use devices::control::Client;
use guest_kernel::syscall::TABLE;

use super::ps;
use crate::{args, flags::Settings, store::Store};

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let id = super::id(matches)?;
    let store = Store::new(&settings.root);
    let record = store.read(&id)?;
    if record.pid() == 0 {
        bail!("container {id} is not running: it is {}", record.status().name());
    }
    let mut client = Client::connect(&store.control_socket(&id)?)?;
    let mut out = String::new();
    if let Some(calls) = args::os(matches, "strace") {
        let (enabled, only) = traced(&calls.to_string_lossy())?;
        client.strace(enabled, only)?;
    }
    if args::is_set(matches, "ps") {
        out.push_str(&ps::table(&client.ps(&id)?)?);
    }
    if args::is_set(matches, "stacks") {
        writeln!(out, "{}", client.stacks()?.trim_end())?;
    }
    if args::is_set(matches, "counters") {
        for (name, value) in client.counters()? {
            writeln!(out, "{name} {value}")?;
        }
    }
    super::print(&out)
}

/// Whether system calls are to be traced, and which.
fn traced(text: &str) -> Result<(bool, Vec<String>)> {
    match text {
        "off" | "false" => Ok((false, Vec::new())),
        "on" | "all" | "true" => Ok((true, Vec::new())),
        list => {
            let names: Vec<String> = list.split(',').map(str::to_owned).collect();
            if let Some(bad) = names.iter().find(|name| !TABLE.iter().flatten().any(|call| call.name == **name)) {
                bail!("--strace {text}: {bad:?} is no system call; on, off or names of system calls are meant");
            }
            Ok((true, names))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::traced;

    #[test]
    fn what_is_traced() {
        assert_eq!(traced("off").expect("off"), (false, Vec::new()));
        assert_eq!(traced("on").expect("on"), (true, Vec::new()));
        assert_eq!(traced("read,write").expect("names"), (true, vec!["read".to_owned(), "write".to_owned()]));
        assert!(traced("read,nothing").is_err() && traced("").is_err());
    }
}
