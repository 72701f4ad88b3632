//! The state file of a container.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::HostProcess;
use crate::hooks::{Hooks, Point, Subject};

/// Raised when an older runsc would misread the file.
const VERSION: u32 = 1;
const MAX_SIZE: u64 = 16 << 20;

/// Status as the OCI specification names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Record {
    version: u32,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// Name of the user that made it, or its number.
    pub owner: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The sandbox's process; none while the container is being made.
    #[serde(default)]
    pub process: Option<HostProcess>,
    #[serde(default)]
    pub started: bool,
    #[serde(default)]
    pub paused: bool,
    #[serde(default)]
    pub platform: String,
    #[serde(default)]
    pub hooks: Hooks,
}

impl Record {
    pub fn new(id: &str, bundle: &Path, rootfs: &Path) -> Record {
        Record {
            version: VERSION,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            rootfs: rootfs.to_owned(),
            created: crate::logging::rfc3339_now(),
            owner: owner(),
            annotations: BTreeMap::new(),
            process: None,
            started: false,
            paused: false,
            platform: String::new(),
            hooks: Hooks::default(),
        }
    }

    /// What hooks are told about it.
    pub fn subject(&self) -> Subject {
        Subject::new(&self.id, &self.bundle, self.annotations.iter())
    }

    /// Runs the hooks that follow the start.
    pub fn poststart(&self) -> Result<()> {
        self.hooks.run(Point::Poststart, &self.subject(), self.pid())
    }

    pub fn status(&self) -> Status {
        match self.process {
            None => Status::Creating,
            Some(process) if !process.alive() => Status::Stopped,
            Some(_) if self.paused => Status::Paused,
            Some(_) if self.started => Status::Running,
            Some(_) => Status::Created,
        }
    }

    /// The pid as callers see it: 0 once the container has ended.
    pub fn pid(&self) -> i32 {
        self.process.filter(HostProcess::alive).map_or(0, |p| p.pid)
    }
}

/// The real user's name out of /etc/passwd.
fn owner() -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.get(2) == Some(&uid.as_str()));
    line.and_then(|f| f.first().map(|n| (*n).to_owned())).unwrap_or(uid)
}

/// None when there is no such file.
pub fn load(path: &Path) -> Result<Option<Record>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let mut text = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut text).with_context(|| format!("read {}", path.display()))?;
    let record: Record = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    if record.version > VERSION {
        bail!("{}: written by a newer runsc (version {}, this one reads {VERSION})", path.display(), record.version);
    }
    Ok(Some(record))
}

/// Replaces the file in one step.
pub fn save(dir: &Path, name: &str, record: &Record) -> Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.tmp"));
    let write = || -> Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_data()?;
        fs::rename(&temporary, &path)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}
