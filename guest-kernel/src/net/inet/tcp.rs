//! TCP (tcp(7)) on the loopback interface: the semantics of its sockets over [`StreamEnd`].

use alloc::{
    collections::VecDeque,
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
    errno::{
        EALREADY, ECONNABORTED, ECONNREFUSED, ECONNRESET, EINPROGRESS, EINVAL, EISCONN, ENOMEM, ENOTCONN, EOPNOTSUPP,
        EPIPE, Error, Result,
    },
    fs::poll,
    net::{
        Base, Kind, Received, Recv, SHUT_RECEIVE, SHUT_SEND, Send, SockAddr, Socket, StreamEnd, address::AF_UNSPEC,
        msg, options::so,
    },
    sync::{SpinLock, SpinLockGuard},
    task::Current,
};

pub static PORTS: Ports<TcpSocket> = Ports::new(false);

/// net.core.somaxconn.
const MAX_BACKLOG: usize = 4096;
/// net.ipv4.tcp_wmem and tcp_rmem, the defaults.
const SEND_BUFFER: usize = 16_384;
const RECEIVE_BUFFER: usize = 131_072;
/// What may be on its way when neither side has chosen its buffers: as far as Linux lets them grow by themselves on a
/// loopback connection, more or less.
const WINDOW: usize = 1 << 20;
/// Most bytes of one send with MSG_OOB.
const MAX_URGENT: usize = 64 << 10;
const BOTH: u8 = SHUT_RECEIVE | SHUT_SEND;

#[derive(Default)]
enum Phase {
    #[default]
    Unconnected,
    Listening(Listener),
    /// It waits for room in a listener's backlog.
    Connecting,
    Connected,
    Closed,
}

struct Listener {
    waiting: VecDeque<Arc<TcpSocket>>,
    backlog: usize,
    /// Those that found no room.
    pending: VecDeque<Weak<TcpSocket>>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    lease: Option<Lease<TcpSocket>>,
    local: Option<Endpoint>,
    remote: Option<Endpoint>,
    /// Cleared by [`Socket::release`]: peers hold each other until then.
    peer: Option<Arc<TcpSocket>>,
    /// A connect that did not wait has not been told how it ended.
    untold: bool,
    /// The connection has been reset: it has no other side any more.
    reset: bool,
}

pub struct TcpSocket {
    me: Weak<TcpSocket>,
    base: Base,
    end: StreamEnd,
    state: SpinLock<State>,
    pub(super) options: InetOptions,
}

impl TcpSocket {
    pub fn new(family: Family) -> Arc<Self> {
        let base = Base::new(family.domain(), Kind::Stream, 6);
        base.send_buffer.store(SEND_BUFFER, Relaxed);
        base.receive_buffer.store(RECEIVE_BUFFER, Relaxed);
        Arc::new_cyclic(|me| TcpSocket {
            me: me.clone(),
            end: StreamEnd::new(&base),
            base,
            state: SpinLock::default(),
            options: InetOptions::new(family),
        })
    }

    fn strong(&self) -> Result<Arc<Self>> {
        self.me.upgrade().ok_or(EINVAL)
    }

    fn claim(&self, ip: core::net::Ipv6Addr, uid: u32) -> Claim {
        let options = self.base.options.lock();
        Claim {
            family: self.options.family(),
            ip,
            reuse_address: options.is_on(so::REUSEADDR),
            reuse_port: options.is_on(so::REUSEPORT),
            uid,
        }
    }

    /// Takes a port unless there is one.
    fn ensure_port(&self, ip: core::net::Ipv6Addr) -> Result<()> {
        if self.state.lock().lease.is_some() {
            return Ok(());
        }
        let Some(task) = crate::sched::current() else { return Err(EINVAL) };
        let creds = task.creds();
        let lease = PORTS.claim(0, self.claim(ip, creds.euid), self.me.clone(), &creds)?;
        self.take_lease(lease, ip)
    }

    fn take_lease(&self, lease: Lease<TcpSocket>, ip: core::net::Ipv6Addr) -> Result<()> {
        let mut state = self.state.lock();
        if state.lease.is_some() || matches!(state.phase, Phase::Closed) {
            drop(state);
            drop(lease);
            return Err(EINVAL);
        }
        state.local = Some(Endpoint { ip, port: lease.port });
        state.lease = Some(lease);
        Ok(())
    }

    /// Bytes that may be on their way to `to`.
    fn window(&self, to: &Base) -> usize {
        let (send, receive) = (self.base.send_buffer.load(Relaxed), to.receive_buffer.load(Relaxed));
        if (send, receive) == (SEND_BUFFER, RECEIVE_BUFFER) { WINDOW } else { (send + receive).max(8192) }
    }

    /// One attempt to connect. False: the listener has no room, and knows of this socket.
    fn try_connect(&self, remote: Endpoint) -> Result<bool> {
        let me = self.strong()?;
        let listener = PORTS.find(remote, None, Holder::is_listening).ok_or(ECONNREFUSED)?;
        let local = {
            let mut state = self.state.lock();
            match state.phase {
                Phase::Unconnected | Phase::Connecting => {}
                Phase::Connected => return Err(EISCONN),
                Phase::Listening(_) | Phase::Closed => return Err(EINVAL),
            }
            let mut local = state.local.ok_or(EINVAL)?;
            if is_any(local.ip) {
                local.ip = source_for(remote.ip);
            }
            state.local = Some(local);
            state.remote = Some(remote);
            state.phase = Phase::Connecting;
            local
        };
        let accepted = TcpSocket::new(listener.options.family());
        accepted.inherit(&listener);
        accepted.take_lease(
            PORTS.share(remote.port, listener.claim(remote.ip, u32::MAX), Arc::downgrade(&accepted)),
            remote.ip,
        )?;
        let (mut own, mut theirs) = lock_two(self, &listener);
        let Phase::Listening(queue) = &mut theirs.phase else { return Err(ECONNREFUSED) };
        if queue.waiting.len() > queue.backlog {
            // Those that gave up leave when the list would grow.
            if queue.pending.len() == queue.pending.capacity() {
                queue.pending.retain(|socket| socket.strong_count() > 0);
            }
            queue.pending.push_back(self.me.clone());
            return Ok(false);
        }
        // Whoever admits it and the socket itself may both have come here.
        if matches!(own.phase, Phase::Connected) {
            return Ok(true);
        }
        {
            let mut new = accepted.state.lock();
            new.phase = Phase::Connected;
            new.remote = Some(local);
            new.peer = Some(me);
        }
        self.end.join(&accepted.end);
        own.phase = Phase::Connected;
        own.peer = Some(accepted.clone());
        queue.waiting.push_back(accepted);
        drop(own);
        drop(theirs);
        listener.base.wake_readers();
        self.base.writable.wake(poll::OUT | poll::WRNORM);
        Ok(true)
    }

    /// What a connection has from its listener.
    fn inherit(&self, listener: &TcpSocket) {
        let (own, theirs) = (&self.base, &listener.base);
        own.send_buffer.store(theirs.send_buffer.load(Relaxed), Relaxed);
        own.receive_buffer.store(theirs.receive_buffer.load(Relaxed), Relaxed);
        own.send_timeout.store(theirs.send_timeout.load(Relaxed), Relaxed);
        own.receive_timeout.store(theirs.receive_timeout.load(Relaxed), Relaxed);
        let inherited = theirs.options.lock().clone();
        *own.options.lock() = inherited;
        self.options.inherit(&listener.options);
    }

    /// There is room in the backlog again: lets those in that wait for it.
    fn admit(&self) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let Phase::Listening(queue) = &mut state.phase else { return };
                if queue.waiting.len() > queue.backlog {
                    return;
                }
                queue.pending.pop_front()
            };
            let Some(next) = next else { return };
            let Some(socket) = next.upgrade() else { continue };
            let remote = socket.state.lock().remote;
            if let Some(remote) = remote
                && let Err(error) = socket.try_connect(remote)
            {
                socket.refused(error);
            }
        }
    }

    /// A connect that is under way has failed.
    fn refused(&self, error: Error) {
        {
            let mut state = self.state.lock();
            if !matches!(state.phase, Phase::Connecting) {
                return;
            }
            state.phase = Phase::Unconnected;
            state.remote = None;
        }
        self.base.set_error(error);
        self.base.shut_down(BOTH);
    }

    /// Tells how the connect that did not wait ended; None: it has not, or there was none.
    fn tell(&self) -> Option<Result<()>> {
        let mut state = self.state.lock();
        if !state.untold {
            return None;
        }
        match state.phase {
            Phase::Connecting => Some(Err(EALREADY)),
            Phase::Connected => {
                state.untold = false;
                Some(Ok(()))
            }
            _ => {
                state.untold = false;
                drop(state);
                self.base.reopen();
                Some(self.base.check_error().and(Err(ECONNABORTED)))
            }
        }
    }

    /// The connection ends at once, and the other side is told so.
    fn reset(&self, peer: &TcpSocket) {
        peer.state.lock().reset = true;
        peer.base.set_error(ECONNRESET);
        peer.base.shut_down(BOTH);
    }

    fn stop_listening(&self, listener: Listener) {
        for waiting in listener.waiting {
            let peer = waiting.state.lock().peer.clone();
            if let Some(peer) = peer {
                waiting.reset(&peer);
            }
            waiting.release();
        }
        for pending in listener.pending {
            if let Some(socket) = pending.upgrade() {
                socket.refused(ECONNREFUSED);
            }
        }
    }

    /// MSG_OOB: the last byte is urgent, those before it are not.
    fn send_urgent(&self, message: Send<'_, '_>) -> Result<usize> {
        let Some(peer) = self.state.lock().peer.clone() else { return Err(EPIPE) };
        let mut bytes = alloc::vec![0; message.src.remaining().min(MAX_URGENT)];
        let n = message.src.get(&mut bytes)?;
        let Some((last, first)) = bytes[..n].split_last() else { return Ok(0) };
        let inline = peer.base.options.lock().is_on(so::OOBINLINE);
        let plain = if inline { &bytes[..n] } else { first };
        let mut sent = 0;
        if !plain.is_empty() {
            let src = &mut crate::mm::io::IoSrc::kernel(plain);
            sent = self.send(Send { src, flags: message.flags & !msg::OOB, ..message })?;
        }
        if inline || sent < plain.len() {
            return Ok(sent);
        }
        if self.base.shut() & SHUT_SEND != 0 {
            return Err(EPIPE);
        }
        self.end.outgoing().ok_or(EPIPE)?.push_urgent(*last)?;
        Ok(sent + 1)
    }

    /// Addresses, and the TCP_* state, for /proc/net/tcp and TCP_INFO.
    pub(super) fn describe(&self) -> (Option<Endpoint>, Option<Endpoint>, u8) {
        const ESTABLISHED: u8 = 1;
        const SYN_SENT: u8 = 2;
        const FIN_WAIT2: u8 = 5;
        const CLOSE: u8 = 7;
        const CLOSE_WAIT: u8 = 8;
        const LISTEN: u8 = 10;
        let state = self.state.lock();
        let shown = match state.phase {
            Phase::Listening(_) => LISTEN,
            Phase::Connecting => SYN_SENT,
            Phase::Connected if state.reset => CLOSE,
            Phase::Connected => match self.base.shut() {
                SHUT_RECEIVE => CLOSE_WAIT,
                SHUT_SEND => FIN_WAIT2,
                BOTH => CLOSE,
                _ => ESTABLISHED,
            },
            _ => CLOSE,
        };
        (state.local, state.remote, shown)
    }
}

/// Locks two different sockets' states, the one with the lower address first.
fn lock_two<'a>(a: &'a TcpSocket, b: &'a TcpSocket) -> (SpinLockGuard<'a, State>, SpinLockGuard<'a, State>) {
    if core::ptr::from_ref(a) < core::ptr::from_ref(b) {
        let first = a.state.lock();
        (first, b.state.lock())
    } else {
        let first = b.state.lock();
        (a.state.lock(), first)
    }
}

impl Holder for TcpSocket {
    fn is_listening(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Listening(_))
    }

    fn remote(&self) -> Option<Endpoint> {
        None
    }
}

impl Socket for TcpSocket {
    fn base(&self) -> &Base {
        &self.base
    }

    fn bind(&self, cur: &Current, address: &SockAddr) -> Result<()> {
        let wanted = self.options.family().parse_local(address)?;
        if self.state.lock().lease.is_some() {
            return Err(EINVAL);
        }
        let creds = cur.task.creds();
        let claim = self.claim(wanted.ip, creds.euid);
        let lease = PORTS.claim(wanted.port, claim, self.me.clone(), &creds)?;
        self.take_lease(lease, wanted.ip)
    }

    fn connect(&self, _cur: &Current, address: &SockAddr, nonblocking: bool) -> Result<()> {
        if address.family() == Some(AF_UNSPEC) {
            return Err(EOPNOTSUPP);
        }
        if let Some(told) = self.tell() {
            return told;
        }
        match self.state.lock().phase {
            Phase::Unconnected => {}
            Phase::Listening(_) | Phase::Connected => return Err(EISCONN),
            Phase::Connecting => return Err(EALREADY),
            Phase::Closed => return Err(EINVAL),
        }
        let family = self.options.family();
        let wanted = family.parse(address)?;
        let remote = Endpoint { ip: family.route(wanted.ip)?, ..wanted };
        if crate::mm::kmem::under_pressure() {
            return Err(ENOMEM);
        }
        self.ensure_port(source_for(remote.ip))?;
        let result = self.try_connect(remote);
        if nonblocking {
            // As over a wire: the answer comes later, if only by a moment.
            self.state.lock().untold = true;
            if let Err(error) = result {
                self.state.lock().phase = Phase::Connecting;
                self.refused(error);
            }
            return Err(EINPROGRESS);
        }
        let failed = |error: Error| {
            let mut state = self.state.lock();
            if matches!(state.phase, Phase::Connecting) {
                state.phase = Phase::Unconnected;
                state.remote = None;
            }
            error
        };
        if result.map_err(failed)? {
            return Ok(());
        }
        self.state.lock().untold = true;
        self.base.send_patience(false).wait(&self.base.writable, || match self.tell() {
            Some(Err(EALREADY)) => None,
            told => Some(told.unwrap_or(Err(ECONNREFUSED))),
        })
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        let backlog = usize::try_from(backlog).unwrap_or(MAX_BACKLOG).min(MAX_BACKLOG);
        self.ensure_port(self.options.family().any())?;
        {
            let mut state = self.state.lock();
            match &mut state.phase {
                Phase::Listening(listener) => listener.backlog = backlog,
                Phase::Unconnected => {
                    let listener = Listener { waiting: VecDeque::new(), backlog, pending: VecDeque::new() };
                    state.phase = Phase::Listening(listener);
                }
                _ => return Err(EINVAL),
            }
        }
        self.base.reopen();
        // Looked at afterwards: of two that listen at once one must see the other.
        let place = self.state.lock().lease.as_ref().map(Lease::place);
        let checked = place.map_or(Err(EINVAL), |place| PORTS.check_listen(place));
        if let Err(error) = checked {
            self.state.lock().phase = Phase::Unconnected;
            return Err(error);
        }
        self.admit();
        Ok(())
    }

    fn accept(&self, nonblocking: bool) -> Result<Arc<dyn Socket>> {
        let patience = self.base.receive_patience(nonblocking);
        let taken = patience.wait(&self.base.readable, || {
            let mut state = self.state.lock();
            let Phase::Listening(listener) = &mut state.phase else { return Some(Err(EINVAL)) };
            listener.waiting.pop_front().map(Ok)
        })?;
        self.admit();
        Ok(taken)
    }

    fn is_listening(&self) -> bool {
        Holder::is_listening(self)
    }

    fn local(&self) -> SockAddr {
        let family = self.options.family();
        family.show(self.state.lock().local.unwrap_or(Endpoint { ip: family.any(), port: 0 }))
    }

    fn peer(&self) -> Result<SockAddr> {
        let state = self.state.lock();
        match (&state.phase, state.remote) {
            (Phase::Connected, Some(remote)) if !state.reset => Ok(self.options.family().show(remote)),
            _ => Err(ENOTCONN),
        }
    }

    fn shutdown(&self, directions: u8) -> Result<()> {
        let mut state = self.state.lock();
        match &mut state.phase {
            Phase::Connected => {}
            Phase::Listening(_) if directions & SHUT_RECEIVE == 0 => return Ok(()),
            Phase::Listening(_) => {
                let old = core::mem::take(&mut state.phase);
                drop(state);
                if let Phase::Listening(listener) = old {
                    self.stop_listening(listener);
                }
                self.base.wake_all();
                return Ok(());
            }
            _ => return Err(ENOTCONN),
        }
        let peer = state.peer.clone();
        drop(state);
        self.base.shut_down(directions);
        if let Some(peer) = peer.filter(|_| directions & SHUT_SEND != 0) {
            peer.base.shut_down(SHUT_RECEIVE);
        }
        Ok(())
    }

    fn send(&self, message: Send<'_, '_>) -> Result<usize> {
        if message.flags & msg::OOB != 0 && message.src.remaining() > 0 {
            return self.send_urgent(message);
        }
        let patience = self.base.send_patience(message.nonblocking);
        if matches!(self.state.lock().phase, Phase::Connecting) {
            patience.wait(&self.base.writable, || {
                (!matches!(self.state.lock().phase, Phase::Connecting)).then_some(Ok(()))
            })?;
        }
        self.base.check_error()?;
        let peer = self.state.lock().peer.clone();
        let (Some(outgoing), Some(peer)) = (self.end.outgoing(), peer) else { return Err(EPIPE) };
        let window = self.window(&peer.base);
        let left = message.src.remaining();
        let sent = self.end.send(&self.base, outgoing, message.src, message.ancillary, patience, window);
        if sent == Err(EPIPE) && self.base.shut() & SHUT_SEND == 0 && left > 0 {
            // The other side has closed: what comes first still goes out, and the answer is a reset.
            message.src.skip(left);
            self.state.lock().reset = true;
            self.base.set_error(EPIPE);
            self.base.shut_down(BOTH);
            return Ok(left);
        }
        sent
    }

    fn receive(&self, request: Recv<'_, '_>, into: &mut Received) -> Result<usize> {
        if request.flags & msg::OOB != 0 {
            let inline = self.base.options.lock().is_on(so::OOBINLINE);
            let byte = self.end.incoming.pull_urgent(request.flags & msg::PEEK != 0).filter(|_| !inline);
            into.flags |= msg::OOB;
            return request.dst.put(&[byte.ok_or(EINVAL)?]);
        }
        let patience = self.base.receive_patience(request.nonblocking);
        if self.end.outgoing().is_none() {
            if !matches!(self.state.lock().phase, Phase::Connecting) {
                self.base.check_error()?;
                return Err(ENOTCONN);
            }
            patience.wait(&self.base.writable, || {
                (!matches!(self.state.lock().phase, Phase::Connecting)).then_some(Ok(()))
            })?;
            self.base.check_error()?;
        }
        // A write that met the end has left EPIPE: reading still sees the end.
        let broken = self.base.shut() & SHUT_RECEIVE != 0 && self.base.peek_error() == EPIPE.errno().0;
        if broken && self.end.incoming.is_empty() {
            return Ok(0);
        }
        if request.flags & (msg::TRUNC | msg::PEEK) == msg::TRUNC {
            // MSG_TRUNC: the bytes are thrown away.
            let mut waste = alloc::vec![0; request.dst.remaining().min(64 << 10)];
            let dst = &mut crate::mm::io::IoDst::kernel(&mut waste);
            return self.end.receive(&self.base, dst, request.flags, patience, into);
        }
        self.end.receive(&self.base, request.dst, request.flags, patience, into)
    }

    fn poll(&self, interest: u32) -> u32 {
        const OUT: u32 = poll::OUT | poll::WRNORM;
        let (connected, connecting, waiting) = match &self.state.lock().phase {
            Phase::Listening(listener) => (true, false, Some(!listener.waiting.is_empty())),
            Phase::Connected => (true, false, None),
            Phase::Connecting => (true, true, None),
            _ => (false, false, None),
        };
        if let Some(waiting) = waiting {
            return if waiting { poll::IN | poll::RDNORM } else { 0 };
        }
        if connecting {
            return self.base.poll();
        }
        let mut ready = self.end.poll(&self.base, interest) & !poll::WRBAND;
        if interest & poll::PRI != 0 && self.end.incoming.urgent().0 {
            ready |= poll::PRI;
        }
        if self.base.shut() & SHUT_SEND != 0 {
            ready |= OUT;
        }
        if !connected {
            ready |= poll::HUP;
        }
        ready
    }

    fn unread(&self) -> Result<usize> {
        if Holder::is_listening(self) { Err(EINVAL) } else { Ok(self.end.incoming.len()) }
    }

    fn at_mark(&self) -> Result<bool> {
        Ok(self.end.incoming.urgent().1)
    }

    fn unsent(&self) -> Result<usize> {
        if Holder::is_listening(self) {
            return Err(EINVAL);
        }
        // Acknowledged as soon as it is sent.
        Ok(0)
    }

    fn option(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        self.options.get(level, name, 6, || self.describe().2)
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        self.options.set(level, name, 6, value, self.state.lock().lease.is_some())
    }

    fn release(&self) {
        let state = core::mem::replace(&mut *self.state.lock(), State { phase: Phase::Closed, ..State::default() });
        self.base.shut_down(BOTH);
        let unread = self.end.incoming.close();
        let abort = self.base.options.lock().linger == [1, 0];
        if let Some(peer) = &state.peer {
            if unread || abort {
                self.reset(peer);
            } else {
                peer.base.shut_down(SHUT_RECEIVE);
            }
        }
        if let Phase::Listening(listener) = state.phase {
            self.stop_listening(listener);
        }
    }
}
