//! Job control: which session a terminal controls, and which of its process groups may use it (credentials(7)).

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicI32, Ordering::SeqCst};

use crate::{
    errno::{EINVAL, EIO, ENOTTY, ENXIO, EPERM, ESRCH, Error, Restart, Result},
    fs::{FileOps, OpenFlags},
    mm::user::{UserAddr, UserPtr},
    sched,
    signal::{
        SigInfo,
        send::{Origin, to_group},
        set::{SIGCONT, SIGHUP, SIGTTIN, SIGTTOU},
    },
    sync::SpinLock,
    task::{Current, Pid, Process, Session, Terminal, cap, table},
};

/// The session and the foreground process group of a terminal.
pub struct JobControl {
    session: SpinLock<Weak<Session>>,
    foreground: AtomicI32,
}

pub const TIOCSCTTY: u32 = 0x540e;
pub const TIOCGPGRP: u32 = 0x540f;
pub const TIOCSPGRP: u32 = 0x5410;
pub const TIOCNOTTY: u32 = 0x5422;
pub const TIOCGSID: u32 = 0x5429;

impl Default for JobControl {
    fn default() -> Self {
        JobControl { session: SpinLock::new(Weak::new()), foreground: AtomicI32::new(0) }
    }
}

impl JobControl {
    pub fn foreground(&self) -> Pid {
        self.foreground.load(SeqCst)
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().upgrade()
    }

    /// Whether it is some session's controlling terminal.
    pub fn is_controlling(&self) -> bool {
        self.session().is_some()
    }

    fn controls(&self, process: &Process) -> bool {
        core::ptr::eq(self.session.lock().as_ptr(), Arc::as_ptr(&process.session()))
    }

    /// Nobody's controlling terminal any more.
    pub fn disassociate(&self) {
        *self.session.lock() = Weak::new();
        self.foreground.store(0, SeqCst);
    }

    /// Becomes the controlling terminal of the process's session.
    pub fn take(&self, terminal: &Arc<dyn Terminal>, process: &Process) {
        let session = process.session();
        *self.session.lock() = Arc::downgrade(&session);
        self.foreground.store(process.pgid(), SeqCst);
        session.set_terminal(Some(terminal));
    }

    /// What open(2) without O_NOCTTY does: a session leader without a terminal gets this one if it is free.
    pub fn opened(&self, terminal: &Arc<dyn Terminal>, flags: OpenFlags) {
        let Some(task) = sched::current() else { return };
        let process = &task.process;
        let session = process.session();
        if !flags.contains(OpenFlags::NOCTTY)
            && session.sid == process.pid
            && session.terminal().is_none()
            && self.session().is_none()
        {
            self.take(terminal, process);
        }
    }

    /// Stops a background process group that wants to do what only the foreground may: `signal` is SIGTTIN or SIGTTOU.
    pub fn check(&self, signal: u32) -> Result<()> {
        let Some(task) = sched::current() else { return Ok(()) };
        let process = &task.process;
        let (pgid, foreground) = (process.pgid(), self.foreground());
        if !self.controls(process) || foreground == 0 || pgid == foreground {
            return Ok(());
        }
        if task.blocked().contains(signal) || process.handlers().get(signal).is_ignored(signal) {
            return if signal == SIGTTIN { Err(EIO) } else { Ok(()) };
        }
        if table::lock().is_orphaned(pgid, None) {
            return Err(EIO);
        }
        to_group(pgid, SigInfo::kernel(signal), Origin::Inside);
        Err(Error::Restart(Restart::Sys))
    }

    /// A signal for the foreground process group.
    pub fn signal(&self, signal: u32) {
        let foreground = self.foreground();
        if foreground > 0 {
            to_group(foreground, SigInfo::kernel(signal), Origin::Inside);
        }
    }

    /// The other end is gone: the session's leader and the foreground hear of it.
    pub fn hang_up(&self) {
        let session = self.session();
        let foreground = self.foreground();
        if let Some(session) = session {
            session.set_terminal(None);
            if let Some(leader) = table::process(session.sid) {
                for signal in [SIGHUP, SIGCONT] {
                    // The kernel's own signals always find room.
                    let _ = crate::signal::send::to_process(&leader, SigInfo::kernel(signal), Origin::Inside);
                }
            }
            if foreground > 0 && foreground != session.sid {
                to_group(foreground, SigInfo::kernel(SIGHUP), Origin::Inside);
                to_group(foreground, SigInfo::kernel(SIGCONT), Origin::Inside);
            }
        }
        self.disassociate();
    }

    /// The ioctls of job control; None for others. `master`: asked through the master side, which need not be controlling.
    pub fn ioctl(
        &self,
        cur: &mut Current,
        terminal: &Arc<dyn Terminal>,
        command: u32,
        argument: u64,
        master: bool,
    ) -> Option<Result<u64>> {
        let place = UserPtr::<i32>::new(UserAddr(argument));
        let process = cur.task.process.clone();
        let ours = self.controls(&process);
        Some(match command {
            TIOCGPGRP if ours || master => cur.mm.write_value(place, &self.foreground()).map(|()| 0),
            TIOCGSID => match self.session() {
                Some(session) if ours || master => cur.mm.write_value(place, &session.sid).map(|()| 0),
                _ => Err(ENOTTY),
            },
            TIOCSPGRP if ours => self.set_foreground(cur, place),
            TIOCNOTTY if ours => {
                let session = process.session();
                if session.sid == process.pid {
                    self.hang_up();
                } else {
                    session.set_terminal(None);
                }
                Ok(0)
            }
            TIOCSCTTY => self.set_controlling(cur, terminal, argument == 1).map(|()| 0),
            TIOCGPGRP | TIOCSPGRP | TIOCNOTTY => Err(ENOTTY),
            _ => return None,
        })
    }

    fn set_foreground(&self, cur: &mut Current, place: UserPtr<i32>) -> Result<u64> {
        self.check(SIGTTOU)?;
        let pgid = cur.mm.read_value(place)?;
        if pgid < 0 {
            return Err(EINVAL);
        }
        let session = table::lock().session_of_group(pgid).ok_or(ESRCH)?;
        if session != cur.task.process.session().sid {
            return Err(EPERM);
        }
        self.foreground.store(pgid, SeqCst);
        Ok(0)
    }

    fn set_controlling(&self, cur: &mut Current, terminal: &Arc<dyn Terminal>, steal: bool) -> Result<()> {
        let process = cur.task.process.clone();
        let session = process.session();
        if self.controls(&process) && session.sid == process.pid {
            return Ok(());
        }
        if session.sid != process.pid || session.terminal().is_some() {
            return Err(EPERM);
        }
        if let Some(other) = self.session() {
            if !steal || !cur.task.capable(cap::SYS_ADMIN) {
                return Err(EPERM);
            }
            other.set_terminal(None);
        }
        self.take(terminal, &process);
        Ok(())
    }
}

/// Opens /dev/tty: the controlling terminal of the running task, ENXIO without one.
pub fn open_controlling(flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
    let task = sched::current().ok_or(ENXIO)?;
    task.process.session().terminal().ok_or(ENXIO)?.open(flags)
}
