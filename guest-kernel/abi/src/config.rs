//! What the sandbox is told about its containers: encoded with postcard behind the boot parameters, made by the CLI from an
//! OCI config.json (or by `do`), checked there.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct SandboxConfig {
    pub container: ContainerConfig,
    pub strace: Strace,
    /// Most verbose level sent with `hostcall::Op::Log`.
    pub log_level: u8,
    /// Bytes of application memory (size of the user region in use).
    pub memory_limit: u64,
    /// Tasks the sandbox may have.
    pub pids_limit: u32,
    pub watchdog_panics: bool,
    /// Init is made ready, and begins when [`crate::control::Request::Start`] comes.
    pub hold: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Strace {
    pub enabled: bool,
    /// Names of the calls to show; empty: all.
    pub only: Vec<String>,
    /// Bytes of a buffer shown.
    pub max_size: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct ContainerConfig {
    pub id: String,
    pub hostname: String,
    pub domainname: String,
    pub process: ProcessConfig,
    /// The first is the root (`target` "/"); the others in the order they are mounted.
    pub mounts: Vec<Mount>,
    /// Paths hidden behind an empty file or directory, and paths made read-only.
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    /// Name and value, e.g. `net.core.somaxconn`.
    pub sysctls: Vec<(String, String)>,
    /// Made where they do not exist.
    pub devices: Vec<DeviceNode>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct ProcessConfig {
    /// Path is searched in PATH of `env` when it holds no slash. Bytes: not every argument is UTF-8.
    pub args: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    pub cwd: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub umask: Option<u32>,
    pub capabilities: Capabilities,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub oom_score_adj: Option<i32>,
    /// Descriptors 0-2 (and above with --preserve-fds), in order.
    pub stdio: Vec<Stdio>,
    /// Descriptors 0-2 are a terminal of the host and it is the controlling terminal.
    pub terminal: bool,
}

/// Bit sets by capability number, as in `struct __user_cap_data_struct`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Rlimit {
    /// RLIMIT_* of <sys/resource.h>.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// One of the container's inherited descriptors: what fstat(2) and fcntl(2) said on the host.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Stdio {
    /// Index in the console device.
    pub index: u32,
    /// Descriptor number in the container.
    pub fd: u32,
    /// st_mode, st_rdev.
    pub mode: u32,
    pub rdev: u64,
    /// O_ACCMODE | O_APPEND | O_NONBLOCK flags.
    pub flags: u32,
    /// Whether it is a terminal.
    pub tty: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Mount {
    pub target: String,
    pub source: MountSource,
    /// MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, ... of <sys/mount.h>.
    pub flags: u64,
}

/// A device that a container has beside the usual ones.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DeviceNode {
    pub path: String,
    /// S_IFCHR, S_IFBLK or S_IFIFO, and permission bits.
    pub mode: u32,
    pub major: u32,
    pub minor: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum MountSource {
    /// Directory or file number `index` that the gofer has opened. `exclusive`: nobody else changes it, caches never go stale.
    /// `overlay`: writes stay in memory.
    Gofer {
        index: u32,
        exclusive: bool,
        overlay: bool,
    },
    /// `size` 0: half of memory. `mode` 0: 01777.
    Tmpfs {
        size: u64,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Proc,
    Sysfs,
    /// The container's /dev: null, zero, full, random, urandom, tty, console, pts, shm, mqueue.
    Dev,
    Devpts,
    Mqueue,
    /// Read-only empty cgroup file system.
    Cgroup,
}
