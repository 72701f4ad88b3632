//! Messages: datagram and sequenced packet sockets.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use super::{Phase, Transport, UnixSocket, names};
use crate::{
    errno::{ECONNREFUSED, EMSGSIZE, ENOTCONN, EPERM, EPIPE, Result},
    net::{
        Kind, Message, MessageQueue, Patience, Received, Recv, SHUT_RECEIVE, SHUT_SEND, Send, message_queue::Refused,
    },
};

/// Messages that a socket may have waiting from senders it is not connected to (net.unix.max_dgram_qlen).
const MAX_WAITING: usize = 10;

impl UnixSocket {
    /// Whether this socket may send to `other`: an associated one takes only what its peer sends.
    pub(super) fn may_send_to(&self, other: &UnixSocket) -> bool {
        other.peer_socket().is_none_or(|peer| core::ptr::eq(&*peer, self))
    }

    /// How many messages may wait at `other` when this socket sends to it.
    fn most_waiting(&self, other: &Arc<UnixSocket>) -> usize {
        let peers = other.peer_socket().is_some_and(|peer| core::ptr::eq(&*peer, self));
        if peers || core::ptr::eq(&**other, self) { usize::MAX } else { MAX_WAITING }
    }

    /// Whether poll calls it writable.
    pub(super) fn may_send(&self) -> bool {
        if !self.base.sent.has_room(self.base.send_buffer.load(Relaxed)) {
            return false;
        }
        let Some(peer) = self.peer_socket() else { return true };
        match &peer.transport {
            Transport::Messages(queue) => !queue.is_full(self.most_waiting(&peer), &self.base.writable),
            Transport::Stream(_) => true,
        }
    }

    pub(super) fn send_message(&self, message: Send<'_, '_>) -> Result<usize> {
        let packets = self.base.kind == Kind::SeqPacket;
        if packets && !self.is_connected() {
            return Err(ENOTCONN);
        }
        let named = match message.to {
            Some((cur, address)) if !packets => Some(names::find(self, cur, address)?),
            _ => None,
        };
        let to = match &named {
            Some(to) => to.clone(),
            None => self.peer_socket().ok_or(ENOTCONN)?,
        };
        if self.base.pass_credentials.load(Relaxed) {
            names::autobind(self)?;
        }
        let len = message.src.remaining();
        let limit = self.base.send_buffer.load(Relaxed);
        if len > limit - 32 {
            return Err(EMSGSIZE);
        }
        let mut ancillary = message.ancillary;
        self.complete(&mut ancillary, &to)?;
        let patience = self.base.send_patience(message.nonblocking);
        let from = self.name().map(|name| name.address().clone());
        let src = message.src;
        let packet = patience.wait(&self.base.writable, || {
            if let Err(error) = self.base.check_error() {
                return Some(Err(error));
            }
            if self.base.shut() & SHUT_SEND != 0 {
                return Some(Err(EPIPE));
            }
            Message::new(src, from.clone(), &mut ancillary, &self.base.sent, limit)
        })?;
        let Transport::Messages(queue) = &to.transport else { return Err(ECONNREFUSED) };
        patience.wait(&self.base.writable, || {
            if !self.may_send_to(&to) {
                return Some(Err(EPERM));
            }
            if matches!(to.state.lock().phase, Phase::Closed) {
                return Some(Err(self.lost(&to)));
            }
            if to.base.shut() & SHUT_RECEIVE != 0 {
                return Some(Err(EPIPE));
            }
            match queue.push(packet.clone(), self.most_waiting(&to), &self.base.writable) {
                Ok(()) => Some(Ok(())),
                Err(Refused::Full) => None,
                Err(Refused::Closed) => Some(Err(self.lost(&to))),
            }
        })?;
        Ok(len)
    }

    /// What a send to a socket that is gone says; a datagram socket forgets such a peer.
    fn lost(&self, to: &Arc<UnixSocket>) -> crate::errno::Error {
        if self.base.kind == Kind::SeqPacket {
            return EPIPE;
        }
        let gone = {
            let mut state = self.state.lock();
            match &state.peer {
                Some(peer) if Arc::ptr_eq(peer, to) => {
                    state.phase = Phase::Unconnected;
                    state.peer.take()
                }
                _ => None,
            }
        };
        drop(gone);
        ECONNREFUSED
    }

    pub(super) fn receive_message(
        &self,
        queue: &MessageQueue,
        request: Recv<'_, '_>,
        patience: Patience,
        into: &mut Received,
    ) -> Result<usize> {
        let packets = self.base.kind == Kind::SeqPacket;
        if packets && !self.is_connected() {
            return Err(ENOTCONN);
        }
        queue.receive(&self.base, request, patience, packets, into)
    }
}
