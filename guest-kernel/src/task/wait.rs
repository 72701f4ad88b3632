//! wait4(2) and waitid(2): finding a child with something to tell.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use bitflags::bitflags;

use super::{Pid, Process, exit, table, times::Usage};
use crate::{
    errno::{ECHILD, Result},
    signal::{
        info::{SigInfo, code},
        set::{SIGCHLD, SIGCONT},
    },
};

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct WaitOptions: u32 {
        const NOHANG = 1;
        /// WUNTRACED.
        const STOPPED = 2;
        const EXITED = 4;
        const CONTINUED = 8;
        const NOWAIT = 0x0100_0000;
        /// Only the calling thread's children: children belong to the process here, as they do after a thread's end.
        const NOTHREAD = 0x2000_0000;
        const ALL = 0x4000_0000;
        const CLONE = 0x8000_0000;
    }
}

/// Which children are waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    Any,
    Pid(Pid),
    Group(Pid),
}

impl Which {
    pub fn matches(self, pid: Pid, pgid: Pid) -> bool {
        match self {
            Which::Any => true,
            Which::Pid(wanted) => pid == wanted,
            Which::Group(wanted) => pgid == wanted,
        }
    }
}

/// Children that end with another signal than SIGCHLD are found with __WCLONE or __WALL only.
fn eligible(options: WaitOptions, exit_signal: u32) -> bool {
    options.contains(WaitOptions::ALL) || options.contains(WaitOptions::CLONE) == (exit_signal != SIGCHLD)
}

/// What a child had to tell.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub pid: Pid,
    pub uid: u32,
    /// As wait4 stores it.
    pub status: u32,
    /// As waitid and SIGCHLD tell it.
    pub info: SigInfo,
    pub usage: Usage,
}

/// Waits as the options say; `None` with WNOHANG when no child has anything to tell.
pub fn wait(parent: &Arc<Process>, which: Which, options: WaitOptions) -> Result<Option<Report>> {
    let look = || match scan(parent, which, options) {
        Ok(Some(report)) => Some(Ok(Some(report))),
        Ok(None) if options.contains(WaitOptions::NOHANG) => Some(Ok(None)),
        Ok(None) => None,
        Err(error) => Some(Err(error)),
    };
    parent.child_event.wait_until(look)?
}

/// Looks through the children; ECHILD when none can ever match.
fn scan(parent: &Arc<Process>, which: Which, options: WaitOptions) -> Result<Option<Report>> {
    let mut table = table::lock();
    let mut any = false;
    for child in table.children(parent.pid) {
        if !which.matches(child.pid, child.pgid()) || !eligible(options, child.exit_signal.load(Relaxed)) {
            continue;
        }
        any = true;
        let Some(report) = look(&child, options) else { continue };
        if child.zombie().is_some() && !options.contains(WaitOptions::NOWAIT) {
            let mut sum = parent.dead_children.lock();
            sum.add(&report.usage);
            drop(sum);
            table.remove_process(&child);
        }
        return Ok(Some(report));
    }
    if any { Ok(None) } else { Err(ECHILD) }
}

/// What one child has to tell for these options; what is told once is marked as told.
fn look(child: &Process, options: WaitOptions) -> Option<Report> {
    let keep = options.contains(WaitOptions::NOWAIT);
    let mut state = child.state.lock();
    if let Some(status) = state.zombie {
        drop(state);
        if !options.contains(WaitOptions::EXITED) {
            return None;
        }
        let mut usage = child.usage();
        usage.add(&child.dead_children.lock());
        return Some(Report { pid: child.pid, uid: child.uid(), status, info: exit::child_info(child, status), usage });
    }
    let (status, how, value) = if options.contains(WaitOptions::STOPPED)
        && let Some(signal) = state.report_stop
    {
        if !keep {
            state.report_stop = None;
        }
        (signal << 8 | 0x7f, code::CLD_STOPPED, signal)
    } else if options.contains(WaitOptions::CONTINUED) && state.report_continue {
        if !keep {
            state.report_continue = false;
        }
        (0xffff, code::CLD_CONTINUED, SIGCONT)
    } else {
        return None;
    };
    drop(state);
    let uid = child.uid();
    let info = SigInfo::child(how, child.pid, uid, value as i32, 0, 0);
    Some(Report { pid: child.pid, uid, status, info, usage: child.usage() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        assert!(Which::Any.matches(5, 3));
        assert!(Which::Pid(5).matches(5, 3) && !Which::Pid(3).matches(5, 3));
        assert!(Which::Group(3).matches(5, 3) && !Which::Group(5).matches(5, 3));
    }

    #[test]
    fn clone_children_need_a_flag() {
        let none = WaitOptions::EXITED;
        assert!(eligible(none, SIGCHLD) && !eligible(none, 0));
        assert!(!eligible(none | WaitOptions::CLONE, SIGCHLD) && eligible(none | WaitOptions::CLONE, 0));
        assert!(eligible(none | WaitOptions::ALL, 0) && eligible(none | WaitOptions::ALL, SIGCHLD));
    }
}
