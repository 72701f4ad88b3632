//! `runsc update`: other limits for a container that runs.

use std::{
    fs::File,
    io::{Read, stdin},
};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use crate::{
    args, cgroup,
    flags::Settings,
    host,
    spec::fields,
    store::{Status, Store},
};

const MAX_SIZE: u64 = 1 << 20;

/// Flags, and the fields of linux.resources they stand for. Text fields are marked.
pub const FLAGS: &[(&str, &str, &str, bool, &str)] = &[
    ("blkio-weight", "blockIO", "weight", false, "weight of block I/O, 10 to 1000"),
    ("cpu-burst", "cpu", "burst", false, "CPU time that may be saved up, in microseconds"),
    ("cpu-idle", "cpu", "idle", false, "1: run only when nobody else wants the CPU"),
    ("cpu-period", "cpu", "period", false, "period of the CPU quota, in microseconds"),
    ("cpu-quota", "cpu", "quota", false, "CPU time in a period, in microseconds"),
    ("cpu-rt-period", "cpu", "realtimePeriod", false, "period of real-time scheduling, in microseconds"),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime", false, "real-time CPU time in a period, in microseconds"),
    ("cpu-share", "cpu", "shares", false, "weight of CPU time, 2 to 262144"),
    ("cpuset-cpus", "cpu", "cpus", true, "CPUs, such as 0-3,5"),
    ("cpuset-mems", "cpu", "mems", true, "memory nodes, such as 0-1"),
    ("memory", "memory", "limit", false, "bytes of memory"),
    ("memory-reservation", "memory", "reservation", false, "bytes of memory that are kept when memory is short"),
    ("memory-swap", "memory", "swap", false, "bytes of memory and swap; -1: any"),
    ("pids-limit", "pids", "limit", false, "number of tasks"),
];

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let id = super::id(matches)?;
    let resources = resources(matches)?;
    let entry = Store::new(&settings.root).open(&id)?;
    let record = entry.load()?.with_context(|| format!("container {id} does not exist"))?;
    if !matches!(record.status(), Status::Created | Status::Running) {
        bail!("cannot update container {id}: it is {}", record.status().name());
    }
    let overhead = cgroup::Overhead::new(host::allowed_cpus());
    cgroup::load(&entry.dir)?.update(&resources, overhead).with_context(|| format!("update container {id}"))?;
    Ok(0)
}

/// Of a file, or of single flags.
fn resources(matches: &ArgMatches) -> Result<LinuxResources> {
    let value = match args::os(matches, "resources") {
        Some(path) => {
            let what = || format!("--resources {}", path.display());
            let reader: Box<dyn Read> =
                if path == "-" { Box::new(stdin()) } else { Box::new(File::open(path).with_context(what)?) };
            let mut text = Vec::new();
            reader.take(MAX_SIZE + 1).read_to_end(&mut text).with_context(what)?;
            if text.len() as u64 > MAX_SIZE {
                bail!("{}: larger than {MAX_SIZE} bytes", what());
            }
            serde_json::from_slice(&text).with_context(|| format!("{}: not valid JSON", what()))?
        }
        None => of_flags(matches)?,
    };
    let config = json!({ "linux": { "resources": value } });
    for warning in fields::check(&config)? {
        log::warn!("{warning}");
    }
    Ok(serde_json::from_value(config["linux"]["resources"].clone())?)
}

fn of_flags(matches: &ArgMatches) -> Result<Value> {
    let mut value = json!({});
    for (flag, part, field, text, _) in FLAGS {
        let Some(given) = args::os(matches, flag) else { continue };
        let given = given.to_str().with_context(|| format!("--{flag}: not UTF-8"))?;
        value[*part][*field] = match *text {
            true => given.into(),
            false => given.parse::<i64>().ok().with_context(|| format!("--{flag}: {given:?} is not a number"))?.into(),
        };
    }
    Ok(value)
}
