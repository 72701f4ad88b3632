//! Credentials: who a task is, and what it may do (credentials(7), capabilities(7)).

use alloc::vec::Vec;

use sentry_abi::config::{Capabilities, ProcessConfig};

/// CAP_* numbers.
pub mod cap {
    pub const CHOWN: u32 = 0;
    pub const DAC_OVERRIDE: u32 = 1;
    pub const DAC_READ_SEARCH: u32 = 2;
    pub const FOWNER: u32 = 3;
    pub const FSETID: u32 = 4;
    pub const KILL: u32 = 5;
    pub const SETGID: u32 = 6;
    pub const SETUID: u32 = 7;
    pub const SETPCAP: u32 = 8;
    pub const SYS_CHROOT: u32 = 18;
    pub const SYS_PTRACE: u32 = 19;
    pub const SYS_ADMIN: u32 = 21;
    pub const SYS_NICE: u32 = 23;
    pub const SYS_RESOURCE: u32 = 24;
    pub const SYS_TIME: u32 = 25;
    pub const SYS_TTY_CONFIG: u32 = 26;
    pub const MKNOD: u32 = 27;
    pub const LEASE: u32 = 28;
    pub const LAST: u32 = 40;
}

/// Immutable once a task has it; changes make a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Creds {
    pub uid: u32,
    pub gid: u32,
    pub euid: u32,
    pub egid: u32,
    pub suid: u32,
    pub sgid: u32,
    pub fsuid: u32,
    pub fsgid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
    pub caps: Capabilities,
    pub no_new_privs: bool,
}

impl Creds {
    /// uid 0 with every capability: what the sentry itself acts as.
    pub fn root() -> Self {
        let all = (1 << (cap::LAST + 1)) - 1;
        let caps = Capabilities { bounding: all, effective: all, inheritable: 0, permitted: all, ambient: 0 };
        Creds { caps, ..Creds::default() }
    }

    /// What a container's first process starts with.
    pub fn from_config(config: &ProcessConfig) -> Self {
        let mut groups = config.additional_gids.clone();
        groups.sort_unstable();
        groups.dedup();
        let (uid, gid) = (config.uid, config.gid);
        Creds {
            uid,
            gid,
            euid: uid,
            egid: gid,
            suid: uid,
            sgid: gid,
            fsuid: uid,
            fsgid: gid,
            groups,
            caps: config.capabilities,
            no_new_privs: config.no_new_privileges,
        }
    }

    /// Whether an effective capability is held.
    #[inline]
    pub fn capable(&self, cap: u32) -> bool {
        self.caps.effective >> cap & 1 != 0
    }

    /// Whether `gid` is the file system group or a supplementary one.
    pub fn in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.groups.binary_search(&gid).is_ok()
    }

    /// As access(2) sees the caller: real ids, and root's capabilities only for a real root.
    pub fn for_access(&self) -> Self {
        let mut creds = self.clone();
        creds.fsuid = self.uid;
        creds.fsgid = self.gid;
        creds.caps.effective = if self.uid == 0 { self.caps.permitted } else { 0 };
        creds
    }
}
