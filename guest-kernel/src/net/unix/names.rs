//! Names of AF_UNIX sockets: paths of socket inodes, and abstract ones.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Phase, UnixSocket};
use crate::{
    errno::{EADDRINUSE, ECONNREFUSED, EEXIST, EINVAL, ENOSPC, EPROTOTYPE, Result},
    fs::{FileType, NewNode, Path, namei, permission},
    net::{AF_UNIX, SockAddr},
    sync::SpinLock,
    task::Current,
};

/// Bytes of sun_path.
const PATH_MAX: usize = 108;

/// What a socket is found by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Device and inode number.
    Inode(u64, u64),
    /// The socket type, and what follows the family, beginning with NUL.
    Abstract(i32, Vec<u8>),
}

/// A name that a socket has.
pub struct Bound {
    key: Key,
    address: SockAddr,
    /// Keeps the inode, and with it its number, from going.
    _path: Option<Path>,
}

impl Bound {
    /// As getsockname(2) shows it.
    pub fn address(&self) -> &SockAddr {
        &self.address
    }
}

static NAMES: SpinLock<BTreeMap<Key, Weak<UnixSocket>>> = SpinLock::new(BTreeMap::new());

/// A name as an application gives it.
enum Wanted<'a> {
    Any,
    Path(&'a [u8]),
    Abstract(&'a [u8]),
}

fn parse(address: &SockAddr) -> Result<Wanted<'_>> {
    let name = address.rest();
    if address.family() != Some(AF_UNIX) || name.len() > PATH_MAX {
        return Err(EINVAL);
    }
    Ok(match name.first() {
        None => Wanted::Any,
        Some(0) => Wanted::Abstract(name),
        Some(_) => Wanted::Path(name.split(|&byte| byte == 0).next().unwrap_or(name)),
    })
}

/// bind(2).
pub fn bind(socket: &UnixSocket, cur: &Current, address: &SockAddr) -> Result<()> {
    match parse(address)? {
        Wanted::Any => autobind(socket),
        Wanted::Abstract(name) => {
            check_unbound(socket)?;
            let name = Bound {
                key: Key::Abstract(socket.base.kind as i32, name.to_vec()),
                address: address.clone(),
                _path: None,
            };
            if give(socket, name)? { Ok(()) } else { Err(EADDRINUSE) }
        }
        Wanted::Path(path) => {
            let place = namei::create(&cur.caller(), None, path, NewNode::Socket, 0o777)
                .map_err(|error| if error == EEXIST { EADDRINUSE } else { error })?;
            let stat = place.inode().stat()?;
            let mut shown = path.to_vec();
            shown.push(0);
            let name = Bound {
                key: Key::Inode(stat.dev, stat.ino),
                address: SockAddr::of(AF_UNIX, &shown),
                _path: Some(place),
            };
            // An inode that was just made has no other socket; what is left under its number is of one that has gone.
            give(socket, name).map(drop).inspect_err(|_| {
                // It had a name. The new one is not to stay.
                let _ = namei::unlink(&cur.caller(), None, path);
            })
        }
    }
}

fn check_unbound(socket: &UnixSocket) -> Result<()> {
    if socket.name().is_some() { Err(EINVAL) } else { Ok(()) }
}

/// Gives the socket a name. False when another one has an abstract name already; EINVAL when the socket has a name.
fn give(socket: &UnixSocket, name: Bound) -> Result<bool> {
    let mut names = NAMES.lock();
    let taken = names.get(&name.key).is_some_and(|other| other.strong_count() > 0);
    if taken && matches!(name.key, Key::Abstract(..)) {
        return Ok(false);
    }
    let mut state = socket.state.lock();
    if state.name.is_some() || matches!(state.phase, Phase::Closed) {
        return Err(EINVAL);
    }
    names.insert(name.key.clone(), socket.me.clone());
    state.name = Some(Arc::new(name));
    Ok(true)
}

/// The name is free again.
pub fn unbind(socket: &UnixSocket, name: &Bound) {
    let mut names = NAMES.lock();
    if names.get(&name.key).is_some_and(|holder| core::ptr::eq(holder.as_ptr(), socket)) {
        names.remove(&name.key);
    }
}

/// Gives a socket without a name an abstract one of five hexadecimal digits.
pub fn autobind(socket: &UnixSocket) -> Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const COUNT: u32 = 1 << 20;
    if socket.name().is_some() {
        return Ok(());
    }
    for _ in 0..COUNT {
        let number = NEXT.fetch_add(1, Relaxed) % COUNT;
        let mut name = alloc::vec![0];
        name.extend_from_slice(alloc::format!("{number:05x}").as_bytes());
        let address = SockAddr::of(AF_UNIX, &name);
        if give(socket, Bound { key: Key::Abstract(socket.base.kind as i32, name), address, _path: None })? {
            return Ok(());
        }
    }
    Err(ENOSPC)
}

/// The socket that `address` names. ECONNREFUSED when there is none; EPROTOTYPE when it is of another type.
pub fn find(socket: &UnixSocket, cur: &Current, address: &SockAddr) -> Result<Arc<UnixSocket>> {
    let key = match parse(address)? {
        Wanted::Any => return Err(EINVAL),
        Wanted::Abstract(name) => Key::Abstract(socket.base.kind as i32, name.to_vec()),
        Wanted::Path(path) => {
            let caller = cur.caller();
            let place = caller.walk(None).resolve(path, true)?;
            permission::check(&**place.inode(), &caller.creds, permission::WRITE)?;
            if place.inode().file_type() != FileType::Socket {
                return Err(ECONNREFUSED);
            }
            let stat = place.inode().stat()?;
            Key::Inode(stat.dev, stat.ino)
        }
    };
    let found = NAMES.lock().get(&key).and_then(Weak::upgrade).ok_or(ECONNREFUSED)?;
    if found.base.kind != socket.base.kind {
        return Err(EPROTOTYPE);
    }
    Ok(found)
}
