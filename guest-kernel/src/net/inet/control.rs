//! Control data of the IP and IPv6 levels (ip(7), ipv6(7)): what a datagram's packet would say.

use core::net::{Ipv4Addr, Ipv6Addr};

use zerocopy::FromBytes;

use super::{
    interface,
    options::{IPPROTO_IP, IPPROTO_IPV6, InetOptions},
};
use crate::{
    errno::{EINVAL, Result},
    net::Received,
};

const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const IP_PKTINFO: i32 = 8;
const IP_RECVTTL: i32 = 12;
const IP_RECVTOS: i32 = 13;
const IPV6_UNICAST_HOPS: i32 = 16;
const IPV6_RECVPKTINFO: i32 = 49;
const IPV6_PKTINFO: i32 = 50;
const IPV6_RECVHOPLIMIT: i32 = 51;
const IPV6_HOPLIMIT: i32 = 52;
const IPV6_RECVTCLASS: i32 = 66;
const IPV6_TCLASS: i32 = 67;

/// A packet's header, as far as anybody can see it. `None` on sending: as the socket's options say.
#[derive(Clone, Copy, Default)]
pub struct Packet {
    /// Time to live, or hop limit.
    pub ttl: Option<i32>,
    /// Type of service, or traffic class.
    pub tos: Option<i32>,
    pub source: Option<Ipv6Addr>,
    pub destination: Option<Ipv6Addr>,
}

fn int(data: &[u8]) -> Result<i32> {
    i32::read_from_bytes(data).map_err(|_| EINVAL)
}

/// A byte's value; -1 leaves it to the socket's options.
fn byte(value: i32) -> Result<Option<i32>> {
    match value {
        -1 => Ok(None),
        0..=255 => Ok(Some(value)),
        _ => Err(EINVAL),
    }
}

impl Packet {
    /// Takes up an item of a sendmsg(2). EINVAL for what there is not.
    pub fn read(&mut self, level: i32, kind: i32, data: &[u8]) -> Result<()> {
        match (level, kind) {
            (IPPROTO_IP, IP_TTL) => self.ttl = byte(int(data)?)?.filter(|&ttl| ttl > 0),
            (IPPROTO_IP, IP_TOS) if data.len() == 1 => self.tos = Some(data[0].into()),
            (IPPROTO_IP, IP_TOS) => self.tos = byte(int(data)?)?,
            (IPPROTO_IP, IP_PKTINFO) => {
                let [_, source, _] = <[[u8; 4]; 3]>::read_from_bytes(data).map_err(|_| EINVAL)?;
                self.source =
                    Some(Ipv4Addr::from(source)).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_ipv6_mapped());
            }
            (IPPROTO_IPV6, IPV6_HOPLIMIT) => self.ttl = byte(int(data)?)?,
            (IPPROTO_IPV6, IPV6_TCLASS) => self.tos = byte(int(data)?)?,
            (IPPROTO_IPV6, IPV6_PKTINFO) => {
                let (source, index) = <[u8; 16]>::read_from_prefix(data).map_err(|_| EINVAL)?;
                int(index)?;
                self.source = Some(Ipv6Addr::from(source)).filter(|ip| !ip.is_unspecified());
            }
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    /// The packet as a socket with these options sends it.
    pub fn filled(self, options: &InetOptions, destination: Ipv6Addr) -> Self {
        let (ttl, tos) = if destination.to_ipv4_mapped().is_some() {
            ((IPPROTO_IP, IP_TTL), (IPPROTO_IP, IP_TOS))
        } else {
            ((IPPROTO_IPV6, IPV6_UNICAST_HOPS), (IPPROTO_IPV6, IPV6_TCLASS))
        };
        // -1 is the default: 64, and 0.
        let value = |(level, name), default| match options.value(level, name) {
            Some(value @ 0..) => value,
            _ => default,
        };
        Packet {
            ttl: self.ttl.or_else(|| Some(value(ttl, 64))),
            tos: self.tos.or_else(|| Some(value(tos, 0))),
            destination: Some(destination),
            ..self
        }
    }

    /// Gives a receiver what its options ask for.
    pub fn write(&self, options: &InetOptions, into: &mut Received) {
        let on = |level, name| options.value(level, name) == Some(1);
        let Some(destination) = self.destination else { return };
        let (ttl, tos) = (self.ttl.unwrap_or(0), self.tos.unwrap_or(0));
        let mut put = |level, kind, data: &[u8]| into.items.push((level, kind, data.to_vec()));
        if on(IPPROTO_IPV6, IPV6_RECVPKTINFO) {
            let info = [&destination.octets()[..], &interface::INDEX.to_ne_bytes()].concat();
            put(IPPROTO_IPV6, IPV6_PKTINFO, &info);
        }
        let Some(v4) = destination.to_ipv4_mapped() else {
            if on(IPPROTO_IPV6, IPV6_RECVHOPLIMIT) {
                put(IPPROTO_IPV6, IPV6_HOPLIMIT, &ttl.to_ne_bytes());
            }
            if on(IPPROTO_IPV6, IPV6_RECVTCLASS) {
                put(IPPROTO_IPV6, IPV6_TCLASS, &tos.to_ne_bytes());
            }
            return;
        };
        if on(IPPROTO_IP, IP_PKTINFO) {
            let info = [interface::INDEX.to_ne_bytes(), v4.octets(), v4.octets()].concat();
            put(IPPROTO_IP, IP_PKTINFO, &info);
        }
        if on(IPPROTO_IP, IP_RECVTTL) {
            put(IPPROTO_IP, IP_TTL, &ttl.to_ne_bytes());
        }
        if on(IPPROTO_IP, IP_RECVTOS) {
            put(IPPROTO_IP, IP_TOS, &[tos as u8]);
        }
    }
}
