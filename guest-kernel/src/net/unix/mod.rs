//! AF_UNIX (unix(7)): sockets between processes of the sandbox, by path, by abstract name, or in pairs.

mod connect;
mod datagram;
mod inflight;
mod names;
mod proc;

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use inflight::Rights;
pub use proc::table as proc_table;

use super::{
    AF_UNIX, Ancillary, Base, Kind, MessageQueue, Received, Recv, SHUT_RECEIVE, SHUT_SEND, Send, SockAddr, Socket,
    StreamEnd, Ucred, msg,
};
use crate::{
    errno::{ECONNRESET, EINVAL, EISCONN, ENOTCONN, EOPNOTSUPP, Result},
    fs::poll,
    sync::{SpinLock, WaitQueue},
    task::{Creds, Current},
};

/// Where data for the socket wait.
enum Transport {
    Stream(StreamEnd),
    Messages(MessageQueue),
}

#[derive(Default)]
enum Phase {
    #[default]
    Unconnected,
    Listening(Listener),
    Connected,
    Closed,
}

/// Connections that nobody has accepted yet.
struct Listener {
    waiting: VecDeque<Arc<UnixSocket>>,
    backlog: usize,
}

#[derive(Default)]
struct State {
    phase: Phase,
    name: Option<Arc<names::Bound>>,
    /// Cleared by [`Socket::release`]: peers hold each other until then.
    peer: Option<Arc<UnixSocket>>,
    /// Who connected, or listened, or made the pair.
    peer_credentials: Option<(Ucred, Arc<Creds>)>,
    /// Of a listener: who listened.
    own_credentials: Option<(Ucred, Arc<Creds>)>,
    /// Of a connection that waits to be accepted: the id of the socket it waits at; else 0.
    waits_at: u64,
}

pub struct UnixSocket {
    me: Weak<UnixSocket>,
    base: Base,
    id: u64,
    transport: Transport,
    state: SpinLock<State>,
    /// Those who connect wait here for room in the backlog.
    backlog_room: WaitQueue,
}

impl UnixSocket {
    /// socket(2).
    pub fn new(kind: Kind) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let base = Base::new(AF_UNIX, kind, 0);
        let transport = match kind {
            Kind::Stream => Transport::Stream(StreamEnd::new(&base)),
            _ => Transport::Messages(MessageQueue::new(base.readable.clone())),
        };
        let socket = Arc::new_cyclic(|me| UnixSocket {
            me: me.clone(),
            base,
            id: NEXT.fetch_add(1, Relaxed),
            transport,
            state: SpinLock::default(),
            backlog_room: WaitQueue::new(),
        });
        proc::add(socket.me.clone());
        socket
    }

    /// EINVAL cannot happen: whoever calls has it from an [`Arc`].
    fn strong(&self) -> Result<Arc<Self>> {
        self.me.upgrade().ok_or(EINVAL)
    }

    /// socketpair(2).
    pub fn pair(kind: Kind) -> (Arc<Self>, Arc<Self>) {
        let (a, b) = (Self::new(kind), Self::new(kind));
        let credentials = own_credentials();
        for (socket, peer) in [(&a, &b), (&b, &a)] {
            let mut state = socket.state.lock();
            state.peer = Some(peer.clone());
            state.peer_credentials = credentials.clone();
            state.phase = Phase::Connected;
        }
        a.join(&b);
        (a, b)
    }

    fn join(&self, other: &UnixSocket) {
        if let (Transport::Stream(mine), Transport::Stream(theirs)) = (&self.transport, &other.transport) {
            mine.join(theirs);
        }
    }

    fn peer_socket(&self) -> Option<Arc<UnixSocket>> {
        self.state.lock().peer.clone()
    }

    fn name(&self) -> Option<Arc<names::Bound>> {
        self.state.lock().name.clone()
    }

    fn address(&self) -> SockAddr {
        self.name().map_or_else(|| SockAddr::of(AF_UNIX, &[]), |name| name.address().clone())
    }

    fn is_connected(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Connected)
    }

    /// The socket by which this one can be reached for garbage collection: itself, or where it waits to be accepted.
    fn reached_by(&self) -> u64 {
        match self.state.lock().waits_at {
            0 => self.id,
            listener => listener,
        }
    }

    /// Lets go of files that wait here to be received.
    fn drop_rights(&self) {
        match &self.transport {
            Transport::Stream(end) => end.incoming.drop_rights(),
            Transport::Messages(queue) => drop(queue.take_all()),
        }
        let waiting: Vec<_> = match &self.state.lock().phase {
            Phase::Listening(listener) => listener.waiting.iter().cloned().collect(),
            _ => return,
        };
        for socket in waiting {
            socket.drop_rights();
        }
    }

    /// Adds the sender's name if either side wants to know it, and counts the files as on their way.
    fn complete(&self, ancillary: &mut Ancillary, to: &Arc<UnixSocket>) -> Result<()> {
        if ancillary.credentials.is_none()
            && (self.base.pass_credentials.load(Relaxed) || to.base.pass_credentials.load(Relaxed))
        {
            ancillary.credentials = Ucred::sender();
        }
        match &mut ancillary.rights {
            Some(rights) => rights.send(to),
            None => Ok(()),
        }
    }

    fn send_stream(&self, end: &StreamEnd, message: Send<'_, '_>) -> Result<usize> {
        let Some(outgoing) = end.outgoing() else {
            return Err(if message.to.is_some() { EOPNOTSUPP } else { ENOTCONN });
        };
        if message.to.is_some() {
            return Err(EISCONN);
        }
        let mut ancillary = message.ancillary;
        let named = self.base.pass_credentials.load(Relaxed) || outgoing.wants_credentials();
        if named || ancillary.rights.is_some() || ancillary.credentials.is_some() {
            match self.peer_socket() {
                Some(peer) => self.complete(&mut ancillary, &peer)?,
                None => return Err(ENOTCONN),
            }
        }
        let patience = self.base.send_patience(message.nonblocking);
        let limit = self.base.send_buffer.load(Relaxed);
        end.send(&self.base, outgoing, message.src, ancillary, patience, limit)
    }
}

/// The running task's credentials, for SO_PEERCRED of who is on the other side.
fn own_credentials() -> Option<(Ucred, Arc<Creds>)> {
    Some((Ucred::peer()?, crate::sched::current()?.creds()))
}

impl Socket for UnixSocket {
    fn base(&self) -> &Base {
        &self.base
    }

    fn bind(&self, cur: &Current, address: &SockAddr) -> Result<()> {
        names::bind(self, cur, address)
    }

    fn connect(&self, cur: &Current, address: &SockAddr, nonblocking: bool) -> Result<()> {
        match self.base.kind {
            Kind::Datagram => self.connect_datagram(cur, address),
            _ => self.connect_stream(cur, address, nonblocking),
        }
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        self.start_listening(backlog)
    }

    fn accept(&self, nonblocking: bool) -> Result<Arc<dyn Socket>> {
        Ok(self.accept_one(nonblocking)?)
    }

    fn is_listening(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Listening(_))
    }

    fn local(&self) -> SockAddr {
        self.address()
    }

    fn peer(&self) -> Result<SockAddr> {
        Ok(self.peer_socket().ok_or(ENOTCONN)?.address())
    }

    fn shutdown(&self, directions: u8) -> Result<()> {
        self.base.shut_down(directions);
        if self.base.kind == Kind::Datagram {
            return Ok(());
        }
        if let Some(peer) = self.peer_socket() {
            // What one side does not send the other does not receive.
            let mirrored = (directions << 1 | directions >> 1) & (SHUT_RECEIVE | SHUT_SEND);
            peer.base.shut_down(mirrored);
        }
        Ok(())
    }

    fn send(&self, message: Send<'_, '_>) -> Result<usize> {
        if message.flags & msg::OOB != 0 {
            return Err(EOPNOTSUPP);
        }
        match &self.transport {
            Transport::Stream(end) => self.send_stream(end, message),
            Transport::Messages(_) => self.send_message(message),
        }
    }

    fn receive(&self, request: Recv<'_, '_>, into: &mut Received) -> Result<usize> {
        if request.flags & msg::OOB != 0 {
            return Err(EOPNOTSUPP);
        }
        let patience = self.base.receive_patience(request.nonblocking);
        match &self.transport {
            Transport::Stream(end) if end.outgoing().is_none() => Err(EINVAL),
            Transport::Stream(end) => end.receive(&self.base, request.dst, request.flags, patience, into),
            Transport::Messages(queue) => self.receive_message(queue, request, patience, into),
        }
    }

    fn poll(&self, interest: u32) -> u32 {
        const OUT: u32 = poll::OUT | poll::WRNORM | poll::WRBAND;
        let (connected, waiting) = match &self.state.lock().phase {
            Phase::Listening(listener) => (true, Some(!listener.waiting.is_empty())),
            Phase::Connected => (true, None),
            _ => (false, None),
        };
        if let Some(waiting) = waiting {
            return self.base.poll() | if waiting { poll::IN | poll::RDNORM } else { 0 };
        }
        let mut ready = match &self.transport {
            Transport::Stream(end) => end.poll(&self.base, interest),
            Transport::Messages(queue) => {
                let some = if queue.is_empty() { 0 } else { poll::IN | poll::RDNORM };
                let room = if interest & OUT != 0 && self.may_send() { OUT } else { 0 };
                self.base.poll() | some | room
            }
        };
        if !connected && self.base.kind != Kind::Datagram {
            ready |= poll::HUP;
        }
        ready
    }

    fn unread(&self) -> Result<usize> {
        if self.is_listening() {
            return Err(EINVAL);
        }
        Ok(match &self.transport {
            Transport::Stream(end) => end.incoming.len(),
            Transport::Messages(queue) if self.base.kind == Kind::Datagram => queue.sizes().0,
            Transport::Messages(queue) => queue.sizes().1,
        })
    }

    fn unsent(&self) -> Result<usize> {
        if self.is_listening() {
            return Err(EINVAL);
        }
        Ok(match &self.transport {
            Transport::Stream(end) => end.outgoing().map_or(0, |queue| queue.len()),
            Transport::Messages(_) => self.base.sent.used(),
        })
    }

    fn peeks_at_offset(&self) -> bool {
        true
    }

    fn peer_credentials(&self) -> Option<(Ucred, Arc<Creds>)> {
        self.state.lock().peer_credentials.clone()
    }

    fn release(&self) {
        let state = core::mem::replace(&mut *self.state.lock(), State { phase: Phase::Closed, ..State::default() });
        if let Some(name) = state.name {
            names::unbind(self, &name);
        }
        self.base.shut_down(SHUT_RECEIVE | SHUT_SEND);
        let unread = match &self.transport {
            Transport::Stream(end) => end.incoming.close(),
            Transport::Messages(queue) => !queue.close().is_empty(),
        };
        if let (Some(peer), true) = (&state.peer, self.base.kind != Kind::Datagram) {
            if unread || state.waits_at != 0 {
                peer.base.set_error(ECONNRESET);
            }
            peer.base.shut_down(SHUT_RECEIVE | SHUT_SEND);
        }
        if let Phase::Listening(listener) = state.phase {
            for waiting in listener.waiting {
                waiting.release();
            }
            self.backlog_room.wake_all();
        }
        inflight::collect();
    }
}
