//! Options of the IP, IPv6 and TCP levels. There is no wire whose handling they could change: values are kept and shown.

use alloc::{collections::BTreeMap, vec::Vec};

use zerocopy::FromBytes;

use super::Family;
use crate::{
    errno::{EINVAL, ENOPROTOOPT, EOPNOTSUPP, Result},
    sync::SpinLock,
};

pub const IPPROTO_IP: i32 = 0;
const IPPROTO_TCP: i32 = 6;
pub const IPPROTO_IPV6: i32 = 41;
const IPV6_V6ONLY: i32 = 26;
const TCP_INFO: i32 = 11;
const TCP_CONGESTION: i32 = 13;

/// Level, name, what it is at first, least and greatest value.
const KEPT: &[(i32, i32, i32, i32, i32)] = &[
    // IP_TOS, IP_TTL; and what asks for control data: IP_PKTINFO, IP_RECVTTL, IP_RECVTOS.
    (IPPROTO_IP, 1, 0, 0, 255),
    (IPPROTO_IP, 2, 64, -1, 255),
    (IPPROTO_IP, 8, 0, 0, 1),
    (IPPROTO_IP, 12, 0, 0, 1),
    (IPPROTO_IP, 13, 0, 0, 1),
    // IP_MTU_DISCOVER, IP_RECVERR, IP_FREEBIND, IP_BIND_ADDRESS_NO_PORT.
    (IPPROTO_IP, 10, 1, 0, 5),
    (IPPROTO_IP, 11, 0, 0, 1),
    (IPPROTO_IP, 15, 0, 0, 1),
    (IPPROTO_IP, 24, 0, 0, 1),
    // IP_MULTICAST_TTL, IP_MULTICAST_LOOP.
    (IPPROTO_IP, 33, 1, -1, 255),
    (IPPROTO_IP, 34, 1, 0, 1),
    // IPV6_UNICAST_HOPS, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP, IPV6_MTU_DISCOVER, IPV6_RECVERR, IPV6_DONTFRAG, IPV6_TCLASS.
    (IPPROTO_IPV6, 16, 64, -1, 255),
    (IPPROTO_IPV6, 18, 1, -1, 255),
    (IPPROTO_IPV6, 19, 1, 0, 1),
    (IPPROTO_IPV6, 23, 1, 0, 5),
    (IPPROTO_IPV6, 25, 0, 0, 1),
    // IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS.
    (IPPROTO_IPV6, 49, 0, 0, 1),
    (IPPROTO_IPV6, 51, 0, 0, 1),
    (IPPROTO_IPV6, 66, 0, 0, 1),
    (IPPROTO_IPV6, 62, 0, 0, 1),
    (IPPROTO_IPV6, 67, 0, -1, 255),
    // TCP_NODELAY, TCP_MAXSEG, TCP_CORK, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_SYNCNT, TCP_LINGER2,
    // TCP_DEFER_ACCEPT, TCP_WINDOW_CLAMP, TCP_QUICKACK, TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT.
    (IPPROTO_TCP, 1, 0, 0, 1),
    (IPPROTO_TCP, 2, 32_741, 88, 32_767),
    (IPPROTO_TCP, 3, 0, 0, 1),
    (IPPROTO_TCP, 4, 7200, 1, 32_767),
    (IPPROTO_TCP, 5, 75, 1, 32_767),
    (IPPROTO_TCP, 6, 9, 1, 127),
    (IPPROTO_TCP, 7, 6, 1, 127),
    (IPPROTO_TCP, 8, 60, i32::MIN, i32::MAX),
    (IPPROTO_TCP, 9, 0, i32::MIN, i32::MAX),
    (IPPROTO_TCP, 10, 0, 0, i32::MAX),
    (IPPROTO_TCP, 12, 1, 0, 1),
    (IPPROTO_TCP, 18, 0, 0, i32::MAX),
    (IPPROTO_TCP, 25, 0, i32::MIN, i32::MAX),
];

struct State {
    family: Family,
    values: BTreeMap<(i32, i32), i32>,
}

/// What an Internet socket has been told.
pub struct InetOptions {
    state: SpinLock<State>,
}

impl InetOptions {
    pub fn new(family: Family) -> Self {
        InetOptions { state: SpinLock::new(State { family, values: BTreeMap::new() }) }
    }

    pub fn family(&self) -> Family {
        self.state.lock().family
    }

    /// What an option was set to.
    pub fn value(&self, level: i32, name: i32) -> Option<i32> {
        self.state.lock().values.get(&(level, name)).copied()
    }

    /// What an accepted connection has from its listener.
    pub fn inherit(&self, listener: &InetOptions) {
        let values = listener.state.lock().values.clone();
        self.state.lock().values = values;
    }

    /// Whether a socket of this protocol and family has the level.
    fn check(&self, level: i32, protocol: i32) -> Result<()> {
        match level {
            IPPROTO_IP => Ok(()),
            IPPROTO_IPV6 if self.family() != Family::V4 => Ok(()),
            IPPROTO_IPV6 => Err(ENOPROTOOPT),
            _ if level == protocol => Ok(()),
            _ => Err(if !(0..=255).contains(&level) { EOPNOTSUPP } else { ENOPROTOOPT }),
        }
    }

    /// getsockopt(2). `state`: the TCP_* state of the connection.
    pub fn get(&self, level: i32, name: i32, protocol: i32, state: impl FnOnce() -> u8) -> Result<Vec<u8>> {
        self.check(level, protocol)?;
        match (level, name) {
            (IPPROTO_TCP, TCP_INFO) => {
                // Counters of segments and round trips are zero: there are none.
                let mut info = alloc::vec![0; 104];
                info[0] = state();
                return Ok(info);
            }
            (IPPROTO_TCP, TCP_CONGESTION) => {
                let mut name = b"cubic".to_vec();
                name.resize(16, 0);
                return Ok(name);
            }
            _ => {}
        }
        let kept = self.state.lock();
        if (level, name) == (IPPROTO_IPV6, IPV6_V6ONLY) {
            return Ok(i32::from(kept.family == Family::V6 { only: true }).to_ne_bytes().to_vec());
        }
        let (.., first, _, _) = KEPT.iter().find(|known| (known.0, known.1) == (level, name)).ok_or(ENOPROTOOPT)?;
        Ok(kept.values.get(&(level, name)).unwrap_or(first).to_ne_bytes().to_vec())
    }

    /// setsockopt(2).
    pub fn set(&self, level: i32, name: i32, protocol: i32, value: &[u8], bound: bool) -> Result<()> {
        self.check(level, protocol)?;
        if (level, name) == (IPPROTO_TCP, TCP_CONGESTION) {
            let name = value.split(|&byte| byte == 0).next().unwrap_or(value);
            return if name == b"cubic" || name == b"reno" { Ok(()) } else { Err(crate::errno::ENOENT) };
        }
        // The IP level takes a byte as well.
        let value = match (value, level) {
            ([byte], IPPROTO_IP) => i32::from(*byte),
            _ => i32::read_from_prefix(value).map_err(|_| EINVAL)?.0,
        };
        let mut kept = self.state.lock();
        if (level, name) == (IPPROTO_IPV6, IPV6_V6ONLY) {
            if bound {
                return Err(EINVAL);
            }
            kept.family = Family::V6 { only: value != 0 };
            return Ok(());
        }
        let &(.., least, most) = KEPT.iter().find(|known| (known.0, known.1) == (level, name)).ok_or(ENOPROTOOPT)?;
        let value = if (least, most) == (0, 1) { i32::from(value != 0) } else { value };
        if !(least..=most).contains(&value) {
            return Err(EINVAL);
        }
        kept.values.insert((level, name), value);
        Ok(())
    }
}
