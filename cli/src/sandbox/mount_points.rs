//! Mount points, and the working directory, that a root which stays read-only lacks.
//!
//! The sandbox makes missing mount points itself where it may write. In a read-only root nobody behind the gofer may, so they
//! are made here, as runc does, before anything is confined. Paths resolve below the root only (RESOLVE_IN_ROOT).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2},
    io::Errno,
};
use sentry_abi::config::{ContainerConfig, Mount};

/// Makes what is missing of the targets of the mounts, all but the root's own, and of the working directory. `is_file`
/// tells whether a mount shows a file.
pub fn make(root: BorrowedFd<'_>, container: &ContainerConfig, is_file: impl Fn(&Mount) -> bool) -> Result<()> {
    let mounts = container.mounts.get(1..).unwrap_or_default();
    // Below another mount a place is not in this root.
    let covered = |path: &str| mounts.iter().any(|m| below(path, &m.target));
    for mount in mounts.iter().filter(|mount| !covered(&mount.target)) {
        make_one(root, &mount.target, is_file(mount)).with_context(|| format!("mount point {}", mount.target))?;
    }
    if let Ok(cwd) = std::str::from_utf8(&container.process.cwd)
        && !covered(&format!("{cwd}/"))
    {
        make_one(root, cwd, false).with_context(|| format!("working directory {cwd}"))?;
    }
    Ok(())
}

fn below(path: &str, above: &str) -> bool {
    path.strip_prefix(above.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
}

fn make_one(root: BorrowedFd<'_>, target: &str, file: bool) -> Result<(), Errno> {
    let names: Vec<&str> = target.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    let mut parent: Option<OwnedFd> = None;
    let mut path = String::new();
    for (i, name) in names.iter().enumerate() {
        path.push_str(name);
        let above = parent.as_ref().map_or(root, |fd| fd.as_fd());
        let found = match find(root, &path) {
            Err(Errno::NOENT) => {
                if file && i + 1 == names.len() {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    return openat(above, *name, flags, Mode::from_raw_mode(0o644)).map(drop);
                }
                match mkdirat(above, *name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                find(root, &path)?
            }
            found => found?,
        };
        parent = Some(found);
        path.push('/');
    }
    Ok(())
}

fn find(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use sentry_abi::config::{MountSource, ProcessConfig};

    use super::*;

    fn mount(target: &str) -> Mount {
        Mount { target: target.into(), source: MountSource::Proc, flags: 0 }
    }

    #[test]
    fn missing_places_are_made_inside_the_root() {
        let root = std::env::temp_dir().join(format!("mount-points-{}", std::process::id()));
        fs::create_dir_all(root.join("inside")).unwrap();
        symlink("/inside", root.join("link")).unwrap();
        let fd = fs::File::open(&root).unwrap();
        let process = ProcessConfig { cwd: b"/work/here".to_vec(), ..Default::default() };
        let mounts = ["/", "/proc", "/link/deep/er", "/proc/covered", "/etc/name"].map(mount).to_vec();
        let mut container = ContainerConfig { process, mounts, ..Default::default() };
        make(fd.as_fd(), &container, |m| m.target == "/etc/name").unwrap();
        assert!(root.join("work/here").is_dir());
        assert!(root.join("proc").is_dir() && root.join("inside/deep/er").is_dir());
        assert!(root.join("etc/name").is_file() && !root.join("proc/covered").exists());
        // Once more changes nothing.
        container.process.cwd = b"/proc/1".to_vec();
        make(fd.as_fd(), &container, |_| false).unwrap();
        assert!(!root.join("proc/1").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
