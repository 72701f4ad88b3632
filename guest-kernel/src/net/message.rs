//! Sending and receiving.

use alloc::{sync::Arc, vec::Vec};

use smallvec::SmallVec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    Ancillary, Received, Recv, Send, SockAddr,
    ancillary::{self, Writer},
    msg,
    socket::of,
};
use crate::{
    errno::{EINVAL, EMSGSIZE, EPIPE, Result},
    fs::{File, syscalls::UserTimespec, syscalls::rw::UserIoVec},
    mm::{
        io::{IoDst, IoSrc, IoVec},
        user::{UserAddr, UserPtr},
    },
    signal::set::SIGPIPE,
    syscall::{Fd, Hex, Level::*, Syscall},
    syscalls,
    task::Current,
    time,
};

syscalls! { pub CALLS;
    44 sendto(fd: Fd, buffer: UserAddr, len: usize, flags: Hex, address: UserAddr, address_len: i32) = sendto, Partial, "MSG_OOB for TCP only, without SIGURG; MSG_ZEROCOPY is ignored", "unix";
    45 recvfrom(fd: Fd, buffer: UserAddr, len: usize, flags: Hex, address: UserAddr, address_len: UserPtr<i32>) = recvfrom, Partial, "MSG_OOB for TCP only", "unix";
    46 sendmsg(fd: Fd, message: UserPtr<UserMessage>, flags: Hex) = sendmsg, Partial, "MSG_OOB for TCP only, without SIGURG; MSG_ZEROCOPY is ignored", "unix";
    47 recvmsg(fd: Fd, message: UserPtr<UserMessage>, flags: Hex) = recvmsg, Partial, "MSG_OOB for TCP only", "unix";
    307 sendmmsg(fd: Fd, messages: UserPtr<UserMultiMessage>, count: u32, flags: Hex) = sendmmsg, Partial, "MSG_OOB for TCP only, without SIGURG; MSG_ZEROCOPY is ignored", "unix";
    299 recvmmsg(fd: Fd, messages: UserPtr<UserMultiMessage>, count: u32, flags: Hex, timeout: UserPtr<UserTimespec>) = recvmmsg, Partial, "MSG_OOB for TCP only", "unix";
}

/// struct msghdr.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct UserMessage {
    name: u64,
    name_len: i32,
    _pad: u32,
    vec: u64,
    count: u64,
    control: u64,
    control_len: u64,
    flags: u32,
    _pad2: u32,
}

/// struct mmsghdr.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct UserMultiMessage {
    message: UserMessage,
    len: u32,
    _pad: u32,
}

/// Offsets of what recvmsg(2) fills in.
const NAME_LEN_AT: u64 = 8;
const CONTROL_LEN_AT: u64 = 40;
const FLAGS_AT: u64 = 48;
/// Most messages of one call.
const MAX_MESSAGES: u32 = 1024;

fn flags_of(flags: Hex) -> u32 {
    flags.0 as u32
}

/// Sends one message and raises SIGPIPE if that is due.
fn send(
    cur: &Current,
    file: &Arc<File>,
    src: &mut IoSrc<'_>,
    to: Option<&SockAddr>,
    flags: u32,
    ancillary: Ancillary,
) -> Result<usize> {
    let socket = of(file)?;
    let nonblocking = file.nonblocking() || flags & msg::DONTWAIT != 0;
    let to = to.map(|to| (cur, to));
    let result = socket.send(Send { src, to, flags, ancillary, nonblocking });
    if result == Err(EPIPE) && flags & msg::NOSIGNAL == 0 && socket.signals_broken_pipe() {
        cur.raise(SIGPIPE);
    }
    result
}

fn receive(file: &Arc<File>, dst: &mut IoDst<'_>, flags: u32) -> Result<(usize, Received)> {
    let nonblocking = file.nonblocking() || flags & msg::DONTWAIT != 0;
    let mut received = Received::default();
    if flags & msg::ERRQUEUE != 0 {
        return Err(crate::errno::EAGAIN);
    }
    let n = of(file)?.receive(Recv { dst, flags, nonblocking }, &mut received)?;
    // The whole length of a message that was cut, if that is asked for.
    let n = if flags & msg::TRUNC != 0 { received.whole.unwrap_or(n) } else { n };
    Ok((n, received))
}

fn sendto(
    cur: &mut Current,
    fd: Fd,
    buffer: UserAddr,
    len: usize,
    flags: Hex,
    address: UserAddr,
    address_len: i32,
) -> Result<usize> {
    let file = cur.socket_file(fd)?;
    let to =
        if address.is_null() || address_len == 0 { None } else { Some(SockAddr::read(cur, address, address_len)?) };
    let src = &mut IoSrc::user(&cur.mm, buffer, len)?;
    send(cur, &file, src, to.as_ref(), flags_of(flags), Ancillary::default())
}

fn recvfrom(
    cur: &mut Current,
    fd: Fd,
    buffer: UserAddr,
    len: usize,
    flags: Hex,
    address: UserAddr,
    address_len: UserPtr<i32>,
) -> Result<usize> {
    let file = cur.socket_file(fd)?;
    let (n, received) = receive(&file, &mut IoDst::user(&cur.mm, buffer, len)?, flags_of(flags))?;
    if !address.is_null() {
        received.from.unwrap_or_default().write(cur, address, address_len)?;
    }
    Ok(n)
}

impl UserMessage {
    fn pieces(&self, cur: &Current) -> Result<SmallVec<[IoVec; 1]>> {
        // UIO_MAXIOV.
        let count = i32::try_from(self.count).ok().filter(|&count| count <= 1024).ok_or(EMSGSIZE)?;
        cur.iovec(UserPtr::<UserIoVec>::new(UserAddr(self.vec)), count)
    }

    fn to(&self, cur: &Current) -> Result<Option<SockAddr>> {
        if self.name_len < 0 {
            return Err(EINVAL);
        }
        if self.name == 0 || self.name_len == 0 {
            return Ok(None);
        }
        SockAddr::read(cur, UserAddr(self.name), self.name_len.min(super::address::MAX as i32)).map(Some)
    }
}

fn send_one(cur: &Current, file: &Arc<File>, message: &UserMessage, flags: u32) -> Result<usize> {
    let to = message.to(cur)?;
    let pieces = message.pieces(cur)?;
    let domain = of(file)?.base().domain;
    let ancillary = ancillary::read(cur, domain, UserAddr(message.control), message.control_len)?;
    let src = &mut IoSrc::user_vec(&cur.mm, pieces)?;
    send(cur, file, src, to.as_ref(), flags, ancillary)
}

fn sendmsg(cur: &mut Current, fd: Fd, message: UserPtr<UserMessage>, flags: Hex) -> Result<usize> {
    let file = cur.socket_file(fd)?;
    let message = cur.mm.read_value(message)?;
    send_one(cur, &file, &message, flags_of(flags))
}

/// Receives one message into `place`.
fn receive_one(cur: &Current, file: &Arc<File>, place: UserPtr<UserMessage>, flags: u32) -> Result<usize> {
    let message = cur.mm.read_value(place)?;
    if message.name_len < 0 {
        return Err(EINVAL);
    }
    let pieces = message.pieces(cur)?;
    let (n, received) = receive(file, &mut IoDst::user_vec(&cur.mm, pieces)?, flags)?;
    let mut control = Writer::new(cur, UserAddr(message.control), message.control_len);
    if let Some(credentials) = received.credentials {
        control.credentials(credentials)?;
    }
    for (level, kind, data) in &received.items {
        control.put(*level, *kind, data)?;
    }
    if !received.rights.is_empty() {
        control.rights(received.rights, flags & msg::CMSG_CLOEXEC != 0)?;
    }
    let at = |offset: u64| place.addr.offset(offset);
    if message.name != 0 {
        let from = received.from.unwrap_or_default();
        let name = from.bytes();
        cur.mm.write(UserAddr(message.name), &name[..name.len().min(message.name_len as usize)])?;
        cur.mm.write_value(UserPtr::new(at(NAME_LEN_AT)?), &(name.len() as i32))?;
    }
    let out = received.flags | control.flags | flags & msg::CMSG_CLOEXEC;
    cur.mm.write_value(UserPtr::new(at(FLAGS_AT)?), &out)?;
    cur.mm.write_value(UserPtr::new(at(CONTROL_LEN_AT)?), &(control.written() as u64))?;
    Ok(n)
}

fn recvmsg(cur: &mut Current, fd: Fd, message: UserPtr<UserMessage>, flags: Hex) -> Result<usize> {
    let file = cur.socket_file(fd)?;
    receive_one(cur, &file, message, flags_of(flags))
}

/// Runs `step` for each message; an error counts only before the first has been done.
fn each(
    cur: &Current,
    messages: UserPtr<UserMultiMessage>,
    count: u32,
    mut step: impl FnMut(UserPtr<UserMessage>, u32) -> Result<Option<usize>>,
) -> Result<u32> {
    let mut done = 0;
    while done < count.min(MAX_MESSAGES) {
        let place = messages.nth(done.into())?;
        let result = step(UserPtr::new(place.addr), done).and_then(|n| match n {
            Some(n) => {
                let at = place.addr.offset(size_of::<UserMessage>() as u64)?;
                cur.mm.write_value(UserPtr::new(at), &(n as u32)).map(|()| true)
            }
            None => Ok(false),
        });
        match result {
            Ok(true) => done += 1,
            Ok(false) => break,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn sendmmsg(cur: &mut Current, fd: Fd, messages: UserPtr<UserMultiMessage>, count: u32, flags: Hex) -> Result<u32> {
    let file = cur.socket_file(fd)?;
    let cur = &*cur;
    each(cur, messages, count, |place, _| {
        let message = cur.mm.read_value(place)?;
        send_one(cur, &file, &message, flags_of(flags)).map(Some)
    })
}

fn recvmmsg(
    cur: &mut Current,
    fd: Fd,
    messages: UserPtr<UserMultiMessage>,
    count: u32,
    flags: Hex,
    timeout: UserPtr<UserTimespec>,
) -> Result<u32> {
    let file = cur.socket_file(fd)?;
    let deadline = cur.deadline(timeout)?;
    let mut flags = flags_of(flags);
    of(&file)?.base().check_error()?;
    let cur = &*cur;
    let result = each(cur, messages, count, |place, done| {
        // The timeout is looked at between messages only (recvmmsg(2), BUGS).
        if done > 0 && time::monotonic() >= deadline {
            return Ok(None);
        }
        if done > 0 && flags & msg::WAITFORONE != 0 {
            flags |= msg::DONTWAIT;
        }
        receive_one(cur, &file, place, flags & !msg::WAITFORONE).map(Some)
    });
    cur.write_left(timeout, deadline);
    result
}

/// An item of control data besides credentials and rights: level, type, data.
pub type Item = (i32, i32, Vec<u8>);
