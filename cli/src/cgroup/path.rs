//! Where a container's groups are: linux.cgroupsPath as runc reads it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use super::host::{Hierarchy, clean};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Below the root of each hierarchy.
    Absolute(PathBuf),
    /// Below this process's own group.
    Relative(PathBuf),
}

/// Longer names mean nothing to the kernel.
const MAX: usize = 4096;

impl Place {
    /// Of linux.cgroupsPath with the cgroupfs driver; without one it is the container's id and a mark of the state directory.
    pub fn of(path: Option<&Path>, id: &str, root: &Path) -> Result<Place> {
        let Some(path) = path.filter(|p| !p.as_os_str().is_empty()) else {
            let mut hasher = DefaultHasher::new();
            root.hash(&mut hasher);
            return Ok(Place::Relative(format!("{id}.{:08x}", hasher.finish() as u32).into()));
        };
        if path.as_os_str().len() >= MAX {
            bail!("linux.cgroupsPath: longer than {MAX} bytes");
        }
        let cleaned = clean(path);
        if cleaned.as_os_str().is_empty() {
            bail!("linux.cgroupsPath: {path:?} is the root of the hierarchy");
        }
        Ok(if path.is_absolute() { Place::Absolute(cleaned) } else { Place::Relative(cleaned) })
    }

    /// The directory in one hierarchy.
    pub fn below(&self, hierarchy: &Hierarchy) -> PathBuf {
        match self {
            Place::Absolute(path) => hierarchy.mount.join(path),
            Place::Relative(path) => {
                // In version 2 a group with processes cannot pass controllers on: a sibling of our own, then.
                let own =
                    if hierarchy.unified { hierarchy.own.parent().unwrap_or(Path::new("")) } else { &hierarchy.own };
                hierarchy.mount.join(own).join(path)
            }
        }
    }
}

/// `slice:prefix:name`, as engines write linux.cgroupsPath for the systemd driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    pub slice: String,
    pub name: String,
}

impl Unit {
    pub fn of(path: Option<&Path>, id: &str) -> Result<Unit> {
        let text = path.and_then(Path::to_str).unwrap_or_default();
        if text.is_empty() {
            return Ok(Unit { slice: "system.slice".into(), name: format!("runsc-{id}.scope") });
        }
        let parts: Vec<&str> = text.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            bail!("linux.cgroupsPath: with --systemd-cgroup it has the form slice:prefix:name, found {text:?}");
        };
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        if !slice.ends_with(".slice")
            || slice.contains('/')
            || name.is_empty()
            || name.contains('/')
            || prefix.contains('/')
        {
            bail!("linux.cgroupsPath: {text:?} does not name a slice and a unit of systemd");
        }
        let name = match (name.ends_with(".slice"), prefix) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}.scope"),
            (false, prefix) => format!("{prefix}-{name}.scope"),
        };
        Ok(Unit { slice: slice.to_owned(), name })
    }

    /// The path systemd gives it: `a-b.slice` lies in `a.slice`.
    pub fn path(&self) -> PathBuf {
        let mut path = PathBuf::new();
        let stem = self.slice.strip_suffix(".slice").unwrap_or(&self.slice);
        if stem != "-" {
            for (at, _) in stem.match_indices('-') {
                path.push(format!("{}.slice", &stem[..at]));
            }
            path.push(&self.slice);
        }
        path.join(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(unified: bool) -> Hierarchy {
        Hierarchy { mount: "/m".into(), controllers: Vec::new(), unified, own: "own/scope".into() }
    }

    #[test]
    fn places() {
        let at = |path: Option<&str>, unified| {
            Place::of(path.map(Path::new), "id", Path::new("/r")).map(|p| p.below(&hierarchy(unified)))
        };
        assert_eq!(at(Some("/a/b"), false).expect("absolute"), Path::new("/m/a/b"));
        assert_eq!(at(Some("/../../a"), true).expect("escaping"), Path::new("/m/a"));
        assert_eq!(at(Some("a"), false).expect("relative"), Path::new("/m/own/scope/a"));
        let default = at(None, true).expect("default");
        assert!(default.starts_with("/m/own") && default.to_string_lossy().contains("/id."), "{default:?}");
        assert!(at(Some(""), false).expect("default").starts_with("/m/own/scope"));
        assert_ne!(
            Place::of(None, "a", Path::new("/r")).expect("a"),
            Place::of(None, "a", Path::new("/s")).expect("a")
        );
        for bad in ["/", "..", "/a/.."] {
            assert!(at(Some(bad), false).expect_err(bad).to_string().contains("linux.cgroupsPath"));
        }
    }

    #[test]
    fn units() {
        let unit = Unit::of(Some(Path::new("machine.slice:libpod:c1")), "id").expect("a unit");
        assert_eq!(unit.path(), Path::new("machine.slice/libpod-c1.scope"));
        let unit = Unit::of(Some(Path::new("a-b-c.slice:cri:x")), "id").expect("a unit");
        assert_eq!(unit.path(), Path::new("a.slice/a-b.slice/a-b-c.slice/cri-x.scope"));
        assert_eq!(Unit::of(None, "id").expect("default").path(), Path::new("system.slice/runsc-id.scope"));
        for bad in ["/a/b", "a:b", "x:y:z", "a.slice:b:", "../a.slice:b:c"] {
            assert!(Unit::of(Some(Path::new(bad)), "id").is_err(), "{bad}");
        }
    }
}
