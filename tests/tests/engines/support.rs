//! What the engines have in common.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use runsc_tests::{
    binary::runsc,
    bundle::Bundle,
    command::{self, Finished},
    host,
};

pub const LIMIT: Duration = Duration::from_secs(60);

/// Whether these programs are there and this is root; without them a test has nothing to do.
pub fn available(programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs.iter().copied().filter(|name| host::find_program(name).is_none()).collect();
    // SAFETY: geteuid only returns a number.
    let root = unsafe { libc::geteuid() } == 0;
    if missing.is_empty() && root {
        return true;
    }
    assert!(!host::is_ci(), "missing: {missing:?}, root: {root}");
    eprintln!("not run: missing programs {missing:?}, root: {root}");
    false
}

/// A file with the root of an image: busybox, and a file that is no program.
pub fn rootfs_tar(dir: &Path) -> PathBuf {
    let bundle = Bundle::new(&["sh"]);
    fs::write(bundle.root().join("bin/plain"), "not a program").expect("write");
    let tar = dir.join("root.tar");
    let finished = command::run(Command::new("tar").arg("-C").arg(bundle.root()).arg("-cf").arg(&tar).arg("."), LIMIT);
    assert_eq!(finished.code(), 0, "{}", finished.describe());
    tar
}

/// A script that calls the runtime under test with these flags before the caller's.
pub fn wrapper(dir: &Path, flags: &str) -> PathBuf {
    let path = dir.join("runsc");
    fs::write(&path, format!("#!/bin/sh\nexec {} {flags} \"$@\"\n", runsc().display())).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
    path
}

/// Panics unless it ended with this code.
#[track_caller]
pub fn ended(finished: Finished, code: i32) -> Finished {
    assert!(!finished.timed_out && finished.code() == code, "expected {code}: {}", finished.describe());
    finished
}

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30) * host::time_scale();
    while !condition() {
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nothing that names the directory is left on the host.
pub fn nothing_left(dir: &Path) {
    let mark = dir.display().to_string();
    let processes = || host::processes_with(&mark);
    let deadline = Instant::now() + Duration::from_secs(20) * host::time_scale();
    while !processes().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(processes(), Vec::new(), "processes are left");
    assert_eq!(host::mounts_with(&mark), Vec::<String>::new(), "mounts are left");
}

/// A daemon of an engine; it ends with the test.
pub struct Daemon(Child);

impl Daemon {
    pub fn start(command: &mut Command, log: &Path) -> Daemon {
        let file = fs::File::create(log).expect("log");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("log")).stderr(file);
        Daemon(command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SAFETY: kill touches no memory; the child has not been reaped.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGTERM) };
        let end = Instant::now() + Duration::from_secs(20) * host::time_scale();
        while Instant::now() < end {
            if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
