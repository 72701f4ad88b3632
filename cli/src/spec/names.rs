//! Names of capabilities, limits and mount options as numbers of the kernel's headers.

use oci_spec::runtime::{Capability, PosixRlimitType};

/// By number, from <linux/capability.h>.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

pub const ALL_CAPABILITIES: u64 = (1 << CAPABILITIES.len()) - 1;
pub const CAP_NET_RAW: u64 = 1 << 13;

/// All capabilities as a config.json names them.
pub fn capability_names() -> Vec<String> {
    CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect()
}

/// The bit of a capability.
pub fn capability(cap: Capability) -> Option<u64> {
    let name = cap.to_string();
    CAPABILITIES.iter().position(|n| *n == name).map(|bit| 1 << bit)
}

/// RLIMIT_* of <sys/resource.h>.
pub fn rlimit(typ: PosixRlimitType) -> u32 {
    use PosixRlimitType::*;
    match typ {
        RlimitCpu => libc::RLIMIT_CPU,
        RlimitFsize => libc::RLIMIT_FSIZE,
        RlimitData => libc::RLIMIT_DATA,
        RlimitStack => libc::RLIMIT_STACK,
        RlimitCore => libc::RLIMIT_CORE,
        RlimitRss => libc::RLIMIT_RSS,
        RlimitNproc => libc::RLIMIT_NPROC,
        RlimitNofile => libc::RLIMIT_NOFILE,
        RlimitMemlock => libc::RLIMIT_MEMLOCK,
        RlimitAs => libc::RLIMIT_AS,
        RlimitLocks => libc::RLIMIT_LOCKS,
        RlimitSigpending => libc::RLIMIT_SIGPENDING,
        RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        RlimitNice => libc::RLIMIT_NICE,
        RlimitRtprio => libc::RLIMIT_RTPRIO,
        RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// What an option of a mount means.
#[derive(Clone, Copy)]
pub enum MountOption {
    Set(u64),
    Clear(u64),
    /// Says nothing to a sandbox: mounts are never propagated out of it.
    Propagation,
    /// About how the host keeps a file system.
    NoEffect,
    /// A file or directory of the host, with what is mounted below it or without.
    Bind,
}

pub const MOUNT_OPTIONS: &[(&str, MountOption)] = &[
    ("ro", MountOption::Set(libc::MS_RDONLY)),
    ("rw", MountOption::Clear(libc::MS_RDONLY)),
    ("nosuid", MountOption::Set(libc::MS_NOSUID)),
    ("suid", MountOption::Clear(libc::MS_NOSUID)),
    ("nodev", MountOption::Set(libc::MS_NODEV)),
    ("dev", MountOption::Clear(libc::MS_NODEV)),
    ("noexec", MountOption::Set(libc::MS_NOEXEC)),
    ("exec", MountOption::Clear(libc::MS_NOEXEC)),
    ("sync", MountOption::Set(libc::MS_SYNCHRONOUS)),
    ("async", MountOption::Clear(libc::MS_SYNCHRONOUS)),
    ("dirsync", MountOption::Set(libc::MS_DIRSYNC)),
    ("noatime", MountOption::Set(libc::MS_NOATIME)),
    ("atime", MountOption::Clear(libc::MS_NOATIME)),
    ("nodiratime", MountOption::Set(libc::MS_NODIRATIME)),
    ("diratime", MountOption::Clear(libc::MS_NODIRATIME)),
    ("relatime", MountOption::Set(libc::MS_RELATIME)),
    ("norelatime", MountOption::Clear(libc::MS_RELATIME)),
    ("strictatime", MountOption::Set(libc::MS_STRICTATIME)),
    ("nostrictatime", MountOption::Clear(libc::MS_STRICTATIME)),
    // With what is mounted below, which the gofer serves as part of the mount.
    ("rro", MountOption::Set(libc::MS_RDONLY)),
    ("rrw", MountOption::Clear(libc::MS_RDONLY)),
    ("rnosuid", MountOption::Set(libc::MS_NOSUID)),
    ("rsuid", MountOption::Clear(libc::MS_NOSUID)),
    ("rnodev", MountOption::Set(libc::MS_NODEV)),
    ("rdev", MountOption::Clear(libc::MS_NODEV)),
    ("rnoexec", MountOption::Set(libc::MS_NOEXEC)),
    ("rexec", MountOption::Clear(libc::MS_NOEXEC)),
    ("rnoatime", MountOption::Set(libc::MS_NOATIME)),
    ("ratime", MountOption::Clear(libc::MS_NOATIME)),
    ("rnodiratime", MountOption::Set(libc::MS_NODIRATIME)),
    ("rdiratime", MountOption::Clear(libc::MS_NODIRATIME)),
    ("rrelatime", MountOption::Set(libc::MS_RELATIME)),
    ("rnorelatime", MountOption::Clear(libc::MS_RELATIME)),
    ("rstrictatime", MountOption::Set(libc::MS_STRICTATIME)),
    ("rnostrictatime", MountOption::Clear(libc::MS_STRICTATIME)),
    ("lazytime", MountOption::NoEffect),
    ("nolazytime", MountOption::NoEffect),
    ("iversion", MountOption::NoEffect),
    ("noiversion", MountOption::NoEffect),
    ("mand", MountOption::NoEffect),
    ("nomand", MountOption::NoEffect),
    ("silent", MountOption::NoEffect),
    ("loud", MountOption::NoEffect),
    ("remount", MountOption::NoEffect),
    ("acl", MountOption::NoEffect),
    ("noacl", MountOption::NoEffect),
    ("bind", MountOption::Bind),
    ("rbind", MountOption::Bind),
    ("defaults", MountOption::Propagation),
    ("private", MountOption::Propagation),
    ("rprivate", MountOption::Propagation),
    ("slave", MountOption::Propagation),
    ("rslave", MountOption::Propagation),
    ("shared", MountOption::Propagation),
    ("rshared", MountOption::Propagation),
    ("unbindable", MountOption::Propagation),
    ("runbindable", MountOption::Propagation),
];

pub fn mount_option(name: &str) -> Option<MountOption> {
    MOUNT_OPTIONS.iter().find(|(n, _)| *n == name).map(|(_, option)| *option)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_their_numbers() {
        assert_eq!(capability(Capability::Chown), Some(1));
        assert_eq!(capability(Capability::NetRaw), Some(CAP_NET_RAW));
        assert_eq!(capability(Capability::SysAdmin), Some(1 << 21));
        assert_eq!(capability(Capability::CheckpointRestore), Some(1 << 40));
    }
}
