//! Files on their way through sockets (SCM_RIGHTS): how many there may be, and what happens to sockets that only a queue of
//! their own kind still leads to.
//!
//! A socket whose every reference lies in receive queues, none of which anybody can reach, would never be closed. Whenever a
//! socket goes, [`collect`] looks for such sockets and empties their queues.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use super::UnixSocket;
use crate::{
    errno::{ETOOMANYREFS, Result},
    fs::File,
    net::SocketFile,
    sched,
    sync::SpinLock,
    task::{Resource, cap},
};

/// Files of one message.
struct Parcel {
    /// The socket in whose queue it lies.
    holder: Weak<UnixSocket>,
    /// Those of the files that are AF_UNIX sockets, by id.
    sockets: Vec<u64>,
    uid: u32,
    count: usize,
}

/// A socket on its way.
struct Traveller {
    file: Weak<File>,
    /// In how many parcels.
    count: usize,
}

struct Inflight {
    parcels: BTreeMap<u64, Parcel>,
    next: u64,
    sockets: BTreeMap<u64, Traveller>,
    /// Files by the user who sent them.
    users: BTreeMap<u32, usize>,
}

static INFLIGHT: SpinLock<Inflight> =
    SpinLock::new(Inflight { parcels: BTreeMap::new(), next: 1, sockets: BTreeMap::new(), users: BTreeMap::new() });
/// Sockets on their way: without any there is nothing to collect.
static SOCKETS: AtomicUsize = AtomicUsize::new(0);

/// The AF_UNIX socket behind a file.
fn socket_of(file: &File) -> Option<&UnixSocket> {
    file.ops().downcast::<SocketFile>()?.socket().downcast::<UnixSocket>()
}

/// The files that a message carries.
pub struct Rights {
    files: Vec<Arc<File>>,
    /// Its number while it is on its way; 0 before.
    parcel: u64,
}

impl Rights {
    pub fn new(files: Vec<Arc<File>>) -> Self {
        Rights { files, parcel: 0 }
    }

    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// Counts the files as on their way to `holder`. ETOOMANYREFS when the user has more on their way than RLIMIT_NOFILE.
    pub fn send(&mut self, holder: &Arc<UnixSocket>) -> Result<()> {
        let Some(task) = sched::current() else { return Err(ETOOMANYREFS) };
        let creds = task.creds();
        let limit = task.process.limits.lock().soft(Resource::Nofile);
        let privileged = creds.capable(cap::SYS_RESOURCE) || creds.capable(cap::SYS_ADMIN);
        let sockets: Vec<u64> = self.files.iter().filter_map(|file| socket_of(file)).map(|socket| socket.id).collect();
        let mut inflight = INFLIGHT.lock();
        let inflight = &mut *inflight;
        let user = inflight.users.entry(creds.uid).or_default();
        if *user as u64 > limit && !privileged {
            return Err(ETOOMANYREFS);
        }
        *user += self.files.len();
        for file in &self.files {
            let Some(socket) = socket_of(file) else { continue };
            let new = || Traveller { file: Arc::downgrade(file), count: 0 };
            inflight.sockets.entry(socket.id).or_insert_with(new).count += 1;
            SOCKETS.fetch_add(1, SeqCst);
        }
        self.parcel = inflight.next;
        inflight.next += 1;
        let holder = Arc::downgrade(holder);
        inflight.parcels.insert(self.parcel, Parcel { holder, sockets, uid: creds.uid, count: self.files.len() });
        Ok(())
    }

    /// They have arrived.
    pub fn into_files(mut self) -> Vec<Arc<File>> {
        self.arrive();
        core::mem::take(&mut self.files)
    }

    fn arrive(&mut self) {
        let parcel = core::mem::take(&mut self.parcel);
        if parcel == 0 {
            return;
        }
        let gone = {
            let mut inflight = INFLIGHT.lock();
            let Some(parcel) = inflight.parcels.remove(&parcel) else { return };
            if let Some(user) = inflight.users.get_mut(&parcel.uid) {
                *user -= parcel.count;
                if *user == 0 {
                    inflight.users.remove(&parcel.uid);
                }
            }
            for id in &parcel.sockets {
                SOCKETS.fetch_sub(1, SeqCst);
                if let Some(traveller) = inflight.sockets.get_mut(id) {
                    traveller.count -= 1;
                    if traveller.count == 0 {
                        inflight.sockets.remove(id);
                    }
                }
            }
            parcel
        };
        drop(gone);
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        self.arrive();
        put_away(core::mem::take(&mut self.files));
    }
}

/// Files that tasks are about to let go of, by task.
static PUT_AWAY: SpinLock<BTreeMap<usize, Vec<Arc<File>>>> = SpinLock::new(BTreeMap::new());

/// Drops files. What their queues hold is dropped after, not within: sockets in sockets may be nested without end.
fn put_away(files: Vec<Arc<File>>) {
    if files.is_empty() {
        return;
    }
    let task = sched::current().map_or(0, |task| Arc::as_ptr(&task) as usize);
    {
        let mut all = PUT_AWAY.lock();
        if let Some(pending) = all.get_mut(&task) {
            pending.extend(files);
            return;
        }
        all.insert(task, files);
    }
    loop {
        let file = {
            let mut all = PUT_AWAY.lock();
            match all.get_mut(&task).and_then(Vec::pop) {
                Some(file) => file,
                None => {
                    all.remove(&task);
                    return;
                }
            }
        };
        drop(file);
    }
}

/// Empties the queues of sockets that nobody can reach any more.
pub fn collect() {
    if SOCKETS.load(Relaxed) == 0 {
        return;
    }
    let garbage = find_garbage();
    for file in &garbage {
        if let Some(socket) = socket_of(file) {
            socket.drop_rights();
        }
    }
    put_away(garbage);
}

fn find_garbage() -> Vec<Arc<File>> {
    // Dropped after the lock.
    let mut holders = Vec::new();
    let inflight = INFLIGHT.lock();
    // Those with no reference but in queues. Nobody can get another one of them while the lock is held, except by
    // receiving it, which shows as one more.
    let mut doubtful: BTreeSet<u64> =
        inflight.sockets.iter().filter(|(_, t)| t.file.strong_count() == t.count).map(|(id, _)| *id).collect();
    if doubtful.is_empty() {
        return Vec::new();
    }
    let mut leads_to: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for parcel in inflight.parcels.values().filter(|parcel| !parcel.sockets.is_empty()) {
        let Some(holder) = parcel.holder.upgrade() else { continue };
        leads_to.entry(holder.reached_by()).or_default().extend(&parcel.sockets);
        holders.push(holder);
    }
    // What somebody's queue leads to is not garbage, nor is what that leads to.
    let mut alive: Vec<u64> = leads_to.keys().filter(|id| !doubtful.contains(id)).copied().collect();
    while let Some(id) = alive.pop() {
        for next in leads_to.get(&id).into_iter().flatten() {
            if doubtful.remove(next) {
                alive.push(*next);
            }
        }
    }
    doubtful.iter().filter_map(|id| inflight.sockets.get(id)?.file.upgrade()).collect()
}
