//! The control groups of a container on the host (cgroups(7)): version 1, version 2 and both at once. All processes of the
//! sandbox are in them; what the application may use is enforced inside, and these are the limits around the whole.
//!
//! Groups are entered without the kernel's lock over all processes, which costs some ten milliseconds to take: the new
//! process, while it has one thread, writes itself to version 1's `tasks`, and is made inside the group of version 2.

mod host;
mod path;
mod resources;
mod stats;
pub mod systemd;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::LinuxResources;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use host::Hierarchy;
use path::{Place, Unit};
pub use resources::{Overhead, Setting, check_memory};
pub use stats::Stats;

/// How long processes that were killed may take to leave a group.
const LEAVE: Duration = Duration::from_secs(5);
/// Files of cgroups are small.
const MAX_FILE: u64 = 1 << 20;

/// One directory of a hierarchy.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Dir {
    path: PathBuf,
    controllers: Vec<String>,
    unified: bool,
}

/// A container's groups, as they are kept on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Cgroup {
    dirs: Vec<Dir>,
}

/// What is asked for.
pub struct Request<'a> {
    pub id: &'a str,
    /// The state directory of all containers: two of them may have containers of one id.
    pub root: &'a Path,
    /// linux.cgroupsPath.
    pub path: Option<&'a Path>,
    pub systemd: bool,
    pub resources: Option<&'a LinuxResources>,
    pub overhead: Overhead,
}

/// Groups to make.
pub struct Plan {
    hierarchies: Vec<Hierarchy>,
    place: Place,
    settings: Vec<Setting>,
    unit: Option<Unit>,
}

impl Plan {
    /// Checks what is asked for; nothing is made.
    pub fn new(request: &Request<'_>) -> Result<Plan> {
        let settings = match request.resources {
            Some(resources) => resources::settings(resources, request.overhead)?,
            None => Vec::new(),
        };
        let (place, unit) = if request.systemd {
            let unit = Unit::of(request.path, request.id)?;
            (Place::Absolute(unit.path()), Some(unit))
        } else {
            (Place::of(request.path, request.id, request.root)?, None)
        };
        Ok(Plan { hierarchies: host::hierarchies()?, place, settings, unit })
    }

    /// Makes the groups and sets their limits. `record` is told of them before the first is made.
    pub fn make(&self, record: impl Fn(&Cgroup) -> Result<()>) -> Result<Cgroup> {
        if let Some(unit) = &self.unit {
            systemd::check(&unit.slice, &unit.name)?;
        }
        let mut cgroup = self.at(&self.place);
        cgroup.check_empty()?;
        record(&cgroup)?;
        let made = self.fill(&mut cgroup);
        if made.is_err() {
            let _ = cgroup.remove();
        }
        made?;
        record(&cgroup)?;
        Ok(cgroup)
    }

    fn at(&self, place: &Place) -> Cgroup {
        let dir = |h: &Hierarchy| Dir { path: place.below(h), controllers: h.controllers.clone(), unified: h.unified };
        Cgroup { dirs: self.hierarchies.iter().map(dir).collect() }
    }

    fn fill(&self, cgroup: &mut Cgroup) -> Result<()> {
        let mut usable = Vec::new();
        for dir in std::mem::take(&mut cgroup.dirs) {
            let needed = self.settings.iter().find(|s| dir.has(&s.controller));
            match self.make_dir(&dir) {
                Ok(()) => usable.push(dir),
                Err(error) if denied(&error) && needed.is_none() && !dir.path.exists() => {
                    log::debug!("cgroup {}: {error}; left out", dir.path.display());
                }
                Err(error) => {
                    let field = needed.map_or("linux.cgroupsPath", |s| &s.field);
                    cgroup.dirs = usable;
                    return Err(error).with_context(|| format!("{field}: make cgroup {}", dir.path.display()));
                }
            }
        }
        cgroup.dirs = usable;
        if cgroup.dirs.is_empty() && self.hierarchies.is_empty() {
            if !self.settings.is_empty() {
                log::warn!("linux.resources: no cgroups are mounted here; only limits on memory and tasks hold");
            }
            return Ok(());
        }
        cgroup.apply(&self.settings)
    }

    fn make_dir(&self, dir: &Dir) -> io::Result<()> {
        let Some(mount) = self.hierarchies.iter().find(|h| dir.path.starts_with(&h.mount)).map(|h| &h.mount) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let below: Vec<&Path> = dir.path.ancestors().take_while(|p| *p != mount).collect();
        let mut parent: &Path = mount;
        for path in below.into_iter().rev() {
            if dir.unified {
                delegate(parent, &dir.controllers);
            }
            match fs::create_dir(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            if dir.has("cpuset") && !dir.unified {
                inherit_cpuset(parent, path)?;
            }
            parent = path;
        }
        Ok(())
    }
}

/// Passes controllers on to the groups below one of version 2. What cannot be passed on is missing there, and told when it
/// is needed.
fn delegate(parent: &Path, controllers: &[String]) {
    let file = parent.join("cgroup.subtree_control");
    let all: Vec<String> = controllers.iter().map(|c| format!("+{c}")).collect();
    if all.is_empty() || fs::write(&file, all.join(" ")).is_ok() {
        return;
    }
    for one in all {
        let _ = fs::write(&file, one);
    }
}

/// A new group of version 1 has no CPUs and no memory, and takes no process until it has.
fn inherit_cpuset(parent: &Path, path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(path.join(file))?.trim().is_empty() {
            fs::write(path.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

fn denied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

impl Dir {
    /// Controllers have the names of version 1 here; version 2 calls block I/O `io` and always has `cgroup`.
    fn has(&self, controller: &str) -> bool {
        let name = if self.unified && controller == "blkio" { "io" } else { controller };
        self.controllers.iter().any(|c| c == name) || (self.unified && name == "cgroup")
    }

    fn read(&self, file: &str) -> Option<String> {
        let mut text = String::new();
        File::open(self.path.join(file)).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn processes(&self) -> Vec<i32> {
        let text = self.read("cgroup.procs").unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    }

    /// The groups below, and this one last.
    fn tree(&self) -> Vec<Dir> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                out.extend(Dir { path: entry.path(), ..self.clone() }.tree());
            }
        }
        out.push(self.clone());
        out
    }
}

/// What the first process of a sandbox needs to enter its groups.
#[derive(Default)]
pub struct Join {
    /// `tasks` of version 1.
    tasks: Vec<(PathBuf, File)>,
    /// `cgroup.procs` of version 2, for kernels that cannot make a process in a group.
    procs: Option<(PathBuf, File)>,
    /// The group of version 2, which a process can be made in.
    pub group: Option<OwnedFd>,
}

impl Join {
    /// Moves this process, which has one thread. `inside`: it was made in the group of version 2.
    pub fn enter(self, inside: bool) -> Result<()> {
        let rest = self.procs.filter(|_| !inside);
        for (path, mut file) in self.tasks.into_iter().chain(rest) {
            file.write_all(b"0").with_context(|| format!("enter cgroup {}", path.display()))?;
        }
        Ok(())
    }
}

impl Cgroup {
    fn dir(&self, controller: &str) -> Option<&Dir> {
        // On a hybrid host version 1 comes first, as a controller is in one of them only.
        self.dirs.iter().find(|d| d.has(controller))
    }

    fn check_empty(&self) -> Result<()> {
        for dir in &self.dirs {
            if let Some(pid) = dir.processes().first() {
                bail!("linux.cgroupsPath: cgroup {} is in use by process {pid}", dir.path.display());
            }
        }
        Ok(())
    }

    pub fn join(&self) -> Result<Join> {
        let mut join = Join::default();
        for dir in &self.dirs {
            let what = || format!("enter cgroup {}", dir.path.display());
            let file = dir.path.join(if dir.unified { "cgroup.procs" } else { "tasks" });
            let file = match OpenOptions::new().write(true).open(&file) {
                // Limits could not have been set there either.
                Err(error) if denied(&error) => {
                    log::debug!("{}: {error}; left out", what());
                    continue;
                }
                result => result.with_context(what)?,
            };
            if dir.unified {
                join.procs = Some((dir.path.clone(), file));
                join.group = Some(File::open(&dir.path).with_context(what)?.into());
            } else {
                join.tasks.push((dir.path.clone(), file));
            }
        }
        Ok(join)
    }

    /// Sets limits anew, for `update`.
    pub fn update(&self, resources: &LinuxResources, overhead: Overhead) -> Result<()> {
        self.apply(&resources::settings(resources, overhead)?)
    }

    fn apply(&self, settings: &[Setting]) -> Result<()> {
        // Some limits are bounded by others that come later: what fails is tried again once.
        let mut again = Vec::new();
        for setting in settings {
            if self.set(setting).is_err() {
                again.push(setting);
            }
        }
        again.into_iter().try_for_each(|setting| self.set(setting))
    }

    fn set(&self, setting: &Setting) -> Result<()> {
        let Setting { field, controller, v1, v2 } = setting;
        let Some(dir) = self.dir(controller) else {
            // Version 2 has no such controller: rules about devices of the host, of which a sandbox has none.
            if controller == "devices" {
                return Ok(());
            }
            bail!("{field}: the host has no cgroup controller {controller} for it");
        };
        let (version, entry) = if dir.unified { (2, v2) } else { (1, v1) };
        let Some((file, value)) = entry else {
            if v1.is_none() {
                bail!("{field}: the controller {controller} has cgroup version 1 here");
            }
            log::debug!("{field}: cgroup version {version} has nothing like it");
            return Ok(());
        };
        let path = dir.path.join(file);
        let written = OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(value.as_bytes()));
        match written {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("{field}: the host's kernel has no {file}")
            }
            result => result.with_context(|| format!("{field}: write {value:?} to {}", path.display())),
        }
    }

    pub fn stats(&self) -> Stats {
        stats::of(self)
    }

    /// Ends what is left in the groups and removes them.
    pub fn remove(&self) -> Result<()> {
        for dir in self.dirs.iter().flat_map(Dir::tree) {
            remove_dir(&dir)?;
        }
        Ok(())
    }
}

fn remove_dir(dir: &Dir) -> Result<()> {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        match fs::remove_dir(&dir.path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy || begin.elapsed() > LEAVE => {
                return Err(error).with_context(|| format!("remove cgroup {}", dir.path.display()));
            }
            Err(_) => {}
        }
        kill_all(dir);
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn kill_all(dir: &Dir) {
    if dir.unified && fs::write(dir.path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // What is frozen does not die.
    let _ = fs::write(dir.path.join("freezer.state"), "THAWED");
    for pid in dir.processes() {
        if let Some(pid) = Pid::from_raw(pid).filter(|pid| *pid != rustix::process::getpid()) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The file in a container's state directory that names its groups.
pub const FILE: &str = "cgroup.json";

/// The groups of the container with this state directory.
pub fn load(state: &Path) -> Result<Cgroup> {
    let path = state.join(FILE);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Cgroup::default()),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Written in one step: a command may be killed at any time.
pub fn save(state: &Path, cgroup: &Cgroup) -> Result<()> {
    let (path, temporary) = (state.join(FILE), state.join("cgroup.tmp"));
    let write = || -> io::Result<()> {
        fs::write(&temporary, serde_json::to_vec(cgroup)?)?;
        fs::rename(&temporary, &path)
    };
    write().with_context(|| format!("write {}", path.display()))
}
