//! Making, naming and connecting sockets, and their options.

use alloc::sync::Arc;

use super::{
    Kind, SHUT_RECEIVE, SHUT_SEND, SockAddr, Socket, SocketFile, address,
    inet::{AF_INET, AF_INET6, Family, TcpSocket, UdpSocket},
    netlink::{AF_NETLINK, NetlinkSocket},
    options,
    socket::of,
    unix::UnixSocket,
};
use crate::{
    errno::{EAFNOSUPPORT, EINVAL, EOPNOTSUPP, EPERM, EPROTONOSUPPORT, ESOCKTNOSUPPORT, Result},
    fs::{File, OpenFlags},
    mm::user::{UserAddr, UserPtr},
    syscall::{Fd, Hex, Level::*, Syscall},
    syscalls,
    task::{Current, cap},
};

syscalls! { pub CALLS;
    41 socket(domain: i32, kind: Hex, protocol: i32) = socket, Partial, "AF_UNIX; AF_INET and AF_INET6 streams and datagrams over loopback; AF_NETLINK routes", "unix";
    53 socketpair(domain: i32, kind: Hex, protocol: i32, fds: UserPtr<[i32; 2]>) = socketpair, Full, "", "unix";
    49 bind(fd: Fd, address: UserAddr, len: i32) = bind, Full, "", "unix";
    50 listen(fd: Fd, backlog: i32) = listen, Full, "", "unix";
    43 accept(fd: Fd, address: UserAddr, len: UserPtr<i32>) = accept, Full, "", "unix";
    288 accept4(fd: Fd, address: UserAddr, len: UserPtr<i32>, flags: Hex) = accept4, Full, "", "unix";
    42 connect(fd: Fd, address: UserAddr, len: i32) = connect, Full, "", "unix";
    48 shutdown(fd: Fd, how: i32) = shutdown, Full, "", "unix";
    51 getsockname(fd: Fd, address: UserAddr, len: UserPtr<i32>) = getsockname, Full, "", "unix";
    52 getpeername(fd: Fd, address: UserAddr, len: UserPtr<i32>) = getpeername, Full, "", "unix";
    54 setsockopt(fd: Fd, level: i32, name: i32, value: UserAddr, len: i32) = setsockopt, Partial, "filters and time stamps are ENOPROTOOPT", "unix";
    55 getsockopt(fd: Fd, level: i32, name: i32, value: UserAddr, len: UserPtr<i32>) = getsockopt, Partial, "filters and time stamps are ENOPROTOOPT", "unix";
}

const SOL_SOCKET: i32 = 1;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_UDP: i32 = 17;
const NETLINK_ROUTE: i32 = 0;
/// Types below are known ones.
const SOCK_MAX: u64 = 11;
/// Longest option value that is looked at.
const MAX_OPTION: usize = 256;

/// The flags in a socket type.
fn flags_of(kind: u64) -> Result<OpenFlags> {
    let flags = OpenFlags::from_bits(u32::try_from(kind).map_err(|_| EINVAL)? & !0xf).ok_or(EINVAL)?;
    if (OpenFlags::NONBLOCK | OpenFlags::CLOEXEC).contains(flags) { Ok(flags) } else { Err(EINVAL) }
}

fn unix_kind(kind: u64, protocol: i32) -> Result<Kind> {
    if protocol != 0 && protocol != i32::from(address::AF_UNIX) {
        return Err(EPROTONOSUPPORT);
    }
    Ok(match kind & 0xf {
        1 => Kind::Stream,
        // SOCK_RAW has always been taken for SOCK_DGRAM.
        2 | 3 => Kind::Datagram,
        5 => Kind::SeqPacket,
        _ => return Err(ESOCKTNOSUPPORT),
    })
}

impl Current {
    /// Gives a socket a descriptor.
    pub(super) fn install_socket(&self, socket: Arc<dyn Socket>, flags: OpenFlags) -> Result<i32> {
        let file = SocketFile::open(socket, flags & OpenFlags::NONBLOCK, &self.task.creds());
        self.install(file, flags.contains(OpenFlags::CLOEXEC))
    }

    /// The open file of a socket: EBADF, ENOTSOCK.
    pub(super) fn socket_file(&self, fd: Fd) -> Result<Arc<File>> {
        let file = self.file(fd)?;
        of(&file)?;
        Ok(file)
    }
}

fn internet(family: Family, kind: u64, protocol: i32, raw: bool) -> Result<Arc<dyn Socket>> {
    Ok(match (kind & 0xf, protocol) {
        (1, 0 | IPPROTO_TCP) => TcpSocket::new(family),
        (2, 0 | IPPROTO_UDP) => UdpSocket::new(family),
        (1 | 2, _) => return Err(EPROTONOSUPPORT),
        // Packets of one's own making: there is nowhere for them to go.
        (3, _) if !raw => return Err(EPERM),
        _ => return Err(ESOCKTNOSUPPORT),
    })
}

fn socket(cur: &mut Current, domain: i32, kind: Hex, protocol: i32) -> Result<i32> {
    let flags = flags_of(kind.0)?;
    if kind.0 & 0xf >= SOCK_MAX {
        return Err(EINVAL);
    }
    let domain = u16::try_from(domain).map_err(|_| EAFNOSUPPORT)?;
    let raw = cur.task.capable(cap::NET_RAW);
    let socket: Arc<dyn Socket> = match domain {
        address::AF_UNIX => UnixSocket::new(unix_kind(kind.0, protocol)?),
        AF_INET => internet(Family::V4, kind.0, protocol, raw)?,
        AF_INET6 => internet(Family::V6 { only: false }, kind.0, protocol, raw)?,
        AF_NETLINK => match (kind.0 & 0xf, protocol) {
            (2 | 3, NETLINK_ROUTE) => NetlinkSocket::new(protocol, kind.0 & 0xf == 3),
            (2 | 3, _) => return Err(EPROTONOSUPPORT),
            _ => return Err(ESOCKTNOSUPPORT),
        },
        _ => return Err(EAFNOSUPPORT),
    };
    cur.install_socket(socket, flags)
}

fn socketpair(cur: &mut Current, domain: i32, kind: Hex, protocol: i32, fds: UserPtr<[i32; 2]>) -> Result<()> {
    let flags = flags_of(kind.0)?;
    if domain != i32::from(address::AF_UNIX) {
        let known = [AF_INET, AF_INET6, AF_NETLINK].map(i32::from).contains(&domain);
        return Err(if known { EOPNOTSUPP } else { EAFNOSUPPORT });
    }
    let (a, b) = UnixSocket::pair(unix_kind(kind.0, protocol)?);
    let creds = cur.task.creds();
    let open = |socket| SocketFile::open(socket, flags & OpenFlags::NONBLOCK, &creds);
    cur.install_pair(open(a), open(b), flags.contains(OpenFlags::CLOEXEC), fds)
}

fn bind(cur: &mut Current, fd: Fd, address: UserAddr, len: i32) -> Result<()> {
    let file = cur.socket_file(fd)?;
    let address = SockAddr::read(cur, address, len)?;
    of(&file)?.bind(cur, &address)
}

fn listen(cur: &mut Current, fd: Fd, backlog: i32) -> Result<()> {
    of(&*cur.socket_file(fd)?)?.listen(backlog)
}

fn accept(cur: &mut Current, fd: Fd, address: UserAddr, len: UserPtr<i32>) -> Result<i32> {
    accept4(cur, fd, address, len, Hex(0))
}

fn accept4(cur: &mut Current, fd: Fd, address: UserAddr, len: UserPtr<i32>, flags: Hex) -> Result<i32> {
    if flags.0 & 0xf != 0 {
        return Err(EINVAL);
    }
    let flags = flags_of(flags.0)?;
    let file = cur.socket_file(fd)?;
    // A connection is not taken when there is no descriptor for it.
    cur.task.files().check_room(cur.fd_limit())?;
    let accepted = of(&file)?.accept(file.nonblocking())?;
    let peer = accepted.peer();
    let file = SocketFile::open(accepted, flags & OpenFlags::NONBLOCK, &cur.task.creds());
    if !address.is_null() {
        // A connection whose other side has gone has lost its address.
        peer.map_err(|_| crate::errno::ECONNABORTED)?.write(cur, address, len)?;
    }
    cur.install(file, flags.contains(OpenFlags::CLOEXEC))
}

fn connect(cur: &mut Current, fd: Fd, address: UserAddr, len: i32) -> Result<()> {
    let file = cur.socket_file(fd)?;
    let address = SockAddr::read(cur, address, len)?;
    of(&file)?.connect(cur, &address, file.nonblocking())
}

fn shutdown(cur: &mut Current, fd: Fd, how: i32) -> Result<()> {
    let file = cur.socket_file(fd)?;
    let directions = match how {
        0 => SHUT_RECEIVE,
        1 => SHUT_SEND,
        2 => SHUT_RECEIVE | SHUT_SEND,
        _ => return Err(EINVAL),
    };
    of(&file)?.shutdown(directions)
}

fn getsockname(cur: &mut Current, fd: Fd, address: UserAddr, len: UserPtr<i32>) -> Result<()> {
    of(&*cur.socket_file(fd)?)?.local().write(cur, address, len)
}

fn getpeername(cur: &mut Current, fd: Fd, address: UserAddr, len: UserPtr<i32>) -> Result<()> {
    of(&*cur.socket_file(fd)?)?.peer()?.write(cur, address, len)
}

fn setsockopt(cur: &mut Current, fd: Fd, level: i32, name: i32, value: UserAddr, len: i32) -> Result<()> {
    let file = cur.socket_file(fd)?;
    let len = usize::try_from(len).map_err(|_| EINVAL)?;
    let mut bytes = [0; MAX_OPTION];
    let bytes = &mut bytes[..len.min(MAX_OPTION)];
    cur.mm.read(value, bytes)?;
    let socket = of(&file)?;
    if level == SOL_SOCKET {
        return options::set(&**socket, &cur.task.creds(), name, bytes);
    }
    socket.set_option(level, name, bytes)
}

fn getsockopt(cur: &mut Current, fd: Fd, level: i32, name: i32, value: UserAddr, len: UserPtr<i32>) -> Result<()> {
    let file = cur.socket_file(fd)?;
    let socket = of(&file)?;
    let room = if level == SOL_SOCKET || socket.base().domain != address::AF_UNIX {
        usize::try_from(cur.mm.read_value(len)?).map_err(|_| EINVAL)?
    } else {
        return Err(EOPNOTSUPP);
    };
    let bytes = if level == SOL_SOCKET { options::get(&**socket, name, room)? } else { socket.option(level, name)? };
    let n = bytes.len().min(room);
    cur.mm.write(value, &bytes[..n])?;
    cur.mm.write_value(len, &(n as i32))
}
