//! mounts, mountinfo and mountstats of a process.

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::fmt::Write;

use super::{Subject, process::task_root};
use crate::{
    errno::Result,
    fs::{Mount, MountFlags, Path, split_device},
};

/// Octal escapes, as getmntent(3) expects.
fn escape(text: &[u8]) -> String {
    let mut out = String::new();
    for &byte in text {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                let _ = write!(out, "\\{byte:03o}");
            }
            0x20..0x7f => out.push(byte as char),
            _ => {
                let _ = write!(out, "\\{byte:03o}");
            }
        }
    }
    out
}

fn options(mount: &Mount) -> String {
    let flags = mount.flags();
    let mut text = String::from(if flags.contains(MountFlags::RDONLY) { "ro" } else { "rw" });
    for (flag, name) in [
        (MountFlags::NOSUID, ",nosuid"),
        (MountFlags::NODEV, ",nodev"),
        (MountFlags::NOEXEC, ",noexec"),
        (MountFlags::NOATIME, ",noatime"),
        (MountFlags::NODIRATIME, ",nodiratime"),
        (MountFlags::RELATIME, ",relatime"),
    ] {
        if flags.contains(flag) {
            text.push_str(name);
        }
    }
    text
}

/// Mounts that can be reached from the process's root, with where they are.
fn visible(subject: &Subject) -> Result<Vec<(Arc<Mount>, String)>> {
    let root = task_root(subject)?;
    let top = top(&root);
    let mut found = Vec::new();
    for mount in top.tree() {
        let (text, reachable) = mount.root_path().text(&root);
        if reachable || Arc::ptr_eq(&mount, &root.mount) {
            found.push((mount, escape(&text)));
        }
    }
    Ok(found)
}

/// The mount at the bottom of everything.
fn top(root: &Path) -> Arc<Mount> {
    let mut at = root.mount.clone();
    while let Some(point) = at.point() {
        at = point.mount;
    }
    at
}

pub(super) fn mounts(subject: &Subject) -> Result<Vec<u8>> {
    let mut out = String::new();
    for (mount, place) in visible(subject)? {
        let fs = &mount.filesystem;
        let source = escape(mount.source.as_bytes());
        let _ = writeln!(out, "{source} {place} {} {}{} 0 0", fs.name(), options(&mount), fs.options());
    }
    Ok(out.into_bytes())
}

pub(super) fn mountinfo(subject: &Subject) -> Result<Vec<u8>> {
    let mut out = String::new();
    for (mount, place) in visible(subject)? {
        let fs = &mount.filesystem;
        let (major, minor) = split_device(fs.device());
        let parent = mount.point().map_or(mount.id, |p| p.mount.id);
        let mut names = Vec::new();
        let mut at = mount.root.clone();
        while let Some(parent) = at.parent() {
            names.push(at.name());
            at = parent;
        }
        let root: String = names.iter().rev().map(|n| format!("/{}", escape(n))).collect();
        let root = if root.is_empty() { "/" } else { &root };
        let _ = writeln!(
            out,
            "{} {parent} {major}:{minor} {root} {place} {} - {} {} rw{}",
            mount.id,
            options(&mount),
            fs.name(),
            escape(mount.source.as_bytes()),
            fs.options()
        );
    }
    Ok(out.into_bytes())
}

pub(super) fn mountstats(subject: &Subject) -> Result<Vec<u8>> {
    let mut out = String::new();
    for (mount, place) in visible(subject)? {
        let source = escape(mount.source.as_bytes());
        let _ = writeln!(out, "device {source} mounted on {place} with fstype {}", mount.filesystem.name());
    }
    Ok(out.into_bytes())
}
