//! /proc/net/unix.

use alloc::{string::String, sync::Weak, vec::Vec};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};

use super::{Phase, UnixSocket};
use crate::{net::Socket, sync::SpinLock};

/// Every socket that is open.
static SOCKETS: SpinLock<Vec<Weak<UnixSocket>>> = SpinLock::new(Vec::new());

pub fn add(socket: Weak<UnixSocket>) {
    let mut sockets = SOCKETS.lock();
    // Those that have gone leave when the list would grow.
    if sockets.len() == sockets.capacity() {
        sockets.retain(|socket| socket.strong_count() > 0);
    }
    sockets.push(socket);
}

/// The file's text.
pub fn table() -> Vec<u8> {
    let sockets: Vec<_> = SOCKETS.lock().iter().filter_map(Weak::upgrade).collect();
    let mut out = String::from("Num       RefCount Protocol Flags    Type St Inode Path\n").into_bytes();
    for socket in sockets {
        let base = socket.base();
        // SS_UNCONNECTED 1, SS_CONNECTED 3; __SO_ACCEPTCON.
        let (flags, status) = match socket.state.lock().phase {
            Phase::Unconnected => (0, 1),
            Phase::Listening(_) => (0x1_0000, 1),
            Phase::Connected => (0, 3),
            Phase::Closed => continue,
        };
        let mut line = String::new();
        let ino = base.ino.load(Relaxed);
        let _ =
            write!(line, "{:016x}: {:08X} {:08X} {flags:08X} {:04X} {status:02X} {ino:5}", 0, 2, 0, base.kind as i32);
        out.extend_from_slice(line.as_bytes());
        if let Some(name) = socket.name() {
            let text = name.address().rest();
            let text = text.strip_suffix(b"\0").filter(|text| text.first() != Some(&0)).unwrap_or(text);
            out.push(b' ');
            out.extend(text.iter().map(|&byte| if byte == 0 { b'@' } else { byte }));
        }
        out.push(b'\n');
    }
    out
}
