//! `runsc spec`: writes a config.json to start from.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{ErrorKind, Write},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;

use crate::{args, spec::template};

pub fn run(matches: &ArgMatches) -> Result<i32> {
    let text = |value: &OsString, what: &str| -> Result<String> {
        value.to_str().map(str::to_owned).with_context(|| format!("{what} is not UTF-8: {value:?}"))
    };
    let mut command = Vec::new();
    for arg in matches.get_many::<OsString>("args").into_iter().flatten() {
        command.push(text(arg, "an argument")?);
    }
    if command.is_empty() {
        command.push("sh".into());
    }
    let cwd = args::os(matches, "cwd").map_or(Ok("/".into()), |v| text(v, "--cwd"))?;
    let netns = args::os(matches, "netns").map(|v| text(v, "--netns")).transpose()?;
    let config = template::config(&command, &cwd, netns.as_deref())?;
    let dir = args::os(matches, "bundle").map_or_else(PathBuf::new, PathBuf::from);
    let path = dir.join("config.json");
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!("{} exists already", path.display()),
        Err(error) => return Err(error).with_context(|| format!("make {}", path.display())),
    };
    file.write_all(&config).with_context(|| format!("write {}", path.display()))?;
    Ok(0)
}
