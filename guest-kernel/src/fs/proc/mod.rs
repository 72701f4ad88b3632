//! The proc file system (proc(5)): every file's text is made from the sentry's state when it is read.
//!
//! What there is stands in tables of [`Entry`]; a node is an entry and the subject (the system, a process, a thread, a
//! descriptor) it is about.

mod file;
mod mounts;
mod process;
mod status;
mod sysctl;
mod system;

use alloc::{
    format,
    string::{String, ToString},
    sync::{Arc, Weak},
    vec::Vec,
};

use super::{
    DirEntry, File, FileOps, FileSystem, FileType, Inode, OpenFlags, Path, SetAttr, Stat, StatFs, Timespec, new_device,
};
use crate::{
    errno::{EACCES, EINVAL, ENOENT, ENOTDIR, EPERM, ESRCH, Result},
    sched,
    task::{Pid, Process, Task, cap, table},
};

pub use sysctl::{configure as configure_sysctls, number as sysctl_number};

const PROC_SUPER_MAGIC: u64 = 0x9fa0;

pub struct ProcFs {
    device: u64,
    /// sysfs uses the same nodes.
    sys: bool,
}

impl ProcFs {
    /// proc(5), and its root directory.
    pub fn mount() -> (Arc<dyn FileSystem>, Arc<dyn Inode>) {
        let fs = Arc::new(ProcFs { device: new_device(), sys: false });
        let root = Arc::new(Node { fs: fs.clone(), entry: &system::ROOT, subject: Subject::System });
        (fs, root)
    }

    /// sysfs: what programs look for about CPUs.
    pub fn mount_sysfs() -> (Arc<dyn FileSystem>, Arc<dyn Inode>) {
        let fs = Arc::new(ProcFs { device: new_device(), sys: true });
        let root = Arc::new(Node { fs: fs.clone(), entry: &system::SYSFS_ROOT, subject: Subject::System });
        (fs, root)
    }
}

impl FileSystem for ProcFs {
    fn name(&self) -> &'static str {
        if self.sys { "sysfs" } else { "proc" }
    }

    fn device(&self) -> u64 {
        self.device
    }

    fn statfs(&self) -> Result<StatFs> {
        let magic = if self.sys { 0x6265_6572 } else { PROC_SUPER_MAGIC };
        Ok(StatFs { magic, block_size: 4096, name_max: 255, ..StatFs::default() })
    }
}

/// What a node is about.
#[derive(Clone)]
enum Subject {
    System,
    Process(Weak<Process>, Pid),
    Task(Weak<Task>, Pid),
    /// A descriptor of a task.
    Fd(Weak<Task>, Pid, i32),
    Cpu(usize),
}

impl Subject {
    fn process(&self) -> Result<Arc<Process>> {
        match self {
            Subject::System | Subject::Cpu(_) => Err(ENOENT),
            Subject::Process(process, _) => process.upgrade().ok_or(ESRCH),
            Subject::Task(task, _) | Subject::Fd(task, ..) => Ok(task.upgrade().ok_or(ESRCH)?.process.clone()),
        }
    }

    /// The thread; a process's main one. ESRCH when it has ended.
    fn task(&self) -> Result<Arc<Task>> {
        match self {
            Subject::System | Subject::Cpu(_) => Err(ENOENT),
            Subject::Process(process, _) => process.upgrade().and_then(|p| p.main_thread()).ok_or(ESRCH),
            Subject::Task(task, _) | Subject::Fd(task, ..) => task.upgrade().ok_or(ESRCH),
        }
    }

    /// Numbers that tell subjects apart.
    fn key(&self) -> (u64, u64) {
        match self {
            Subject::System => (0, 0),
            Subject::Process(_, pid) => (1, *pid as u64),
            Subject::Task(_, tid) => (2, *tid as u64),
            Subject::Fd(_, tid, fd) => (4 + *fd as u64, *tid as u64),
            Subject::Cpu(cpu) => (3, *cpu as u64),
        }
    }

    /// EACCES unless the running task may look into this one (ptrace(2), PTRACE_MODE_READ).
    fn check_access(&self) -> Result<()> {
        let Some(me) = sched::current() else { return Ok(()) };
        let task = self.task()?;
        if Arc::ptr_eq(&me.process, &task.process) {
            return Ok(());
        }
        let (mine, theirs) = (me.creds(), task.creds());
        let same = |id: u32, a: u32, b: u32, c: u32| id == a && id == b && id == c;
        let user = same(mine.fsuid, theirs.uid, theirs.euid, theirs.suid);
        let group = same(mine.fsgid, theirs.gid, theirs.egid, theirs.sgid);
        let covered = theirs.caps.permitted & !mine.caps.permitted == 0;
        if user && group && covered || mine.capable(cap::SYS_PTRACE) { Ok(()) } else { Err(EACCES) }
    }
}

/// One name of a directory.
struct Entry {
    name: &'static str,
    mode: u32,
    what: What,
}

type Make = fn(&Subject) -> Result<Vec<u8>>;

#[derive(Clone, Copy)]
enum What {
    Dir(&'static [Entry]),
    /// The root: processes after its own entries.
    Processes(&'static [Entry]),
    /// /sys/devices/system/cpu: a directory for each CPU after its own entries.
    Cpus(&'static [Entry]),
    /// task, fd, fdinfo of a process.
    Tasks,
    Fds,
    FdInfos,
    Text(Make),
    /// Readable, and what a write does.
    Setting(Make, fn(&Subject, &[u8]) -> Result<()>),
    /// A symbolic link's text.
    Link(Make),
    /// A link to an object: its text, and the object.
    Magic(Make, fn(&Subject) -> Result<Path>),
    /// Memory of the process.
    Memory,
}

const fn dir(name: &'static str, entries: &'static [Entry]) -> Entry {
    Entry { name, mode: 0o555, what: What::Dir(entries) }
}

const fn text(name: &'static str, make: Make) -> Entry {
    Entry { name, mode: 0o444, what: What::Text(make) }
}

const fn secret(name: &'static str, make: Make) -> Entry {
    Entry { name, mode: 0o400, what: What::Text(make) }
}

const fn setting(name: &'static str, make: Make, set: fn(&Subject, &[u8]) -> Result<()>) -> Entry {
    Entry { name, mode: 0o644, what: What::Setting(make, set) }
}

const fn link(name: &'static str, make: Make) -> Entry {
    Entry { name, mode: 0o777, what: What::Link(make) }
}

/// The thread directories of /proc/pid/task.
static TASK_DIR: Entry = Entry { name: "", mode: 0o555, what: What::Dir(process::TASK) };
static PROCESS_DIR: Entry = Entry { name: "", mode: 0o555, what: What::Dir(process::PROCESS) };
static CPU_DIR: Entry = Entry { name: "", mode: 0o755, what: What::Dir(system::CPU) };
static FD: Entry = Entry { name: "", mode: 0o700, what: What::Magic(process::fd_text, process::fd_path) };
static FD_INFO: Entry = Entry { name: "", mode: 0o444, what: What::Text(process::fd_info) };

struct Node {
    fs: Arc<ProcFs>,
    entry: &'static Entry,
    subject: Subject,
}

/// A child that is about to become a node or a directory entry.
struct Child {
    name: String,
    entry: &'static Entry,
    subject: Subject,
}

impl Node {
    fn ino(&self) -> u64 {
        ino(self.entry, &self.subject)
    }

    /// Entries that the tables name.
    fn fixed(&self) -> &'static [Entry] {
        match self.entry.what {
            What::Dir(entries) | What::Processes(entries) | What::Cpus(entries) => entries,
            _ => &[],
        }
    }

    /// Entries that come and go, with a number above `after`, in order.
    fn numbered(&self, after: i64) -> Result<Vec<(i64, Child)>> {
        let child =
            |number: i32, entry, subject| (i64::from(number), Child { name: number.to_string(), entry, subject });
        let children = match self.entry.what {
            What::Processes(_) => table::processes()
                .into_iter()
                .map(|p| child(p.pid, &PROCESS_DIR, Subject::Process(Arc::downgrade(&p), p.pid)))
                .collect::<Vec<_>>(),
            What::Tasks => {
                let mut tasks = self.subject.process()?.threads();
                tasks.sort_by_key(|t| t.tid());
                tasks.iter().map(|t| child(t.tid(), &TASK_DIR, Subject::Task(Arc::downgrade(t), t.tid()))).collect()
            }
            What::Fds | What::FdInfos => {
                self.subject.check_access()?;
                let task = self.subject.task()?;
                let entry = if matches!(self.entry.what, What::Fds) { &FD } else { &FD_INFO };
                let subject = |fd| Subject::Fd(Arc::downgrade(&task), task.tid(), fd);
                task.files().open_fds().into_iter().map(|fd| child(fd, entry, subject(fd))).collect()
            }
            What::Cpus(_) => (0..sched::cpus_online())
                .map(|cpu| {
                    (cpu as i64, Child { name: format!("cpu{cpu}"), entry: &CPU_DIR, subject: Subject::Cpu(cpu) })
                })
                .collect(),
            _ => Vec::new(),
        };
        Ok(children.into_iter().filter(|(number, _)| *number > after).collect())
    }

    /// The entry of that number, if there is one.
    fn number(&self, name: &[u8]) -> Result<Child> {
        let text = core::str::from_utf8(name).map_err(|_| ENOENT)?;
        if let What::Cpus(_) = self.entry.what {
            let found = self.numbered(-1)?.into_iter().find(|(_, child)| child.name == text);
            return found.map(|(_, child)| child).ok_or(ENOENT);
        }
        let number: i32 = text.parse().map_err(|_| ENOENT)?;
        if number < 0 || number.to_string() != text {
            return Err(ENOENT);
        }
        let child = |entry, subject| Ok(Child { name: text.to_string(), entry, subject });
        match self.entry.what {
            What::Processes(_) => {
                if let Some(process) = table::process(number) {
                    return child(&PROCESS_DIR, Subject::Process(Arc::downgrade(&process), number));
                }
                // A thread's number leads to its own directory, though no listing shows it.
                let task = table::task(number).ok_or(ENOENT)?;
                child(&PROCESS_DIR, Subject::Task(Arc::downgrade(&task), number))
            }
            What::Tasks => {
                let process = self.subject.process()?;
                let task = process.threads().into_iter().find(|t| t.tid() == number).ok_or(ENOENT)?;
                child(&TASK_DIR, Subject::Task(Arc::downgrade(&task), number))
            }
            What::Fds | What::FdInfos => {
                let task = self.subject.task()?;
                task.files().get(number).map_err(|_| ENOENT)?;
                let entry = if matches!(self.entry.what, What::Fds) { &FD } else { &FD_INFO };
                child(entry, Subject::Fd(Arc::downgrade(&task), task.tid(), number))
            }
            _ => Err(ENOENT),
        }
    }
}

/// A number that stays the same for the same entry of the same subject.
/// The process whose directory this is (/proc/PID), for calls that take it in place of a pidfd.
pub fn process_of(inode: &dyn Inode) -> Option<Arc<Process>> {
    let node = inode.downcast::<Node>()?;
    match &node.subject {
        Subject::Process(process, _) if core::ptr::eq(node.entry, &PROCESS_DIR) => process.upgrade(),
        _ => None,
    }
}

fn ino(entry: &'static Entry, subject: &Subject) -> u64 {
    let (kind, number) = subject.key();
    let place = core::ptr::from_ref(entry) as u64;
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for word in [place, kind, number] {
        hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
    hash >> 8 | 1
}

fn file_type(entry: &Entry) -> FileType {
    match entry.what {
        What::Dir(_) | What::Processes(_) | What::Cpus(_) | What::Tasks | What::Fds | What::FdInfos => {
            FileType::Directory
        }
        What::Text(_) | What::Setting(..) | What::Memory => FileType::Regular,
        What::Link(_) | What::Magic(..) => FileType::Symlink,
    }
}

impl Inode for Node {
    fn file_type(&self) -> FileType {
        file_type(self.entry)
    }

    fn stat(&self) -> Result<Stat> {
        let (uid, gid) = match self.subject.task() {
            Ok(task) => {
                let creds = task.creds();
                (creds.euid, creds.egid)
            }
            Err(_) => (0, 0),
        };
        let mut mode = self.entry.mode;
        if let Subject::Fd(task, _, fd) = &self.subject
            && let What::Magic(..) = self.entry.what
        {
            // A descriptor's link shows how it is open.
            let file = task.upgrade().and_then(|t| t.files().get(*fd).ok()).ok_or(ENOENT)?;
            mode = 0o100 | if file.readable() { 0o400 } else { 0 } | if file.writable() { 0o200 } else { 0 };
        }
        let now = Timespec::now();
        let links = match self.entry.what {
            What::Processes(_) => 2 + table::processes().len() as u32,
            _ if self.is_directory() => {
                2 + self.fixed().iter().filter(|e| matches!(e.what, What::Dir(_))).count() as u32
            }
            _ => 1,
        };
        Ok(Stat {
            dev: self.fs.device,
            ino: self.ino(),
            mode: self.file_type() as u32 | mode,
            nlink: links,
            uid,
            gid,
            size: if matches!(self.entry.what, What::Magic(..)) { 64 } else { 0 },
            blksize: 1024,
            atime: now,
            mtime: now,
            ctime: now,
            ..Stat::default()
        })
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &*self.fs
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if !self.is_directory() {
            return Err(ENOTDIR);
        }
        let node = |entry, subject| Arc::new(Node { fs: self.fs.clone(), entry, subject });
        if let Some(entry) = self.fixed().iter().find(|e| e.name.as_bytes() == name) {
            return Ok(node(entry, self.subject.clone()));
        }
        let child = self.number(name)?;
        Ok(node(child.entry, child.subject))
    }

    fn revalidate(&self, name: &[u8], child: Option<&Arc<dyn Inode>>) -> bool {
        let Some(child) = child else {
            // Numbers come and go; other names are fixed.
            return !name.first().is_some_and(u8::is_ascii_digit);
        };
        let Some(child) = child.downcast::<Node>() else { return false };
        match &child.subject {
            Subject::Process(process, pid) if matches!(self.entry.what, What::Processes(_)) => {
                table::process(*pid).is_some_and(|p| core::ptr::eq(Arc::as_ptr(&p), process.as_ptr()))
            }
            Subject::Fd(..) | Subject::Task(..) => {
                !matches!(self.entry.what, What::Processes(_) | What::Tasks | What::Fds | What::FdInfos)
            }
            _ => true,
        }
    }

    fn readlink(&self) -> Result<Vec<u8>> {
        match self.entry.what {
            What::Link(make) => make(&self.subject),
            What::Magic(make, _) => {
                self.subject.check_access()?;
                make(&self.subject)
            }
            _ => Err(EINVAL),
        }
    }

    fn magic(&self) -> Option<Result<Path>> {
        match self.entry.what {
            What::Magic(_, path) => Some(self.subject.check_access().and_then(|()| path(&self.subject))),
            _ => None,
        }
    }

    fn set_attr(&self, attr: &SetAttr) -> Result<()> {
        // O_TRUNC of a file that is written as a whole, and touch.
        if attr.mode.is_some() || attr.uid.is_some() || attr.gid.is_some() { Err(EPERM) } else { Ok(()) }
    }

    fn open(self: Arc<Self>, _flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        match self.entry.what {
            What::Text(make) => {
                if self.entry.mode & 0o044 == 0 {
                    self.subject.check_access()?;
                }
                Ok(Arc::new(file::TextFile::new(self.subject.clone(), make, None)))
            }
            What::Setting(make, set) => Ok(Arc::new(file::TextFile::new(self.subject.clone(), make, Some(set)))),
            What::Memory => {
                self.subject.check_access()?;
                let mm = self.subject.task()?.mm().ok_or(ESRCH)?;
                Ok(Arc::new(file::MemoryFile::new(mm)))
            }
            _ if self.is_directory() => Ok(Arc::new(Listing(self))),
            _ => Err(EINVAL),
        }
    }
}

impl Node {
    fn is_directory(&self) -> bool {
        file_type(self.entry) == FileType::Directory
    }
}

/// An open directory.
struct Listing(Arc<Node>);

/// Cookies of numbered entries start here, behind those of the tables.
const NUMBERED: u64 = 0x1000;

impl FileOps for Listing {
    fn seekable(&self) -> bool {
        true
    }

    fn readdir(&self, _file: &File, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let node = &self.0;
        let mut at = cookie.max(2);
        for (i, entry) in node.fixed().iter().enumerate().skip(at as usize - 2) {
            if at >= NUMBERED {
                break;
            }
            let next = i as u64 + 3;
            let found = DirEntry {
                name: entry.name.as_bytes(),
                ino: ino(entry, &node.subject),
                file_type: file_type(entry),
                next,
            };
            if !emit(found) {
                return Ok(());
            }
            at = next;
        }
        let after = if at >= NUMBERED { (at - NUMBERED) as i64 - 1 } else { -1 };
        for (number, child) in node.numbered(after)? {
            let found = DirEntry {
                name: child.name.as_bytes(),
                ino: ino(child.entry, &child.subject),
                file_type: file_type(child.entry),
                next: NUMBERED + number as u64 + 1,
            };
            if !emit(found) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> Result<()> {
        Ok(())
    }
}

/// A number and a newline.
fn line(value: impl core::fmt::Display) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}
