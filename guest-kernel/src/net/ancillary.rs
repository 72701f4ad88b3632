//! Ancillary data (cmsg(3)): what goes along with a message besides its bytes.

use alloc::{sync::Arc, vec::Vec};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    AF_UNIX, SockAddr,
    inet::{AF_INET, AF_INET6, Packet},
    msg,
    unix::Rights,
};
use crate::{
    errno::{EINVAL, ENOBUFS, EPERM, ESRCH, Result},
    fs::File,
    mm::user::{UserAddr, UserPtr},
    syscall::Fd,
    task::{Creds, Current, cap, table},
};

const SOL_SOCKET: i32 = 1;
const IPPROTO_IP: i32 = 0;
const IPPROTO_IPV6: i32 = 41;
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
/// Descriptors that one message may carry (SCM_MAX_FD).
const MAX_FDS: usize = 253;
/// Bytes of control data that one message may have (net.core.optmem_max).
const MAX_CONTROL: usize = 20_480;
/// What a sender that did not say who it is looks like.
const NOBODY: u32 = 65_534;

/// struct ucred.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Ucred {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

impl Ucred {
    const UNKNOWN: Ucred = Ucred { pid: 0, uid: NOBODY, gid: NOBODY };

    /// The running task's, as SCM_CREDENTIALS carries it by default.
    pub fn sender() -> Option<Self> {
        let task = crate::sched::current()?;
        let creds = task.creds();
        Some(Ucred { pid: task.process.pid, uid: creds.uid, gid: creds.gid })
    }

    /// The running task's, as SO_PEERCRED shows it.
    pub fn peer() -> Option<Self> {
        let task = crate::sched::current()?;
        let creds = task.creds();
        Some(Ucred { pid: task.process.pid, uid: creds.euid, gid: creds.egid })
    }
}

/// struct cmsghdr.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
struct Header {
    len: u64,
    level: i32,
    kind: i32,
}

const HEADER: usize = size_of::<Header>();

/// What a message carries.
#[derive(Default)]
pub struct Ancillary {
    pub credentials: Option<Ucred>,
    pub rights: Option<Rights>,
    /// Of an Internet datagram.
    pub packet: Packet,
}

impl Ancillary {
    /// Leaves the sender's name, but no files, for the bytes that follow.
    pub fn take(&mut self) -> Self {
        Ancillary { credentials: self.credentials, rights: self.rights.take(), packet: self.packet }
    }
}

/// What came with what was received.
#[derive(Default)]
pub struct Received {
    /// MSG_* for the caller.
    pub flags: u32,
    /// The whole length of a message of which only a part was taken.
    pub whole: Option<usize>,
    pub from: Option<SockAddr>,
    /// Who sent it, if that was asked for; the inner is None when the sender did not say.
    pub credentials: Option<Option<Ucred>>,
    pub rights: Vec<Arc<File>>,
    pub packet: Packet,
    /// Other control data.
    pub items: Vec<super::message::Item>,
}

/// Reads and checks the control data of a sendmsg(2).
pub fn read(cur: &Current, domain: u16, control: UserAddr, len: u64) -> Result<Ancillary> {
    let mut ancillary = Ancillary::default();
    if control.is_null() || len == 0 {
        return Ok(ancillary);
    }
    let len = usize::try_from(len).ok().filter(|&len| len <= MAX_CONTROL).ok_or(ENOBUFS)?;
    let mut bytes = alloc::vec![0; len];
    cur.mm.read(control, &mut bytes)?;
    let mut rest = &bytes[..];
    let mut files = Vec::new();
    while let Ok((header, _)) = Header::read_from_prefix(rest) {
        let len = usize::try_from(header.len).ok().filter(|&l| l >= HEADER && l <= rest.len()).ok_or(EINVAL)?;
        let data = &rest[HEADER..len];
        match (header.level, header.kind) {
            (SOL_SOCKET, SCM_RIGHTS) if domain == AF_UNIX => read_rights(cur, data, &mut files)?,
            (SOL_SOCKET, SCM_CREDENTIALS) => ancillary.credentials = Some(read_credentials(cur, data)?),
            (SOL_SOCKET, _) => return Err(EINVAL),
            (level @ IPPROTO_IP, kind) if domain == AF_INET => ancillary.packet.read(level, kind, data)?,
            (level @ IPPROTO_IPV6, kind) if domain == AF_INET6 => ancillary.packet.read(level, kind, data)?,
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    if !files.is_empty() {
        ancillary.rights = Some(Rights::new(files));
    }
    Ok(ancillary)
}

fn read_rights(cur: &Current, data: &[u8], files: &mut Vec<Arc<File>>) -> Result<()> {
    let count = data.len() / 4;
    if files.len() + count > MAX_FDS {
        return Err(EINVAL);
    }
    for fd in data.chunks_exact(4) {
        files.push(cur.any_file(Fd(i32::from_ne_bytes([fd[0], fd[1], fd[2], fd[3]])))?);
    }
    Ok(())
}

fn read_credentials(cur: &Current, data: &[u8]) -> Result<Ucred> {
    let claimed = Ucred::read_from_bytes(data).map_err(|_| EINVAL)?;
    let creds: Arc<Creds> = cur.task.creds();
    let own_pid = claimed.pid == cur.task.process.pid;
    let own_uid = [creds.uid, creds.euid, creds.suid].contains(&claimed.uid);
    let own_gid = [creds.gid, creds.egid, creds.sgid].contains(&claimed.gid);
    if !(own_pid || creds.capable(cap::SYS_ADMIN))
        || !(own_uid || creds.capable(cap::SETUID))
        || !(own_gid || creds.capable(cap::SETGID))
    {
        return Err(EPERM);
    }
    if !own_pid && table::process(claimed.pid).is_none() {
        return Err(ESRCH);
    }
    Ok(claimed)
}

/// Writes control data of a recvmsg(2) as far as there is room, and gives the receiver its descriptors.
pub struct Writer<'a> {
    cur: &'a Current,
    at: UserAddr,
    room: usize,
    written: usize,
    /// MSG_CTRUNC when something did not fit.
    pub flags: u32,
}

impl<'a> Writer<'a> {
    pub fn new(cur: &'a Current, control: UserAddr, len: u64) -> Self {
        let room = if control.is_null() { 0 } else { usize::try_from(len).unwrap_or(0) };
        Writer { cur, at: control, room, written: 0, flags: 0 }
    }

    /// Bytes written, for msg_controllen.
    pub fn written(&self) -> usize {
        self.written
    }

    fn advance(&mut self, len: usize) -> Result<()> {
        let space = len.next_multiple_of(8).min(self.room);
        self.at = self.at.offset(space as u64)?;
        self.room -= space;
        self.written += space;
        Ok(())
    }

    /// One item, cut if it does not fit.
    pub fn put(&mut self, level: i32, kind: i32, data: &[u8]) -> Result<()> {
        if self.room < HEADER {
            self.flags |= msg::CTRUNC;
            return Ok(());
        }
        let mut len = HEADER + data.len();
        if len > self.room {
            self.flags |= msg::CTRUNC;
            len = self.room;
        }
        let header = Header { len: len as u64, level, kind };
        self.cur.mm.write_value(UserPtr::new(self.at), &header)?;
        self.cur.mm.write(self.at.offset(HEADER as u64)?, &data[..len - HEADER])?;
        self.advance(len)
    }

    pub fn credentials(&mut self, credentials: Option<Ucred>) -> Result<()> {
        self.put(SOL_SOCKET, SCM_CREDENTIALS, credentials.unwrap_or(Ucred::UNKNOWN).as_bytes())
    }

    /// Installs as many files as there is room for; the others are closed.
    pub fn rights(&mut self, files: Vec<Arc<File>>, close_on_exec: bool) -> Result<()> {
        let most = self.room.saturating_sub(HEADER) / 4;
        let count = files.len();
        let mut done = 0;
        for file in files.into_iter().take(most) {
            let place = self.at.offset((HEADER + done * 4) as u64)?;
            // The place is tried first: a descriptor that nobody is told of would stay open.
            if self.cur.mm.write_value(UserPtr::new(place), &-1i32).is_err() {
                break;
            }
            let Ok(fd) = self.cur.install(file, close_on_exec) else { break };
            if self.cur.mm.write_value(UserPtr::new(place), &fd).is_err() {
                drop(self.cur.task.files().remove(fd));
                break;
            }
            done += 1;
        }
        if done < count {
            self.flags |= msg::CTRUNC;
        }
        if done > 0 {
            let len = HEADER + done * 4;
            let header = Header { len: len as u64, level: SOL_SOCKET, kind: SCM_RIGHTS };
            self.cur.mm.write_value(UserPtr::new(self.at), &header)?;
            self.advance(len)?;
        }
        Ok(())
    }
}
