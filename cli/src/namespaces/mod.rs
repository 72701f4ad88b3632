//! linux.namespaces: which namespaces of the host the sandbox's processes join and which they get anew, and the ids of a
//! user namespace (namespaces(7), user_namespaces(7)).
//!
//! The application has namespaces of the sandbox's own kernel in any case. Those of the host hold our processes, and are
//! what engines and hooks look at through /proc/PID/ns.

mod maps;

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use maps::IdMaps;

/// What is asked for, checked.
#[derive(Debug, Default)]
pub struct Namespaces {
    join: Vec<Join>,
    /// A user namespace with these ids.
    pub user: Option<IdMaps>,
    pub warnings: Vec<String>,
}

#[derive(Debug)]
struct Join {
    kind: LinkNameSpaceType,
    flag: libc::c_int,
    /// In /proc/self/ns.
    name: &'static str,
    field: String,
    path: PathBuf,
}

/// Namespaces of this process that it has left for a moment.
pub struct Left(Vec<(File, LinkNameSpaceType)>);

impl Namespaces {
    pub fn of(spec: &Spec) -> Result<Namespaces> {
        let mut out = Namespaces::default();
        let Some(linux) = spec.linux() else { return Ok(out) };
        let mut seen = Vec::new();
        let mut user = false;
        for (i, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let field = format!("linux.namespaces[{i}]");
            let typ = namespace.typ();
            if seen.contains(&typ) {
                bail!("{field}.type: {typ} is given twice");
            }
            seen.push(typ);
            let path = namespace.path().clone().filter(|p| !p.as_os_str().is_empty());
            if path.as_ref().is_some_and(|p| !p.is_absolute()) {
                bail!("{field}.path: {:?} is not an absolute path", path.unwrap_or_default());
            }
            let mut join = |kind, flag, name| {
                let Some(path) = path.clone() else { return };
                out.join.push(Join { kind, flag, name, field: format!("{field}.path"), path });
            };
            match (typ, &path) {
                (LinuxNamespaceType::Network, _) => join(LinkNameSpaceType::Network, libc::CLONE_NEWNET, "net"),
                (LinuxNamespaceType::Ipc, _) => {
                    join(LinkNameSpaceType::InterProcessCommunication, libc::CLONE_NEWIPC, "ipc");
                }
                (LinuxNamespaceType::Uts, _) => {
                    join(LinkNameSpaceType::HostNameAndNISDomainName, libc::CLONE_NEWUTS, "uts");
                }
                (LinuxNamespaceType::User, None) => user = true,
                (LinuxNamespaceType::User | LinuxNamespaceType::Mount, Some(_)) => {
                    bail!("{field}.path: a sandbox cannot join a {typ} namespace of the host");
                }
                (LinuxNamespaceType::Pid | LinuxNamespaceType::Cgroup | LinuxNamespaceType::Time, Some(path)) => {
                    // A mistake in it is told all the same.
                    std::fs::metadata(path).with_context(|| format!("{field}.path: {}", path.display()))?;
                    out.warnings
                        .push(format!("{field}.path: ignored: processes of a sandbox are in its own {typ} namespace"));
                }
                _ => {}
            }
        }
        let (uids, gids) = (linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref());
        let mapped = uids.is_some_and(|m| !m.is_empty()) || gids.is_some_and(|m| !m.is_empty());
        if user {
            out.user = Some(IdMaps::of(uids.unwrap_or_default(), gids.unwrap_or_default())?);
        } else if mapped {
            bail!("linux.uidMappings: given without a user namespace in linux.namespaces");
        }
        Ok(out)
    }

    /// CLONE_NEW* of the namespaces that are joined, which no new one takes the place of.
    pub fn joined(&self) -> libc::c_int {
        self.join.iter().fold(0, |flags, join| flags | join.flag)
    }

    /// Moves this process, so that what it makes next is in the namespaces asked for.
    pub fn enter(&self) -> Result<Left> {
        let mut left = Left(Vec::new());
        for join in &self.join {
            if let Err(error) = join.enter(&mut left) {
                left.back()?;
                return Err(error);
            }
        }
        Ok(left)
    }
}

impl Join {
    fn enter(&self, left: &mut Left) -> Result<()> {
        let Join { kind, name, field, path, .. } = self;
        let what = || format!("{field}: {}", path.display());
        let own = format!("/proc/self/ns/{name}");
        let own = File::open(&own).with_context(|| own.clone())?;
        let target = open_namespace(path).with_context(what)?;
        move_into_link_name_space(target.as_fd(), Some(*kind)).map_err(|error| match error {
            rustix::io::Errno::INVAL => anyhow::anyhow!("{}: it is not a namespace of the kind {name}", what()),
            error => anyhow::Error::from(error).context(what()),
        })?;
        left.0.push((own, *kind));
        Ok(())
    }
}

impl Left {
    pub fn back(self) -> Result<()> {
        for (namespace, kind) in self.0.iter().rev() {
            move_into_link_name_space(namespace.as_fd(), Some(*kind)).context("return to the own namespace")?;
        }
        Ok(())
    }
}

/// Opened without waiting, were it a FIFO.
fn open_namespace(path: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    Ok(File::from(open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?))
}

/// Interfaces of this process's network namespace beside the loopback.
pub fn interfaces() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
    names.filter(|name| name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(linux: serde_json::Value) -> Result<Namespaces> {
        let spec = json!({"ociVersion": "1.0.2", "linux": linux});
        Namespaces::of(&crate::spec::bundle::parse(spec.to_string().as_bytes())?.0)
    }

    #[test]
    fn new_and_joined() {
        let n = of(json!({"namespaces": [{"type": "network", "path": "/proc/self/ns/net"}, {"type": "pid"},
            {"type": "uts", "path": ""}]}))
        .expect("valid");
        assert_eq!(n.joined(), libc::CLONE_NEWNET);
        assert!(n.user.is_none());
        let n = of(json!({"namespaces": [{"type": "pid", "path": "/proc/self/ns/pid"}]})).expect("valid");
        assert_eq!(n.warnings.len(), 1);
    }

    #[test]
    fn errors_name_the_field() {
        for (linux, part) in [
            (json!({"namespaces": [{"type": "pid"}, {"type": "pid"}]}), "linux.namespaces[1].type"),
            (json!({"namespaces": [{"type": "network", "path": "x"}]}), "linux.namespaces[0].path"),
            (json!({"namespaces": [{"type": "mount", "path": "/proc/self/ns/mnt"}]}), "linux.namespaces[0].path"),
            (json!({"namespaces": [{"type": "pid", "path": "/no/such"}]}), "linux.namespaces[0].path"),
            (json!({"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}), "linux.uidMappings"),
            (json!({"namespaces": [{"type": "user"}]}), "linux.uidMappings"),
        ] {
            let error = format!("{:#}", of(linux).expect_err(part));
            assert!(error.contains(part), "{error}");
        }
        let n = of(json!({"namespaces": [{"type": "network", "path": "/no/such/netns"}]})).expect("looked at later");
        let error = format!("{:#}", n.enter().map(|_| ()).expect_err("missing"));
        assert!(error.contains("linux.namespaces[0].path: /no/such/netns"), "{error}");
    }
}
