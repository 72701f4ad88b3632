//! The state of containers on disk: one directory each below `--root`, with a state file, the control socket and the exit
//! status. A directory is locked while a command changes it; files are replaced atomically.

mod container;
mod id;
mod process;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use devices::control::Client;
use rustix::fs::{FlockOperation, flock};

use crate::cgroup;
pub use container::{Record, Status};
pub use process::HostProcess;

const STATE_FILE: &str = "state.json";
const CONTROL_SOCKET: &str = "control.sock";
const EXIT_FILE: &str = "exit";

pub struct Store {
    root: PathBuf,
}

/// A container's directory, locked until it is dropped.
pub struct Entry {
    pub dir: PathBuf,
    lock: File,
}

impl Store {
    pub fn new(root: &Path) -> Store {
        Store { root: root.to_owned() }
    }

    fn path(&self, id: &str) -> Result<PathBuf> {
        id::check(id)?;
        Ok(self.root.join(id))
    }

    /// Makes the directory of a new container. What a command left that died before it wrote a state is taken over.
    pub fn create(&self, id: &str) -> Result<Entry> {
        let dir = self.path(id)?;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o711).recursive(true);
        builder.create(&self.root).with_context(|| format!("state directory {}", self.root.display()))?;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        for _ in 0..10 {
            match builder.create(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("state directory {}", dir.display())),
            }
            let Some(entry) = Entry::lock(&dir, true)? else { continue };
            match entry.load() {
                Ok(None) => {
                    entry.clean()?;
                    return Ok(entry);
                }
                Ok(Some(_)) => bail!("container with id exists: {id}"),
                Err(error) => {
                    return Err(
                        error.context(format!("container {id} exists and its state is damaged: delete --force {id}"))
                    );
                }
            }
        }
        bail!("state directory {}: other commands keep removing it", dir.display())
    }

    /// The directory of a container that exists.
    pub fn open(&self, id: &str) -> Result<Entry> {
        self.find(id)?.with_context(|| format!("container {id} does not exist"))
    }

    /// None when there is no such container.
    pub fn find(&self, id: &str) -> Result<Option<Entry>> {
        let dir = self.path(id)?;
        for _ in 0..10 {
            match fs::symlink_metadata(&dir) {
                Ok(meta) if meta.is_dir() => {}
                Ok(_) => bail!("state of container {id}: {} is not a directory", dir.display()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error).with_context(|| format!("state directory {}", dir.display())),
            }
            if let Some(entry) = Entry::lock(&dir, true)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The state without waiting for a command that holds the lock: state files are replaced atomically.
    pub fn read(&self, id: &str) -> Result<Record> {
        let dir = self.path(id)?;
        let mut record =
            container::load(&dir.join(STATE_FILE))?.with_context(|| format!("container {id} does not exist"))?;
        if record.status() == Status::Created
            && let Ok((started, _)) = Client::connect(&dir.join(CONTROL_SOCKET)).and_then(|mut c| c.state(id))
        {
            // A command that was killed may not have written what it had done.
            record.started = started;
        }
        Ok(record)
    }

    /// Removes what commands left that were killed: containers whose names begin with `prefix`, that have ended and that
    /// nobody else is busy with.
    pub fn sweep(&self, prefix: &str) {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        for name in names.filter(|name| name.starts_with(prefix)) {
            let Ok(Some(entry)) = self.path(&name).and_then(|dir| Entry::lock(&dir, false)) else { continue };
            let ended = match entry.load() {
                Ok(Some(record)) => record.status() == Status::Stopped,
                Ok(None) => true,
                Err(_) => false,
            };
            if ended && let Err(error) = entry.remove() {
                log::debug!("{error:#}");
            }
        }
    }

    /// All containers by name; damaged ones are told in the log.
    pub fn list(&self) -> Result<Vec<Record>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("state directory {}", self.root.display())),
        };
        let mut records = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("state directory {}", self.root.display()))?;
            match container::load(&entry.path().join(STATE_FILE)) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => {}
                Err(error) => log::warn!("list: {error:#}"),
            }
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// Where the control socket of a container is.
    pub fn control_socket(&self, id: &str) -> Result<PathBuf> {
        Ok(self.path(id)?.join(CONTROL_SOCKET))
    }

    /// The directory of a container's state.
    pub fn state_dir(&self, id: &str) -> Result<PathBuf> {
        self.path(id)
    }

    /// The wait status a container ended with.
    pub fn exit_status(&self, id: &str) -> Result<Option<i32>> {
        let path = self.path(id)?.join(EXIT_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }
}

impl Entry {
    /// None when the directory was removed meanwhile.
    fn lock(dir: &Path, wait: bool) -> Result<Option<Entry>> {
        let lock = match File::open(dir) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("state directory {}", dir.display())),
        };
        let how = if wait { FlockOperation::LockExclusive } else { FlockOperation::NonBlockingLockExclusive };
        loop {
            match flock(&lock, how) {
                Ok(()) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).with_context(|| format!("lock {}", dir.display())),
            }
        }
        let ours = lock.metadata().with_context(|| format!("stat {}", dir.display()))?;
        match fs::symlink_metadata(dir) {
            Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => {
                Ok(Some(Entry { dir: dir.to_owned(), lock }))
            }
            _ => Ok(None),
        }
    }

    pub fn load(&self) -> Result<Option<Record>> {
        container::load(&self.dir.join(STATE_FILE))
    }

    pub fn save(&self, record: &Record) -> Result<()> {
        container::save(&self.dir, STATE_FILE, record)
    }

    pub fn control_socket(&self) -> PathBuf {
        self.dir.join(CONTROL_SOCKET)
    }

    /// The file that the sandbox writes its wait status to.
    pub fn exit_file(&self) -> Result<File> {
        let path = self.dir.join(EXIT_FILE);
        File::create(&path).with_context(|| path.display().to_string())
    }

    /// Lets other commands at it again without removing it.
    pub fn unlock(self) -> PathBuf {
        drop(self.lock);
        self.dir
    }

    fn clean(&self) -> Result<()> {
        cgroup::load(&self.dir)?.remove()?;
        for entry in fs::read_dir(&self.dir).with_context(|| self.dir.display().to_string())? {
            let path = entry.with_context(|| self.dir.display().to_string())?.path();
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes the container's control groups, with what is left in them, and its state.
    pub fn remove(self) -> Result<()> {
        match cgroup::load(&self.dir) {
            Ok(cgroup) => cgroup.remove()?,
            Err(error) => log::warn!("{error:#}"),
        }
        // The state goes first: a directory without one is nobody's container, however far this comes.
        let _ = fs::remove_file(self.dir.join(STATE_FILE));
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("runsc-store-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn life_of_an_entry() {
        let root = temporary("life");
        let store = Store::new(&root);
        assert!(store.find("a").expect("find").is_none());
        assert!(store.list().expect("list").is_empty());
        let entry = store.create("a").expect("create");
        let record = Record::new("a", Path::new("/b"), Path::new("/b/rootfs"));
        entry.save(&record).expect("save");
        drop(entry);
        let error = store.create("a").map(|_| ()).expect_err("taken").to_string();
        assert!(error.contains("exists"), "{error}");
        assert_eq!(store.list().expect("list").len(), 1);
        assert_eq!(store.read("a").expect("read").id, "a");
        store.open("a").expect("open").remove().expect("remove");
        assert!(store.find("a").expect("find").is_none());
        fs::remove_dir_all(root).expect("clean up");
    }

    #[test]
    fn a_sweep_takes_what_has_ended() {
        let root = temporary("sweep");
        let store = Store::new(&root);
        let busy = store.create("do-busy").expect("create");
        drop(store.create("do-left").expect("create"));
        drop(store.create("other").expect("create"));
        let running = store.create("do-running").expect("create");
        let mut record = Record::new("do-running", Path::new("/b"), Path::new("/b/rootfs"));
        record.process = HostProcess::of(std::process::id() as i32).ok();
        running.save(&record).expect("save");
        drop(running);
        store.sweep("do-");
        let left = |name: &str| root.join(name).exists();
        assert!(left("do-busy") && !left("do-left") && left("other") && left("do-running"));
        drop(busy);
        fs::remove_dir_all(root).expect("clean up");
    }

    #[test]
    fn what_a_dead_command_left_is_taken_over() {
        let root = temporary("left");
        let store = Store::new(&root);
        drop(store.create("a").expect("create"));
        fs::write(root.join("a/exit"), "1").expect("write");
        drop(store.create("a").expect("create again"));
        assert_eq!(store.exit_status("a").expect("status"), None);
        fs::write(root.join("a/state.json"), "{").expect("write");
        assert!(store.create("a").is_err());
        assert!(store.list().expect("list").is_empty());
        fs::remove_dir_all(root).expect("clean up");
    }
}
