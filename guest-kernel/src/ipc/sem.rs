//! Semaphore sets (semget(2), semop(2), semctl(2)), with what a process undoes when it ends.

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};

use super::{IPC_NOWAIT, Object, Perm, Registry, now};
use crate::{
    errno::{EAGAIN, EFBIG, EIDRM, EINTR, EINVAL, ENOSPC, ERANGE, Error, Result},
    fs::proc::sysctl_number,
    mm::kmem,
    sync::{SpinLock, WaitQueue},
    task::{Creds, Pid, Task, table},
};

pub const SEM_UNDO: i16 = 0x1000;
/// Highest value of a semaphore.
pub const SEMVMX: i32 = 32767;

/// struct sembuf.
#[derive(Clone, Copy, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct SemBuf {
    pub number: u16,
    pub op: i16,
    pub flags: i16,
}

#[derive(Clone, Copy, Default)]
struct Semaphore {
    value: i32,
    /// Who changed it last.
    pid: Pid,
}

struct State {
    semaphores: Vec<Semaphore>,
    /// Those who wait: for which semaphore, and whether for zero.
    waiting: Vec<(u16, bool)>,
    operated_at: i64,
    changed_at: i64,
    removed: bool,
}

pub struct Set {
    perm: SpinLock<Perm>,
    pub count: usize,
    state: SpinLock<State>,
    queue: WaitQueue,
}

impl Object for Set {
    fn perm(&self) -> &SpinLock<Perm> {
        &self.perm
    }
}

pub static SETS: Registry<Set> = Registry::new();

/// struct semid64_ds.
#[derive(Clone, Copy, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct UserSem {
    pub perm: super::UserPerm,
    pub operated_at: i64,
    pub _unused1: u64,
    pub changed_at: i64,
    pub _unused2: u64,
    pub count: u64,
    pub _unused3: [u64; 2],
}

const _: () = assert!(size_of::<UserSem>() == 104);

/// SEMMSL: semaphores of a set.
pub fn max_per_set() -> u64 {
    sysctl_number("kernel.sem", 0, 32000).min(32000)
}

/// SEMMNS: semaphores of all sets.
pub fn max_semaphores() -> u64 {
    sysctl_number("kernel.sem", 1, 1_024_000_000)
}

/// SEMOPM: operations of one call.
pub fn max_operations() -> u64 {
    sysctl_number("kernel.sem", 2, 500).min(4096)
}

/// SEMMNI: sets.
pub fn max_sets() -> u64 {
    sysctl_number("kernel.sem", 3, 32000)
}

/// What a process takes back of each set when it ends: adjustments by semaphore.
#[derive(Default)]
pub struct UndoList {
    adjustments: SpinLock<BTreeMap<i32, Vec<i32>>>,
}

impl UndoList {
    /// The last task that shared the list has ended.
    fn apply(self, pid: Pid) {
        for (id, adjustments) in self.adjustments.into_inner() {
            let Ok(set) = SETS.by_id(id) else { continue };
            {
                let mut state = set.state.lock();
                for (semaphore, adjustment) in state.semaphores.iter_mut().zip(adjustments) {
                    if adjustment != 0 {
                        // As far as it goes, where Linux does not wait either.
                        semaphore.value = (semaphore.value + adjustment).clamp(0, SEMVMX);
                        semaphore.pid = pid;
                    }
                }
                state.operated_at = now();
            }
            set.queue.wake_all();
        }
    }
}

/// A task ends or stops sharing its list (unshare(2)): the last one undoes.
pub fn leave(task: &Task) {
    let list = task.sem_undo.lock().take();
    if let Some(list) = list.and_then(Arc::into_inner) {
        list.apply(task.process.pid);
    }
}

pub fn get(key: i32, count: i32, flags: i32, creds: &Creds) -> Result<i32> {
    if count < 0 || count as u64 > max_per_set() {
        return Err(EINVAL);
    }
    let fits = |set: &Set| if count as usize > set.count { Err(EINVAL) } else { Ok(()) };
    SETS.get(key, flags, creds, max_sets(), fits, |perm| {
        if count == 0 {
            return Err(EINVAL);
        }
        let used: usize = SETS.all().iter().map(|s| s.count).sum();
        if (used + count as usize) as u64 > max_semaphores() {
            return Err(ENOSPC);
        }
        Ok(Arc::new(Set {
            perm: SpinLock::new(perm),
            count: count as usize,
            state: SpinLock::new(State {
                semaphores: alloc::vec![Semaphore::default(); count as usize],
                waiting: Vec::new(),
                operated_at: 0,
                changed_at: now(),
                removed: false,
            }),
            queue: WaitQueue::new(),
        }))
    })
}

/// Why a list of operations cannot be done now.
struct Blocked {
    number: u16,
    zero: bool,
    nowait: bool,
}

impl State {
    /// Does all operations or none. `undo`: the caller's adjustments of this set, as long as the set.
    fn operate(&mut self, ops: &[SemBuf], mut undo: Option<&mut Vec<i32>>, pid: Pid) -> Result<Option<Blocked>> {
        let mut done: Vec<(usize, Semaphore)> = Vec::new();
        let mut outcome = Ok(None);
        for op in ops {
            let number = usize::from(op.number);
            let Some(semaphore) = self.semaphores.get_mut(number) else {
                outcome = Err(EFBIG);
                break;
            };
            let value = semaphore.value + i32::from(op.op);
            let blocked = if op.op == 0 { semaphore.value != 0 } else { value < 0 };
            if blocked {
                let nowait = i32::from(op.flags) & IPC_NOWAIT != 0;
                outcome = Ok(Some(Blocked { number: op.number, zero: op.op == 0, nowait }));
                break;
            }
            if value > SEMVMX {
                outcome = Err(ERANGE);
                break;
            }
            let adjusted = undo.as_ref().and_then(|u| u.get(number)).map_or(0, |u| u - i32::from(op.op));
            if op.flags & SEM_UNDO != 0 && !(-SEMVMX - 1..=SEMVMX).contains(&adjusted) {
                outcome = Err(ERANGE);
                break;
            }
            done.push((number, *semaphore));
            *semaphore = Semaphore { value, pid };
        }
        if !matches!(outcome, Ok(None)) {
            for (number, before) in done.into_iter().rev() {
                self.semaphores[number] = before;
            }
            return outcome;
        }
        if let Some(undo) = &mut undo {
            for op in ops.iter().filter(|op| op.flags & SEM_UNDO != 0) {
                if let Some(slot) = undo.get_mut(usize::from(op.number)) {
                    *slot -= i32::from(op.op);
                }
            }
        }
        self.operated_at = now();
        Ok(None)
    }
}

impl Set {
    /// semtimedop(2). `deadline`: CLOCK_MONOTONIC ns. Never restarted after a signal: EINTR.
    pub fn operate(&self, ops: &[SemBuf], task: &Task, deadline: u64) -> Result<()> {
        let pid = task.process.pid;
        let undo = ops.iter().any(|op| op.flags & SEM_UNDO != 0).then(|| undo_list(task));
        let id = self.id();
        if undo.is_some() && kmem::under_pressure() {
            return Err(crate::errno::ENOMEM);
        }
        let alters = ops.iter().any(|op| op.op != 0);
        let mut registered: Option<(u16, bool)> = None;
        let mut attempt = || -> Option<Result<()>> {
            // The list before the set, and only where it is wanted.
            let mut lists = undo.as_ref().map(|u| u.adjustments.lock());
            let mut state = self.state.lock();
            if let Some(entry) = registered.take()
                && let Some(at) = state.waiting.iter().position(|w| *w == entry)
            {
                state.waiting.swap_remove(at);
            }
            if state.removed {
                return Some(Err(EIDRM));
            }
            let adjustments = lists.as_mut().map(|lists| lists.entry(id).or_insert_with(|| alloc::vec![0; self.count]));
            match state.operate(ops, adjustments, pid) {
                Ok(None) => Some(Ok(())),
                Ok(Some(blocked)) if blocked.nowait => Some(Err(EAGAIN)),
                Ok(Some(blocked)) => {
                    let entry = (blocked.number, blocked.zero);
                    state.waiting.push(entry);
                    registered = Some(entry);
                    None
                }
                Err(error) => Some(Err(error)),
            }
        };
        let result = match self.queue.wait_deadline(deadline, &mut attempt) {
            Ok(Some(result)) => result,
            Ok(None) => Err(EAGAIN),
            Err(Error::Restart(_)) => Err(EINTR),
            Err(error) => Err(error),
        };
        if let Some(entry) = registered.take() {
            let mut state = self.state.lock();
            if let Some(at) = state.waiting.iter().position(|w| *w == entry) {
                state.waiting.swap_remove(at);
            }
        }
        if result.is_ok() && alters {
            self.queue.wake_all();
        }
        result
    }

    /// IPC_RMID: everyone who waits gets EIDRM.
    pub fn remove(&self) {
        let id = self.id();
        self.state.lock().removed = true;
        drop(SETS.remove(id));
        for list in undo_lists() {
            list.adjustments.lock().remove(&id);
        }
        self.queue.wake_all();
    }

    fn semaphore(&self, number: i32) -> Result<Semaphore> {
        let number = usize::try_from(number).map_err(|_| EINVAL)?;
        self.state.lock().semaphores.get(number).copied().ok_or(EINVAL)
    }

    pub fn value(&self, number: i32) -> Result<i32> {
        Ok(self.semaphore(number)?.value)
    }

    pub fn last_pid(&self, number: i32) -> Result<Pid> {
        Ok(self.semaphore(number)?.pid)
    }

    /// How many wait for the value to grow, or to become zero.
    pub fn waiters(&self, number: i32, zero: bool) -> Result<i32> {
        self.semaphore(number)?;
        let state = self.state.lock();
        Ok(state.waiting.iter().filter(|w| i32::from(w.0) == number && w.1 == zero).count() as i32)
    }

    pub fn values(&self) -> Vec<u16> {
        self.state.lock().semaphores.iter().map(|s| s.value as u16).collect()
    }

    /// SETVAL and SETALL: `values` from semaphore `first` on. Nobody undoes what came before.
    pub fn set_values(&self, first: usize, values: &[u16], pid: Pid) -> Result<()> {
        if values.iter().any(|&v| i32::from(v) > SEMVMX) {
            return Err(ERANGE);
        }
        let id = self.id();
        for list in undo_lists() {
            if let Some(adjustments) = list.adjustments.lock().get_mut(&id) {
                adjustments.iter_mut().skip(first).take(values.len()).for_each(|a| *a = 0);
            }
        }
        {
            let mut state = self.state.lock();
            if state.removed {
                return Err(EIDRM);
            }
            for (semaphore, value) in state.semaphores.iter_mut().skip(first).zip(values) {
                *semaphore = Semaphore { value: i32::from(*value), pid };
            }
            state.changed_at = now();
        }
        self.queue.wake_all();
        Ok(())
    }

    pub fn changed(&self) {
        self.state.lock().changed_at = now();
    }

    pub fn stat(&self) -> UserSem {
        let perm = self.perm.lock().to_user();
        let state = self.state.lock();
        UserSem {
            perm,
            operated_at: state.operated_at,
            _unused1: 0,
            changed_at: state.changed_at,
            _unused2: 0,
            count: self.count as u64,
            _unused3: [0; 2],
        }
    }
}

/// The list of the task, made if it has none; a new task shares it with CLONE_SYSVSEM.
pub fn undo_list(task: &Task) -> Arc<UndoList> {
    let mut slot = task.sem_undo.lock();
    slot.get_or_insert_with(Default::default).clone()
}

/// The lists of all tasks.
fn undo_lists() -> Vec<Arc<UndoList>> {
    let tasks: Vec<Arc<Task>> = table::lock().tasks().cloned().collect();
    tasks.iter().filter_map(|task| task.sem_undo.lock().clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(values: &[i32]) -> State {
        State {
            semaphores: values.iter().map(|&value| Semaphore { value, pid: 0 }).collect(),
            waiting: Vec::new(),
            operated_at: 0,
            changed_at: 0,
            removed: false,
        }
    }

    fn op(number: u16, op: i16, flags: i16) -> SemBuf {
        SemBuf { number, op, flags }
    }

    fn values(state: &State) -> Vec<i32> {
        state.semaphores.iter().map(|s| s.value).collect()
    }

    #[test]
    fn all_operations_or_none() {
        let mut s = state(&[1, 0]);
        let blocked = s.operate(&[op(0, -1, 0), op(1, -1, 0)], None, 7).unwrap().unwrap();
        assert_eq!((blocked.number, blocked.zero, values(&s)), (1, false, alloc::vec![1, 0]));
        assert!(s.operate(&[op(0, -1, 0), op(1, 1, 0)], None, 7).unwrap().is_none());
        assert_eq!(values(&s), [0, 1]);
        assert_eq!(s.operate(&[op(0, 1, 0), op(1, SEMVMX as i16, 0)], None, 7).err(), Some(ERANGE));
        assert_eq!(values(&s), [0, 1]);
        assert_eq!(s.operate(&[op(0, 1, 0), op(2, 1, 0)], None, 7).err(), Some(EFBIG));
        assert_eq!(values(&s), [0, 1]);
    }

    #[test]
    fn what_is_undone_is_remembered_only_when_asked_and_done() {
        let mut s = state(&[5]);
        let mut undo = alloc::vec![0];
        s.operate(&[op(0, -2, SEM_UNDO), op(0, -1, 0)], Some(&mut undo), 7).unwrap();
        assert_eq!((undo[0], s.semaphores[0].value), (2, 2));
        s.operate(&[op(0, -9, SEM_UNDO)], Some(&mut undo), 7).unwrap();
        assert_eq!(undo[0], 2);
    }
}
