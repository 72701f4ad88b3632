//! epoll(7): a set of files of which the ready ones are handed out.

use alloc::{
    collections::{BTreeMap, VecDeque},
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{File, FileOps, FileType, OpenFlags, anon, poll};
use crate::{
    errno::{EEXIST, EINVAL, ELOOP, ENOENT, EPERM, Result},
    sync::{Mutex, PollTable, SpinLock, WaitQueue, Wake},
    task::Creds,
};

/// struct epoll_event: packed on x86-64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct UserEvent {
    events: u32,
    data: [u32; 2],
}

const EXCLUSIVE: u32 = 1 << 28;
const WAKEUP: u32 = 1 << 29;
const ONESHOT: u32 = 1 << 30;
const EDGE: u32 = 1 << 31;
/// How deep epoll files may watch epoll files.
const MAX_NESTING: u32 = 5;

/// A file in the set.
struct Item {
    epoll: Weak<Epoll>,
    file: Weak<File>,
    event: SpinLock<UserEvent>,
    /// In the list of those that may be ready.
    listed: AtomicBool,
    /// Registered with the file's queues; taken out before the item goes.
    table: SpinLock<Option<PollTable>>,
}

impl Wake for Item {
    fn wake(self: Arc<Self>, _events: u32) {
        if let Some(epoll) = self.epoll.upgrade() {
            epoll.list(&self);
            epoll.queue.wake(poll::IN | poll::RDNORM);
        }
    }
}

pub struct Epoll {
    me: Weak<Epoll>,
    /// By descriptor and file, as epoll(7) has it.
    items: Mutex<BTreeMap<(i32, usize), Arc<Item>>>,
    ready: SpinLock<VecDeque<Arc<Item>>>,
    queue: Arc<WaitQueue>,
}

impl Epoll {
    pub fn open(creds: &Creds) -> Arc<File> {
        let ops = Arc::new_cyclic(|me| Epoll {
            me: me.clone(),
            items: Mutex::new(BTreeMap::new()),
            ready: SpinLock::new(VecDeque::new()),
            queue: Arc::new(WaitQueue::new()),
        });
        let path = anon::path(FileType::Regular, 0o600, creds, |_| String::from("anon_inode:[eventpoll]"), None);
        File::new(ops, path, OpenFlags::RDWR)
    }

    /// Puts an item into the ready list unless it is there.
    fn list(&self, item: &Arc<Item>) {
        if !item.listed.swap(true, SeqCst) {
            self.ready.lock().push_back(item.clone());
        }
    }

    /// epoll_ctl(2).
    pub fn control(&self, operation: i32, fd: i32, file: &Arc<File>, event: UserEvent) -> Result<()> {
        const ADD: i32 = 1;
        const DELETE: i32 = 2;
        const MODIFY: i32 = 3;
        if !file.ops().pollable() {
            return Err(EPERM);
        }
        let key = (fd, Arc::as_ptr(file) as usize);
        match operation {
            ADD => {
                if let Some(other) = file.ops().downcast::<Epoll>() {
                    if other.reaches(self, 0)? {
                        return Err(ELOOP);
                    }
                    if event.events & EXCLUSIVE != 0 {
                        return Err(EINVAL);
                    }
                }
                let item = {
                    let mut items = self.items.lock();
                    if items.get(&key).is_some_and(|i| i.file.strong_count() > 0) {
                        return Err(EEXIST);
                    }
                    let item = Arc::new(Item {
                        epoll: self.me.clone(),
                        file: Arc::downgrade(file),
                        event: SpinLock::new(event),
                        listed: AtomicBool::new(false),
                        table: SpinLock::new(None),
                    });
                    if let Some(old) = items.insert(key, item.clone()) {
                        self.release(&old);
                    }
                    item
                };
                self.arm(&item, file);
            }
            DELETE => {
                let item = self.items.lock().remove(&key).ok_or(ENOENT)?;
                self.release(&item);
            }
            MODIFY => {
                let item = self.items.lock().get(&key).cloned().ok_or(ENOENT)?;
                if event.events & EXCLUSIVE != 0 {
                    return Err(EINVAL);
                }
                *item.event.lock() = event;
                self.arm(&item, file);
            }
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    /// Registers with the file's queues for what the item wants, and lists it if that is there already.
    fn arm(&self, item: &Arc<Item>, file: &Arc<File>) {
        let interest = item.event.lock().events;
        let mut table = PollTable::new(item.clone());
        let ready = file.poll(interest & 0xffff, Some(&mut table));
        let old = item.table.lock().replace(table);
        drop(old);
        if ready != 0 {
            item.clone().wake(ready);
        }
    }

    /// Takes an item out of its queues: the file's queues and the item hold each other until then.
    fn release(&self, item: &Arc<Item>) {
        let table = item.table.lock().take();
        drop(table);
        self.ready.lock().retain(|other| !Arc::ptr_eq(other, item));
    }

    /// Whether this set watches `target`, itself or through others. ELOOP when it is nested too deep.
    fn reaches(&self, target: &Epoll, depth: u32) -> Result<bool> {
        if core::ptr::eq(self, target) {
            return Ok(true);
        }
        if depth >= MAX_NESTING {
            return Err(ELOOP);
        }
        let files: Vec<Arc<File>> = self.items.lock().values().filter_map(|i| i.file.upgrade()).collect();
        for file in files {
            if let Some(epoll) = file.ops().downcast::<Epoll>()
                && epoll.reaches(target, depth + 1)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Up to `max` events of files that are ready now.
    fn collect(&self, max: usize) -> Vec<UserEvent> {
        let mut events = Vec::new();
        let mut again = Vec::new();
        let mut left = self.ready.lock().len();
        while events.len() < max && left > 0 {
            left -= 1;
            let Some(item) = self.ready.lock().pop_front() else { break };
            // From here on a wake-up lists it again.
            item.listed.store(false, SeqCst);
            let Some(file) = item.file.upgrade() else {
                self.forget(&item);
                continue;
            };
            let wanted = *item.event.lock();
            if wanted.events & !(EDGE | ONESHOT | EXCLUSIVE | WAKEUP) == 0 {
                continue;
            }
            let ready = file.poll(wanted.events & 0xffff, None);
            if ready == 0 {
                continue;
            }
            events.push(UserEvent { events: ready, data: wanted.data });
            if wanted.events & ONESHOT != 0 {
                item.event.lock().events &= EDGE | ONESHOT | EXCLUSIVE | WAKEUP;
            } else if wanted.events & EDGE == 0 {
                again.push(item);
            }
        }
        for item in again {
            self.list(&item);
        }
        events
    }

    /// The item's file is gone.
    fn forget(&self, item: &Arc<Item>) {
        self.items.lock().retain(|_, other| !Arc::ptr_eq(other, item));
        self.release(item);
    }

    /// epoll_wait(2).
    pub fn wait(&self, max: usize, deadline: u64) -> Result<Vec<UserEvent>> {
        let some = || {
            let events = self.collect(max);
            (!events.is_empty()).then_some(events)
        };
        match self.queue.wait_deadline(deadline, some) {
            Ok(events) => Ok(events.unwrap_or_default()),
            // epoll_wait is never restarted after a handler.
            Err(crate::errno::Error::Restart(_)) => Err(crate::errno::EINTR),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        for item in core::mem::take(self.items.get_mut()).into_values() {
            let table = item.table.lock().take();
            drop(table);
        }
    }
}

impl FileOps for Epoll {
    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            table.add(&self.queue, interest);
        }
        let candidates: Vec<Arc<Item>> = self.ready.lock().iter().cloned().collect();
        let is_ready = |item: &Arc<Item>| {
            let wanted = item.event.lock().events & 0xffff;
            wanted != 0 && item.file.upgrade().is_some_and(|file| file.poll(wanted, None) != 0)
        };
        if candidates.iter().any(is_ready) { poll::IN | poll::RDNORM } else { 0 }
    }

    fn pollable(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fs::pipe,
        mm::io::{IoDst, IoSrc},
    };

    fn event(events: u32, data: u32) -> UserEvent {
        UserEvent { events, data: [data, 0] }
    }

    fn now(epoll: &Epoll) -> Vec<(u32, u32)> {
        epoll.collect(16).iter().map(|e| (e.events, e.data[0])).collect()
    }

    #[test]
    fn level_edge_and_oneshot() {
        let creds = Creds::root();
        let file = Epoll::open(&creds);
        let epoll = file.ops().downcast::<Epoll>().unwrap();
        let (r, w) = pipe::pair(OpenFlags::NONBLOCK, &creds);
        epoll.control(1, 3, &r, event(poll::IN, 7)).unwrap();
        assert_eq!(epoll.control(1, 3, &r, event(poll::IN, 7)), Err(EEXIST));
        assert_eq!(now(epoll), []);
        w.write(&mut IoSrc::kernel(b"ab")).unwrap();
        assert_eq!(now(epoll), [(poll::IN, 7)]);
        assert_eq!(now(epoll), [(poll::IN, 7)]);
        epoll.control(3, 3, &r, event(poll::IN | EDGE, 8)).unwrap();
        assert_eq!(now(epoll), [(poll::IN, 8)]);
        assert_eq!(now(epoll), []);
        w.write(&mut IoSrc::kernel(b"c")).unwrap();
        assert_eq!(now(epoll), [(poll::IN, 8)]);
        epoll.control(3, 3, &r, event(poll::IN | ONESHOT, 9)).unwrap();
        assert_eq!(now(epoll), [(poll::IN, 9)]);
        w.write(&mut IoSrc::kernel(b"d")).unwrap();
        assert_eq!(now(epoll), []);
        let mut b = [0; 8];
        r.read(&mut IoDst::kernel(&mut b)).unwrap();
        epoll.control(2, 3, &r, event(0, 0)).unwrap();
        assert_eq!(epoll.control(2, 3, &r, event(0, 0)), Err(ENOENT));
        // A file that is gone leaves the set.
        epoll.control(1, 4, &w, event(poll::OUT, 1)).unwrap();
        assert_eq!(now(epoll), [(poll::OUT, 1)]);
        drop(w);
        assert_eq!(now(epoll), []);
        assert!(epoll.items.lock().is_empty());
    }

    #[test]
    fn sets_in_sets_do_not_loop() {
        let creds = Creds::root();
        let (a, b) = (Epoll::open(&creds), Epoll::open(&creds));
        a.ops().downcast::<Epoll>().unwrap().control(1, 1, &b, event(poll::IN, 0)).unwrap();
        assert_eq!(b.ops().downcast::<Epoll>().unwrap().control(1, 1, &a, event(poll::IN, 0)), Err(ELOOP));
    }
}
