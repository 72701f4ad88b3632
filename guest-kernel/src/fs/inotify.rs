//! inotify(7): what happens to watched inodes, as records to read.
//!
//! The VFS calls [`notify`] and its kin after an operation; while nothing is watched that costs one load.

use alloc::{
    collections::{BTreeMap, VecDeque},
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicI32, AtomicU32, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use hashbrown::HashMap;
use zerocopy::{Immutable, IntoBytes};

use super::{Dentry, File, FileOps, FileType, Inode, OpenFlags, anon, poll, proc::sysctl_number};
use crate::{
    errno::{EAGAIN, EEXIST, EINVAL, EMFILE, ENOSPC, ENOTTY, Result},
    mm::{
        io::IoDst,
        kmem,
        user::{UserAddr, UserPtr},
    },
    sync::{PollTable, SpinLock, WaitQueue},
    task::{Creds, Current},
};

/// IN_* of <linux/inotify.h>.
pub mod event {
    pub const ACCESS: u32 = 0x1;
    pub const MODIFY: u32 = 0x2;
    pub const ATTRIB: u32 = 0x4;
    pub const CLOSE_WRITE: u32 = 0x8;
    pub const CLOSE_NOWRITE: u32 = 0x10;
    pub const OPEN: u32 = 0x20;
    pub const MOVED_FROM: u32 = 0x40;
    pub const MOVED_TO: u32 = 0x80;
    pub const CREATE: u32 = 0x100;
    pub const DELETE: u32 = 0x200;
    pub const DELETE_SELF: u32 = 0x400;
    pub const MOVE_SELF: u32 = 0x800;
    /// Everything a watch can ask for.
    pub const ALL: u32 = 0xfff;
    pub const OVERFLOW: u32 = 0x4000;
    pub const IGNORED: u32 = 0x8000;
    pub const ONLYDIR: u32 = 0x0100_0000;
    pub const DONT_FOLLOW: u32 = 0x0200_0000;
    pub const EXCL_UNLINK: u32 = 0x0400_0000;
    pub const MASK_CREATE: u32 = 0x1000_0000;
    pub const MASK_ADD: u32 = 0x2000_0000;
    pub const ISDIR: u32 = 0x4000_0000;
    pub const ONESHOT: u32 = 0x8000_0000;
}

/// struct inotify_event, before its name.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, IntoBytes, Immutable)]
struct Header {
    wd: i32,
    mask: u32,
    cookie: u32,
    len: u32,
}

#[derive(Clone, PartialEq, Eq)]
struct Event {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Vec<u8>,
}

impl Event {
    /// Bytes of the name with its padding: NULs up to a multiple of the header.
    fn name_len(&self) -> usize {
        if self.name.is_empty() { 0 } else { (self.name.len() + 1).next_multiple_of(size_of::<Header>()) }
    }

    fn len(&self) -> usize {
        size_of::<Header>() + self.name_len()
    }
}

struct Watch {
    inode: Arc<dyn Inode>,
    wd: i32,
    /// Events asked for, with EXCL_UNLINK and ONESHOT.
    mask: AtomicU32,
    instance: Weak<Inotify>,
}

#[derive(Default)]
struct State {
    watches: BTreeMap<i32, Arc<Watch>>,
    events: VecDeque<Event>,
    last_wd: i32,
}

/// An instance.
pub struct Inotify {
    state: SpinLock<State>,
    queue: Arc<WaitQueue>,
    uid: u32,
    me: Weak<Inotify>,
}

/// Watches of all instances; none: nobody has to be told anything.
static COUNT: AtomicUsize = AtomicUsize::new(0);
type Watches = HashMap<usize, Vec<Arc<Watch>>>;
/// By the address of the inode, which the watch keeps alive.
static WATCHES: SpinLock<Option<Watches>> = SpinLock::new(None);
/// Instances by user.
static INSTANCES: SpinLock<BTreeMap<u32, u64>> = SpinLock::new(BTreeMap::new());

fn key(inode: &Arc<dyn Inode>) -> usize {
    Arc::as_ptr(inode).cast::<()>() as usize
}

impl Inotify {
    /// EMFILE when the user has too many.
    pub fn open(flags: OpenFlags, creds: &Creds) -> Result<Arc<File>> {
        let uid = creds.euid;
        {
            let mut instances = INSTANCES.lock();
            let count = instances.entry(uid).or_insert(0);
            if *count >= sysctl_number("fs.inotify.max_user_instances", 0, 128) {
                return Err(EMFILE);
            }
            *count += 1;
        }
        let ops = Arc::new_cyclic(|me: &Weak<Inotify>| Inotify {
            state: SpinLock::new(State::default()),
            queue: Arc::new(WaitQueue::new()),
            uid,
            me: me.clone(),
        });
        let path = anon::path(FileType::Regular, 0o600, creds, |_| String::from("anon_inode:inotify"), None);
        Ok(File::new(ops, path, flags & OpenFlags::NONBLOCK))
    }

    /// inotify_add_watch(2): a new watch, or another mask for the one there is.
    pub fn add(&self, inode: &Arc<dyn Inode>, mask: u32) -> Result<i32> {
        let kept = mask & (event::ALL | event::EXCL_UNLINK | event::ONESHOT);
        let watch = {
            let mut state = self.state.lock();
            if let Some(watch) = state.watches.values().find(|w| Arc::ptr_eq(&w.inode, inode)) {
                if mask & event::MASK_CREATE != 0 {
                    return Err(EEXIST);
                }
                if mask & event::MASK_ADD != 0 {
                    watch.mask.fetch_or(kept, SeqCst);
                } else {
                    watch.mask.store(kept, SeqCst);
                }
                return Ok(watch.wd);
            }
            if COUNT.load(Relaxed) as u64 >= sysctl_number("fs.inotify.max_user_watches", 0, 65536)
                || kmem::under_pressure()
            {
                return Err(ENOSPC);
            }
            state.last_wd = state.last_wd.checked_add(1).ok_or(ENOSPC)?;
            let wd = state.last_wd;
            let watch =
                Arc::new(Watch { inode: inode.clone(), wd, mask: AtomicU32::new(kept), instance: self.me.clone() });
            state.watches.insert(wd, watch.clone());
            watch
        };
        let wd = watch.wd;
        WATCHES.lock().get_or_insert_default().entry(key(inode)).or_default().push(watch);
        COUNT.fetch_add(1, SeqCst);
        Ok(wd)
    }

    /// inotify_rm_watch(2), and what ends a watch otherwise: IN_IGNORED is its last event.
    pub fn remove(&self, wd: i32) -> Result<()> {
        let watch = self.state.lock().watches.remove(&wd).ok_or(EINVAL)?;
        forget(&watch);
        self.push(Event { wd, mask: event::IGNORED, cookie: 0, name: Vec::new() });
        Ok(())
    }

    fn push(&self, event: Event) {
        {
            let mut state = self.state.lock();
            if state.events.back() == Some(&event) {
                return;
            }
            let limit = sysctl_number("fs.inotify.max_queued_events", 0, 16384) as usize;
            if state.events.len() >= limit || kmem::under_pressure() {
                let lost = Event { wd: -1, mask: event::OVERFLOW, cookie: 0, name: Vec::new() };
                if state.events.back() == Some(&lost) {
                    return;
                }
                state.events.push_back(lost);
            } else {
                state.events.push_back(event);
            }
        }
        self.queue.wake(poll::IN | poll::RDNORM);
    }

    /// The next event if it fits `room`: EINVAL when it does not.
    fn take(&self, room: usize) -> Option<Result<Event>> {
        let mut state = self.state.lock();
        let next = state.events.front()?;
        if next.len() > room {
            return Some(Err(EINVAL));
        }
        state.events.pop_front().map(Ok)
    }
}

/// Takes a watch out of the table of inodes.
fn forget(watch: &Arc<Watch>) {
    let gone = {
        let mut watches = WATCHES.lock();
        let Some(watches) = watches.as_mut() else { return };
        let key = key(&watch.inode);
        let Some(list) = watches.get_mut(&key) else { return };
        let Some(at) = list.iter().position(|w| Arc::ptr_eq(w, watch)) else { return };
        let gone = list.swap_remove(at);
        if list.is_empty() {
            watches.remove(&key);
        }
        gone
    };
    COUNT.fetch_sub(1, SeqCst);
    drop(gone);
}

impl Drop for Inotify {
    fn drop(&mut self) {
        for watch in core::mem::take(&mut self.state.get_mut().watches).into_values() {
            forget(&watch);
        }
        let mut instances = INSTANCES.lock();
        if let Some(count) = instances.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                instances.remove(&self.uid);
            }
        }
    }
}

impl FileOps for Inotify {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        let mut next = match self.take(dst.remaining()) {
            Some(next) => Some(next?),
            None if file.nonblocking() => return Err(EAGAIN),
            None => Some(self.queue.wait_until(|| self.take(dst.remaining()))??),
        };
        let mut done = 0;
        while let Some(event) = next {
            let header = Header { wd: event.wd, mask: event.mask, cookie: event.cookie, len: event.name_len() as u32 };
            let mut record = header.as_bytes().to_vec();
            record.extend_from_slice(&event.name);
            record.resize(event.len(), 0);
            done += dst.put(&record)?;
            next = self.take(dst.remaining()).and_then(Result::ok);
        }
        Ok(done)
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            table.add(&self.queue, interest | poll::ALWAYS);
        }
        if self.state.lock().events.is_empty() { 0 } else { poll::IN | poll::RDNORM }
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, cur: &mut Current, _file: &Arc<File>, command: u32, argument: u64) -> Result<u64> {
        const FIONREAD: u32 = 0x541b;
        if command != FIONREAD {
            return Err(ENOTTY);
        }
        let waiting: usize = self.state.lock().events.iter().map(Event::len).sum();
        cur.mm.write_value(UserPtr::new(UserAddr(argument)), &(waiting as i32))?;
        Ok(0)
    }

    fn fdinfo(&self, out: &mut String) {
        use core::fmt::Write;
        let watches: Vec<Arc<Watch>> = self.state.lock().watches.values().cloned().collect();
        for watch in watches {
            let (ino, dev) = watch.inode.stat().map_or((0, 0), |s| (s.ino, s.dev));
            let mask = watch.mask.load(Relaxed);
            let _ = writeln!(out, "inotify wd:{:x} ino:{ino:x} sdev:{dev:x} mask:{mask:x} ignored_mask:0", watch.wd);
        }
    }
}

/// Whether anything is watched at all.
#[inline]
fn idle() -> bool {
    COUNT.load(Relaxed) == 0
}

/// Tells those who watch `inode` itself. `name`: of the entry it is about, when that is a directory.
fn tell(inode: &Arc<dyn Inode>, mask: u32, cookie: u32, name: &[u8], unlinked: bool) {
    let watches: Vec<Arc<Watch>> = match WATCHES.lock().as_ref().and_then(|w| w.get(&key(inode))) {
        Some(list) => list.clone(),
        None => return,
    };
    for watch in watches {
        let wanted = watch.mask.load(SeqCst);
        if wanted & mask & event::ALL == 0 || unlinked && wanted & event::EXCL_UNLINK != 0 {
            continue;
        }
        let Some(instance) = watch.instance.upgrade() else { continue };
        instance.push(Event { wd: watch.wd, mask, cookie, name: name.to_vec() });
        if wanted & event::ONESHOT != 0 {
            // It may have gone meanwhile.
            let _ = instance.remove(watch.wd);
        }
    }
}

fn with_kind(inode: &Arc<dyn Inode>, mask: u32) -> u32 {
    if inode.is_dir() { mask | event::ISDIR } else { mask }
}

/// Something happened to what a name stands for: told to the directory, with the name, and to the inode.
#[inline]
pub fn notify(dentry: &Dentry, mask: u32) {
    if !idle() {
        notify_watched(dentry, mask);
    }
}

fn notify_watched(dentry: &Dentry, mask: u32) {
    let inode = dentry.inode();
    let mask = with_kind(inode, mask);
    let (name, parent) = dentry.place();
    if let Some(parent) = parent {
        tell(parent.inode(), mask, 0, &name, dentry.is_deleted());
    }
    tell(inode, mask, 0, b"", false);
}

/// Something happened to an inode whatever its names are.
pub fn notify_inode(inode: &Arc<dyn Inode>, mask: u32) {
    if !idle() {
        tell(inode, with_kind(inode, mask), 0, b"", false);
    }
}

/// A directory has a new name, or lost one: CREATE or DELETE.
pub fn notify_entry(dir: &Arc<dyn Inode>, name: &[u8], child: &Arc<dyn Inode>, mask: u32) {
    if !idle() {
        tell(dir, with_kind(child, mask), 0, name, false);
    }
}

/// A name is gone from its directory, and with the last one the inode: its watches end.
pub fn notify_removed(dir: &Arc<dyn Inode>, name: &[u8], child: &Arc<dyn Inode>) {
    if idle() {
        return;
    }
    if !child.is_dir() {
        notify_inode(child, event::ATTRIB);
    }
    notify_entry(dir, name, child, event::DELETE);
    notify_replaced(child);
}

/// What a rename put something else in the place of.
pub fn notify_replaced(child: &Arc<dyn Inode>) {
    if idle() || !child.is_dir() && child.stat().is_ok_and(|s| s.nlink > 0) {
        return;
    }
    tell(child, event::DELETE_SELF, 0, b"", false);
    let watches = match WATCHES.lock().as_ref().and_then(|w| w.get(&key(child))) {
        Some(list) => list.clone(),
        None => return,
    };
    for watch in watches {
        if let Some(instance) = watch.instance.upgrade() {
            // Whoever was faster has ended it.
            let _ = instance.remove(watch.wd);
        }
    }
}

/// A rename within a file system.
pub fn notify_moved(from: (&Arc<dyn Inode>, &[u8]), to: (&Arc<dyn Inode>, &[u8]), inode: &Arc<dyn Inode>) {
    static COOKIE: AtomicI32 = AtomicI32::new(1);
    if idle() {
        return;
    }
    let cookie = COOKIE.fetch_add(1, Relaxed) as u32;
    tell(from.0, with_kind(inode, event::MOVED_FROM), cookie, from.1, false);
    tell(to.0, with_kind(inode, event::MOVED_TO), cookie, to.1, false);
    // Without IN_ISDIR, as on Linux.
    tell(inode, event::MOVE_SELF, 0, b"", false);
}
