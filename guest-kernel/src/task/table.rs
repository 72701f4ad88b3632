//! The process table: who exists under which number, and who is whose child. One lock guards the whole tree, so that a fork,
//! an exit and a wait see it in one piece.

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};

use super::{Pid, Process, Task};
use crate::{
    errno::{EAGAIN, Result},
    sync::{SpinLock, SpinLockGuard},
};

/// Highest pid plus one (kernel.pid_max), and where numbers start again after it.
pub const PID_MAX: Pid = 32768;
const FIRST_REUSED: Pid = 300;
/// The container's init.
pub const INIT: Pid = 1;

pub struct Table {
    tasks: BTreeMap<Pid, Arc<Task>>,
    processes: BTreeMap<Pid, Node>,
    /// Numbers that name process groups and sessions, with their members.
    groups: BTreeMap<Pid, usize>,
    /// Numbers given out to tasks that are not in the table yet.
    reserved: Vec<Pid>,
    /// Processes that have ended and wait to be reaped: they count against the limit.
    zombies: usize,
    last: Pid,
    limit: usize,
}

struct Node {
    process: Arc<Process>,
    children: Vec<Pid>,
}

static TABLE: SpinLock<Table> = SpinLock::new(Table {
    tasks: BTreeMap::new(),
    processes: BTreeMap::new(),
    groups: BTreeMap::new(),
    reserved: Vec::new(),
    zombies: 0,
    last: 0,
    limit: PID_MAX as usize,
});

/// Locks the tree. Process and task locks may be taken inside, never the other way round.
pub fn lock() -> SpinLockGuard<'static, Table> {
    TABLE.lock()
}

/// Sets how many tasks the sandbox may have (0: as many as there are numbers).
pub fn set_limit(tasks: u32) {
    TABLE.lock().limit = if tasks == 0 { PID_MAX as usize - 1000 } else { tasks as usize };
}

pub fn task(tid: Pid) -> Option<Arc<Task>> {
    TABLE.lock().tasks.get(&tid).cloned()
}

/// The process whose leader had this number, zombies included.
pub fn process(pid: Pid) -> Option<Arc<Process>> {
    TABLE.lock().process(pid)
}

/// All processes, by number.
pub fn processes() -> Vec<Arc<Process>> {
    TABLE.lock().processes.values().map(|n| n.process.clone()).collect()
}

impl Table {
    /// A number nobody uses, for a task that is added later ([`Table::release`] when it is not).
    pub fn allocate(&mut self) -> Result<Pid> {
        if self.tasks.len() + self.zombies + self.reserved.len() >= self.limit {
            return Err(EAGAIN);
        }
        for _ in 0..PID_MAX {
            let next = self.last + 1;
            self.last = if next >= PID_MAX { FIRST_REUSED } else { next };
            let pid = self.last;
            let used = self.tasks.contains_key(&pid)
                || self.processes.contains_key(&pid)
                || self.groups.contains_key(&pid)
                || self.reserved.contains(&pid);
            if !used {
                self.reserved.push(pid);
                return Ok(pid);
            }
        }
        Err(EAGAIN)
    }

    pub fn release(&mut self, pid: Pid) {
        self.reserved.retain(|&p| p != pid);
    }

    pub fn add_task(&mut self, task: &Arc<Task>) {
        self.release(task.tid());
        self.tasks.insert(task.tid(), task.clone());
    }

    pub fn remove_task(&mut self, tid: Pid) {
        self.tasks.remove(&tid);
    }

    /// exec in a thread that is not the leader: it takes the leader's number.
    pub fn rename_task(&mut self, task: &Arc<Task>, tid: Pid) {
        self.tasks.remove(&task.tid());
        task.set_tid(tid);
        self.tasks.insert(tid, task.clone());
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// The last number given out, for /proc/loadavg.
    pub fn last_pid(&self) -> Pid {
        self.last
    }

    pub fn add_process(&mut self, process: &Arc<Process>) {
        self.join(process.pgid());
        self.join(process.session().sid);
        if let Some(parent) = self.processes.get_mut(&process.ppid()) {
            parent.children.push(process.pid);
        }
        self.processes.insert(process.pid, Node { process: process.clone(), children: Vec::new() });
    }

    /// The process has ended; it stays until it is reaped.
    pub fn add_zombie(&mut self) {
        self.zombies += 1;
    }

    /// Removes a reaped process.
    pub fn remove_process(&mut self, process: &Process) {
        self.processes.remove(&process.pid);
        self.zombies -= 1;
        if let Some(parent) = self.processes.get_mut(&process.ppid()) {
            parent.children.retain(|&c| c != process.pid);
        }
        self.leave(process.pgid());
        self.leave(process.session().sid);
    }

    pub fn process(&self, pid: Pid) -> Option<Arc<Process>> {
        self.processes.get(&pid).map(|n| n.process.clone())
    }

    pub fn processes(&self) -> impl Iterator<Item = &Arc<Process>> {
        self.processes.values().map(|n| &n.process)
    }

    pub fn children(&self, pid: Pid) -> Vec<Arc<Process>> {
        let Some(node) = self.processes.get(&pid) else { return Vec::new() };
        node.children.iter().filter_map(|c| self.process(*c)).collect()
    }

    /// Gives `child` a new parent.
    pub fn adopt(&mut self, child: &Process, parent: Pid) {
        if let Some(old) = self.processes.get_mut(&child.ppid()) {
            old.children.retain(|&c| c != child.pid);
        }
        if let Some(new) = self.processes.get_mut(&parent) {
            new.children.push(child.pid);
            child.set_parent(&new.process);
        }
    }

    pub fn group(&self, pgid: Pid) -> Vec<Arc<Process>> {
        self.processes().filter(|p| p.pgid() == pgid).cloned().collect()
    }

    /// The session of a process group; None when it has no members.
    pub fn session_of_group(&self, pgid: Pid) -> Option<Pid> {
        self.processes().find(|p| p.pgid() == pgid).map(|p| p.session().sid)
    }

    pub fn move_to_group(&mut self, process: &Process, pgid: Pid) {
        self.join(pgid);
        self.leave(process.pgid());
        process.set_pgid(pgid);
    }

    pub fn move_to_session(&mut self, process: &Process, session: Arc<super::Session>) {
        self.join(session.sid);
        self.leave(process.session().sid);
        process.set_session(session);
    }

    fn join(&mut self, id: Pid) {
        *self.groups.entry(id).or_insert(0) += 1;
    }

    fn leave(&mut self, id: Pid) {
        if let Some(count) = self.groups.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.groups.remove(&id);
            }
        }
    }

    /// Whether the group is orphaned: no member has a parent in another group of the session. `without` does not count as
    /// a parent's child any more.
    pub fn is_orphaned(&self, pgid: Pid, without: Option<Pid>) -> bool {
        !self.processes().any(|p| {
            if p.pgid() != pgid || Some(p.pid) == without || p.zombie().is_some() {
                return false;
            }
            let Some(parent) = self.processes.get(&p.ppid()) else { return false };
            let parent = &parent.process;
            parent.pgid() != pgid && parent.session().sid == p.session().sid
        })
    }
}
