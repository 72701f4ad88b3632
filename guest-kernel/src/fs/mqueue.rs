//! POSIX message queues (mq_overview(7)): the file system whose files they are, and what they hold.

use alloc::{
    collections::{BTreeMap, VecDeque},
    format,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{
    DirEntry, File, FileOps, FileSystem, FileType, Inode, Mount, MountFlags, NewAttr, NewNode, OpenFlags, Path,
    SetAttr, Stat, StatFs, Timespec, new_device, poll, proc::sysctl_number,
};
use crate::{
    errno::{
        EAGAIN, EBADF, EBUSY, EEXIST, EINVAL, EMFILE, EMSGSIZE, ENOENT, ENOMEM, ENOSPC, ENOTDIR, EPERM, ETIMEDOUT,
        Result,
    },
    mm::{
        io::{IoDst, IoSrc},
        kmem,
    },
    sched,
    signal::{
        SigInfo,
        info::code,
        send::{self, Origin},
    },
    sync::{Once, PollTable, SpinLock, WaitQueue},
    task::{Creds, Limits, Pid, Process, Resource, cap},
};

const MQUEUE_MAGIC: u64 = 0x1980_0202;
/// Highest number and size of messages, for who has CAP_SYS_RESOURCE.
const HARD_MESSAGES: i64 = 65536;
const HARD_SIZE: i64 = 16 << 20;
/// What a message costs besides its text.
const OVERHEAD: u64 = 128;

struct MqueueFs {
    device: u64,
    names: SpinLock<BTreeMap<Vec<u8>, Arc<Queue>>>,
    next: AtomicU64,
    attributes: SpinLock<Attributes>,
}

/// Bytes that the queues of each user may take together.
static CHARGED: SpinLock<BTreeMap<u32, u64>> = SpinLock::new(BTreeMap::new());

fn fs() -> &'static Arc<MqueueFs> {
    static FS: Once<Arc<MqueueFs>> = Once::new();
    FS.call_once(|| {
        Arc::new(MqueueFs {
            device: new_device(),
            names: SpinLock::new(BTreeMap::new()),
            next: AtomicU64::new(2),
            attributes: SpinLock::new(Attributes::new(0o1777, 0, 0)),
        })
    })
}

/// The file system, of which there is one, and its root.
pub fn mount() -> (Arc<dyn FileSystem>, Arc<dyn Inode>) {
    (fs().clone(), Arc::new(Root))
}

/// Where mq_open(2) finds names, mounted or not.
pub fn root() -> Path {
    static MOUNT: Once<Arc<Mount>> = Once::new();
    let mount = MOUNT.call_once(|| {
        let (fs, root) = mount();
        Mount::of(fs, root, "mqueue", MountFlags::empty())
    });
    mount.root_path()
}

impl FileSystem for MqueueFs {
    fn name(&self) -> &'static str {
        "mqueue"
    }

    fn device(&self) -> u64 {
        self.device
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: MQUEUE_MAGIC, block_size: 4096, name_max: 255, ..StatFs::default() })
    }
}

#[derive(Clone, Copy)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
}

impl Attributes {
    fn new(mode: u32, uid: u32, gid: u32) -> Self {
        Attributes { mode, uid, gid, mtime: Timespec::now() }
    }

    fn stat(&self, kind: FileType, ino: u64, nlink: u32, size: u64) -> Stat {
        Stat {
            dev: fs().device,
            ino,
            mode: kind as u32 | self.mode,
            nlink,
            uid: self.uid,
            gid: self.gid,
            size,
            blksize: 4096,
            atime: self.mtime,
            mtime: self.mtime,
            ctime: self.mtime,
            ..Stat::default()
        }
    }

    fn set(&mut self, attr: &SetAttr) {
        self.mode = attr.mode.map_or(self.mode, |mode| mode & 0o7777);
        self.uid = attr.uid.unwrap_or(self.uid);
        self.gid = attr.gid.unwrap_or(self.gid);
        self.mtime = attr.mtime.unwrap_or(self.mtime);
    }
}

/// How many messages of which size a queue holds.
#[derive(Clone, Copy)]
pub struct Shape {
    pub messages: i64,
    pub size: i64,
}

impl Shape {
    /// What a queue gets whose maker asks for nothing.
    fn default() -> Self {
        let limited = |name, default, max: i64| (sysctl_number(name, 0, default).min(max as u64)) as i64;
        Shape {
            messages: limited("fs.mqueue.msg_default", 10, HARD_MESSAGES),
            size: limited("fs.mqueue.msgsize_default", 8192, HARD_SIZE),
        }
    }

    fn check(&self, creds: &Creds) -> Result<()> {
        let (messages, size) = if creds.capable(cap::SYS_RESOURCE) {
            (HARD_MESSAGES, HARD_SIZE)
        } else {
            let limit = |name, default, hard: i64| sysctl_number(name, 0, default).min(hard as u64) as i64;
            (limit("fs.mqueue.msg_max", 10, HARD_MESSAGES), limit("fs.mqueue.msgsize_max", 8192, HARD_SIZE))
        };
        let fits = (1..=messages).contains(&self.messages) && (1..=size).contains(&self.size);
        if fits { Ok(()) } else { Err(EINVAL) }
    }

    fn bytes(&self) -> u64 {
        (self.messages as u64).saturating_mul(self.size as u64 + OVERHEAD)
    }
}

/// Makes a queue; EEXIST when there is one of that name.
pub fn create(name: &[u8], shape: Option<Shape>, mode: u32, creds: &Creds, limits: &Limits) -> Result<()> {
    let shape = shape.unwrap_or_else(Shape::default);
    shape.check(creds)?;
    let limit = limits.soft(Resource::Msgqueue);
    let fs = fs();
    let queues = fs.names.lock().len() as u64;
    if queues >= sysctl_number("fs.mqueue.queues_max", 0, 256) && !creds.capable(cap::SYS_RESOURCE) {
        return Err(ENOSPC);
    }
    if kmem::under_pressure() {
        return Err(ENOMEM);
    }
    {
        let mut charged = CHARGED.lock();
        let used = charged.entry(creds.uid).or_insert(0);
        let total = used.saturating_add(shape.bytes());
        if total > limit {
            return Err(EMFILE);
        }
        *used = total;
    }
    let queue = Arc::new(Queue {
        ino: fs.next.fetch_add(1, Relaxed),
        shape,
        payer: creds.uid,
        attributes: SpinLock::new(Attributes::new(mode & 0o777, creds.fsuid, creds.fsgid)),
        state: SpinLock::new(State::default()),
        queue: Arc::new(WaitQueue::new()),
    });
    let surplus = {
        let mut names = fs.names.lock();
        if names.contains_key(name) {
            Some(queue)
        } else {
            names.insert(name.to_vec(), queue);
            None
        }
    };
    if surplus.is_some() { Err(EEXIST) } else { Ok(()) }
}

/// The directory of queues.
struct Root;

impl Inode for Root {
    fn file_type(&self) -> FileType {
        FileType::Directory
    }

    fn stat(&self) -> Result<Stat> {
        let size = fs().names.lock().len() as u64 * 20;
        Ok(fs().attributes.lock().stat(FileType::Directory, 1, 2, size))
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &**fs()
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        match fs().names.lock().get(name) {
            Some(queue) => Ok(queue.clone()),
            None => Err(ENOENT),
        }
    }

    fn revalidate(&self, name: &[u8], child: Option<&Arc<dyn Inode>>) -> bool {
        let names = fs().names.lock();
        match (names.get(name), child) {
            (Some(queue), Some(child)) => core::ptr::addr_eq(Arc::as_ptr(queue), Arc::as_ptr(child)),
            (None, None) => true,
            _ => false,
        }
    }

    fn create(&self, name: &[u8], node: NewNode<'_>, attr: NewAttr) -> Result<Arc<dyn Inode>> {
        if !matches!(node, NewNode::Regular) {
            return Err(EPERM);
        }
        let task = sched::current().ok_or(EPERM)?;
        let limits = *task.process.limits.lock();
        create(name, None, attr.mode, &task.creds(), &limits)?;
        self.lookup(name)
    }

    fn unlink(&self, name: &[u8], _child: &Arc<dyn Inode>) -> Result<()> {
        let gone = fs().names.lock().remove(name).ok_or(ENOENT)?;
        drop(gone);
        Ok(())
    }

    fn set_attr(&self, attr: &SetAttr) -> Result<()> {
        fs().attributes.lock().set(attr);
        Ok(())
    }

    fn open(self: Arc<Self>, _flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        Ok(self)
    }
}

impl FileOps for Root {
    fn seekable(&self) -> bool {
        true
    }

    fn readdir(&self, _file: &File, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        // Inode numbers grow, and so serve as cookies.
        let mut found: Vec<(u64, Vec<u8>)> =
            fs().names.lock().iter().map(|(name, queue)| (queue.ino, name.clone())).collect();
        found.sort_unstable();
        for (ino, name) in found.iter().filter(|(ino, _)| ino + 1 > cookie) {
            if !emit(DirEntry { name, ino: *ino, file_type: FileType::Regular, next: ino + 1 }) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> Result<()> {
        Ok(())
    }
}

/// Who is told of a message in an empty queue.
struct Notification {
    process: Weak<Process>,
    pid: Pid,
    /// Signal and value; none: SIGEV_NONE.
    signal: Option<(u32, u64)>,
}

#[derive(Default)]
struct State {
    /// By priority, oldest first.
    messages: BTreeMap<u32, VecDeque<Vec<u8>>>,
    count: i64,
    bytes: u64,
    /// Receivers that wait.
    receivers: usize,
    notify: Option<Notification>,
}

pub struct Queue {
    ino: u64,
    pub shape: Shape,
    /// Whose limit it counts against.
    payer: u32,
    attributes: SpinLock<Attributes>,
    state: SpinLock<State>,
    queue: Arc<WaitQueue>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut charged = CHARGED.lock();
        if let Some(used) = charged.get_mut(&self.payer) {
            *used = used.saturating_sub(self.shape.bytes());
            if *used == 0 {
                charged.remove(&self.payer);
            }
        }
    }
}

/// The queue behind a descriptor.
pub fn of(file: &File) -> Result<&Queue> {
    file.ops().downcast::<Queue>().ok_or(EBADF)
}

impl Queue {
    /// Messages in it now.
    pub fn count(&self) -> i64 {
        self.state.lock().count
    }

    /// `deadline`: CLOCK_MONOTONIC ns.
    pub fn send(&self, text: Vec<u8>, priority: u32, nonblock: bool, deadline: u64) -> Result<()> {
        if text.len() as u64 > self.shape.size as u64 {
            return Err(EMSGSIZE);
        }
        if kmem::under_pressure() {
            return Err(ENOMEM);
        }
        let mut text = Some(text);
        let mut attempt = || {
            let mut state = self.state.lock();
            if state.count >= self.shape.messages {
                return None;
            }
            let text = text.take()?;
            state.bytes += text.len() as u64;
            state.count += 1;
            state.messages.entry(priority).or_default().push_back(text);
            // Only the first message of an empty queue that nobody waits at is told of, and only once.
            let tell = state.count == 1 && state.receivers == 0;
            Some(if tell { state.notify.take() } else { None })
        };
        let notify = match attempt() {
            Some(notify) => notify,
            None if nonblock => return Err(EAGAIN),
            None => self.queue.wait_deadline(deadline, attempt)?.ok_or(ETIMEDOUT)?,
        };
        self.queue.wake(poll::IN | poll::RDNORM);
        if let Some(notify) = notify {
            notify.tell();
        }
        Ok(())
    }

    /// The oldest message of the highest priority, and that priority.
    pub fn receive(&self, nonblock: bool, deadline: u64) -> Result<(Vec<u8>, u32)> {
        let attempt = || {
            let mut state = self.state.lock();
            let mut entry = state.messages.last_entry()?;
            let priority = *entry.key();
            let text = entry.get_mut().pop_front()?;
            if entry.get().is_empty() {
                entry.remove();
            }
            state.count -= 1;
            state.bytes -= text.len() as u64;
            Some((text, priority))
        };
        let message = match attempt() {
            Some(message) => message,
            None if nonblock => return Err(EAGAIN),
            None => {
                self.state.lock().receivers += 1;
                let result = self.queue.wait_deadline(deadline, attempt);
                self.state.lock().receivers -= 1;
                result?.ok_or(ETIMEDOUT)?
            }
        };
        self.queue.wake(poll::OUT | poll::WRNORM);
        Ok(message)
    }

    /// mq_notify(2): EBUSY while another process waits to be told.
    pub fn register(&self, process: &Arc<Process>, signal: Option<(u32, u64)>) -> Result<()> {
        let mut state = self.state.lock();
        if state.notify.as_ref().is_some_and(|n| n.process.strong_count() > 0) {
            return Err(EBUSY);
        }
        state.notify = Some(Notification { process: Arc::downgrade(process), pid: process.pid, signal });
        Ok(())
    }

    /// The process no longer wants to be told.
    pub fn unregister(&self, pid: Pid) {
        let gone = {
            let mut state = self.state.lock();
            if state.notify.as_ref().is_some_and(|n| n.pid == pid) { state.notify.take() } else { None }
        };
        drop(gone);
    }
}

impl Notification {
    fn tell(self) {
        let (Some(process), Some((signal, value))) = (self.process.upgrade(), self.signal) else { return };
        let (pid, uid) = sched::current().map_or((0, 0), |task| (task.process.pid, task.creds().uid));
        let mut info = SigInfo::user(signal, code::SI_MESGQ, pid, uid);
        info.fields[1] = value;
        // A full queue of signals loses it, as on Linux.
        let _ = send::to_process(&process, info, Origin::Inside);
    }
}

impl Inode for Queue {
    fn file_type(&self) -> FileType {
        FileType::Regular
    }

    fn stat(&self) -> Result<Stat> {
        Ok(self.attributes.lock().stat(FileType::Regular, self.ino, 1, 80))
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &**fs()
    }

    fn lookup(&self, _name: &[u8]) -> Result<Arc<dyn Inode>> {
        Err(ENOTDIR)
    }

    fn set_attr(&self, attr: &SetAttr) -> Result<()> {
        self.attributes.lock().set(attr);
        Ok(())
    }

    fn open(self: Arc<Self>, _flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        Ok(self)
    }
}

impl FileOps for Queue {
    /// What it holds, as a line of text.
    fn read(&self, _file: &File, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        let text = {
            let state = self.state.lock();
            let (signal, pid) = match &state.notify {
                Some(n) => (n.signal.map_or(0, |(signal, _)| signal), n.pid),
                None => (0, 0),
            };
            let how = u32::from(state.notify.as_ref().is_some_and(|n| n.signal.is_none()));
            format!("QSIZE:{:<10} NOTIFY:{how:<5} SIGNO:{signal:<5} NOTIFY_PID:{pid:<6}\n", state.bytes)
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        dst.put(&text.as_bytes()[start..])
    }

    fn write(&self, _file: &File, _src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        Err(EINVAL)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            table.add(&self.queue, interest | poll::ALWAYS);
        }
        let count = self.count();
        let mut ready = 0;
        if count > 0 {
            ready |= poll::IN | poll::RDNORM;
        }
        if count < self.shape.messages {
            ready |= poll::OUT | poll::WRNORM;
        }
        ready
    }

    fn pollable(&self) -> bool {
        true
    }

    fn flush(&self, _file: &File) -> Result<()> {
        if let Some(task) = sched::current() {
            self.unregister(task.process.pid);
        }
        Ok(())
    }
}
