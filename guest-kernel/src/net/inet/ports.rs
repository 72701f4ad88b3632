//! Ports: who has which, and who else may have it.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    net::Ipv6Addr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{Endpoint, Family, is_any};
use crate::{
    errno::{EACCES, EADDRINUSE, EADDRNOTAVAIL, Result},
    sync::SpinLock,
    task::{Creds, cap},
};

/// Ports below need CAP_NET_BIND_SERVICE.
const UNPRIVILEGED: u16 = 1024;
/// net.ipv4.ip_local_port_range.
const EPHEMERAL: core::ops::RangeInclusive<u16> = 32_768..=60_999;

/// What is asked about a socket that holds a port.
pub trait Holder: Send + Sync {
    /// TCP: it accepts connections, so SO_REUSEADDR does not let another one in.
    fn is_listening(&self) -> bool;
    /// Where it is connected to.
    fn remote(&self) -> Option<Endpoint>;
}

/// How a port is held.
#[derive(Clone, Copy)]
pub struct Claim {
    pub family: Family,
    pub ip: Ipv6Addr,
    /// SO_REUSEADDR and SO_REUSEPORT when it was bound.
    pub reuse_address: bool,
    pub reuse_port: bool,
    pub uid: u32,
}

impl Claim {
    /// Whether both would get what is sent to some address.
    fn overlaps(&self, other: &Claim) -> bool {
        let covers = |any: &Claim, one: Ipv6Addr| match any.family {
            Family::V4 => is_any(any.ip) && one.to_ipv4_mapped().is_some(),
            Family::V6 { only } => is_any(any.ip) && !(only && one.to_ipv4_mapped().is_some()),
        };
        self.ip == other.ip || covers(self, other.ip) || covers(other, self.ip)
    }

    /// Whether what is sent to `ip` is for this one.
    fn takes(&self, ip: Ipv6Addr) -> bool {
        self.overlaps(&Claim {
            ip,
            family: if ip.to_ipv4_mapped().is_some() { Family::V4 } else { Family::V6 { only: true } },
            ..*self
        })
    }
}

struct Entry<T> {
    claim: Claim,
    id: u64,
    holder: Weak<T>,
}

/// The ports of one protocol.
pub struct Ports<T> {
    ports: SpinLock<BTreeMap<u16, Vec<Entry<T>>>>,
    /// Datagrams: sockets with SO_REUSEADDR share even what both would get.
    datagrams: bool,
    next: AtomicUsize,
    /// Whose turn it is.
    turn: AtomicUsize,
}

/// A port that is held, until dropped.
pub struct Lease<T: 'static> {
    ports: &'static Ports<T>,
    pub port: u16,
    id: u64,
}

impl<T: Holder> Ports<T> {
    pub const fn new(datagrams: bool) -> Self {
        Ports { ports: SpinLock::new(BTreeMap::new()), datagrams, next: AtomicUsize::new(1), turn: AtomicUsize::new(0) }
    }

    /// Whether others stand in the way. `held`: what to drop once the table is not locked any more.
    fn conflicts(&self, entries: &[Entry<T>], claim: &Claim, id: u64, held: &mut Vec<Arc<T>>) -> bool {
        entries.iter().filter(|entry| entry.id != id && entry.claim.overlaps(claim)).any(|entry| {
            let Some(holder) = entry.holder.upgrade() else { return false };
            let listening = !self.datagrams && holder.is_listening();
            held.push(holder);
            let address = claim.reuse_address && entry.claim.reuse_address && !listening;
            let port = claim.reuse_port && entry.claim.reuse_port && claim.uid == entry.claim.uid;
            !address && !port
        })
    }

    /// Takes a port, `port` 0: any free one of those that are handed out.
    pub fn claim(&'static self, port: u16, claim: Claim, holder: Weak<T>, creds: &Creds) -> Result<Lease<T>> {
        if port != 0 && port < UNPRIVILEGED && !creds.capable(cap::NET_BIND_SERVICE) {
            return Err(EACCES);
        }
        let mut held = Vec::new();
        let mut ports = self.ports.lock();
        let port = if port != 0 {
            let taken = ports.get(&port).is_some_and(|entries| self.conflicts(entries, &claim, 0, &mut held));
            if taken {
                return Err(EADDRINUSE);
            }
            port
        } else {
            let (first, count) = (*EPHEMERAL.start(), EPHEMERAL.len() as u16);
            let start = self.next.fetch_add(1, Relaxed).wrapping_mul(7919) % count as usize;
            let free = |port: &u16| ports.get(port).is_none_or(|entries| entries.is_empty());
            let candidates = (0..count).map(|i| first + ((start + usize::from(i)) % usize::from(count)) as u16);
            candidates.into_iter().find(free).ok_or(EADDRNOTAVAIL)?
        };
        Ok(self.add(&mut ports, port, claim, holder))
    }

    fn add(
        &'static self,
        ports: &mut BTreeMap<u16, Vec<Entry<T>>>,
        port: u16,
        claim: Claim,
        holder: Weak<T>,
    ) -> Lease<T> {
        let id = self.next.fetch_add(1, Relaxed) as u64;
        ports.entry(port).or_default().push(Entry { claim, id, holder });
        Lease { ports: self, port, id }
    }

    /// One more that holds a port already held: an accepted connection.
    pub fn share(&'static self, port: u16, claim: Claim, holder: Weak<T>) -> Lease<T> {
        self.add(&mut self.ports.lock(), port, claim, holder)
    }

    /// Whether the holder of a lease may listen: EADDRINUSE when another one listens there. Called without the holder's lock.
    pub fn check_listen(&self, (port, id): (u16, u64)) -> Result<()> {
        let mut held = Vec::new();
        let ports = self.ports.lock();
        let Some(entries) = ports.get(&port) else { return Ok(()) };
        let Some(own) = entries.iter().find(|entry| entry.id == id) else { return Ok(()) };
        if self.conflicts(entries, &own.claim, id, &mut held) { Err(EADDRINUSE) } else { Ok(()) }
    }

    /// Who gets what `from` sends to `to`: the one that is connected to it, else the one whose address fits best; sockets
    /// that share a port take turns.
    pub fn find(&self, to: Endpoint, from: Option<Endpoint>, wanted: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        let mut rejected = Vec::new();
        let mut best: Vec<Arc<T>> = Vec::new();
        let mut best_score = 0;
        {
            let ports = self.ports.lock();
            for entry in ports.get(&to.port)? {
                let Some(holder) = entry.holder.upgrade() else { continue };
                let remote = holder.remote();
                let fits = entry.claim.takes(to.ip) && (remote.is_none() || remote == from) && wanted(&holder);
                let score = 1
                    + u32::from(remote.is_some()) * 4
                    + u32::from(!is_any(entry.claim.ip)) * 2
                    + u32::from(entry.claim.family.domain() == super::AF_INET && to.ip.to_ipv4_mapped().is_some());
                if !fits || score < best_score {
                    rejected.push(holder);
                    continue;
                }
                if score > best_score {
                    best_score = score;
                    rejected.append(&mut best);
                }
                best.push(holder);
            }
        }
        let turn = self.turn.fetch_add(1, Relaxed);
        let count = best.len().max(1);
        best.into_iter().nth(turn % count)
    }

    /// Everything that holds a port.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.ports.lock().values().flatten().filter_map(|entry| entry.holder.upgrade()).collect()
    }
}

impl<T> Lease<T> {
    /// The port, and which of its holders.
    pub fn place(&self) -> (u16, u64) {
        (self.port, self.id)
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        let mut ports = self.ports.ports.lock();
        if let Some(entries) = ports.get_mut(&self.port) {
            entries.retain(|entry| entry.id != self.id);
            if entries.is_empty() {
                ports.remove(&self.port);
            }
        }
    }
}
