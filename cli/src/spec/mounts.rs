//! The mounts of a container: which the gofer serves from the host, and which the sandbox's kernel makes itself.

use std::{
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Mount as OciMount;
use sentry_abi::config::{Mount, MountSource};

use super::names::{MountOption, mount_option};
use crate::flags::settings::Overlay;

/// Each costs a descriptor in the gofer.
const MAX_MOUNTS: usize = 1024;
const PATH_MAX: usize = 4096;

/// A file or directory of the host that the gofer serves; its position is `MountSource::Gofer::index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoot {
    pub path: PathBuf,
    /// No write reaches the host.
    pub readonly: bool,
    /// How errors name it.
    pub what: String,
}

/// How mounts of the host are treated.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub root_exclusive: bool,
    pub mounts_exclusive: bool,
    pub overlay: Overlay,
}

#[derive(Debug, Default)]
pub struct Mounts {
    pub mounts: Vec<Mount>,
    pub roots: Vec<HostRoot>,
    pub warnings: Vec<String>,
}

impl Mounts {
    /// The root file system.
    pub fn root(path: PathBuf, what: &str, readonly: bool, overlay: bool, policy: Policy) -> Mounts {
        let flags = if readonly { libc::MS_RDONLY } else { 0 };
        let source = MountSource::Gofer { index: 0, exclusive: policy.root_exclusive, overlay };
        Mounts {
            mounts: vec![Mount { target: "/".into(), source, flags }],
            roots: vec![HostRoot { path, readonly: readonly || overlay, what: what.into() }],
            warnings: Vec::new(),
        }
    }

    pub fn bind(&mut self, target: String, source: PathBuf, flags: u64, what: String, policy: Policy) -> Result<()> {
        let index = u32::try_from(self.roots.len())?;
        if self.roots.len() >= MAX_MOUNTS {
            bail!("{what}: more than {MAX_MOUNTS} mounts");
        }
        let overlay = policy.overlay == Overlay::All;
        let readonly = overlay || flags & libc::MS_RDONLY != 0;
        self.roots.push(HostRoot { path: source, readonly, what });
        self.mounts.push(Mount {
            target,
            source: MountSource::Gofer { index, exclusive: policy.mounts_exclusive, overlay },
            flags,
        });
        Ok(())
    }

    /// A mount of a config.json.
    pub fn add(&mut self, index: usize, mount: &OciMount, bundle: &Path, policy: Policy) -> Result<()> {
        let field = format!("mounts[{index}]");
        if self.mounts.len() > MAX_MOUNTS {
            bail!("{field}: more than {MAX_MOUNTS} mounts");
        }
        let target = target(mount.destination()).with_context(|| format!("{field}.destination"))?;
        let options = Options::parse(mount.options().as_deref().unwrap_or_default(), &field, &mut self.warnings)?;
        let flags = options.flags;
        let typ = mount.typ().as_deref().unwrap_or("");
        if typ == "bind" || options.bind {
            let source = match mount.source() {
                Some(source) if !source.as_os_str().is_empty() => bundle.join(source),
                _ => bail!("{field}.source: a bind mount needs one"),
            };
            if source.as_os_str().len() >= PATH_MAX {
                bail!("{field}.source: the path is too long");
            }
            return self.bind(target, source, flags, format!("{field}.source"), policy);
        }
        let source = match typ {
            "proc" => MountSource::Proc,
            "sysfs" => MountSource::Sysfs,
            // A tmpfs on /dev is the way configurations ask for the standard devices.
            "tmpfs" | "devtmpfs" if target == "/dev" => MountSource::Dev,
            "tmpfs" => MountSource::Tmpfs {
                size: options.size.unwrap_or(0),
                mode: options.mode.unwrap_or(0),
                uid: options.uid,
                gid: options.gid,
            },
            "devtmpfs" => MountSource::Dev,
            "devpts" => MountSource::Devpts,
            "mqueue" => MountSource::Mqueue,
            "cgroup" | "cgroup2" => MountSource::Cgroup,
            "" => bail!("{field}.type: missing"),
            other => bail!("{field}.type: file system {other:?} is not supported"),
        };
        self.mounts.push(Mount { target, source, flags });
        Ok(())
    }

    /// What the OCI specification wants in every container and the configuration left out.
    pub fn add_standard(&mut self) {
        let standard = [
            ("/proc", MountSource::Proc, libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC),
            ("/dev", MountSource::Dev, libc::MS_NOSUID),
            ("/dev/pts", MountSource::Devpts, libc::MS_NOSUID | libc::MS_NOEXEC),
            (
                "/dev/shm",
                MountSource::Tmpfs { size: 0, mode: 0o1777, uid: 0, gid: 0 },
                libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            ),
            ("/sys", MountSource::Sysfs, libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY),
        ];
        for (target, source, flags) in standard {
            // A mount of the host on /dev brings what it has.
            let covered = |m: &Mount| {
                m.target == target
                    || (m.target == "/dev"
                        && target.starts_with("/dev/")
                        && matches!(m.source, MountSource::Gofer { .. }))
            };
            if self.mounts.iter().any(covered) {
                continue;
            }
            // Before the configured ones, which may lie below it, but behind what it lies below itself.
            let parent = target.starts_with("/dev/").then(|| self.mounts.iter().position(|m| m.target == "/dev"));
            let place = parent.flatten().map_or(1, |dev| dev + 1);
            self.mounts.insert(place, Mount { target: target.into(), source, flags });
        }
    }
}

/// A mount point: absolute, without `.`, `..` and doubled slashes.
pub fn target(path: &Path) -> Result<String> {
    if path.as_os_str().len() >= PATH_MAX {
        bail!("the path is too long");
    }
    if path.as_os_str().is_empty() {
        bail!("missing");
    }
    let mut clean = String::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                clean.push('/');
                clean.push_str(std::str::from_utf8(name.as_bytes()).context("the path is not UTF-8")?);
            }
            Component::ParentDir => match clean.rfind('/') {
                Some(at) => clean.truncate(at),
                None => bail!("{} leads out of the root", path.display()),
            },
            Component::Prefix(_) => bail!("{} is not a path of Linux", path.display()),
        }
    }
    if clean.is_empty() {
        bail!("{} is the root itself", path.display());
    }
    Ok(clean)
}

#[derive(Default)]
struct Options {
    flags: u64,
    bind: bool,
    size: Option<u64>,
    mode: Option<u32>,
    uid: u32,
    gid: u32,
}

impl Options {
    fn parse(options: &[String], field: &str, warnings: &mut Vec<String>) -> Result<Options> {
        let mut out = Options::default();
        for option in options {
            match mount_option(option) {
                Some(MountOption::Set(flag)) => out.flags |= flag,
                Some(MountOption::Clear(flag)) => out.flags &= !flag,
                Some(MountOption::Bind) => out.bind = true,
                Some(MountOption::Propagation | MountOption::NoEffect) => {}
                None => out.data(option, field, warnings)?,
            }
        }
        Ok(out)
    }

    /// Options of one file system, such as `size=64m`.
    fn data(&mut self, option: &str, field: &str, warnings: &mut Vec<String>) -> Result<()> {
        let bad = || format!("{field}.options: {option:?} is not valid");
        match option.split_once('=') {
            Some(("size", value)) => self.size = Some(size(value).with_context(bad)?),
            Some(("mode", value)) => {
                let mode = u32::from_str_radix(value, 8).with_context(bad)?;
                if mode > 0o7777 {
                    bail!(bad());
                }
                self.mode = Some(mode);
            }
            Some(("uid", value)) => self.uid = value.parse().with_context(bad)?,
            Some(("gid", value)) => self.gid = value.parse().with_context(bad)?,
            Some(("ptmxmode" | "nr_inodes" | "nr_blocks", _)) => {}
            _ if option == "newinstance" => {}
            _ => warnings.push(format!("{field}.options: {option:?} is unknown, ignored")),
        }
        Ok(())
    }
}

/// Bytes with a suffix k, m, g or t, or per cent of memory, as tmpfs(5) takes them.
fn size(text: &str) -> Result<u64> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent: u64 = percent.parse()?;
        if percent > 100 {
            bail!("more than all memory");
        }
        // 0 is the default, half of memory.
        return Ok(if percent == 50 { 0 } else { crate::host::memory_total() / 100 * percent });
    }
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_lowercase) {
        Some(b'k') => (&text[..text.len() - 1], 10),
        Some(b'm') => (&text[..text.len() - 1], 20),
        Some(b'g') => (&text[..text.len() - 1], 30),
        Some(b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse()?;
    number.checked_mul(1 << shift).context("too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { root_exclusive: true, mounts_exclusive: false, overlay: Overlay::None };

    fn add(json: &str) -> Result<Mounts> {
        let mount: OciMount = serde_json::from_str(json)?;
        let mut mounts = Mounts::root("/r".into(), "root.path", false, false, POLICY);
        mounts.add(7, &mount, Path::new("/bundle"), POLICY)?;
        Ok(mounts)
    }

    #[test]
    fn kinds() {
        let m = add(r#"{"destination":"/t/./x/../y","type":"tmpfs","source":"tmpfs","options":["ro","nosuid","size=64k","mode=700"]}"#).expect("tmpfs");
        assert_eq!(m.mounts[1].target, "/t/y");
        assert_eq!(m.mounts[1].flags, libc::MS_RDONLY | libc::MS_NOSUID);
        assert_eq!(m.mounts[1].source, MountSource::Tmpfs { size: 65536, mode: 0o700, uid: 0, gid: 0 });
        let m = add(r#"{"destination":"/v","type":"none","source":"data","options":["rbind","ro"]}"#).expect("bind");
        assert_eq!(
            m.roots[1],
            HostRoot { path: "/bundle/data".into(), readonly: true, what: "mounts[7].source".into() }
        );
        let m = add(r#"{"destination":"/dev","type":"tmpfs","source":"tmpfs"}"#).expect("dev");
        assert_eq!(m.mounts[1].source, MountSource::Dev);
    }

    #[test]
    fn errors_name_the_field() {
        for (json, part) in [
            (r#"{"destination":"/x","type":"ext4","source":"/dev/sda"}"#, "mounts[7].type"),
            (r#"{"destination":"/x","type":"bind"}"#, "mounts[7].source"),
            (r#"{"destination":"/../x","type":"proc"}"#, "mounts[7].destination"),
            (r#"{"destination":"/","type":"proc"}"#, "mounts[7].destination"),
            (r#"{"destination":"/x","type":"tmpfs","options":["size=99999999999999999999"]}"#, "size"),
            (r#"{"destination":"/x","type":"tmpfs","options":["size=17179869184t"]}"#, "size"),
            (r#"{"destination":"/x","type":"tmpfs","options":["mode=99"]}"#, "mode"),
        ] {
            let error = format!("{:#}", add(json).map(|_| ()).expect_err(part));
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn standard_mounts_come_before_what_lies_below_them() {
        let mut m = add(r#"{"destination":"/dev/shm","type":"tmpfs","source":"tmpfs"}"#).expect("shm");
        m.add_standard();
        let targets: Vec<&str> = m.mounts.iter().map(|m| m.target.as_str()).collect();
        assert_eq!(targets[0], "/");
        let at = |t: &str| targets.iter().position(|x| *x == t).unwrap_or_else(|| panic!("{t} in {targets:?}"));
        assert!(at("/dev") < at("/dev/pts") && at("/dev") < at("/dev/shm"));
        assert_eq!(targets.iter().filter(|t| **t == "/dev/shm").count(), 1);
        assert!(targets.contains(&"/proc") && targets.contains(&"/sys"));
    }
}
