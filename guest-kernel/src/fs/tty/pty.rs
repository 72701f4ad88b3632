//! Pseudo-terminal pairs (pty(7)): a master that types and watches, and a slave that programs take for a terminal.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use super::{
    PtsFs,
    job::JobControl,
    line::{Line, Typed},
    termios::{ICANON, TOSTOP, Termios, VMIN, VTIME, WinSize},
};
use crate::{
    errno::{EAGAIN, EINVAL, EIO, ENOTTY, EPERM, Error, Result},
    fs::{File, FileOps, OpenFlags, Path, make_device, namei, poll},
    mm::{
        io::{IoDst, IoSrc},
        user::{UserAddr, UserPtr},
    },
    signal::set::{SIGTTIN, SIGTTOU, SIGWINCH},
    sync::{Mutex, PollTable, SpinLock, WaitQueue},
    task::{Current, Pid, Terminal},
    time,
};

/// Bytes moved at a time.
const CHUNK: usize = 1024;

pub struct Pty {
    me: Weak<Pty>,
    pub number: u32,
    fs: Weak<PtsFs>,
    line: Mutex<Line>,
    size: SpinLock<WinSize>,
    pub job: JobControl,
    /// Those who wait for input or room on the slave's side, and for output or room on the master's.
    slave: Arc<WaitQueue>,
    master: Arc<WaitQueue>,
    slaves: AtomicUsize,
    /// A slave was open and none is now: the master's reads end.
    slave_closed: AtomicBool,
    master_closed: AtomicBool,
    /// TIOCSPTLCK: the slave cannot be opened.
    locked: AtomicBool,
}

impl Pty {
    pub fn new(fs: &Arc<PtsFs>, number: u32) -> Arc<Self> {
        Arc::new_cyclic(|me| Pty {
            me: me.clone(),
            number,
            fs: Arc::downgrade(fs),
            line: Mutex::new(Line::default()),
            size: SpinLock::new(WinSize::default()),
            job: JobControl::default(),
            slave: Arc::new(WaitQueue::new()),
            master: Arc::new(WaitQueue::new()),
            slaves: AtomicUsize::new(0),
            slave_closed: AtomicBool::new(false),
            master_closed: AtomicBool::new(false),
            locked: AtomicBool::new(true),
        })
    }

    pub fn rdev(&self) -> u64 {
        make_device(136, self.number)
    }

    fn as_terminal(&self) -> Option<Arc<dyn Terminal>> {
        self.me.upgrade().map(|pty| pty as Arc<dyn Terminal>)
    }

    pub fn open_master(self: &Arc<Self>) -> Arc<dyn FileOps> {
        Arc::new(Master { pty: self.clone() })
    }

    pub fn open_slave(self: &Arc<Self>, flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        if self.locked.load(SeqCst) || self.master_closed.load(SeqCst) {
            return Err(EIO);
        }
        self.slaves.fetch_add(1, SeqCst);
        self.slave_closed.store(false, SeqCst);
        let terminal: Arc<dyn Terminal> = self.clone();
        self.job.opened(&terminal, flags);
        Ok(Arc::new(Slave { pty: self.clone() }))
    }

    /// Attributes, sizes and queues: what both sides answer alike. None for what they do not.
    fn common_ioctl(&self, cur: &mut Current, command: u32, argument: u64) -> Option<Result<u64>> {
        const TCGETS: u32 = 0x5401;
        const TCSETS: u32 = 0x5402;
        const TCSETSF: u32 = 0x5404;
        const TCSBRK: u32 = 0x5409;
        const TCXONC: u32 = 0x540a;
        const TCFLSH: u32 = 0x540b;
        const TIOCEXCL: u32 = 0x540c;
        const TIOCNXCL: u32 = 0x540d;
        const TIOCGWINSZ: u32 = 0x5413;
        const TIOCSWINSZ: u32 = 0x5414;
        const TIOCGETD: u32 = 0x5424;
        const TCSBRKP: u32 = 0x5425;
        let addr = UserAddr(argument);
        Some(match command {
            TCGETS => {
                let termios = self.line.lock().termios;
                cur.mm.write_value(UserPtr::new(addr), &termios).map(|()| 0)
            }
            TCSETS..=TCSETSF => cur.mm.read_value::<Termios>(UserPtr::new(addr)).map(|termios| {
                let mut line = self.line.lock();
                if command == TCSETSF {
                    line.flush_input();
                }
                line.set(termios);
                drop(line);
                self.slave.wake_all();
                self.master.wake_all();
                0
            }),
            TIOCGWINSZ => {
                let size = *self.size.lock();
                cur.mm.write_value(UserPtr::new(addr), &size).map(|()| 0)
            }
            TIOCSWINSZ => cur.mm.read_value::<WinSize>(UserPtr::new(addr)).map(|size| {
                let old = core::mem::replace(&mut *self.size.lock(), size);
                if old != size {
                    self.job.signal(SIGWINCH);
                }
                0
            }),
            TCFLSH => {
                let mut line = self.line.lock();
                match argument {
                    0 => line.flush_input(),
                    1 => line.flush_output(),
                    2 => {
                        line.flush_input();
                        line.flush_output();
                    }
                    _ => return Some(Err(EINVAL)),
                }
                drop(line);
                self.master.wake_all();
                self.slave.wake_all();
                Ok(0)
            }
            TCXONC => {
                let stop = match argument {
                    0 => true,
                    1 => false,
                    2 | 3 => return Some(Ok(0)),
                    _ => return Some(Err(EINVAL)),
                };
                self.line.lock().stopped = stop;
                self.master.wake_all();
                Ok(0)
            }
            TIOCGETD => cur.mm.write_value(UserPtr::new(addr), &0i32).map(|()| 0),
            // Nothing to send a break over, nobody to exclude.
            TCSBRK | TCSBRKP | TIOCEXCL | TIOCNXCL => Ok(0),
            _ => return None,
        })
    }
}

impl Terminal for Pty {
    fn device(&self) -> u64 {
        self.rdev()
    }

    fn foreground(&self) -> Pid {
        self.job.foreground()
    }

    fn disassociate(&self) {
        self.job.disassociate();
    }

    fn open(&self, flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
        self.me.upgrade().ok_or(EIO)?.open_slave(flags | OpenFlags::NOCTTY)
    }
}

/// Copies out what `peek` shows and takes it, as far as `dst` goes.
fn deliver(dst: &mut IoDst<'_>, bytes: &[u8]) -> Result<usize> {
    if bytes.is_empty() { Ok(0) } else { dst.put(bytes) }
}

struct Master {
    pty: Arc<Pty>,
}

impl Drop for Master {
    fn drop(&mut self) {
        let pty = &self.pty;
        pty.master_closed.store(true, SeqCst);
        pty.slave.wake_all();
        pty.job.hang_up();
        if let Some(fs) = pty.fs.upgrade() {
            fs.remove(pty.number);
        }
    }
}

impl Master {
    fn try_read(&self, dst: &mut IoDst<'_>) -> Option<Result<usize>> {
        let mut line = self.pty.line.lock();
        if line.shown() == 0 {
            return self.pty.slave_closed.load(SeqCst).then_some(Err(EIO));
        }
        let bytes = line.peek_output(dst.remaining().min(CHUNK));
        let result = deliver(dst, &bytes);
        if let Ok(n) = result {
            line.consume_output(n);
        }
        drop(line);
        self.pty.slave.wake(poll::OUT | poll::WRNORM);
        Some(result)
    }

    /// Types one piece; None when there is no room.
    fn try_write(&self, src: &mut IoSrc<'_>) -> Option<Result<usize>> {
        let mut typed = Typed::default();
        let mut line = self.pty.line.lock();
        if !line.takes_input() {
            return None;
        }
        let mut bytes = [0; CHUNK];
        let len = src.remaining().min(CHUNK);
        let n = match src.get(&mut bytes[..len]) {
            Ok(n) => n,
            Err(error) => return Some(Err(error)),
        };
        let mut signals = smallvec::SmallVec::<[u32; 2]>::new();
        for &byte in &bytes[..n] {
            line.type_byte(byte, &mut typed);
            signals.extend(typed.signal.take());
        }
        drop(line);
        for signal in signals {
            self.pty.job.signal(signal);
        }
        if typed.readable {
            self.pty.slave.wake(poll::IN | poll::RDNORM);
        }
        if typed.echoed {
            self.pty.master.wake(poll::IN | poll::RDNORM);
        }
        Some(Ok(n))
    }
}

impl FileOps for Master {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        match self.try_read(dst) {
            Some(result) => result,
            None if file.nonblocking() => Err(EAGAIN),
            None => self.pty.master.wait_until(|| self.try_read(dst))?,
        }
    }

    fn write(&self, file: &File, src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        let mut done = 0;
        while src.remaining() > 0 {
            let step = match self.try_write(src) {
                Some(step) => step,
                None if file.nonblocking() => Err(EAGAIN),
                None => match self.pty.master.wait_until(|| self.try_write(src)) {
                    Ok(step) => step,
                    Err(error) => Err(error),
                },
            };
            match step {
                Ok(n) => done += n,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            table.add(&self.pty.master, interest | poll::ALWAYS);
        }
        let line = self.pty.line.lock();
        let mut ready = 0;
        if line.shown() > 0 {
            ready |= poll::IN | poll::RDNORM;
        }
        if line.takes_input() {
            ready |= poll::OUT | poll::WRNORM;
        }
        if self.pty.slave_closed.load(SeqCst) {
            ready |= poll::HUP;
        }
        ready
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, cur: &mut Current, file: &Arc<File>, command: u32, argument: u64) -> Result<u64> {
        const FIONREAD: u32 = 0x541b;
        const TIOCGPTN: u32 = 0x8004_5430;
        const TIOCSPTLCK: u32 = 0x4004_5431;
        const TIOCGPTLCK: u32 = 0x8004_5439;
        const TIOCPKT: u32 = 0x5420;
        const TIOCSIG: u32 = 0x4004_5436;
        const TIOCGPTPEER: u32 = 0x5441;
        let pty = &self.pty;
        let place = UserPtr::<i32>::new(UserAddr(argument));
        match command {
            TIOCGPTN => cur.mm.write_value(place, &(pty.number as i32)).map(|()| 0),
            TIOCSPTLCK => {
                pty.locked.store(cur.mm.read_value(place)? != 0, SeqCst);
                Ok(0)
            }
            TIOCGPTLCK => cur.mm.write_value(place, &i32::from(pty.locked.load(SeqCst))).map(|()| 0),
            FIONREAD => {
                let shown = pty.line.lock().shown() as i32;
                cur.mm.write_value(place, &shown).map(|()| 0)
            }
            // Packet mode is not offered; switching it off is.
            TIOCPKT => {
                if cur.mm.read_value(place)? == 0 {
                    Ok(0)
                } else {
                    Err(EINVAL)
                }
            }
            TIOCSIG => {
                if !(1..65).contains(&argument) {
                    return Err(EINVAL);
                }
                pty.job.signal(argument as u32);
                Ok(0)
            }
            TIOCGPTPEER => {
                let flags = OpenFlags::from_bits_truncate(argument as u32);
                let mount = file.path().mount.clone();
                let dentry = mount.root.lookup(alloc::format!("{}", pty.number).as_bytes())?;
                let slave = namei::open_checked(&Path { mount, dentry }, flags)?;
                cur.install(slave, flags.contains(OpenFlags::CLOEXEC)).map(|fd| fd as u64)
            }
            _ => {
                let terminal = pty.as_terminal().ok_or(EIO)?;
                if let Some(result) = pty.job.ioctl(cur, &terminal, command, argument, true) {
                    return result;
                }
                pty.common_ioctl(cur, command, argument).unwrap_or(Err(ENOTTY))
            }
        }
    }
}

struct Slave {
    pty: Arc<Pty>,
}

impl Drop for Slave {
    fn drop(&mut self) {
        if self.pty.slaves.fetch_sub(1, SeqCst) == 1 {
            self.pty.slave_closed.store(true, SeqCst);
            self.pty.master.wake_all();
        }
    }
}

impl Slave {
    /// One attempt to read; None when it has to wait for `least` bytes.
    fn try_read(&self, dst: &mut IoDst<'_>, least: usize) -> Option<Result<usize>> {
        let mut line = self.pty.line.lock();
        let canonical = line.termios.local(ICANON);
        match line.available() {
            None => return self.pty.master_closed.load(SeqCst).then_some(Ok(0)),
            Some(n) if !canonical && n < least.min(dst.remaining()) && !self.pty.master_closed.load(SeqCst) => {
                return None;
            }
            Some(_) => {}
        }
        let bytes = line.peek(dst.remaining().min(4096));
        let result = deliver(dst, &bytes);
        if let Ok(n) = result {
            line.consume(n);
        }
        drop(line);
        self.pty.master.wake(poll::OUT | poll::WRNORM);
        Some(result)
    }

    fn try_write(&self, src: &mut IoSrc<'_>) -> Option<Result<usize>> {
        if self.pty.master_closed.load(SeqCst) {
            return Some(Err(EIO));
        }
        let mut line = self.pty.line.lock();
        // Each byte may need eight.
        let len = src.remaining().min(CHUNK).min(line.room() / 8);
        if len == 0 {
            return None;
        }
        let mut bytes = [0; CHUNK];
        let result = src.get(&mut bytes[..len]);
        if let Ok(n) = result {
            line.print(&bytes[..n]);
        }
        drop(line);
        self.pty.master.wake(poll::IN | poll::RDNORM);
        Some(result)
    }
}

impl FileOps for Slave {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        self.pty.job.check(SIGTTIN)?;
        if dst.remaining() == 0 {
            return Ok(0);
        }
        let termios = self.pty.line.lock().termios;
        let (least, tenths) = match termios.local(ICANON) {
            true => (1, 0),
            false => (termios.cc[VMIN] as usize, termios.cc[VTIME] as u64),
        };
        if let Some(result) = self.try_read(dst, least) {
            return result;
        }
        if least == 0 && tenths == 0 {
            return Ok(0);
        }
        if file.nonblocking() {
            return Err(EAGAIN);
        }
        if tenths == 0 {
            return self.pty.slave.wait_until(|| self.try_read(dst, least))?;
        }
        // VTIME: from the start without VMIN, else between bytes.
        let timeout = tenths * 100_000_000;
        if least > 0 {
            self.pty.slave.wait_until(|| {
                let some = self.pty.line.lock().available().is_some();
                (some || self.pty.master_closed.load(Relaxed)).then_some(())
            })?;
        }
        let deadline = time::monotonic() + timeout;
        match self.pty.slave.wait_deadline(deadline, || self.try_read(dst, least))? {
            Some(result) => result,
            None => self.try_read(dst, 0).unwrap_or(Ok(0)),
        }
    }

    fn write(&self, file: &File, src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        if self.pty.line.lock().termios.local(TOSTOP) {
            self.pty.job.check(SIGTTOU)?;
        }
        let mut done = 0;
        while src.remaining() > 0 {
            let step = match self.try_write(src) {
                Some(step) => step,
                None if file.nonblocking() => Err(EAGAIN),
                None => match self.pty.slave.wait_until(|| self.try_write(src)) {
                    Ok(step) => step,
                    Err(error) => Err(error),
                },
            };
            match step {
                Ok(n) => done += n,
                Err(error) if done == 0 => return Err(error),
                Err(Error::Errno(_) | Error::Restart(_)) => break,
            }
        }
        Ok(done)
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            table.add(&self.pty.slave, interest | poll::ALWAYS);
        }
        let line = self.pty.line.lock();
        let mut ready = 0;
        if line.available().is_some() {
            ready |= poll::IN | poll::RDNORM;
        }
        if line.room() >= 8 {
            ready |= poll::OUT | poll::WRNORM;
        }
        if self.pty.master_closed.load(SeqCst) {
            ready |= poll::HUP | poll::ERR | poll::IN | poll::RDNORM;
        }
        ready
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, cur: &mut Current, _file: &Arc<File>, command: u32, argument: u64) -> Result<u64> {
        const FIONREAD: u32 = 0x541b;
        const TIOCOUTQ: u32 = 0x5411;
        const TIOCSTI: u32 = 0x5412;
        let pty = &self.pty;
        if pty.master_closed.load(SeqCst) {
            return Err(EIO);
        }
        let place = UserPtr::<i32>::new(UserAddr(argument));
        // What changes the terminal is for the foreground.
        if matches!(command, 0x5402..=0x5404 | 0x5409..=0x540b | 0x5425) {
            pty.job.check(SIGTTOU)?;
        }
        match command {
            FIONREAD => {
                let queued = pty.line.lock().queued() as i32;
                cur.mm.write_value(place, &queued).map(|()| 0)
            }
            TIOCOUTQ => {
                let shown = pty.line.lock().shown() as i32;
                cur.mm.write_value(place, &shown).map(|()| 0)
            }
            // Typing for somebody else is how sandboxes were left.
            TIOCSTI => Err(EPERM),
            _ => {
                let terminal = pty.as_terminal().ok_or(EIO)?;
                if let Some(result) = pty.job.ioctl(cur, &terminal, command, argument, false) {
                    return result;
                }
                pty.common_ioctl(cur, command, argument).unwrap_or(Err(ENOTTY))
            }
        }
    }
}
