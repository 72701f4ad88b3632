//! The loopback interface, as ioctl(2) shows it (netdevice(7)).

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::AF_INET;
use crate::{
    errno::{ENODEV, ENOTTY, EPERM, Result},
    mm::user::{UserAddr, UserPtr},
    task::{Current, cap},
};

pub const NAME: &[u8] = b"lo";
pub const INDEX: i32 = 1;
pub const MTU: i32 = 65_536;
/// ARPHRD_LOOPBACK.
pub const TYPE: u16 = 772;
/// IFF_UP, IFF_LOOPBACK, IFF_RUNNING; and IFF_LOWER_UP, which only netlink shows.
pub const FLAGS: u16 = 0x49;
pub const LOWER_UP: u32 = 0x1_0000;

/// struct ifreq: a name and a union.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

/// struct ifconf.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct List {
    len: i32,
    _pad: u32,
    buffer: u64,
}

fn named() -> [u8; 16] {
    let mut name = [0; 16];
    name[..NAME.len()].copy_from_slice(NAME);
    name
}

fn address(ip: [u8; 4]) -> [u8; 24] {
    let mut value = [0; 24];
    value[..2].copy_from_slice(&AF_INET.to_ne_bytes());
    value[4..8].copy_from_slice(&ip);
    value
}

fn int(number: i32) -> [u8; 24] {
    let mut value = [0; 24];
    value[..4].copy_from_slice(&number.to_ne_bytes());
    value
}

/// Commands that any socket takes.
pub fn ioctl(cur: &mut Current, command: u32, argument: u64) -> Result<u64> {
    const SIOCGIFNAME: u32 = 0x8910;
    const SIOCGIFCONF: u32 = 0x8912;
    const SIOCGIFFLAGS: u32 = 0x8913;
    const SIOCGIFADDR: u32 = 0x8915;
    const SIOCGIFDSTADDR: u32 = 0x8917;
    const SIOCGIFBRDADDR: u32 = 0x8919;
    const SIOCGIFNETMASK: u32 = 0x891b;
    const SIOCGIFMETRIC: u32 = 0x891d;
    const SIOCGIFMTU: u32 = 0x8921;
    const SIOCGIFHWADDR: u32 = 0x8927;
    const SIOCGIFINDEX: u32 = 0x8933;
    const SIOCGIFTXQLEN: u32 = 0x8942;
    let place = UserPtr::<Request>::new(UserAddr(argument));
    match command {
        SIOCGIFCONF => return list(cur, UserPtr::new(UserAddr(argument))).map(|()| 0),
        SIOCGIFNAME => {
            let mut request = cur.mm.read_value(place)?;
            if request.value[..4] != INDEX.to_ne_bytes() {
                return Err(ENODEV);
            }
            request.name = named();
            cur.mm.write_value(place, &request)?;
            return Ok(0);
        }
        // Setting: of an interface that cannot be changed.
        0x8914 | 0x8916 | 0x8918 | 0x891a | 0x891c | 0x8922 | 0x8924 => {
            return Err(if cur.task.capable(cap::NET_ADMIN) { crate::errno::EOPNOTSUPP } else { EPERM });
        }
        _ if (SIOCGIFNAME..=SIOCGIFTXQLEN).contains(&command) => {}
        _ => return Err(ENOTTY),
    }
    let mut request = cur.mm.read_value(place)?;
    // An alias ("lo:1") would be another address, which there is not.
    if request.name.split(|&byte| byte == 0).next() != Some(NAME) {
        return Err(ENODEV);
    }
    request.value = match command {
        SIOCGIFFLAGS => int(FLAGS.into()),
        SIOCGIFADDR | SIOCGIFDSTADDR => address([127, 0, 0, 1]),
        SIOCGIFBRDADDR => address([0; 4]),
        SIOCGIFNETMASK => address([255, 0, 0, 0]),
        SIOCGIFMETRIC => int(0),
        SIOCGIFMTU => int(MTU),
        SIOCGIFHWADDR => int(TYPE.into()),
        SIOCGIFINDEX => int(INDEX),
        SIOCGIFTXQLEN => int(1000),
        _ => return Err(ENOTTY),
    };
    cur.mm.write_value(place, &request)?;
    Ok(0)
}

fn list(cur: &Current, place: UserPtr<List>) -> Result<()> {
    const SIZE: i32 = size_of::<Request>() as i32;
    let mut list = cur.mm.read_value(place)?;
    if list.buffer == 0 {
        list.len = SIZE;
    } else if list.len >= SIZE {
        let request = Request { name: named(), value: address([127, 0, 0, 1]) };
        cur.mm.write_value(UserPtr::new(UserAddr(list.buffer)), &request)?;
        list.len = SIZE;
    } else {
        list.len = 0;
    }
    cur.mm.write_value(place, &list)
}
