//! `--pid-file`.

use std::{ffi::OsStr, fs, io::Write, os::unix::ffi::OsStrExt, path::Path};

use anyhow::{Context, Result, bail};

/// Written under another name and renamed: callers read it as soon as it is there.
pub fn write(path: &Path, pid: i32) -> Result<()> {
    let what = || format!("--pid-file {}", path.display());
    let Some(name) = path.file_name() else { bail!("{}: not a path of a file", what()) };
    let mut temporary = b".".to_vec();
    temporary.extend_from_slice(name.as_bytes());
    let temporary = path.with_file_name(OsStr::from_bytes(&temporary));
    let mut file = fs::File::create(&temporary).with_context(what)?;
    file.write_all(pid.to_string().as_bytes()).with_context(what)?;
    fs::rename(&temporary, path).with_context(what)
}
