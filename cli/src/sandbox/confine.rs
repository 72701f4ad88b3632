//! What our own processes give up before the application runs: the file system, privileges, and the way to get them
//! back. A layer that the environment refuses is named with --debug and left out; none is needed for the others to work.

use std::{fs, os::fd::OwnedFd};

use anyhow::{Context, Result};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
        mount_remount, move_mount, open_tree, unmount,
    },
    process::{DumpableBehavior, Resource, Rlimit, Signal, chdir, getrlimit, pivot_root, setrlimit},
    thread::{CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags},
};

use super::process;

/// The user that a sandbox runs as when it may choose: nobody.
const NOBODY: u32 = 65534;
/// A directory that exists wherever we can run; the empty root is mounted on it for a moment.
const PLACE: &str = "/proc";

/// Dies with the process that made it.
pub fn die_with_parent() {
    layer("death signal", rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into));
}

/// Tells of a layer that is missing.
pub fn layer(name: &str, result: Result<()>) -> bool {
    match result {
        Ok(()) => {
            log::debug!("confinement: {name}");
            true
        }
        Err(error) => {
            log::debug!("confinement: missing: {name}: {error:#}");
            false
        }
    }
}

/// An empty read-only file system becomes the root. With `proc_fds`, it has only /proc/self/fd, through which an O_PATH
/// descriptor is opened again.
pub fn empty_root(proc_fds: bool) -> bool {
    layer("empty root", make_empty_root(proc_fds))
}

fn make_empty_root(proc_fds: bool) -> Result<()> {
    rustix::fs::stat(PLACE).context(PLACE)?;
    private_mounts()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let process = if proc_fds { Some(own_descriptors()?) } else { None };
    mount("runsc", PLACE, "tmpfs", flags, c"size=64k,mode=0555").context("mount tmpfs")?;
    if let Some(process) = process {
        let target = format!("{PLACE}/proc/self/fd");
        fs::create_dir_all(&target).with_context(|| target.clone())?;
        move_mount(&process, "", CWD, &*target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .context("place /proc/self/fd")?;
    }
    chdir(PLACE).context(PLACE)?;
    pivot_root(".", ".").context("pivot_root")?;
    unmount(".", UnmountFlags::DETACH).context("leave the old root")?;
    chdir("/").context("/")?;
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | flags, c"").context("read-only root")?;
    Ok(())
}

/// Nothing that is mounted in this process's namespace is seen in another.
pub fn private_mounts() -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("private mounts")
}

/// A mount of this process's /proc/self/fd that is attached nowhere. The directory is its root, so that nothing else of
/// procfs can be reached through it.
fn own_descriptors() -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, "/proc/self/fd", flags).context("open_tree /proc/self/fd")
}

/// A mount namespace of its own, where the process was not made in one.
pub fn own_mounts() -> bool {
    layer("mount namespace", process::unshare(UnshareFlags::NEWNS))
}

/// In a new user namespace: the caller keeps its ids, and there are no others.
pub fn map_user((uid, gid): (u32, u32)) {
    let map = || -> Result<()> {
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).context("uid_map")?;
        // Without this the group may not be mapped by someone who is not root.
        fs::write("/proc/self/setgroups", "deny").context("setgroups")?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).context("gid_map")
    };
    layer("user of the caller", map());
}

/// Becomes nobody when it is root, in a user namespace of its own; then it has no capability and cannot gain one.
pub fn drop_privileges() {
    if rustix::process::geteuid().is_root() {
        layer("user nobody", become_nobody());
    }
    layer("user namespace", process::unshare(UnshareFlags::NEWUSER));
    keep_capabilities(CapabilitySet::empty());
    // A change of user made it undumpable, and stubs that inherit that could not be traced.
    layer("traceable stubs", rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(Into::into));
}

fn become_nobody() -> Result<()> {
    rustix::thread::set_thread_groups(&[]).context("setgroups")?;
    let gid = Gid::from_raw(NOBODY);
    rustix::thread::set_thread_res_gid(gid, gid, gid).context("setresgid")?;
    let uid = Uid::from_raw(NOBODY);
    rustix::thread::set_thread_res_uid(uid, uid, uid).context("setresuid")?;
    Ok(())
}

/// Gives up every other capability for good.
pub fn keep_capabilities(keep: CapabilitySet) -> bool {
    let drop = || -> Result<()> {
        let now = rustix::thread::capabilities(None).context("capget")?;
        for cap in CapabilitySet::all().difference(keep).iter() {
            // EINVAL: this kernel has fewer.
            match rustix::thread::remove_capability_from_bounding_set(cap) {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => {
                    log::debug!("confinement: missing: bounding set: {error}");
                    break;
                }
            }
        }
        let _ = rustix::thread::clear_ambient_capability_set();
        let kept = keep & now.permitted;
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets).context("capset")
    };
    let dropped = layer("capabilities", drop());
    layer("no new privileges", rustix::thread::set_no_new_privs(true).map_err(Into::into)) && dropped
}

/// What the gofer needs to act on files as their owners would.
pub fn file_capabilities() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
}

/// As many descriptors as allowed, no core file.
pub fn limits() {
    let files = getrlimit(Resource::Nofile);
    layer("descriptors", setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).map_err(Into::into));
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    layer("no core files", setrlimit(Resource::Core, none).map_err(Into::into));
}

/// Standard streams of our own lead nowhere; what was there belongs to the application.
pub fn null_streams() -> Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context("/dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("stdin")?;
    rustix::stdio::dup2_stdout(&null).context("stdout")?;
    rustix::stdio::dup2_stderr(&null).context("stderr")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::process::{Fork, exit_now, fork};
    use rustix::process::{WaitOptions, waitpid};

    /// Runs `check` in a child with namespaces of its own; the number it returns is the child's code, 0 for success.
    fn in_child(check: impl FnOnce() -> i32) -> Option<i32> {
        let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let wanted = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID;
        match fork(wanted).ok()? {
            Fork::Child => {
                map_user(user);
                exit_now(check())
            }
            Fork::Parent(pid) => waitpid(Some(pid), WaitOptions::empty()).ok().flatten()?.1.exit_status(),
        }
    }

    /// None where the environment has no namespaces for us, which is a layer that is allowed to be missing.
    fn assert_child(check: impl FnOnce() -> i32) {
        assert!(matches!(in_child(check), None | Some(0)));
    }

    #[test]
    fn the_root_is_empty_and_read_only() {
        assert_child(|| {
            if !empty_root(false) {
                return 1;
            }
            let empty = fs::read_dir("/").is_ok_and(|mut dir| dir.next().is_none());
            let closed = fs::write("/x", "").is_err() && fs::read_dir("..").is_ok_and(|mut dir| dir.next().is_none());
            if empty && closed { 0 } else { 2 }
        });
    }

    #[test]
    fn the_gofer_sees_its_descriptors_only() {
        assert_child(|| {
            if !empty_root(true) {
                return 1;
            }
            let names: Vec<_> = fs::read_dir("/").into_iter().flatten().flatten().map(|e| e.file_name()).collect();
            let fds = fs::read_dir("/proc/self/fd").is_ok_and(|dir| dir.count() > 0);
            let above = fs::read_dir("/proc/self/fd/..").into_iter().flatten().count();
            if names == ["proc"] && fds && above == 1 && fs::read("/proc/self/fd/../status").is_err() { 0 } else { 2 }
        });
    }

    #[test]
    fn nothing_is_left_to_regain() {
        assert_child(|| {
            drop_privileges();
            let none =
                rustix::thread::capabilities(None).is_ok_and(|c| c.permitted.is_empty() && c.effective.is_empty());
            let sealed = rustix::thread::no_new_privs().unwrap_or(false);
            if none && sealed { 0 } else { 2 }
        });
    }
}
