//! Sessions and their controlling terminal (credentials(7), setsid(2)).

use alloc::sync::{Arc, Weak};

use super::Pid;
use crate::{
    errno::Result,
    fs::{FileOps, OpenFlags},
    sync::SpinLock,
};

/// What a session needs of the terminal that controls it; the terminal's file implements it.
pub trait Terminal: Send + Sync {
    /// st_rdev, for /proc/pid/stat.
    fn device(&self) -> u64;
    /// The foreground process group; 0: none.
    fn foreground(&self) -> Pid;
    /// What opening /dev/tty gives.
    fn open(&self, flags: OpenFlags) -> Result<Arc<dyn FileOps>>;
    /// The session leader has ended: nobody controls the terminal any more.
    fn disassociate(&self);
}

pub struct Session {
    /// The leader's pid.
    pub sid: Pid,
    terminal: SpinLock<Option<Weak<dyn Terminal>>>,
}

impl Session {
    pub fn new(sid: Pid) -> Arc<Self> {
        Arc::new(Session { sid, terminal: SpinLock::new(None) })
    }

    pub fn terminal(&self) -> Option<Arc<dyn Terminal>> {
        self.terminal.lock().as_ref()?.upgrade()
    }

    pub fn set_terminal(&self, terminal: Option<&Arc<dyn Terminal>>) {
        *self.terminal.lock() = terminal.map(Arc::downgrade);
    }
}
