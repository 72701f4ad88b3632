//! The `runsc` under test: the one in the target directory that this test was built into.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Names the binary to test instead of building it.
pub const BINARY: &str = "RUNSC_BINARY";

/// The workspace's top directory.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// `target/<profile>` that the running test is in.
pub fn profile_dir() -> PathBuf {
    let exe = env::current_exe().expect("path of the test");
    let deps = exe.parent().expect("directory of the test");
    if deps.ends_with("deps") { deps.parent().expect("profile directory").to_path_buf() } else { deps.to_path_buf() }
}

/// A directory for what tests make and keep: `target/<profile>/runsc-tests`.
pub fn work_dir() -> PathBuf {
    let dir = profile_dir().join("runsc-tests");
    std::fs::create_dir_all(&dir).expect("directory for the tests");
    dir
}

/// The binary, up to date with its sources.
pub fn runsc() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = env::var_os(BINARY) {
            return path.into();
        }
        let profile = profile_dir();
        let target = profile.parent().expect("target directory");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace()).args(["build", "--quiet", "--locked", "--package", "runsc", "--target-dir"]);
        cargo.arg(target);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        // Cargo sets these for the test; a nested cargo must not take them for its own configuration.
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_TARGET_DIR" {
                cargo.env_remove(name);
            }
        }
        let status = cargo.status().expect("run cargo");
        assert!(status.success(), "cargo build -p runsc: {status}");
        let path = profile.join("runsc");
        assert!(path.exists(), "cargo built no {}", path.display());
        path
    })
}
