//! User, group and capability system calls (credentials(7), capabilities(7)).

use super::{
    Creds, Current, Pid,
    creds::{ALL_CAPS, cap},
    table,
};
use crate::{
    errno::{EFAULT, EINVAL, EPERM, ESRCH, Result},
    mm::user::{UserAddr, UserPtr},
    syscall::{Level::*, Syscall},
    syscalls,
};

syscalls! { pub CALLS;
    102 getuid() = getuid, Full, "", "ident";
    104 getgid() = getgid, Full, "", "ident";
    105 setuid(uid: u32) = setuid, Full, "", "ident";
    106 setgid(gid: u32) = setgid, Full, "", "ident";
    107 geteuid() = geteuid, Full, "", "ident";
    108 getegid() = getegid, Full, "", "ident";
    113 setreuid(ruid: u32, euid: u32) = setreuid, Full, "", "ident";
    114 setregid(rgid: u32, egid: u32) = setregid, Full, "", "ident";
    115 getgroups(size: i32, list: UserPtr<u32>) = getgroups, Full, "", "ident";
    116 setgroups(size: i32, list: UserPtr<u32>) = setgroups, Full, "", "ident";
    117 setresuid(ruid: u32, euid: u32, suid: u32) = setresuid, Full, "", "ident";
    118 getresuid(ruid: UserPtr<u32>, euid: UserPtr<u32>, suid: UserPtr<u32>) = getresuid, Full, "", "ident";
    119 setresgid(rgid: u32, egid: u32, sgid: u32) = setresgid, Full, "", "ident";
    120 getresgid(rgid: UserPtr<u32>, egid: UserPtr<u32>, sgid: UserPtr<u32>) = getresgid, Full, "", "ident";
    122 setfsuid(uid: u32) = setfsuid, Full, "", "ident";
    123 setfsgid(gid: u32) = setfsgid, Full, "", "ident";
    125 capget(header: UserPtr<CapHeader>, data: UserPtr<[CapData; 2]>) = capget, Full, "", "ident";
    126 capset(header: UserPtr<CapHeader>, data: UserPtr<[CapData; 2]>) = capset, Full, "", "ident";
}

/// "Leave as it is" of the set*id calls.
const KEEP: u32 = u32::MAX;
const MAX_GROUPS: i32 = 65536;

fn getuid(cur: &mut Current) -> Result<u32> {
    Ok(cur.task.creds().uid)
}

fn geteuid(cur: &mut Current) -> Result<u32> {
    Ok(cur.task.creds().euid)
}

fn getgid(cur: &mut Current) -> Result<u32> {
    Ok(cur.task.creds().gid)
}

fn getegid(cur: &mut Current) -> Result<u32> {
    Ok(cur.task.creds().egid)
}

/// Installs new uids: capabilities follow, and a change of effective ids makes the process undumpable.
fn change(cur: &Current, old: &Creds, mut new: Creds, uids: bool) {
    if uids {
        new.fix_after_setuid(old);
    }
    if new.euid != old.euid || new.egid != old.egid || new.fsuid != old.fsuid || new.fsgid != old.fsgid {
        cur.task.process.dumpable.store(0, core::sync::atomic::Ordering::Relaxed);
        cur.task.parent_death_signal.store(0, core::sync::atomic::Ordering::Relaxed);
    }
    cur.task.set_creds(new);
}

fn setuid(cur: &mut Current, uid: u32) -> Result<()> {
    let old = cur.task.creds();
    let mut new = (*old).clone();
    if uid == KEEP {
        return Err(EINVAL);
    }
    if old.capable(cap::SETUID) {
        new.uid = uid;
        new.suid = uid;
    } else if uid != old.uid && uid != old.suid {
        return Err(EPERM);
    }
    new.euid = uid;
    new.fsuid = uid;
    change(cur, &old, new, true);
    Ok(())
}

fn setgid(cur: &mut Current, gid: u32) -> Result<()> {
    let old = cur.task.creds();
    let mut new = (*old).clone();
    if gid == KEEP {
        return Err(EINVAL);
    }
    if old.capable(cap::SETGID) {
        new.gid = gid;
        new.sgid = gid;
    } else if gid != old.gid && gid != old.sgid {
        return Err(EPERM);
    }
    new.egid = gid;
    new.fsgid = gid;
    change(cur, &old, new, false);
    Ok(())
}

fn setreuid(cur: &mut Current, ruid: u32, euid: u32) -> Result<()> {
    let old = cur.task.creds();
    let mut new = (*old).clone();
    let privileged = old.capable(cap::SETUID);
    if ruid != KEEP {
        if ruid != old.uid && ruid != old.euid && !privileged {
            return Err(EPERM);
        }
        new.uid = ruid;
    }
    if euid != KEEP {
        if ![old.uid, old.euid, old.suid].contains(&euid) && !privileged {
            return Err(EPERM);
        }
        new.euid = euid;
    }
    if ruid != KEEP || (euid != KEEP && euid != old.uid) {
        new.suid = new.euid;
    }
    new.fsuid = new.euid;
    change(cur, &old, new, true);
    Ok(())
}

fn setregid(cur: &mut Current, rgid: u32, egid: u32) -> Result<()> {
    let old = cur.task.creds();
    let mut new = (*old).clone();
    let privileged = old.capable(cap::SETGID);
    if rgid != KEEP {
        if rgid != old.gid && rgid != old.egid && !privileged {
            return Err(EPERM);
        }
        new.gid = rgid;
    }
    if egid != KEEP {
        if ![old.gid, old.egid, old.sgid].contains(&egid) && !privileged {
            return Err(EPERM);
        }
        new.egid = egid;
    }
    if rgid != KEEP || (egid != KEEP && egid != old.gid) {
        new.sgid = new.egid;
    }
    new.fsgid = new.egid;
    change(cur, &old, new, false);
    Ok(())
}

fn setresuid(cur: &mut Current, ruid: u32, euid: u32, suid: u32) -> Result<()> {
    let old = cur.task.creds();
    let own = [old.uid, old.euid, old.suid];
    if !old.capable(cap::SETUID) && [ruid, euid, suid].iter().any(|id| *id != KEEP && !own.contains(id)) {
        return Err(EPERM);
    }
    let mut new = (*old).clone();
    let pick = |wanted: u32, old: u32| if wanted == KEEP { old } else { wanted };
    new.uid = pick(ruid, old.uid);
    new.euid = pick(euid, old.euid);
    new.suid = pick(suid, old.suid);
    new.fsuid = new.euid;
    change(cur, &old, new, true);
    Ok(())
}

fn setresgid(cur: &mut Current, rgid: u32, egid: u32, sgid: u32) -> Result<()> {
    let old = cur.task.creds();
    let own = [old.gid, old.egid, old.sgid];
    if !old.capable(cap::SETGID) && [rgid, egid, sgid].iter().any(|id| *id != KEEP && !own.contains(id)) {
        return Err(EPERM);
    }
    let mut new = (*old).clone();
    let pick = |wanted: u32, old: u32| if wanted == KEEP { old } else { wanted };
    new.gid = pick(rgid, old.gid);
    new.egid = pick(egid, old.egid);
    new.sgid = pick(sgid, old.sgid);
    new.fsgid = new.egid;
    change(cur, &old, new, false);
    Ok(())
}

fn getresuid(cur: &mut Current, ruid: UserPtr<u32>, euid: UserPtr<u32>, suid: UserPtr<u32>) -> Result<()> {
    let creds = cur.task.creds();
    cur.mm.write_value(ruid, &creds.uid)?;
    cur.mm.write_value(euid, &creds.euid)?;
    cur.mm.write_value(suid, &creds.suid)
}

fn getresgid(cur: &mut Current, rgid: UserPtr<u32>, egid: UserPtr<u32>, sgid: UserPtr<u32>) -> Result<()> {
    let creds = cur.task.creds();
    cur.mm.write_value(rgid, &creds.gid)?;
    cur.mm.write_value(egid, &creds.egid)?;
    cur.mm.write_value(sgid, &creds.sgid)
}

/// Never fails: gives the old id, whether the new one was allowed or not.
fn setfsuid(cur: &mut Current, uid: u32) -> Result<u32> {
    let old = cur.task.creds();
    if uid != KEEP && (old.capable(cap::SETUID) || [old.uid, old.euid, old.suid, old.fsuid].contains(&uid)) {
        let mut new = (*old).clone();
        new.fsuid = uid;
        new.fix_after_setfsuid(&old);
        change(cur, &old, new, false);
    }
    Ok(old.fsuid)
}

fn setfsgid(cur: &mut Current, gid: u32) -> Result<u32> {
    let old = cur.task.creds();
    if gid != KEEP && (old.capable(cap::SETGID) || [old.gid, old.egid, old.sgid, old.fsgid].contains(&gid)) {
        let mut new = (*old).clone();
        new.fsgid = gid;
        change(cur, &old, new, false);
    }
    Ok(old.fsgid)
}

fn getgroups(cur: &mut Current, size: i32, list: UserPtr<u32>) -> Result<usize> {
    let creds = cur.task.creds();
    if size < 0 {
        return Err(EINVAL);
    }
    if size > 0 {
        if creds.groups.len() > size as usize {
            return Err(EINVAL);
        }
        cur.mm.write(list.addr, zerocopy::IntoBytes::as_bytes(creds.groups.as_slice()))?;
    }
    Ok(creds.groups.len())
}

fn setgroups(cur: &mut Current, size: i32, list: UserPtr<u32>) -> Result<()> {
    let old = cur.task.creds();
    if !old.capable(cap::SETGID) {
        return Err(EPERM);
    }
    if !(0..=MAX_GROUPS).contains(&size) {
        return Err(EINVAL);
    }
    let mut groups = cur.mm.read_array(list, size as usize)?;
    groups.sort_unstable();
    let mut new = (*old).clone();
    new.groups = groups;
    cur.task.set_creds(new);
    Ok(())
}

/// struct __user_cap_header_struct.
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct CapHeader {
    version: u32,
    pid: i32,
}

/// struct __user_cap_data_struct; version 1 has one, the others two.
#[derive(Clone, Copy, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_1: u32 = 0x1998_0330;
const VERSION_2: u32 = 0x2007_1026;
const VERSION_3: u32 = 0x2008_0522;

/// How many data elements the caller's version has; an unknown one is answered with the preferred one.
fn cap_words(cur: &Current, header: UserPtr<CapHeader>) -> Result<Option<(usize, Pid)>> {
    let given = cur.mm.read_value(header)?;
    match given.version {
        VERSION_1 => Ok(Some((1, given.pid))),
        VERSION_2 | VERSION_3 => Ok(Some((2, given.pid))),
        _ => {
            cur.mm.write_value(header, &CapHeader { version: VERSION_3, pid: given.pid })?;
            Ok(None)
        }
    }
}

fn capget(cur: &mut Current, header: UserPtr<CapHeader>, data: UserPtr<[CapData; 2]>) -> Result<()> {
    let Some((words, pid)) = cap_words(cur, header)? else {
        return if data.is_null() { Ok(()) } else { Err(EINVAL) };
    };
    if pid < 0 {
        return Err(EINVAL);
    }
    let creds = if pid == 0 { cur.task.creds() } else { table::task(pid).ok_or(ESRCH)?.creds() };
    let caps = &creds.caps;
    let mut out = [CapData::default(); 2];
    for (word, out) in out.iter_mut().enumerate() {
        let part = |set: u64| (set >> (32 * word)) as u32;
        *out = CapData {
            effective: part(caps.effective),
            permitted: part(caps.permitted),
            inheritable: part(caps.inheritable),
        };
    }
    cur.mm.write(data.addr, zerocopy::IntoBytes::as_bytes(&out[..words]))
}

fn capset(cur: &mut Current, header: UserPtr<CapHeader>, data: UserPtr<[CapData; 2]>) -> Result<()> {
    let Some((words, pid)) = cap_words(cur, header)? else { return Err(EINVAL) };
    if pid != 0 && pid != cur.task.tid() {
        return Err(EPERM);
    }
    let given: alloc::vec::Vec<CapData> =
        cur.mm.read_array(UserPtr::new(UserAddr(data.addr.0)), words).map_err(|_| EFAULT)?;
    let join = |part: fn(&CapData) -> u32| {
        given.iter().enumerate().map(|(i, d)| u64::from(part(d)) << (32 * i)).sum::<u64>() & ALL_CAPS
    };
    let (effective, permitted, inheritable) = (join(|d| d.effective), join(|d| d.permitted), join(|d| d.inheritable));
    let old = cur.task.creds();
    let caps = &old.caps;
    let may_inherit = if old.capable(cap::SETPCAP) { u64::MAX } else { caps.inheritable | caps.permitted };
    if inheritable & !may_inherit != 0
        || inheritable & !(caps.inheritable | caps.bounding) != 0
        || permitted & !caps.permitted != 0
        || effective & !permitted != 0
    {
        return Err(EPERM);
    }
    let mut new = (*old).clone();
    new.caps.effective = effective;
    new.caps.permitted = permitted;
    new.caps.inheritable = inheritable;
    new.caps.ambient &= permitted & inheritable;
    cur.task.set_creds(new);
    Ok(())
}
