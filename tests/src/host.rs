//! Small things about the host.

use std::{
    env, fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// Whether this is continuous integration, where a test that cannot run fails.
pub fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false" && value != "0")
}

/// A program of the host's PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// How much slower than usual this machine is taken to be.
pub fn time_scale() -> u32 {
    env::var("RUNSC_TEST_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A directory that is removed at the end of the test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> TempDir {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let path = env::temp_dir().join(format!("runsc-test-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("temporary directory");
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Holds a file lock: one process at a time does what it guards.
pub struct FileLock(#[allow(dead_code, reason = "dropping it unlocks")] fs::File);

impl FileLock {
    pub fn new(path: &Path) -> FileLock {
        let file = fs::OpenOptions::new().create(true).append(true).open(path).expect("lock file");
        // SAFETY: flock takes any descriptor and touches no memory.
        let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) };
        assert_eq!(result, 0, "flock {}", path.display());
        FileLock(file)
    }
}

/// Processes whose command line or environment names `mark`, by pid with their command lines.
pub fn processes_with(mark: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        if command.contains(mark) || environment.contains(mark) {
            found.push((pid, command));
        }
    }
    found
}

/// Mounts of this mount namespace whose line names `mark`.
pub fn mounts_with(mark: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    mounts.lines().filter(|line| line.contains(mark)).map(str::to_owned).collect()
}
