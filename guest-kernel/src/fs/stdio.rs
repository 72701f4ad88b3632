//! The descriptors a container was started with: files, pipes, sockets and terminals of the host.
//!
//! A regular file's position is the host's, shared with whoever else has the description. A terminal's line discipline is the
//! host's; which process group of the container is in the foreground is known here, and a background process that reads from
//! the terminal is stopped by SIGTTIN.

use alloc::{
    format,
    sync::{Arc, Weak},
};

use sentry_abi::config::{ProcessConfig, Stdio};

use super::{
    Dentry, FdTable, File, FileOps, FileSystem, FileType, Inode, Mount, MountFlags, OWN_POSITION, OpenFlags, Path,
    Stat, StatFs, Timespec, new_device, poll,
    tty::{JobControl, job},
};
use crate::{
    drivers::console::Stream,
    errno::{EAGAIN, EINVAL, ENOTTY, ENXIO, Result},
    mm::{
        io::{IoDst, IoSrc},
        user::UserAddr,
    },
    signal::set::{SIGTTIN, SIGTTOU},
    sync::{Once, PollTable, SpinLock},
    task::{Current, Process, Terminal},
};

struct HostFs {
    device: u64,
}

impl FileSystem for HostFs {
    fn name(&self) -> &'static str {
        "host"
    }

    fn device(&self) -> u64 {
        self.device
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { block_size: 4096, name_max: 255, ..StatFs::default() })
    }
}

/// A host terminal, whatever number of descriptors lead to it.
struct HostTerminal {
    rdev: u64,
    job: JobControl,
    /// While it controls a session: a descriptor that leads there, for /dev/tty; the one that can do most.
    inode: SpinLock<Option<Arc<HostInode>>>,
}

impl HostTerminal {
    fn controls_by(&self, inode: &Arc<HostInode>, flags: OpenFlags) {
        let mut best = self.inode.lock();
        if best.is_none() || (flags.readable() && flags.writable()) {
            let old = best.replace(inode.clone());
            drop(best);
            drop(old);
        }
    }

    /// It controls no session any more: the host's side may be closed.
    fn release(&self) {
        let inode = self.inode.lock().take();
        drop(inode);
    }
}

impl Terminal for HostTerminal {
    fn device(&self) -> u64 {
        self.rdev
    }

    fn foreground(&self) -> i32 {
        self.job.foreground()
    }

    fn open(&self, _flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        let inode = self.inode.lock().clone().ok_or(ENXIO)?;
        Ok(Arc::new(HostFile(inode)))
    }

    fn disassociate(&self) {
        self.job.disassociate();
        self.release();
    }
}

/// What a descriptor leads to.
struct HostInode {
    fs: &'static Arc<HostFs>,
    stream: Stream,
    file_type: FileType,
    rdev: u64,
    terminal: Option<Arc<HostTerminal>>,
}

impl Drop for HostInode {
    fn drop(&mut self) {
        self.stream.close();
    }
}

impl Inode for HostInode {
    fn file_type(&self) -> FileType {
        self.file_type
    }

    fn stat(&self) -> Result<Stat> {
        let host = self.stream.stat()?;
        let mtime = Timespec { sec: host.mtime, nsec: host.mtimensec };
        Ok(Stat {
            dev: self.fs.device,
            ino: host.ino,
            mode: host.mode,
            nlink: host.nlink,
            uid: host.uid,
            gid: host.gid,
            rdev: self.rdev,
            size: host.size,
            blocks: host.blocks,
            blksize: host.blksize,
            atime: mtime,
            mtime,
            ctime: mtime,
        })
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &**self.fs
    }

    /// Through /dev/stdin and the like: the host's description is shared.
    fn open_special(self: Arc<Self>, _flags: OpenFlags) -> Option<Result<Arc<dyn FileOps>>> {
        Some(Ok(Arc::new(HostFile(self))))
    }

    fn open(self: Arc<Self>, _flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(HostFile(self)))
    }
}

/// An open file on a stream. All share the host's description, so a second one differs in its flags only.
struct HostFile(Arc<HostInode>);

const READABLE: u32 = poll::IN | poll::RDNORM;
const WRITABLE: u32 = poll::OUT | poll::WRNORM;

impl HostFile {
    fn is_plain(&self) -> bool {
        matches!(self.0.file_type, FileType::Regular | FileType::BlockDevice)
    }

    /// Stops a background process group that wants to do what only the foreground may.
    fn check_foreground(&self, signal: u32) -> Result<()> {
        self.0.terminal.as_ref().map_or(Ok(()), |terminal| terminal.job.check(signal))
    }
}

impl FileOps for HostFile {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, offset: u64) -> Result<usize> {
        let offset = (offset != OWN_POSITION && self.is_plain()).then_some(offset);
        loop {
            self.check_foreground(SIGTTIN)?;
            match self.0.stream.read(dst, offset) {
                Err(EAGAIN) if !file.nonblocking() => self.0.stream.wait(poll::IN).map(drop)?,
                done => return done,
            }
        }
    }

    fn write(&self, file: &File, src: &mut IoSrc<'_>, offset: u64) -> Result<usize> {
        let mut at = (offset != OWN_POSITION && self.is_plain()).then_some(offset);
        let mut done = 0;
        while src.remaining() > 0 {
            let step = match self.0.stream.write(src, at) {
                Err(EAGAIN) if !file.nonblocking() => self.0.stream.wait(poll::OUT).map(|_| 0),
                step => step,
            };
            match step {
                Ok(n) => {
                    done += n;
                    at = at.map(|at| at + n as u64);
                    // A regular file that takes less has no room for more.
                    if n == 0 && self.is_plain() {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn seekable(&self) -> bool {
        self.is_plain()
    }

    fn keeps_position(&self) -> bool {
        self.is_plain()
    }

    fn seek(&self, offset: i64, whence: u32) -> Result<u64> {
        self.0.stream.seek(offset, whence)
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if self.is_plain() {
            return READABLE | WRITABLE;
        }
        if let Some(table) = table {
            table.add(self.0.stream.ready(), interest | poll::ALWAYS);
        }
        // A host that cannot say is taken for ready: the call that follows tells the error.
        self.0.stream.poll(interest).unwrap_or(interest)
    }

    fn pollable(&self) -> bool {
        !self.is_plain()
    }

    fn ioctl(&self, cur: &mut Current, file: &Arc<File>, command: u32, argument: u64) -> Result<u64> {
        terminal_ioctl(self, cur, file, command, argument)
    }

    fn fsync(&self, _file: &File, _data_only: bool) -> Result<()> {
        if self.is_plain() { self.0.stream.sync() } else { Err(EINVAL) }
    }
}

/// ioctl(2) numbers of <asm-generic/ioctls.h>.
mod tty {
    pub const TCGETS: u32 = 0x5401;
    pub const TCSETS: u32 = 0x5402;
    pub const TCSETSW: u32 = 0x5403;
    pub const TCSETSF: u32 = 0x5404;
    pub const TCSBRK: u32 = 0x5409;
    pub const TCXONC: u32 = 0x540a;
    pub const TCFLSH: u32 = 0x540b;
    pub const TIOCGWINSZ: u32 = 0x5413;
    pub const TIOCSWINSZ: u32 = 0x5414;
    pub const FIONREAD: u32 = 0x541b;
}

fn terminal_ioctl(file: &HostFile, cur: &mut Current, open: &File, command: u32, argument: u64) -> Result<u64> {
    let stream = &file.0.stream;
    let addr = UserAddr(argument);
    // Bytes of the argument in and out.
    let (given, returned) = match command {
        tty::TCGETS => (0, 36),
        tty::TCSETS | tty::TCSETSW | tty::TCSETSF => (36, 0),
        tty::TIOCGWINSZ => (0, 8),
        tty::TIOCSWINSZ => (8, 0),
        tty::FIONREAD => (0, 4),
        tty::TCSBRK | tty::TCXONC | tty::TCFLSH => (0, 0),
        _ if file.0.terminal.is_some() => {
            let terminal = file.0.terminal.clone().ok_or(ENOTTY)?;
            let shared: Arc<dyn Terminal> = terminal.clone();
            let result = terminal.job.ioctl(cur, &shared, command, argument, false).unwrap_or(Err(ENOTTY));
            match command {
                job::TIOCSCTTY if result.is_ok() => terminal.controls_by(&file.0, open.flags()),
                job::TIOCNOTTY if !terminal.job.is_controlling() => terminal.release(),
                _ => {}
            }
            return result;
        }
        _ => return Err(ENOTTY),
    };
    if matches!(command, tty::TCSETS | tty::TCSETSW | tty::TCSETSF | tty::TCSBRK | tty::TCXONC | tty::TCFLSH) {
        file.check_foreground(SIGTTOU)?;
    }
    let mut bytes = [0u8; 36];
    cur.mm.read(addr, &mut bytes[..given])?;
    let result = stream.ioctl(command, argument as i64, &mut bytes[..given.max(returned)])?;
    cur.mm.write(addr, &bytes[..returned])?;
    Ok(result)
}

struct Host {
    fs: Arc<HostFs>,
    mount: Arc<Mount>,
}

/// Terminals that a descriptor leads to or that control a session.
static TERMINALS: SpinLock<alloc::vec::Vec<Weak<HostTerminal>>> = SpinLock::new(alloc::vec::Vec::new());

fn terminal(rdev: u64) -> Arc<HostTerminal> {
    let mut terminals = TERMINALS.lock();
    terminals.retain(|t| t.strong_count() > 0);
    if let Some(known) = terminals.iter().filter_map(Weak::upgrade).find(|t| t.rdev == rdev) {
        return known;
    }
    let new = Arc::new(HostTerminal { rdev, job: JobControl::default(), inode: SpinLock::new(None) });
    terminals.push(Arc::downgrade(&new));
    new
}

fn host(first: impl FnOnce(&Arc<HostFs>) -> Arc<dyn Inode>) -> &'static Host {
    static HOST: Once<Host> = Once::new();
    HOST.call_once(|| {
        let fs = Arc::new(HostFs { device: new_device() });
        let root = first(&fs);
        Host { mount: Mount::of(fs.clone(), root, "none", MountFlags::empty()), fs }
    })
}

/// The root that the mount of these files has, which nothing leads to.
struct Nowhere(Arc<HostFs>);

impl Inode for Nowhere {
    fn file_type(&self) -> FileType {
        FileType::Directory
    }

    fn stat(&self) -> Result<Stat> {
        Ok(Stat { dev: self.0.device, ino: 1, mode: FileType::Directory as u32, nlink: 2, ..Stat::default() })
    }

    fn filesystem(&self) -> &dyn FileSystem {
        &*self.0
    }
}

fn open(config: &Stdio) -> Result<(Arc<File>, Arc<HostInode>)> {
    let host = host(|fs| Arc::new(Nowhere(fs.clone())));
    let inode = Arc::new(HostInode {
        fs: &host.fs,
        stream: Stream::open(config.index)?,
        file_type: FileType::from_mode(config.mode).ok_or(EINVAL)?,
        rdev: config.rdev,
        terminal: config.tty.then(|| terminal(config.rdev)),
    });
    let name = match inode.file_type {
        FileType::Fifo => format!("pipe:[{}]", config.index),
        FileType::Socket => format!("socket:[{}]", config.index),
        FileType::CharDevice if config.tty => format!("/dev/pts/{}", super::split_device(config.rdev).1),
        _ => format!("/host/{}", config.index),
    };
    let path = Path { mount: host.mount.clone(), dentry: Dentry::root(name.as_bytes(), inode.clone()) };
    let flags = OpenFlags::from_bits_truncate(config.flags);
    // /dev/null and its like are the same here; nobody has to ask the host.
    if inode.file_type == FileType::CharDevice
        && !config.tty
        && let Ok(ops) = super::dev::open(config.rdev, flags)
    {
        return Ok((File::new(ops, path, flags), inode));
    }
    Ok((File::new(Arc::new(HostFile(inode.clone())), path, flags), inode))
}

/// Gives a process that the host starts its descriptors, and its controlling terminal if it has one. All streams are taken:
/// after an error they are closed.
pub fn install(config: &ProcessConfig, files: &FdTable, process: &Process) -> Result<()> {
    let mut result = Ok(());
    for stdio in &config.stdio {
        if result.is_ok() {
            result = install_one(config, stdio, files, process);
        } else if let Ok(stream) = Stream::open(stdio.index) {
            stream.close();
        }
    }
    result
}

fn install_one(config: &ProcessConfig, stdio: &Stdio, files: &FdTable, process: &Process) -> Result<()> {
    let (file, inode) = open(stdio)?;
    let fd = i32::try_from(stdio.fd).map_err(|_| EINVAL)?;
    let flags = file.flags();
    let old = files.replace(fd, file, false, u64::MAX)?;
    drop(old);
    if let Some(terminal) = inode.terminal.as_ref().filter(|_| config.terminal) {
        let session = process.session();
        if session.terminal().is_none() {
            let shared: Arc<dyn Terminal> = terminal.clone();
            terminal.job.take(&shared, process);
        }
        if session.terminal().is_some_and(|t| t.device() == terminal.rdev) {
            terminal.controls_by(&inode, flags);
        }
    }
    Ok(())
}

/// Opens /dev/console: the host's terminal, if the container was given one.
pub fn open_console() -> Result<Arc<dyn FileOps>> {
    let terminal = TERMINALS.lock().iter().find_map(Weak::upgrade);
    terminal.ok_or(ENXIO)?.open(OpenFlags::empty())
}
