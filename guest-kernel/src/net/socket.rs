//! What a protocol implements, and a socket as an open file.

use alloc::{format, sync::Arc, vec::Vec};
use core::{any::Any, sync::atomic::Ordering::Relaxed};

use super::{Ancillary, Base, Received, SockAddr};
use crate::{
    errno::{EINVAL, ENOTCONN, ENOTSOCK, ENOTTY, EOPNOTSUPP, Result},
    fs::{File, FileOps, FileType, OpenFlags, anon},
    mm::{
        io::{IoDst, IoSrc},
        user::{UserAddr, UserPtr},
    },
    sync::PollTable,
    task::{Creds, Current},
};

/// A message to send.
pub struct Send<'a, 'b> {
    pub src: &'a mut IoSrc<'b>,
    /// None: to the peer.
    pub to: Option<(&'a Current, &'a SockAddr)>,
    /// MSG_* of send(2).
    pub flags: u32,
    pub ancillary: Ancillary,
    pub nonblocking: bool,
}

/// Where to receive to.
pub struct Recv<'a, 'b> {
    pub dst: &'a mut IoDst<'b>,
    /// MSG_* of recv(2).
    pub flags: u32,
    pub nonblocking: bool,
}

/// A socket of some protocol. Defaults answer as Linux does for protocols without the operation.
pub trait Socket: Any + core::marker::Send + Sync {
    fn base(&self) -> &Base;

    fn bind(&self, cur: &Current, address: &SockAddr) -> Result<()>;

    /// connect(2); an AF_UNSPEC address dissolves a datagram socket's association.
    fn connect(&self, cur: &Current, address: &SockAddr, nonblocking: bool) -> Result<()>;

    fn listen(&self, _backlog: i32) -> Result<()> {
        Err(EOPNOTSUPP)
    }

    fn accept(&self, _nonblocking: bool) -> Result<Arc<dyn Socket>> {
        Err(EOPNOTSUPP)
    }

    fn is_listening(&self) -> bool {
        false
    }

    /// getsockname(2).
    fn local(&self) -> SockAddr;

    /// getpeername(2).
    fn peer(&self) -> Result<SockAddr> {
        Err(ENOTCONN)
    }

    /// `directions`: SHUT_RECEIVE, SHUT_SEND.
    fn shutdown(&self, directions: u8) -> Result<()>;

    fn send(&self, message: Send<'_, '_>) -> Result<usize>;

    fn receive(&self, request: Recv<'_, '_>, into: &mut Received) -> Result<usize>;

    /// POLL* bits that hold now. The caller has registered with the base's queues.
    fn poll(&self, interest: u32) -> u32;

    /// Whether EPIPE comes with SIGPIPE.
    fn signals_broken_pipe(&self) -> bool {
        self.base().kind == super::Kind::Stream
    }

    /// FIONREAD.
    fn unread(&self) -> Result<usize>;

    /// SIOCOUTQ.
    fn unsent(&self) -> Result<usize>;

    /// SIOCATMARK: whether reading has come to an urgent byte.
    fn at_mark(&self) -> Result<bool> {
        Err(ENOTTY)
    }

    /// An option of a level other than SOL_SOCKET.
    fn option(&self, _level: i32, _name: i32) -> Result<Vec<u8>> {
        Err(EOPNOTSUPP)
    }

    fn set_option(&self, _level: i32, _name: i32, _value: &[u8]) -> Result<()> {
        Err(EOPNOTSUPP)
    }

    /// SO_PEERCRED.
    fn peer_credentials(&self) -> Option<(super::Ucred, Arc<Creds>)> {
        None
    }

    /// Whether there is SO_PEEK_OFF.
    fn peeks_at_offset(&self) -> bool {
        false
    }

    /// The last descriptor is gone.
    fn release(&self);
}

impl dyn Socket {
    pub fn downcast<T: Socket>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// A socket behind a descriptor.
pub struct SocketFile {
    socket: Arc<dyn Socket>,
}

impl SocketFile {
    /// An open file of a new socket. `flags`: O_NONBLOCK or nothing.
    pub fn open(socket: Arc<dyn Socket>, flags: OpenFlags, creds: &Creds) -> Arc<File> {
        let place = socket.clone();
        let name = |ino| {
            place.base().ino.store(ino, Relaxed);
            format!("socket:[{ino}]")
        };
        let path = anon::path(FileType::Socket, 0o777, creds, name, None);
        File::new(Arc::new(SocketFile { socket }), path, flags | OpenFlags::RDWR)
    }

    pub fn socket(&self) -> &Arc<dyn Socket> {
        &self.socket
    }
}

/// The socket behind an open file; ENOTSOCK if it is none.
pub fn of(file: &File) -> Result<&Arc<dyn Socket>> {
    file.ops().downcast::<SocketFile>().map(SocketFile::socket).ok_or(ENOTSOCK)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.socket.release();
    }
}

mod command {
    pub const FIONREAD: u32 = 0x541b;
    pub const SIOCOUTQ: u32 = 0x5411;
    pub const FIOSETOWN: u32 = 0x8901;
    pub const SIOCSPGRP: u32 = 0x8902;
    pub const FIOGETOWN: u32 = 0x8903;
    pub const SIOCGPGRP: u32 = 0x8904;
    pub const SIOCATMARK: u32 = 0x8905;
}

impl FileOps for SocketFile {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        // Files that come along go at once: read(2) has no place for them.
        self.socket.receive(Recv { dst, flags: 0, nonblocking: file.nonblocking() }, &mut Received::default())
    }

    fn write(&self, file: &File, src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        let ancillary = Ancillary::default();
        self.socket.send(Send { src, to: None, flags: 0, ancillary, nonblocking: file.nonblocking() })
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            let base = self.socket.base();
            table.add(&base.readable, interest | crate::fs::poll::ALWAYS);
            table.add(&base.writable, interest | crate::fs::poll::ALWAYS);
        }
        self.socket.poll(interest)
    }

    fn pollable(&self) -> bool {
        true
    }

    fn signals_broken_pipe(&self) -> bool {
        self.socket.signals_broken_pipe()
    }

    fn ioctl(&self, cur: &mut Current, file: &Arc<File>, command: u32, argument: u64) -> Result<u64> {
        let value = UserPtr::<i32>::new(UserAddr(argument));
        let bytes = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        match command {
            command::FIONREAD => cur.mm.write_value(value, &bytes(self.socket.unread()?))?,
            command::SIOCOUTQ => cur.mm.write_value(value, &bytes(self.socket.unsent()?))?,
            command::SIOCATMARK => cur.mm.write_value(value, &i32::from(self.socket.at_mark()?))?,
            command::FIOSETOWN | command::SIOCSPGRP => {
                let pid: i32 = cur.mm.read_value(value)?;
                if pid == i32::MIN {
                    return Err(EINVAL);
                }
                file.owner.lock().pid = pid;
            }
            command::FIOGETOWN | command::SIOCGPGRP => {
                let pid = file.owner.lock().pid;
                cur.mm.write_value(value, &pid)?;
            }
            // Of the interface: any socket will do (netdevice(7)).
            _ => return super::inet::interface::ioctl(cur, command, argument),
        }
        Ok(0)
    }
}
