//! AF_NETLINK, NETLINK_ROUTE (netlink(7), rtnetlink(7)): what the network of the sandbox is, for those who ask. There is one
//! interface, the loopback.

use alloc::{collections::BTreeSet, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    Ancillary, Base, Kind, Message, MessageQueue, Received, Recv, Send, SockAddr, Socket,
    inet::{AF_INET, AF_INET6, interface},
    msg,
};
use crate::{
    errno::{EADDRINUSE, ECONNREFUSED, EINVAL, ENETUNREACH, ENOBUFS, ENODEV, ENOPROTOOPT, EOPNOTSUPP, EPERM, Result},
    fs::poll,
    mm::io::IoSrc,
    sync::SpinLock,
    task::{Current, cap},
};

pub const AF_NETLINK: u16 = 16;
/// Longest request.
const MAX_REQUEST: usize = 16 << 10;

/// struct nlmsghdr.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    seq: u32,
    pid: u32,
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 2;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;

static PORTS: SpinLock<BTreeSet<u32>> = SpinLock::new(BTreeSet::new());

#[derive(Default)]
struct State {
    port: u32,
    groups: u32,
    connected: bool,
}

pub struct NetlinkSocket {
    base: Base,
    queue: MessageQueue,
    state: SpinLock<State>,
}

fn address(port: u32, groups: u32) -> SockAddr {
    let mut rest = [0; 10];
    rest[2..6].copy_from_slice(&port.to_ne_bytes());
    rest[6..].copy_from_slice(&groups.to_ne_bytes());
    SockAddr::of(AF_NETLINK, &rest)
}

/// Port and groups.
fn parse(address: &SockAddr) -> Result<(u32, u32)> {
    let rest = address.rest();
    if rest.len() < 10 || address.family() != Some(AF_NETLINK) {
        return Err(EINVAL);
    }
    let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
    Ok((word(2), word(6)))
}

/// Messages that answer a request.
struct Answer {
    bytes: Vec<u8>,
    seq: u32,
    pid: u32,
}

impl Answer {
    /// A message: a header, and what `fill` adds.
    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(Header { len: 0, kind, flags, seq: self.seq, pid: self.pid }.as_bytes());
        fill(&mut self.bytes);
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn error(&mut self, error: u16, request: &Header) {
        self.message(NLMSG_ERROR, 0, |out| {
            out.extend_from_slice((-i32::from(error)).as_bytes());
            out.extend_from_slice(request.as_bytes());
        });
    }

    fn done(&mut self) {
        self.message(NLMSG_DONE, NLM_F_MULTI, |out| out.extend_from_slice(&[0; 4]));
    }
}

/// struct rtattr and its data.
fn attribute(out: &mut Vec<u8>, kind: u16, data: &[u8]) {
    out.extend_from_slice(&(4 + data.len() as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// RTM_NEWLINK of the loopback interface.
fn link(answer: &mut Answer, flags: u16) {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_BROADCAST: u16 = 2;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_QDISC: u16 = 6;
    const IFLA_TXQLEN: u16 = 13;
    const IFLA_OPERSTATE: u16 = 16;
    const IFLA_LINKMODE: u16 = 17;
    answer.message(RTM_NEWLINK, flags, |out| {
        // struct ifinfomsg.
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&interface::TYPE.to_ne_bytes());
        out.extend_from_slice(&interface::INDEX.to_ne_bytes());
        out.extend_from_slice(&(u32::from(interface::FLAGS) | interface::LOWER_UP).to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        attribute(out, IFLA_IFNAME, b"lo\0");
        attribute(out, IFLA_TXQLEN, &1000u32.to_ne_bytes());
        // Unknown, as the loopback's always is.
        attribute(out, IFLA_OPERSTATE, &[0]);
        attribute(out, IFLA_LINKMODE, &[0]);
        attribute(out, IFLA_MTU, &interface::MTU.to_ne_bytes());
        attribute(out, IFLA_ADDRESS, &[0; 6]);
        attribute(out, IFLA_BROADCAST, &[0; 6]);
        attribute(out, IFLA_QDISC, b"noqueue\0");
    });
}

/// RTM_NEWADDR of the loopback's addresses of a family (0: all).
fn addresses(answer: &mut Answer, family: u8) {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_LABEL: u16 = 3;
    const IFA_CACHEINFO: u16 = 6;
    const IFA_FLAGS: u16 = 8;
    /// IFA_F_PERMANENT.
    const PERMANENT: u8 = 0x80;
    /// RT_SCOPE_HOST.
    const SCOPE_HOST: u8 = 254;
    let cache = [[0xff; 4], [0xff; 4], [0; 4], [0; 4]].concat();
    for (kind, prefix) in [(AF_INET as u8, 8), (AF_INET6 as u8, 128)] {
        if family != 0 && family != kind {
            continue;
        }
        answer.message(RTM_NEWADDR, NLM_F_MULTI, |out| {
            // struct ifaddrmsg.
            out.extend_from_slice(&[kind, prefix, PERMANENT, SCOPE_HOST]);
            out.extend_from_slice(&interface::INDEX.to_ne_bytes());
            if kind == AF_INET as u8 {
                attribute(out, IFA_ADDRESS, &[127, 0, 0, 1]);
                attribute(out, IFA_LOCAL, &[127, 0, 0, 1]);
                attribute(out, IFA_LABEL, b"lo\0");
            } else {
                attribute(out, IFA_ADDRESS, &core::net::Ipv6Addr::LOCALHOST.octets());
            }
            attribute(out, IFA_CACHEINFO, &cache);
            attribute(out, IFA_FLAGS, &u32::from(PERMANENT).to_ne_bytes());
        });
    }
}

/// Whether a RTM_GETLINK asks for the loopback: by index, or by name.
fn names_loopback(body: &[u8]) -> bool {
    const IFLA_IFNAME: u16 = 3;
    const INFO: usize = 16;
    let index = body.get(4..8).and_then(|bytes| i32::read_from_bytes(bytes).ok()).unwrap_or(0);
    if index != 0 {
        return index == interface::INDEX;
    }
    let mut rest = body.get(INFO..).unwrap_or(&[]);
    while let Some([a, b, c, d]) = rest.first_chunk() {
        let len = usize::from(u16::from_ne_bytes([*a, *b]));
        let Some(data) = rest.get(4..len) else { return false };
        if u16::from_ne_bytes([*c, *d]) == IFLA_IFNAME {
            return data.split(|&byte| byte == 0).next() == Some(interface::NAME);
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    false
}

/// Answers one request.
fn serve(header: &Header, body: &[u8], privileged: bool, answer: &mut Answer) {
    let dump = header.flags & NLM_F_DUMP == NLM_F_DUMP;
    let family = body.first().copied().unwrap_or(0);
    let result: Result<()> = match header.kind {
        // Messages of netlink itself ask for nothing.
        0..16 => Ok(()),
        RTM_GETLINK if dump => {
            link(answer, NLM_F_MULTI);
            return answer.done();
        }
        RTM_GETLINK if names_loopback(body) => {
            link(answer, 0);
            Ok(())
        }
        RTM_GETLINK => Err(ENODEV),
        RTM_GETADDR if dump => {
            addresses(answer, family);
            return answer.done();
        }
        // Routes, neighbours, rules and the like: none.
        kind if dump && kind % 4 == 2 => return answer.done(),
        RTM_GETROUTE => Err(ENETUNREACH),
        kind if kind % 4 != 2 && !privileged => Err(EPERM),
        _ => Err(EOPNOTSUPP),
    };
    match result {
        Err(error) => answer.error(error.errno().0, header),
        Ok(()) if header.flags & NLM_F_ACK != 0 => answer.error(0, header),
        Ok(()) => {}
    }
}

impl NetlinkSocket {
    pub fn new(protocol: i32, raw: bool) -> Arc<Self> {
        let base = Base::new(AF_NETLINK, if raw { Kind::Raw } else { Kind::Datagram }, protocol);
        Arc::new(NetlinkSocket { queue: MessageQueue::new(base.readable.clone()), base, state: SpinLock::default() })
    }

    /// Takes a port: 0 is the process id, or any other if that is taken.
    fn take_port(&self, wanted: u32) -> Result<()> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut state = self.state.lock();
        if state.port != 0 {
            return if wanted == 0 || wanted == state.port { Ok(()) } else { Err(EINVAL) };
        }
        let mut ports = PORTS.lock();
        let mut port = match wanted {
            0 => crate::sched::current().map_or(1, |task| task.process.pid as u32),
            wanted if ports.contains(&wanted) => return Err(EADDRINUSE),
            wanted => wanted,
        };
        while ports.contains(&port) {
            // As Linux does: numbers that no process has.
            port = 0x8000_0000 | NEXT.fetch_add(1, Relaxed);
        }
        ports.insert(port);
        state.port = port;
        Ok(())
    }

    /// Puts an answer where it will be received, in pieces that fit a reader's page.
    fn deliver(&self, bytes: &[u8]) -> Result<()> {
        let limit = self.base.receive_buffer.load(Relaxed);
        let from = Some(address(0, 0));
        let account = &self.base.sent;
        match Message::new(&mut IoSrc::kernel(bytes), from, &mut Ancillary::default(), account, limit) {
            Some(message) => {
                // Its only reader is the one who asks.
                let _ = self.queue.push(message?, usize::MAX, &self.base.writable);
                Ok(())
            }
            None => Err(ENOBUFS),
        }
    }
}

impl Socket for NetlinkSocket {
    fn base(&self) -> &Base {
        &self.base
    }

    fn bind(&self, _cur: &Current, address: &SockAddr) -> Result<()> {
        let (port, groups) = parse(address)?;
        self.take_port(port)?;
        // Nothing ever changes: there is nothing to tell the groups.
        self.state.lock().groups = groups;
        Ok(())
    }

    fn connect(&self, _cur: &Current, address: &SockAddr, _nonblocking: bool) -> Result<()> {
        if address.family() == Some(super::address::AF_UNSPEC) {
            self.state.lock().connected = false;
            return Ok(());
        }
        let (port, _) = parse(address)?;
        if port != 0 {
            return Err(ECONNREFUSED);
        }
        self.take_port(0)?;
        self.state.lock().connected = true;
        Ok(())
    }

    fn local(&self) -> SockAddr {
        let state = self.state.lock();
        address(state.port, state.groups)
    }

    fn peer(&self) -> Result<SockAddr> {
        Ok(address(0, 0))
    }

    fn shutdown(&self, _directions: u8) -> Result<()> {
        Err(EOPNOTSUPP)
    }

    fn send(&self, message: Send<'_, '_>) -> Result<usize> {
        if message.flags & msg::OOB != 0 {
            return Err(EOPNOTSUPP);
        }
        if let Some((_, to)) = message.to {
            let (port, groups) = parse(to)?;
            if port != 0 || groups != 0 {
                return Err(if groups != 0 { EPERM } else { ECONNREFUSED });
            }
        }
        self.take_port(0)?;
        let len = message.src.remaining();
        if len > MAX_REQUEST {
            return Err(crate::errno::EMSGSIZE);
        }
        let mut bytes = alloc::vec![0; len];
        if message.src.get(&mut bytes)? < len {
            return Err(crate::errno::EFAULT);
        }
        let privileged = crate::sched::current().is_some_and(|task| task.capable(cap::NET_ADMIN));
        let pid = self.state.lock().port;
        let mut rest = &bytes[..];
        while let Ok((header, _)) = Header::read_from_prefix(rest) {
            let len = header.len as usize;
            let Some(body) = rest.get(size_of::<Header>()..len) else { break };
            let mut answer = Answer { bytes: Vec::new(), seq: header.seq, pid };
            serve(&header, body, privileged, &mut answer);
            if !answer.bytes.is_empty() {
                self.deliver(&answer.bytes)?;
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(len)
    }

    fn receive(&self, request: Recv<'_, '_>, into: &mut Received) -> Result<usize> {
        if request.flags & msg::OOB != 0 {
            return Err(EOPNOTSUPP);
        }
        let patience = self.base.receive_patience(request.nonblocking);
        self.queue.receive(&self.base, request, patience, false, into)
    }

    fn poll(&self, _interest: u32) -> u32 {
        let some = if self.queue.is_empty() { 0 } else { poll::IN | poll::RDNORM };
        self.base.poll() | some | poll::OUT | poll::WRNORM | poll::WRBAND
    }

    fn unread(&self) -> Result<usize> {
        Err(crate::errno::ENOTTY)
    }

    fn unsent(&self) -> Result<usize> {
        Err(crate::errno::ENOTTY)
    }

    fn option(&self, _level: i32, _name: i32) -> Result<Vec<u8>> {
        Err(ENOPROTOOPT)
    }

    /// SOL_NETLINK: memberships and the shape of answers, of which there is one.
    fn set_option(&self, level: i32, name: i32, _value: &[u8]) -> Result<()> {
        const SOL_NETLINK: i32 = 270;
        // NETLINK_ADD_MEMBERSHIP to NETLINK_GET_STRICT_CHK.
        if level == SOL_NETLINK && (1..=12).contains(&name) { Ok(()) } else { Err(ENOPROTOOPT) }
    }

    fn release(&self) {
        let port = core::mem::take(&mut self.state.lock().port);
        PORTS.lock().remove(&port);
        drop(self.queue.close());
    }
}
