//! A container's mounts, from its configuration.

use alloc::{format, string::String, sync::Arc};

use sentry_abi::config::{ContainerConfig, DeviceNode, Mount as MountConfig, MountSource};

use super::{
    FileSystem, FileType, FsContext, Inode, Mount, MountFlags, NewAttr, NewNode, Path, SetAttr, Walk, dev, gofer,
    make_device, mqueue,
    namei::{self, Caller},
    proc::{ProcFs, configure_sysctls},
    tmpfs::Tmpfs,
    tty::PtsFs,
};
use crate::{
    errno::{EEXIST, EINVAL, ENOENT, ENOTDIR, Errno, Error, Result},
    mm::frames,
    sync::SpinLock,
    task::creds::Creds,
    uts,
};

/// What went wrong with which mount.
#[derive(Debug)]
pub struct SetupError {
    pub what: String,
    pub error: Error,
}

impl SetupError {
    fn new(what: String, error: Error) -> Self {
        SetupError { what, error }
    }

    pub fn errno(&self) -> Errno {
        self.error.errno()
    }
}

static ROOT: SpinLock<Option<Path>> = SpinLock::new(None);

/// The root of the container's mounts: what paths in /proc are relative to. None before it is set up.
pub fn namespace_root() -> Option<Path> {
    ROOT.lock().clone()
}

/// Mounts everything the configuration asks for, the root first.
pub fn setup(config: &ContainerConfig) -> Result<Arc<FsContext>, SetupError> {
    uts::configure(&config.hostname, &config.domainname);
    for unknown in configure_sysctls(&config.sysctls) {
        // Engines set some of these in every container, also in one without a network.
        if unknown.starts_with("net.") {
            crate::warn!("sysctl {unknown} is not there: ignored");
            continue;
        }
        return Err(SetupError::new(format!("linux.sysctl.{unknown}"), ENOENT));
    }
    let Some((root_config, others)) = config.mounts.split_first() else {
        return Err(SetupError::new(String::from("the configuration has no root mount"), EINVAL));
    };
    let failed = |mount: &MountConfig, error| SetupError::new(format!("mount {}", mount.target), error);
    let (fs, inode, source) = source(root_config).map_err(|e| failed(root_config, e))?;
    // Mount points are made before the root becomes read-only.
    let root = Mount::of(fs, inode, &source, MountFlags::empty());
    let root_path = root.root_path();
    *ROOT.lock() = Some(root_path.clone());
    let caller = Caller { root: root_path.clone(), cwd: root_path.clone(), creds: Arc::new(Creds::root()), umask: 0 };
    for mount in others {
        add(&caller, mount).map_err(|e| failed(mount, e))?;
    }
    let cwd = &config.process.cwd;
    if !cwd.is_empty() {
        let failed = |e| SetupError::new(format!("working directory {}", String::from_utf8_lossy(cwd)), e);
        mount_point(&caller, cwd, true).map_err(failed)?;
    }
    for device in &config.devices {
        add_device(&caller, device).map_err(|e| SetupError::new(format!("device {}", device.path), e))?;
    }
    root.set_flags(MountFlags::from_bits_truncate(root_config.flags));
    for path in &config.masked_paths {
        mask(&caller, path).map_err(|e| SetupError::new(format!("mask {path}"), e))?;
    }
    for path in &config.readonly_paths {
        make_read_only(&caller, path).map_err(|e| SetupError::new(format!("make {path} read-only"), e))?;
    }
    let umask = config.process.umask.unwrap_or(0o022) & 0o777;
    Ok(FsContext::new(root_path, umask))
}

/// The file system of a mount, its root, and how /proc/mounts names it.
type Source = (Arc<dyn FileSystem>, Arc<dyn Inode>, String);

fn source(mount: &MountConfig) -> Result<Source> {
    let named = |name: &str| String::from(name);
    Ok(match &mount.source {
        MountSource::Tmpfs { size, mode, uid, gid } => {
            let size = if *size == 0 { frames::usage().0 / 2 } else { *size };
            let fs = Tmpfs::new(size, "tmpfs");
            let mode = if *mode == 0 { 0o1777 } else { *mode };
            let root = fs.make_root(NewAttr { mode, uid: *uid, gid: *gid });
            (fs, root, named("tmpfs"))
        }
        MountSource::Dev => {
            let (fs, root) = dev::filesystem()?;
            (fs, root, named("tmpfs"))
        }
        MountSource::Proc => {
            let (fs, root) = ProcFs::mount();
            (fs, root, named("proc"))
        }
        MountSource::Sysfs => {
            let (fs, root) = ProcFs::mount_sysfs();
            (fs, root, named("sysfs"))
        }
        MountSource::Devpts => {
            let (fs, root) = PtsFs::mount();
            (fs, root, named("devpts"))
        }
        MountSource::Mqueue => {
            let (fs, root) = mqueue::mount();
            (fs, root, named("mqueue"))
        }
        MountSource::Cgroup => {
            let fs = Tmpfs::new(0, "cgroup2");
            let root = fs.make_root(NewAttr { mode: 0o555, uid: 0, gid: 0 });
            (fs, root, named("cgroup2"))
        }
        MountSource::Gofer { index, exclusive, overlay } => {
            let (fs, root) = gofer::mount(*index, *exclusive, *overlay)?;
            let source = if *overlay { "overlay" } else { "gofer" };
            (fs, root, named(source))
        }
    })
}

fn add(caller: &Caller, config: &MountConfig) -> Result<()> {
    let (fs, inode, source) = source(config)?;
    let point = mount_point(caller, config.target.as_bytes(), inode.is_dir())?;
    // An image's link must not move what others rely on, as runc has it.
    if matches!(config.source, MountSource::Proc | MountSource::Sysfs)
        && caller.walk(None).resolve(config.target.as_bytes(), false)?.inode().file_type() == FileType::Symlink
    {
        return Err(ENOTDIR);
    }
    Mount::of(fs, inode, &source, MountFlags::from_bits_truncate(config.flags)).attach(&point)
}

/// Makes a device's node; one that is there already stays as it is. Opening one that the sandbox does not have is ENXIO.
fn add_device(caller: &Caller, device: &DeviceNode) -> Result<()> {
    let path = device.path.as_bytes();
    make_parents(caller, path)?;
    let rdev = make_device(device.major, device.minor);
    let node = match FileType::from_mode(device.mode) {
        Some(FileType::Fifo) => NewNode::Fifo,
        Some(kind @ (FileType::CharDevice | FileType::BlockDevice)) => NewNode::Device { kind, rdev },
        _ => return Err(EINVAL),
    };
    match namei::create(caller, None, path, node, device.mode & 0o7777) {
        Ok(made) => {
            made.inode().set_attr(&SetAttr { uid: Some(device.uid), gid: Some(device.gid), ..SetAttr::default() })
        }
        Err(EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The place of a mount, or the working directory; made if it does not exist, as engines expect.
fn mount_point(caller: &Caller, target: &[u8], dir: bool) -> Result<Path> {
    let mut walk = Walk::new(caller.root.clone(), caller.root.clone(), &caller.creds);
    match walk.resolve(target, true) {
        Err(ENOENT) => {}
        found => return found,
    }
    make_parents(caller, target)?;
    let node = if dir { NewNode::Directory } else { NewNode::Regular };
    match namei::create(caller, None, target, node, 0o755) {
        Ok(_) | Err(EEXIST) => {}
        Err(error) => return Err(error),
    }
    Walk::new(caller.root.clone(), caller.root.clone(), &caller.creds).resolve(target, true)
}

/// Makes the directories above a path.
fn make_parents(caller: &Caller, path: &[u8]) -> Result<()> {
    for (at, _) in path.iter().enumerate().filter(|&(at, &b)| b == b'/' && at > 0) {
        match namei::create(caller, None, &path[..at], NewNode::Directory, 0o755) {
            Ok(_) | Err(EEXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Hides a path behind something empty; nothing to do when it does not exist.
fn mask(caller: &Caller, path: &str) -> Result<()> {
    let found = match caller.walk(None).resolve(path.as_bytes(), true) {
        Ok(found) => found,
        Err(ENOENT | ENOTDIR) => return Ok(()),
        Err(error) => return Err(error),
    };
    let fs = Tmpfs::new(0, "tmpfs");
    let inode: Arc<dyn Inode> = if found.inode().is_dir() {
        fs.make_root(NewAttr { mode: 0o755, uid: 0, gid: 0 })
    } else {
        fs.make_file(String::new(), NewAttr { mode: 0o444, uid: 0, gid: 0 })
    };
    Mount::of(fs, inode, "tmpfs", MountFlags::RDONLY).attach(&found)
}

fn make_read_only(caller: &Caller, path: &str) -> Result<()> {
    let found = match caller.walk(None).resolve(path.as_bytes(), true) {
        Ok(found) => found,
        Err(ENOENT | ENOTDIR) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mount = &found.mount;
    let flags = mount.flags() | MountFlags::RDONLY;
    Mount::new(mount.filesystem.clone(), found.dentry.clone(), &mount.source, flags).attach(&found)
}
