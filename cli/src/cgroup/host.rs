//! The cgroup hierarchies of the host: those of version 1, the tree of version 2, or both (cgroups(7)).

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// Controllers; of version 1 also `name=systemd` and its like.
    pub controllers: Vec<String>,
    /// Version 2.
    pub unified: bool,
    /// This process's own group, below `mount`.
    pub own: PathBuf,
}

/// What is mounted here; the first mount of each hierarchy.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
    let mut found = parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
    for hierarchy in found.iter_mut().filter(|h| h.unified) {
        let text = fs::read_to_string(hierarchy.mount.join("cgroup.controllers")).unwrap_or_default();
        hierarchy.controllers = text.split_ascii_whitespace().map(str::to_owned).collect();
    }
    Ok(found)
}

fn parse(mountinfo: &str, cgroups: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(mount), Some(kind)) = (left.get(3), left.get(4), right.first()) else { continue };
        let controllers: Vec<String> = match *kind {
            "cgroup2" => Vec::new(),
            "cgroup" => {
                right.get(2).unwrap_or(&"").split(',').filter(|o| is_controller(o)).map(str::to_owned).collect()
            }
            _ => continue,
        };
        let unified = *kind == "cgroup2";
        if found.iter().any(|h| h.unified == unified && h.controllers == controllers) {
            continue;
        }
        let own = own(cgroups, &controllers).unwrap_or("/");
        // Seen from a container, the mount may begin at a group of the hierarchy.
        let own = own
            .strip_prefix(*root)
            .filter(|rest| *root != "/" && (rest.is_empty() || rest.starts_with('/')))
            .unwrap_or(own);
        found.push(Hierarchy { mount: unescape(mount), controllers, unified, own: clean(Path::new(own)) });
    }
    found
}

fn is_controller(option: &str) -> bool {
    !matches!(
        option,
        "" | "rw" | "ro" | "all" | "none" | "noprefix" | "xattr" | "clone_children" | "cpuset_v2_mode" | "favordynmods"
    ) && !option.starts_with("release_agent=")
        && option != "seclabel"
}

/// The path in /proc/self/cgroup of the hierarchy with these controllers; version 2 has none there.
fn own<'a>(cgroups: &'a str, controllers: &[String]) -> Option<&'a str> {
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let matches = match controllers.first() {
            Some(first) => names.split(',').any(|n| n == first),
            None => names.is_empty(),
        };
        matches.then_some(path)
    })
}

/// Blanks and the like stand as octal numbers in mountinfo.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"))
}

/// A path that stays below where it is joined: relative, `..` never leads above its begin.
pub fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_with_a_tree_of_version_2() {
        let mountinfo = "\
30 29 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
35 30 0:27 / /mnt/memory rw - cgroup cgroup rw,memory
";
        let cgroups = "4:name=systemd:/s\n3:cpu,cpuacct:/a:b\n2:memory:/docker/x/y\n0::/u\n";
        let found = parse(mountinfo, cgroups);
        let seen: Vec<_> =
            found.iter().map(|h| (h.controllers.join(","), h.unified, h.own.to_str().unwrap_or(""))).collect();
        assert_eq!(
            seen,
            [
                ("cpu,cpuacct".to_owned(), false, "a:b"),
                ("memory".to_owned(), false, "y"),
                ("name=systemd".to_owned(), false, "s"),
                (String::new(), true, "u"),
            ]
        );
        assert_eq!(found[0].mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn paths_do_not_escape() {
        for (path, cleaned) in [("/a/../../b", "b"), ("../../..", ""), ("a/./b//c", "a/b/c"), ("/", "")] {
            assert_eq!(clean(Path::new(path)), Path::new(cleaned));
        }
    }
}
