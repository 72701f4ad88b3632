//! /proc/sysvipc: the objects there are.

use alloc::{string::String, vec::Vec};
use core::fmt::Write;

use sentry_abi::layout::PAGE_SIZE;

use super::{Object, UserPerm, msg, sem, shm};

pub fn shm() -> Vec<u8> {
    let mut out = String::from(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n",
    );
    for shm in shm::SEGMENTS.all() {
        let (id, s) = (shm.id(), shm.stat());
        let UserPerm { key, mode, uid, gid, cuid, cgid, .. } = s.perm;
        let _ = writeln!(
            out,
            "{key:10} {id:10}  {mode:4o} {:21} {:5} {:5}  {:5} {uid:5} {gid:5} {cuid:5} {cgid:5} {:10} {:10} {:10} {:21} {:21}",
            s.size,
            s.creator,
            s.last,
            s.attached,
            s.attached_at,
            s.detached_at,
            s.changed_at,
            shm.resident() * PAGE_SIZE,
            0
        );
    }
    out.into_bytes()
}

pub fn sem() -> Vec<u8> {
    let mut out =
        String::from("       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n");
    for set in sem::SETS.all() {
        let (id, s) = (set.id(), set.stat());
        let UserPerm { key, mode, uid, gid, cuid, cgid, .. } = s.perm;
        let _ = writeln!(
            out,
            "{key:10} {id:10}  {mode:4o} {:10} {uid:5} {gid:5} {cuid:5} {cgid:5} {:10} {:10}",
            s.count, s.operated_at, s.changed_at
        );
    }
    out.into_bytes()
}

pub fn msg() -> Vec<u8> {
    let mut out = String::from(
        "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n",
    );
    for queue in msg::QUEUES.all() {
        let (id, s) = (queue.id(), queue.stat());
        let UserPerm { key, mode, uid, gid, cuid, cgid, .. } = s.perm;
        let _ = writeln!(
            out,
            "{key:10} {id:10}  {mode:4o}  {:10} {:10} {:5} {:5} {uid:5} {gid:5} {cuid:5} {cgid:5} {:10} {:10} {:10}",
            s.bytes, s.messages, s.last_sender, s.last_receiver, s.sent_at, s.received_at, s.changed_at
        );
    }
    out.into_bytes()
}
