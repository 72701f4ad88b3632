//! /proc/net/{tcp,tcp6,udp,udp6}.

use alloc::{string::String, vec::Vec};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};

use super::{AF_INET, Endpoint, tcp, udp};
use crate::net::{Base, Socket};

/// An endpoint as the kernel prints it: words of the address in the host's byte order.
fn show(out: &mut String, six: bool, endpoint: Option<Endpoint>) {
    let octets = endpoint.map_or([0; 16], |endpoint| endpoint.ip.octets());
    let shown = if six { &octets[..] } else { &octets[12..] };
    for word in shown.chunks_exact(4) {
        let _ = write!(out, "{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let _ = write!(out, ":{:04X}", endpoint.map_or(0, |endpoint| endpoint.port));
}

type Row = (Option<Endpoint>, Option<Endpoint>, u8, usize, u64);

fn table(head: &str, six: bool, tail: &str, rows: Vec<Row>) -> Vec<u8> {
    let mut out = String::from(head);
    for (number, (local, remote, state, unread, ino)) in rows.into_iter().enumerate() {
        let _ = write!(out, "{number:4}: ");
        show(&mut out, six, local);
        out.push(' ');
        show(&mut out, six, remote);
        let _ = writeln!(out, " {state:02X} 00000000:{unread:08X} 00:00000000 00000000     0        0 {ino} {tail}");
    }
    out.into_bytes()
}

fn is_shown(base: &Base, six: bool) -> bool {
    (base.domain != AF_INET) == six
}

/// The file's text; `six`: of AF_INET6.
pub fn tcp_table(six: bool) -> Vec<u8> {
    let rows = tcp::PORTS.all().into_iter().filter(|socket| is_shown(socket.base(), six)).map(|socket| {
        let (local, remote, state) = socket.describe();
        (local, remote, state, socket.unread().unwrap_or(0), socket.base().ino.load(Relaxed))
    });
    let head = if six {
        "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    } else {
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    };
    table(head, six, "1 0000000000000000 100 0 0 10 0", rows.collect())
}

/// The file's text; `six`: of AF_INET6.
pub fn udp_table(six: bool) -> Vec<u8> {
    let rows = udp::PORTS.all().into_iter().filter(|socket| is_shown(socket.base(), six)).map(|socket| {
        let (local, remote) = socket.endpoints();
        let state = if remote.is_some() { 1 } else { 7 };
        (local, remote, state, socket.unread().unwrap_or(0), socket.base().ino.load(Relaxed))
    });
    let head = if six {
        "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"
    } else {
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"
    };
    table(head, six, "2 0000000000000000 0", rows.collect())
}
