//! AF_INET and AF_INET6 over the loopback interface, the only one there is: TCP and UDP between the sandbox's own programs.
//!
//! There are no packets. A connection joins two sockets' queues, a datagram goes into its receiver's queue. IPv4 addresses
//! are kept in their IPv6-mapped form, so that one table serves both families.

mod control;
pub mod interface;
mod options;
mod ports;
mod proc;
mod tcp;
mod udp;

use core::net::{Ipv4Addr, Ipv6Addr};

pub use control::Packet;
pub use proc::{tcp_table, udp_table};
pub use tcp::TcpSocket;
pub use udp::UdpSocket;

use super::SockAddr;
use crate::errno::{EADDRNOTAVAIL, EAFNOSUPPORT, EINVAL, ENETUNREACH, Result};

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

/// An address and a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    pub ip: Ipv6Addr,
    pub port: u16,
}

const LOOPBACK4: Ipv6Addr = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
const ANY4: Ipv6Addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();

/// Which addresses a socket is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    /// `only`: no IPv4 through mapped addresses (IPV6_V6ONLY).
    V6 {
        only: bool,
    },
}

impl Family {
    pub fn domain(self) -> u16 {
        if self == Family::V4 { AF_INET } else { AF_INET6 }
    }

    /// The address that stands for all.
    pub fn any(self) -> Ipv6Addr {
        if self == Family::V4 { ANY4 } else { Ipv6Addr::UNSPECIFIED }
    }

    /// An endpoint as an application gives it. EINVAL when it is too short, EAFNOSUPPORT for another family.
    pub fn parse(self, address: &SockAddr) -> Result<Endpoint> {
        let rest = address.rest();
        let least = if self == Family::V4 { 14 } else { 22 };
        if rest.len() < least {
            return Err(EINVAL);
        }
        if address.family() != Some(self.domain()) {
            return Err(EAFNOSUPPORT);
        }
        let port = u16::from_be_bytes([rest[0], rest[1]]);
        let ip = match self {
            Family::V4 => Ipv4Addr::new(rest[2], rest[3], rest[4], rest[5]).to_ipv6_mapped(),
            Family::V6 { .. } => {
                let mut bytes = [0; 16];
                bytes.copy_from_slice(&rest[6..22]);
                Ipv6Addr::from(bytes)
            }
        };
        Ok(Endpoint { ip, port })
    }

    /// An endpoint as a socket of this family shows it.
    pub fn show(self, endpoint: Endpoint) -> SockAddr {
        let port = endpoint.port.to_be_bytes();
        match (self, endpoint.ip.to_ipv4_mapped()) {
            (Family::V4, ip) => {
                let mut rest = [0; 14];
                rest[..2].copy_from_slice(&port);
                rest[2..6].copy_from_slice(&ip.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
                SockAddr::of(AF_INET, &rest)
            }
            (Family::V6 { .. }, _) => {
                let mut rest = [0; 26];
                rest[..2].copy_from_slice(&port);
                rest[6..22].copy_from_slice(&endpoint.ip.octets());
                SockAddr::of(AF_INET6, &rest)
            }
        }
    }

    /// As [`Self::parse`], for an address that a socket wants as its own.
    pub fn parse_local(self, address: &SockAddr) -> Result<Endpoint> {
        let endpoint = self.parse(address)?;
        self.check_local(endpoint.ip)?;
        Ok(endpoint)
    }

    /// Whether a socket may have `ip` as its own: EADDRNOTAVAIL unless it is this host's.
    pub fn check_local(self, ip: Ipv6Addr) -> Result<()> {
        if matches!(self, Family::V6 { only: true }) && ip.to_ipv4_mapped().is_some() {
            return Err(EINVAL);
        }
        if is_any(ip) || is_loopback(ip) { Ok(()) } else { Err(EADDRNOTAVAIL) }
    }

    /// Where something for `ip` goes: "any" stands for this host. ENETUNREACH beyond it.
    pub fn route(self, ip: Ipv6Addr) -> Result<Ipv6Addr> {
        let v4 = ip.to_ipv4_mapped().is_some();
        if v4 && matches!(self, Family::V6 { only: true }) {
            return Err(ENETUNREACH);
        }
        match ip {
            _ if is_any(ip) && v4 => Ok(LOOPBACK4),
            _ if is_any(ip) => Ok(Ipv6Addr::LOCALHOST),
            _ if is_loopback(ip) => Ok(ip),
            _ => Err(ENETUNREACH),
        }
    }
}

/// The address a sender has that did not choose one.
pub fn source_for(destination: Ipv6Addr) -> Ipv6Addr {
    if destination.to_ipv4_mapped().is_some() { LOOPBACK4 } else { Ipv6Addr::LOCALHOST }
}

pub fn is_any(ip: Ipv6Addr) -> bool {
    ip == ANY4 || ip.is_unspecified()
}

pub fn is_loopback(ip: Ipv6Addr) -> bool {
    ip.to_ipv4_mapped().map_or_else(|| ip.is_loopback(), |v4| v4.is_loopback())
}
