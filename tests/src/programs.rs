//! The C programs of tests/abi and tests/programs, built once as static binaries.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use crate::{
    binary::{work_dir, workspace},
    host::FileLock,
};

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Directory of the built programs.
pub fn directory() -> PathBuf {
    let dir = work_dir().join("programs");
    fs::create_dir_all(&dir).expect("directory of programs");
    dir
}

/// The binary of `tests/abi/NAME.c`.
pub fn abi(name: &str) -> PathBuf {
    build(&workspace().join("tests/abi"), name)
}

/// The binary of `tests/programs/NAME.c`.
pub fn program(name: &str) -> PathBuf {
    build(&workspace().join("tests/programs"), name)
}

/// The binary of `benches/NAME.c`.
pub fn bench(name: &str) -> PathBuf {
    build(&workspace().join("benches"), name)
}

fn build(dir: &Path, name: &str) -> PathBuf {
    let source = dir.join(format!("{name}.c"));
    let binary = directory().join(name);
    let newest = modified(&source).max(modified(&dir.join("abi.h")));
    if modified(&binary) > newest {
        return binary;
    }
    let _lock = FileLock::new(&directory().join(format!(".{name}.lock")));
    if modified(&binary) > newest {
        return binary;
    }
    let new = directory().join(format!(".{name}.new"));
    let output = Command::new("cc")
        .args(["-O2", "-w", "-static", "-pthread", "-o"])
        .arg(&new)
        .arg(&source)
        .output()
        .unwrap_or_else(|error| panic!("run cc: {error}"));
    assert!(output.status.success(), "cc {}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
    fs::rename(&new, &binary).expect("put the program in place");
    binary
}

/// Builds all of them, for a place that has no compiler or may not write here.
pub fn build_all() {
    for dir in ["tests/abi", "tests/programs"] {
        let dir = workspace().join(dir);
        for entry in fs::read_dir(&dir).expect("directory of sources").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".c") {
                build(&dir, name);
            }
        }
    }
}
