//! Options of the socket level (socket(7)).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use zerocopy::{FromBytes, IntoBytes};

use super::{
    Socket,
    base::{DEFAULT_BUFFER, FOREVER},
};
use crate::{
    errno::{EDOM, EINVAL, ENODATA, ENOPROTOOPT, ENOTCONN, EOPNOTSUPP, EPERM, ERANGE, Result},
    task::{Creds, cap},
};

pub mod so {
    pub const DEBUG: i32 = 1;
    pub const REUSEADDR: i32 = 2;
    pub const TYPE: i32 = 3;
    pub const ERROR: i32 = 4;
    pub const DONTROUTE: i32 = 5;
    pub const BROADCAST: i32 = 6;
    pub const SNDBUF: i32 = 7;
    pub const RCVBUF: i32 = 8;
    pub const KEEPALIVE: i32 = 9;
    pub const OOBINLINE: i32 = 10;
    pub const NO_CHECK: i32 = 11;
    pub const PRIORITY: i32 = 12;
    pub const LINGER: i32 = 13;
    pub const BSDCOMPAT: i32 = 14;
    pub const REUSEPORT: i32 = 15;
    pub const PASSCRED: i32 = 16;
    pub const PEERCRED: i32 = 17;
    pub const RCVLOWAT: i32 = 18;
    pub const SNDLOWAT: i32 = 19;
    pub const RCVTIMEO: i32 = 20;
    pub const SNDTIMEO: i32 = 21;
    pub const PEERNAME: i32 = 28;
    pub const ACCEPTCONN: i32 = 30;
    pub const SNDBUFFORCE: i32 = 32;
    pub const RCVBUFFORCE: i32 = 33;
    pub const MARK: i32 = 36;
    pub const PROTOCOL: i32 = 38;
    pub const DOMAIN: i32 = 39;
    pub const PEEK_OFF: i32 = 42;
    pub const COOKIE: i32 = 57;
    pub const PEERGROUPS: i32 = 59;
    pub const RCVTIMEO_NEW: i32 = 66;
    pub const SNDTIMEO_NEW: i32 = 67;
}

/// Options that are on or off and that nothing but their own reading depends on, or that protocols look up here.
const SWITCHES: [i32; 7] =
    [so::REUSEADDR, so::DONTROUTE, so::BROADCAST, so::KEEPALIVE, so::OOBINLINE, so::NO_CHECK, so::REUSEPORT];

/// Smallest buffers.
const MIN_SEND_BUFFER: usize = 4608;
const MIN_RECEIVE_BUFFER: usize = 2304;
/// What SO_SNDBUFFORCE may ask for.
const MAX_FORCED: usize = 8 << 20;

/// Values that are kept.
#[derive(Clone)]
pub struct Options {
    switches: u32,
    /// SO_LINGER: whether, and seconds.
    pub linger: [i32; 2],
    priority: i32,
    mark: i32,
    pub receive_low_water: usize,
    cookie: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { switches: 0, linger: [0; 2], priority: 0, mark: 0, receive_low_water: 1, cookie: 0 }
    }
}

impl Options {
    /// Whether an option of [`SWITCHES`] is on.
    pub fn is_on(&self, name: i32) -> bool {
        self.switches >> name & 1 != 0
    }
}

fn timeval(ns: u64) -> [i64; 2] {
    if ns == FOREVER { [0, 0] } else { [(ns / 1_000_000_000) as i64, (ns % 1_000_000_000 / 1000) as i64] }
}

/// getsockopt(2) of SOL_SOCKET; `room` is how much the caller takes.
pub fn get(socket: &dyn Socket, name: i32, room: usize) -> Result<Vec<u8>> {
    let base = socket.base();
    let int = |value: i32| Ok(value.as_bytes().to_vec());
    match name {
        so::TYPE => int(base.kind as i32),
        so::DOMAIN => int(base.domain.into()),
        so::PROTOCOL => int(base.protocol),
        so::ERROR => int(base.take_error().into()),
        so::ACCEPTCONN => int(socket.is_listening().into()),
        so::SNDBUF => int(base.send_buffer.load(Relaxed) as i32),
        so::RCVBUF => int(base.receive_buffer.load(Relaxed) as i32),
        so::DEBUG | so::BSDCOMPAT => int(0),
        so::SNDLOWAT => int(1),
        so::RCVLOWAT => int(base.options.lock().receive_low_water as i32),
        so::PASSCRED => int(base.pass_credentials.load(Relaxed).into()),
        so::PEEK_OFF => int(base.peek_offset.load(Relaxed)),
        so::PRIORITY => int(base.options.lock().priority),
        so::MARK => int(base.options.lock().mark),
        so::LINGER => Ok(base.options.lock().linger.as_bytes().to_vec()),
        so::RCVTIMEO | so::RCVTIMEO_NEW => Ok(timeval(base.receive_timeout.load(Relaxed)).as_bytes().to_vec()),
        so::SNDTIMEO | so::SNDTIMEO_NEW => Ok(timeval(base.send_timeout.load(Relaxed)).as_bytes().to_vec()),
        so::PEERCRED => {
            let nobody = super::Ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
            Ok(socket.peer_credentials().map_or(nobody, |(ucred, _)| ucred).as_bytes().to_vec())
        }
        so::PEERGROUPS => {
            let (_, creds) = socket.peer_credentials().ok_or(ENODATA)?;
            let groups = creds.groups.as_bytes();
            if room < groups.len() { Err(ERANGE) } else { Ok(groups.to_vec()) }
        }
        so::PEERNAME => {
            let name = socket.peer().map_err(|_| ENOTCONN)?;
            if name.bytes().len() < room { Err(EINVAL) } else { Ok(name.bytes().to_vec()) }
        }
        so::COOKIE => {
            if room < 8 {
                return Err(EINVAL);
            }
            static NEXT: AtomicU64 = AtomicU64::new(1);
            let mut options = base.options.lock();
            if options.cookie == 0 {
                options.cookie = NEXT.fetch_add(1, Relaxed);
            }
            Ok(options.cookie.as_bytes().to_vec())
        }
        _ if SWITCHES.contains(&name) => int(base.options.lock().is_on(name).into()),
        _ => Err(ENOPROTOOPT),
    }
}

/// setsockopt(2) of SOL_SOCKET.
pub fn set(socket: &dyn Socket, creds: &Creds, name: i32, value: &[u8]) -> Result<()> {
    let base = socket.base();
    let (int, _) = i32::read_from_prefix(value).map_err(|_| EINVAL)?;
    let on = int != 0;
    match name {
        so::TYPE | so::DOMAIN | so::PROTOCOL | so::ERROR | so::ACCEPTCONN => return Err(ENOPROTOOPT),
        so::DEBUG if on && !creds.capable(cap::NET_ADMIN) => return Err(crate::errno::EACCES),
        so::DEBUG | so::BSDCOMPAT => {}
        so::SNDBUF | so::SNDBUFFORCE => {
            let size = buffer_size(creds, int, name == so::SNDBUFFORCE, MIN_SEND_BUFFER)?;
            base.send_buffer.store(size, Relaxed);
            base.writable.wake_all();
        }
        so::RCVBUF | so::RCVBUFFORCE => {
            let size = buffer_size(creds, int, name == so::RCVBUFFORCE, MIN_RECEIVE_BUFFER)?;
            base.receive_buffer.store(size, Relaxed);
        }
        so::RCVLOWAT => {
            let bytes = if int < 0 { i32::MAX } else { int.max(1) };
            base.options.lock().receive_low_water = bytes as usize;
        }
        so::PASSCRED => base.pass_credentials.store(on, Relaxed),
        so::PEEK_OFF if !socket.peeks_at_offset() => return Err(EOPNOTSUPP),
        so::PEEK_OFF => base.peek_offset.store(int, Relaxed),
        so::PRIORITY => {
            if !(0..=6).contains(&int) && !creds.capable(cap::NET_ADMIN) {
                return Err(EPERM);
            }
            base.options.lock().priority = int;
        }
        so::MARK => {
            if !creds.capable(cap::NET_ADMIN) {
                return Err(EPERM);
            }
            base.options.lock().mark = int;
        }
        so::LINGER => {
            let (linger, _) = <[i32; 2]>::read_from_prefix(value).map_err(|_| EINVAL)?;
            base.options.lock().linger = [(linger[0] != 0).into(), linger[1]];
        }
        so::RCVTIMEO | so::RCVTIMEO_NEW => base.receive_timeout.store(timeout(value)?, Relaxed),
        so::SNDTIMEO | so::SNDTIMEO_NEW => base.send_timeout.store(timeout(value)?, Relaxed),
        _ if SWITCHES.contains(&name) => {
            let mut options = base.options.lock();
            options.switches = options.switches & !(1 << name) | u32::from(on) << name;
        }
        _ => return Err(ENOPROTOOPT),
    }
    Ok(())
}

/// What a wish for a buffer becomes: doubled, as room for bookkeeping (socket(7)).
fn buffer_size(creds: &Creds, wanted: i32, forced: bool, least: usize) -> Result<usize> {
    if forced && !creds.capable(cap::NET_ADMIN) {
        return Err(EPERM);
    }
    let most = if forced { MAX_FORCED } else { DEFAULT_BUFFER };
    // A negative wish counts as a large one.
    let wanted = if forced { wanted.max(0) as usize } else { wanted as u32 as usize };
    Ok((wanted.min(most) * 2).max(least))
}

/// A struct timeval as ns; zero: no timeout.
fn timeout(value: &[u8]) -> Result<u64> {
    let ([sec, usec], _) = <[i64; 2]>::read_from_prefix(value).map_err(|_| EINVAL)?;
    if !(0..1_000_000).contains(&usec) {
        return Err(EDOM);
    }
    if sec < 0 {
        // Linux waits not at all then.
        return Ok(0);
    }
    let ns = (sec as u64).saturating_mul(1_000_000_000).saturating_add(usec as u64 * 1000);
    Ok(if ns == 0 { FOREVER } else { ns.min(FOREVER - 1) })
}
