//! Credentials: who a task is, and what it may do (credentials(7), capabilities(7)).

use alloc::vec::Vec;

use sentry_abi::config::{Capabilities, ProcessConfig};

use super::exec::FileOwner;

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
    pub const LINUX_IMMUTABLE: u32 = 9;
    pub const NET_BIND_SERVICE: u32 = 10;
    pub const NET_ADMIN: u32 = 12;
    pub const NET_RAW: u32 = 13;
    pub const IPC_OWNER: u32 = 15;
    pub const SYS_CHROOT: u32 = 18;
    pub const SYS_PTRACE: u32 = 19;
    pub const SYS_ADMIN: u32 = 21;
    pub const SYS_NICE: u32 = 23;
    pub const SYS_RESOURCE: u32 = 24;
    pub const SYS_TIME: u32 = 25;
    pub const SYS_TTY_CONFIG: u32 = 26;
    pub const MKNOD: u32 = 27;
    pub const LEASE: u32 = 28;
    pub const SYSLOG: u32 = 34;
    pub const LAST: u32 = 40;
}

/// Every capability there is.
pub const ALL_CAPS: u64 = (1 << (cap::LAST + 1)) - 1;
/// What a change of the file-system uid takes away and gives back (capabilities(7)).
const FS_CAPS: u64 = 1 << cap::CHOWN
    | 1 << cap::DAC_OVERRIDE
    | 1 << cap::DAC_READ_SEARCH
    | 1 << cap::FOWNER
    | 1 << cap::FSETID
    | 1 << cap::LINUX_IMMUTABLE
    | 1 << cap::MKNOD;

/// Securebits of <linux/securebits.h>.
pub mod securebits {
    pub const NOROOT: u32 = 1 << 0;
    pub const NO_SETUID_FIXUP: u32 = 1 << 2;
    pub const KEEP_CAPS: u32 = 1 << 4;
    pub const NO_CAP_AMBIENT_RAISE: u32 = 1 << 6;
    /// Each bit and its lock.
    pub const ALL: u32 = 0xff;
    pub const LOCKS: u32 = 0xaa;
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
    pub securebits: u32,
}

impl Creds {
    /// uid 0 with every capability: what the sentry itself acts as.
    pub fn root() -> Self {
        let caps =
            Capabilities { bounding: ALL_CAPS, effective: ALL_CAPS, inheritable: 0, permitted: ALL_CAPS, ambient: 0 };
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
            caps: known(config.capabilities),
            no_new_privs: config.no_new_privileges,
            securebits: 0,
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

    /// As [`Creds::in_group`], by the effective group.
    pub fn in_effective_group(&self, gid: u32) -> bool {
        self.egid == gid || self.groups.binary_search(&gid).is_ok()
    }

    /// Capability changes that follow a change of uids (capabilities(7), "Effect of user ID changes").
    pub fn fix_after_setuid(&mut self, old: &Creds) {
        if self.securebits & securebits::NO_SETUID_FIXUP != 0 {
            return;
        }
        let had_root = old.uid == 0 || old.euid == 0 || old.suid == 0;
        if had_root && self.uid != 0 && self.euid != 0 && self.suid != 0 {
            if self.securebits & securebits::KEEP_CAPS == 0 {
                self.caps.permitted = 0;
                self.caps.effective = 0;
            }
            self.caps.ambient = 0;
        }
        if old.euid == 0 && self.euid != 0 {
            self.caps.effective = 0;
        }
        if old.euid != 0 && self.euid == 0 {
            self.caps.effective = self.caps.permitted;
        }
        self.fix_after_setfsuid(old);
    }

    pub fn fix_after_setfsuid(&mut self, old: &Creds) {
        if self.securebits & securebits::NO_SETUID_FIXUP != 0 {
            return;
        }
        if old.fsuid == 0 && self.fsuid != 0 {
            self.caps.effective &= !FS_CAPS;
        }
        if old.fsuid != 0 && self.fsuid == 0 {
            self.caps.effective |= self.caps.permitted & FS_CAPS;
        }
    }

    /// Those after exec of a file with this owner and mode, and whether the program must be careful (AT_SECURE).
    pub fn after_exec(&self, owner: &FileOwner) -> (Creds, bool) {
        let mut new = self.clone();
        let mut changed = false;
        if !owner.nosuid && !self.no_new_privs {
            if owner.mode & 0o4000 != 0 {
                new.euid = owner.uid;
            }
            // Without group execute the bit means mandatory locking.
            if owner.mode & 0o2010 == 0o2010 {
                new.egid = owner.gid;
            }
            changed = new.euid != self.euid || new.egid != self.egid;
        }
        new.suid = new.euid;
        new.fsuid = new.euid;
        new.sgid = new.egid;
        new.fsgid = new.egid;
        new.securebits &= !securebits::KEEP_CAPS;
        if changed {
            new.caps.ambient = 0;
        }
        let root = self.securebits & securebits::NOROOT == 0;
        if root && (new.uid == 0 || new.euid == 0) {
            new.caps.permitted = (new.caps.inheritable | new.caps.bounding) & ALL_CAPS;
            if self.no_new_privs {
                new.caps.permitted &= self.caps.permitted;
            }
            new.caps.permitted |= new.caps.ambient;
            new.caps.effective = if new.euid == 0 { new.caps.permitted } else { new.caps.ambient };
        } else {
            new.caps.permitted = new.caps.ambient;
            new.caps.effective = new.caps.ambient;
        }
        let secure = new.uid != new.euid
            || new.gid != new.egid
            || (new.uid != 0 && new.caps.permitted & !new.caps.ambient != 0)
            || changed;
        (new, secure)
    }
}

/// Without the bits of capabilities that do not exist.
fn known(caps: Capabilities) -> Capabilities {
    Capabilities {
        bounding: caps.bounding & ALL_CAPS,
        effective: caps.effective & ALL_CAPS,
        inheritable: caps.inheritable & ALL_CAPS,
        permitted: caps.permitted & ALL_CAPS,
        ambient: caps.ambient & caps.permitted & caps.inheritable & ALL_CAPS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_root_drops_capabilities() {
        let old = Creds::root();
        let mut new = old.clone();
        (new.uid, new.euid, new.suid, new.fsuid) = (1000, 1000, 1000, 1000);
        new.fix_after_setuid(&old);
        assert_eq!((new.caps.effective, new.caps.permitted), (0, 0));
    }

    #[test]
    fn a_seteuid_keeps_permitted_and_comes_back() {
        let old = Creds::root();
        let mut user = old.clone();
        (user.euid, user.fsuid) = (1000, 1000);
        user.fix_after_setuid(&old);
        assert_eq!((user.caps.effective, user.caps.permitted), (0, ALL_CAPS));
        let mut back = user.clone();
        (back.euid, back.fsuid) = (0, 0);
        back.fix_after_setuid(&user);
        assert_eq!(back.caps.effective, ALL_CAPS);
    }

    #[test]
    fn set_user_id_files_give_the_owner_unless_forbidden() {
        let mut user = Creds::root();
        (user.uid, user.euid, user.suid, user.fsuid) = (1000, 1000, 1000, 1000);
        (user.caps.effective, user.caps.permitted) = (0, 0);
        let owner = FileOwner { mode: 0o104755, uid: 0, gid: 0, nosuid: false };
        let (new, secure) = user.after_exec(&owner);
        assert_eq!((new.uid, new.euid, new.suid, secure), (1000, 0, 0, true));
        assert_eq!(new.caps.effective, ALL_CAPS);
        user.no_new_privs = true;
        let (new, secure) = user.after_exec(&owner);
        assert_eq!((new.euid, new.caps.effective, secure), (1000, 0, false));
    }
}
