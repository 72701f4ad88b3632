//! `runsc install` and `runsc uninstall`: the runtime in Docker's daemon.json, where everything else stays as it is.

use std::{
    ffi::OsString,
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use serde_json::{Map, Value, json};

use crate::args;

const CONFIG_FILE: &str = "/etc/docker/daemon.json";

pub fn install(matches: &ArgMatches) -> Result<i32> {
    let (path, name) = target(matches)?;
    let mut flags = Vec::new();
    for flag in matches.get_many::<OsString>("args").into_iter().flatten() {
        flags.push(flag.to_str().with_context(|| format!("{flag:?} is not UTF-8"))?.to_owned());
    }
    let program = std::env::current_exe().context("path of this program")?;
    let mut config = read(&path)?;
    add(&mut config, &name, &program, flags, args::is_set(matches, "clobber"))?;
    if args::is_set(matches, "experimental") {
        config.insert("experimental".into(), Value::Bool(true));
    }
    write(&path, &config)?;
    super::print(&format!("Added runtime {name:?} with {} to {}.\n", program.display(), path.display()))
}

pub fn uninstall(matches: &ArgMatches) -> Result<i32> {
    let (path, name) = target(matches)?;
    let mut config = read(&path)?;
    remove(&mut config, &name)?;
    write(&path, &config)?;
    super::print(&format!("Removed runtime {name:?} from {}.\n", path.display()))
}

fn target(matches: &ArgMatches) -> Result<(PathBuf, String)> {
    let path = args::os(matches, "config_file").map_or_else(|| PathBuf::from(CONFIG_FILE), PathBuf::from);
    let name = match args::os(matches, "runtime") {
        Some(name) => name.to_str().filter(|name| !name.is_empty()).context("--runtime: not a name")?.to_owned(),
        None => "runsc".to_owned(),
    };
    Ok((path, name))
}

/// An empty one where there is no file.
fn read(path: &Path) -> Result<Map<String, Value>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&text).with_context(|| path.display().to_string())? {
        Value::Object(config) => Ok(config),
        _ => bail!("{}: not an object", path.display()),
    }
}

fn add(config: &mut Map<String, Value>, name: &str, program: &Path, flags: Vec<String>, clobber: bool) -> Result<()> {
    let runtimes = config.entry("runtimes").or_insert_with(|| json!({}));
    let Value::Object(runtimes) = runtimes else { bail!("runtimes: not an object") };
    if runtimes.contains_key(name) && !clobber {
        bail!("runtime {name:?} exists already");
    }
    let mut runtime = json!({ "path": program });
    if !flags.is_empty() {
        runtime["runtimeArgs"] = json!(flags);
    }
    runtimes.insert(name.to_owned(), runtime);
    Ok(())
}

fn remove(config: &mut Map<String, Value>, name: &str) -> Result<()> {
    let gone = match config.get_mut("runtimes") {
        Some(Value::Object(runtimes)) => {
            let gone = runtimes.remove(name);
            if runtimes.is_empty() {
                config.remove("runtimes");
            }
            gone
        }
        _ => None,
    };
    if gone.is_none() {
        bail!("there is no runtime {name:?}");
    }
    Ok(())
}

/// Replaces the file in one step; it keeps its mode.
fn write(path: &Path, config: &Map<String, Value>) -> Result<()> {
    let what = || path.display().to_string();
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).with_context(what)?;
    }
    let mode = fs::metadata(path).map_or(0o644, |meta| meta.permissions().mode() & 0o7777);
    let mut name = path.file_name().with_context(what)?.to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let put = || -> Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        let mut text = serde_json::to_vec_pretty(config)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_data()?;
        fs::rename(&temporary, path)?;
        Ok(())
    };
    put().with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn the_rest_is_kept() {
        let before = json!({ "debug": true, "runtimes": { "other": { "path": "/bin/other" } } });
        let mut config = object(before.clone());
        add(&mut config, "runsc", Path::new("/bin/runsc"), vec!["--debug".into()], true).expect("add");
        let runtimes =
            json!({ "other": { "path": "/bin/other" }, "runsc": { "path": "/bin/runsc", "runtimeArgs": ["--debug"] } });
        assert_eq!(Value::Object(config.clone()), json!({ "debug": true, "runtimes": runtimes }));
        assert!(add(&mut config, "runsc", Path::new("/x"), Vec::new(), false).is_err());
        remove(&mut config, "runsc").expect("remove");
        assert_eq!(Value::Object(config.clone()), before);
        assert!(remove(&mut config, "runsc").is_err());
    }

    #[test]
    fn files() {
        let dir = std::env::temp_dir().join(format!("runsc-install-{}", std::process::id()));
        let path = dir.join("docker/daemon.json");
        assert!(read(&path).expect("no file").is_empty());
        let config = object(json!({ "a": 1 }));
        write(&path, &config).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        write(&path, &config).expect("write again");
        assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o7777, 0o600);
        assert_eq!(read(&path).expect("read"), config);
        fs::write(&path, "[]").expect("write");
        assert!(read(&path).is_err());
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
