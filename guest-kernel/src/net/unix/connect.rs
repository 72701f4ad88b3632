//! Connections: listen(2), connect(2), accept(2), and the association of datagram sockets.

use alloc::{collections::VecDeque, sync::Arc};
use core::sync::atomic::Ordering::Relaxed;

use super::{Listener, Phase, State, UnixSocket, names, own_credentials};
use crate::{
    errno::{EAGAIN, ECONNREFUSED, ECONNRESET, EINVAL, EISCONN, ENOMEM, EOPNOTSUPP, EPERM, Error, Result},
    fs::poll,
    net::{Kind, SHUT_RECEIVE, SockAddr, address::AF_UNSPEC},
    task::Current,
};

/// net.core.somaxconn.
const MAX_BACKLOG: usize = 4096;

impl UnixSocket {
    pub(super) fn start_listening(&self, backlog: i32) -> Result<()> {
        if self.base.kind == Kind::Datagram {
            return Err(EOPNOTSUPP);
        }
        let backlog = usize::try_from(backlog).unwrap_or(MAX_BACKLOG).min(MAX_BACKLOG);
        let credentials = own_credentials();
        {
            let mut state = self.state.lock();
            if state.name.is_none() {
                return Err(EINVAL);
            }
            match &mut state.phase {
                Phase::Listening(listener) => listener.backlog = backlog,
                Phase::Unconnected => state.phase = Phase::Listening(Listener { waiting: VecDeque::new(), backlog }),
                Phase::Connected | Phase::Closed => return Err(EINVAL),
            }
            state.own_credentials = credentials;
        }
        self.backlog_room.wake_all();
        Ok(())
    }

    pub(super) fn accept_one(&self, nonblocking: bool) -> Result<Arc<UnixSocket>> {
        if self.base.kind == Kind::Datagram {
            return Err(EOPNOTSUPP);
        }
        let patience = self.base.receive_patience(nonblocking);
        let taken = patience.wait(&self.base.readable, || {
            let mut state = self.state.lock();
            let Phase::Listening(listener) = &mut state.phase else { return Some(Err(EINVAL)) };
            if let Some(socket) = listener.waiting.pop_front() {
                return Some(Ok(socket));
            }
            (self.base.shut() & SHUT_RECEIVE != 0).then_some(Err(EINVAL))
        })?;
        self.backlog_room.wake(poll::OUT);
        taken.state.lock().waits_at = 0;
        taken.base.pass_credentials.store(self.base.pass_credentials.load(Relaxed), Relaxed);
        Ok(taken)
    }

    /// Stream and sequenced packet sockets: the other side is there at once, accepted or not.
    pub(super) fn connect_stream(&self, cur: &Current, address: &SockAddr, nonblocking: bool) -> Result<()> {
        if self.base.pass_credentials.load(Relaxed) {
            names::autobind(self)?;
        }
        if crate::mm::kmem::under_pressure() {
            return Err(ENOMEM);
        }
        let accepted = UnixSocket::new(self.base.kind);
        let credentials = own_credentials();
        loop {
            let listener = names::find(self, cur, address)?;
            match self.try_connect(&listener, &accepted, &credentials) {
                Some(result) => {
                    result?;
                    listener.base.wake_readers();
                    return Ok(());
                }
                None if nonblocking => return Err(EAGAIN),
                None => {
                    let patience = self.base.send_patience(false);
                    // The name may lead elsewhere afterwards: it is looked up again.
                    patience.wait(&listener.backlog_room, || listener.may_connect().then_some(Ok(())))?;
                }
            }
        }
    }

    /// Whether a connect would not have to wait: there is room, or an error to tell.
    fn may_connect(&self) -> bool {
        match &self.state.lock().phase {
            Phase::Listening(listener) => {
                listener.waiting.len() <= listener.backlog || self.base.shut() & SHUT_RECEIVE != 0
            }
            _ => true,
        }
    }

    /// Puts `accepted`, connected to this socket, into the listener's backlog. None: there is no room.
    fn try_connect(
        &self,
        listener: &Arc<UnixSocket>,
        accepted: &Arc<UnixSocket>,
        credentials: &Option<(super::Ucred, Arc<super::Creds>)>,
    ) -> Option<Result<()>> {
        let me = match self.strong() {
            Ok(me) => me,
            Err(error) => return Some(Err(error)),
        };
        let (mut own, mut theirs) = match lock_two(self, listener) {
            Ok(locked) => locked,
            Err(error) => return Some(Err(error)),
        };
        match own.phase {
            Phase::Unconnected => {}
            Phase::Connected => return Some(Err(EISCONN)),
            Phase::Listening(_) | Phase::Closed => return Some(Err(EINVAL)),
        }
        let (name, their_credentials) = (theirs.name.clone(), theirs.own_credentials.clone());
        let Phase::Listening(queue) = &mut theirs.phase else { return Some(Err(ECONNREFUSED)) };
        if listener.base.shut() & SHUT_RECEIVE != 0 {
            return Some(Err(ECONNREFUSED));
        }
        if queue.waiting.len() > queue.backlog {
            return None;
        }
        {
            let mut new = accepted.state.lock();
            new.phase = Phase::Connected;
            new.name = name;
            new.peer = Some(me);
            new.peer_credentials = credentials.clone();
            new.waits_at = listener.id;
        }
        self.join(accepted);
        own.phase = Phase::Connected;
        own.peer = Some(accepted.clone());
        own.peer_credentials = their_credentials;
        queue.waiting.push_back(accepted.clone());
        Some(Ok(()))
    }

    /// Datagram sockets: where sends go by default, and the only one that may send here.
    pub(super) fn connect_datagram(&self, cur: &Current, address: &SockAddr) -> Result<()> {
        let peer = if address.family() == Some(AF_UNSPEC) {
            None
        } else {
            if self.base.pass_credentials.load(Relaxed) {
                names::autobind(self)?;
            }
            let found = names::find(self, cur, address)?;
            if !self.may_send_to(&found) {
                return Err(EPERM);
            }
            Some(found)
        };
        let credentials = if peer.is_some() { own_credentials() } else { None };
        let old = {
            let mut state = self.state.lock();
            state.phase = if peer.is_some() { Phase::Connected } else { Phase::Unconnected };
            state.peer_credentials = credentials;
            core::mem::replace(&mut state.peer, peer.clone())
        };
        if let Some(old) = old
            && !peer.is_some_and(|new| Arc::ptr_eq(&new, &old))
        {
            self.dissociated(&old);
        }
        self.base.wake_all();
        Ok(())
    }

    /// The association with `old` is over: what it sent is forgotten, and it is told if it was associated with this socket.
    fn dissociated(&self, old: &Arc<UnixSocket>) {
        let super::Transport::Messages(queue) = &self.transport else { return };
        if queue.is_empty() {
            return;
        }
        drop(queue.take_all());
        if old.peer_socket().is_some_and(|peer| core::ptr::eq(&*peer, self)) {
            old.base.set_error(ECONNRESET);
            old.base.wake_all();
        }
    }
}

/// Locks the states of two sockets, the one with the lower address first. EINVAL when they are one.
fn lock_two<'a>(
    a: &'a UnixSocket,
    b: &'a UnixSocket,
) -> Result<(crate::sync::SpinLockGuard<'a, State>, crate::sync::SpinLockGuard<'a, State>), Error> {
    match core::ptr::from_ref(a).cmp(&core::ptr::from_ref(b)) {
        core::cmp::Ordering::Equal => Err(EINVAL),
        core::cmp::Ordering::Less => {
            let first = a.state.lock();
            Ok((first, b.state.lock()))
        }
        core::cmp::Ordering::Greater => {
            let first = b.state.lock();
            Ok((a.state.lock(), first))
        }
    }
}
