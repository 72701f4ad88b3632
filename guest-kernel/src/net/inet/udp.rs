//! UDP (udp(7)) on the loopback interface.

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::Ordering::Relaxed;

use super::{
    Endpoint, Family, is_any,
    options::InetOptions,
    ports::{Claim, Holder, Lease, Ports},
    source_for,
};
use crate::{
    errno::{ECONNREFUSED, EDESTADDRREQ, EINVAL, EMSGSIZE, ENOTCONN, EOPNOTSUPP, EPIPE, Result},
    fs::poll,
    net::{
        Ancillary, Base, Kind, Message, MessageQueue, Received, Recv, SHUT_RECEIVE, SHUT_SEND, Send, SockAddr, Socket,
        address::AF_UNSPEC, msg, options::so,
    },
    sync::SpinLock,
    task::Current,
};

pub static PORTS: Ports<UdpSocket> = Ports::new(true);

/// Most bytes of a datagram.
const MAX_DATA: usize = 65_507;

#[derive(Default)]
struct State {
    lease: Option<Lease<UdpSocket>>,
    local: Option<Endpoint>,
    remote: Option<Endpoint>,
    /// What bind(2) asked for; it outlasts associations.
    bound: Option<Endpoint>,
}

pub struct UdpSocket {
    me: Weak<UdpSocket>,
    base: Base,
    queue: MessageQueue,
    state: SpinLock<State>,
    options: InetOptions,
}

impl UdpSocket {
    pub fn new(family: Family) -> Arc<Self> {
        let base = Base::new(family.domain(), Kind::Datagram, 17);
        Arc::new_cyclic(|me| UdpSocket {
            me: me.clone(),
            queue: MessageQueue::new(base.readable.clone()),
            base,
            state: SpinLock::default(),
            options: InetOptions::new(family),
        })
    }

    /// Takes a port: the one that is asked for, or any.
    fn claim(&self, wanted: Endpoint) -> Result<()> {
        let Some(task) = crate::sched::current() else { return Err(EINVAL) };
        let creds = task.creds();
        let claim = {
            let options = self.base.options.lock();
            Claim {
                family: self.options.family(),
                ip: wanted.ip,
                reuse_address: options.is_on(so::REUSEADDR),
                reuse_port: options.is_on(so::REUSEPORT),
                uid: creds.euid,
            }
        };
        let lease = PORTS.claim(wanted.port, claim, self.me.clone(), &creds)?;
        let mut state = self.state.lock();
        if state.lease.is_some() {
            drop(state);
            drop(lease);
            return Err(EINVAL);
        }
        state.local = Some(Endpoint { ip: wanted.ip, port: lease.port });
        state.lease = Some(lease);
        Ok(())
    }

    fn ensure_port(&self) -> Result<()> {
        if self.state.lock().lease.is_some() {
            return Ok(());
        }
        self.claim(Endpoint { ip: self.options.family().any(), port: 0 })
    }

    pub(super) fn endpoints(&self) -> (Option<Endpoint>, Option<Endpoint>) {
        let state = self.state.lock();
        (state.local, state.remote)
    }
}

impl Holder for UdpSocket {
    fn is_listening(&self) -> bool {
        false
    }

    fn remote(&self) -> Option<Endpoint> {
        self.state.lock().remote
    }
}

impl Socket for UdpSocket {
    fn base(&self) -> &Base {
        &self.base
    }

    fn bind(&self, _cur: &Current, address: &SockAddr) -> Result<()> {
        let wanted = self.options.family().parse_local(address)?;
        if self.state.lock().lease.is_some() {
            return Err(EINVAL);
        }
        self.claim(wanted)?;
        self.state.lock().bound = Some(wanted);
        Ok(())
    }

    fn connect(&self, _cur: &Current, address: &SockAddr, _nonblocking: bool) -> Result<()> {
        if address.family() == Some(AF_UNSPEC) {
            let lease = {
                let mut state = self.state.lock();
                state.remote = None;
                let port = state.lease.as_ref().map_or(0, |lease| lease.port);
                state.local = state.bound.map(|bound| Endpoint { port, ..bound });
                // A port that was not asked for goes too.
                if state.bound.is_none_or(|bound| bound.port == 0) {
                    state.local = state.bound;
                    state.lease.take()
                } else {
                    None
                }
            };
            drop(lease);
            return Ok(());
        }
        let family = self.options.family();
        let wanted = family.parse(address)?;
        let remote = Endpoint { ip: family.route(wanted.ip)?, ..wanted };
        self.ensure_port()?;
        let mut state = self.state.lock();
        if let Some(local) = &mut state.local
            && is_any(local.ip)
        {
            local.ip = source_for(remote.ip);
        }
        state.remote = Some(remote);
        Ok(())
    }

    fn local(&self) -> SockAddr {
        let family = self.options.family();
        family.show(self.state.lock().local.unwrap_or(Endpoint { ip: family.any(), port: 0 }))
    }

    fn peer(&self) -> Result<SockAddr> {
        Ok(self.options.family().show(self.state.lock().remote.ok_or(ENOTCONN)?))
    }

    fn shutdown(&self, directions: u8) -> Result<()> {
        if self.state.lock().remote.is_none() {
            return Err(ENOTCONN);
        }
        self.base.shut_down(directions);
        Ok(())
    }

    fn send(&self, message: Send<'_, '_>) -> Result<usize> {
        if message.flags & msg::OOB != 0 {
            return Err(EOPNOTSUPP);
        }
        let len = message.src.remaining();
        if len > MAX_DATA {
            return Err(EMSGSIZE);
        }
        self.ensure_port()?;
        let family = self.options.family();
        let connected = self.state.lock().remote;
        let to = match message.to {
            Some((_, address)) => {
                let wanted = family.parse(address)?;
                Endpoint { ip: family.route(wanted.ip)?, ..wanted }
            }
            None => connected.ok_or(EDESTADDRREQ)?,
        };
        if to.port == 0 {
            return Err(EINVAL);
        }
        self.base.check_error()?;
        if self.base.shut() & SHUT_SEND != 0 {
            return Err(EPIPE);
        }
        let Some(mut from) = self.state.lock().local else { return Err(EINVAL) };
        if let Some(source) = message.ancillary.packet.source {
            family.check_local(source).map_err(|_| EINVAL)?;
            from.ip = source;
        }
        if is_any(from.ip) {
            from.ip = source_for(to.ip);
        }
        let mut ancillary =
            Ancillary { packet: message.ancillary.packet.filled(&self.options, to.ip), ..Ancillary::default() };
        let receiver = PORTS.find(to, Some(from), |_| true);
        let Some(receiver) = receiver else {
            message.src.skip(len);
            if connected.is_some() {
                // What ICMP would tell.
                self.base.set_error(ECONNREFUSED);
                self.base.wake_all();
            }
            return Ok(len);
        };
        let shown = receiver.options.family().show(from);
        let limit = receiver.base.receive_buffer.load(Relaxed);
        // It is the receiver's memory: what finds no room there is lost.
        match Message::new(message.src, Some(shown), &mut ancillary, &receiver.base.sent, limit) {
            Some(packet) => {
                let packet = packet?;
                if receiver.base.shut() & SHUT_RECEIVE == 0 {
                    // A receiver that is going has no use for it.
                    let _ = receiver.queue.push(packet, usize::MAX, &self.base.writable);
                }
            }
            None => message.src.skip(len),
        }
        Ok(len)
    }

    fn receive(&self, request: Recv<'_, '_>, into: &mut Received) -> Result<usize> {
        if request.flags & msg::OOB != 0 {
            return Err(EOPNOTSUPP);
        }
        let patience = self.base.receive_patience(request.nonblocking);
        let n = self.queue.receive(&self.base, request, patience, false, into)?;
        let packet = into.packet;
        packet.write(&self.options, into);
        Ok(n)
    }

    fn poll(&self, _interest: u32) -> u32 {
        let some = if self.queue.is_empty() { 0 } else { poll::IN | poll::RDNORM };
        self.base.poll() | some | poll::OUT | poll::WRNORM | poll::WRBAND
    }

    fn unread(&self) -> Result<usize> {
        Ok(self.queue.sizes().0)
    }

    fn unsent(&self) -> Result<usize> {
        Ok(0)
    }

    fn option(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        self.options.get(level, name, 17, || 7)
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.options.set(level, name, 17, value, self.state.lock().lease.is_some())
    }

    fn peeks_at_offset(&self) -> bool {
        true
    }

    fn release(&self) {
        let state = core::mem::take(&mut *self.state.lock());
        drop(state);
        drop(self.queue.close());
    }
}
