//! System calls of System V IPC.

use alloc::{sync::Arc, vec::Vec};

use sentry_abi::layout::PAGE_SIZE;
use zerocopy::{Immutable, IntoBytes};

use super::{
    IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, Object, READ, WRITE,
    msg::{self, MSG_COPY, MSG_EXCEPT, MSG_NOERROR, UserMsg},
    sem::{self, SemBuf},
    shm::{self, UserShm},
};
use crate::{
    errno::{E2BIG, EEXIST, EINVAL, ERANGE, Result},
    mm::{
        MapRequest, Pager, Prot, VmaFlags, VmaKind,
        user::{UserAddr, UserPtr},
    },
    syscall::{Hex, Level::*, Syscall, page_align},
    syscalls,
    task::Current,
    time::{self, Timespec},
};

syscalls! { pub CALLS;
    29 shmget(key: i32, size: u64, flags: Hex) = shmget, Full, "", "sysvipc";
    30 shmat(id: i32, addr: u64, flags: Hex) = shmat, Full, "", "sysvipc";
    31 shmctl(id: i32, command: i32, buffer: UserAddr) = shmctl, Full, "", "sysvipc";
    64 semget(key: i32, count: i32, flags: Hex) = semget, Full, "", "sysvipc";
    65 semop(id: i32, ops: UserPtr<SemBuf>, count: u64) = semop, Full, "", "sysvipc";
    66 semctl(id: i32, number: i32, command: i32, argument: UserAddr) = semctl, Full, "", "sysvipc";
    67 shmdt(addr: u64) = shmdt, Full, "", "sysvipc";
    68 msgget(key: i32, flags: Hex) = msgget, Full, "", "sysvipc";
    69 msgsnd(id: i32, message: UserAddr, size: u64, flags: Hex) = msgsnd, Full, "", "sysvipc";
    70 msgrcv(id: i32, message: UserAddr, size: u64, kind: i64, flags: Hex) = msgrcv, Full, "", "sysvipc";
    71 msgctl(id: i32, command: i32, buffer: UserAddr) = msgctl, Full, "", "sysvipc";
    220 semtimedop(id: i32, ops: UserPtr<SemBuf>, count: u64, timeout: UserPtr<Timespec>) = semtimedop, Full, "", "sysvipc";
}

const SHM_RDONLY: i32 = 0o10000;
const SHM_RND: i32 = 0o20000;
const SHM_REMAP: i32 = 0o40000;
const SHM_EXEC: i32 = 0o100_000;
const SHM_LOCK: i32 = 11;
const SHM_UNLOCK: i32 = 12;
const SHM_STAT: i32 = 13;
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;

const GETPID: i32 = 11;
const GETVAL: i32 = 12;
const GETALL: i32 = 13;
const GETNCNT: i32 = 14;
const GETZCNT: i32 = 15;
const SETVAL: i32 = 16;
const SETALL: i32 = 17;
const SEM_STAT: i32 = 18;
const SEM_INFO: i32 = 19;
const SEM_STAT_ANY: i32 = 20;

const MSG_STAT: i32 = 11;
const MSG_INFO: i32 = 12;
const MSG_STAT_ANY: i32 = 13;

fn shmget(cur: &mut Current, key: i32, size: u64, flags: Hex) -> Result<i32> {
    shm::get(key, size, flags.0 as i32, &cur.task.creds(), cur.task.process.pid)
}

fn shmat(cur: &mut Current, id: i32, addr: u64, flags: Hex) -> Result<u64> {
    let flags = flags.0 as i32;
    let mut address = addr;
    if !addr.is_multiple_of(PAGE_SIZE) {
        if flags & SHM_RND == 0 {
            return Err(EINVAL);
        }
        address &= !(PAGE_SIZE - 1);
    }
    let remap = flags & SHM_REMAP != 0;
    if remap && address == 0 {
        return Err(EINVAL);
    }
    let shm = shm::SEGMENTS.by_id(id)?;
    let mut prot = Prot::READ;
    let mut wanted = READ;
    if flags & SHM_RDONLY == 0 {
        prot |= Prot::WRITE;
        wanted |= WRITE;
    }
    if flags & SHM_EXEC != 0 {
        prot |= Prot::EXEC;
        wanted |= 1;
    }
    shm.perm().lock().check(&cur.task.creds(), wanted)?;
    let memory = shm.memory()?;
    let len = page_align(memory.size).ok_or(EINVAL)?;
    let mut max_prot = Prot::all();
    if flags & SHM_RDONLY != 0 {
        max_prot.remove(Prot::WRITE);
    }
    let start = cur
        .mm
        .map(MapRequest {
            address,
            len,
            prot,
            max_prot,
            flags: VmaFlags::SHARED,
            kind: VmaKind::Object { pager: memory, offset: 0 },
            fixed: address != 0 && remap,
            no_replace: address != 0 && !remap,
        })
        .map_err(|error| if error == EEXIST { EINVAL } else { error })?;
    shm.attached(cur.task.process.pid);
    Ok(start)
}

/// Removes the mapping of a segment whose beginning was attached at `addr`, in all the pieces that are left of it.
fn shmdt(cur: &mut Current, addr: u64) -> Result<()> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(EINVAL);
    }
    let mut found: Option<Arc<dyn Pager>> = None;
    for vma in cur.mm.mappings() {
        let VmaKind::Object { pager, offset } = &vma.kind else { continue };
        if vma.start.checked_sub(*offset) != Some(addr) {
            continue;
        }
        let ours = match &found {
            Some(first) => Arc::ptr_eq(first, pager),
            None => pager.downcast::<shm::Segment>().is_some(),
        };
        if ours {
            cur.mm.unmap(vma.start, vma.len())?;
            found.get_or_insert_with(|| pager.clone());
        }
    }
    let memory = found.ok_or(EINVAL)?;
    if let Some(shm) = memory.downcast::<shm::Segment>().and_then(shm::of) {
        shm.detached(cur.task.process.pid);
    }
    Ok(())
}

/// struct shminfo64.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ShmLimits {
    max: u64,
    min: u64,
    segments: u64,
    attached: u64,
    pages: u64,
    _unused: [u64; 4],
}

/// struct shm_info.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ShmUsage {
    segments: i32,
    _pad: i32,
    pages: u64,
    resident: u64,
    swapped: u64,
    _attempts: [u64; 2],
}

fn write<T: IntoBytes + Immutable>(cur: &Current, at: UserAddr, value: &T) -> Result<()> {
    cur.mm.write_value(UserPtr::new(at), value)
}

fn shmctl(cur: &mut Current, id: i32, command: i32, buffer: UserAddr) -> Result<i32> {
    let creds = cur.task.creds();
    match command {
        IPC_INFO => {
            let segments = shm::max_segments();
            let pages = shm::max_pages();
            let limits =
                ShmLimits { max: shm::max_size(), min: 1, segments, attached: segments, pages, _unused: [0; 4] };
            write(cur, buffer, &limits)?;
            Ok(shm::SEGMENTS.highest())
        }
        SHM_INFO => {
            let all = shm::SEGMENTS.all();
            let usage = ShmUsage {
                segments: all.len() as i32,
                _pad: 0,
                pages: all.iter().map(|s| s.size.div_ceil(PAGE_SIZE)).sum(),
                resident: all.iter().map(|s| s.resident()).sum(),
                swapped: 0,
                _attempts: [0; 2],
            };
            write(cur, buffer, &usage)?;
            Ok(shm::SEGMENTS.highest())
        }
        SHM_STAT | SHM_STAT_ANY | IPC_STAT => {
            let (id, shm) =
                if command == IPC_STAT { (0, shm::SEGMENTS.by_id(id)?) } else { shm::SEGMENTS.by_place(id)? };
            if command != SHM_STAT_ANY {
                shm.perm().lock().check(&creds, READ)?;
            }
            write(cur, buffer, &shm.stat())?;
            Ok(id)
        }
        IPC_SET => {
            let wanted = cur.mm.read_value(UserPtr::<UserShm>::new(buffer))?;
            let shm = shm::SEGMENTS.by_id(id)?;
            {
                let mut perm = shm.perm().lock();
                perm.check_owner(&creds)?;
                perm.set(&wanted.perm)?;
            }
            shm.changed();
            Ok(0)
        }
        IPC_RMID => {
            let shm = shm::SEGMENTS.by_id(id)?;
            shm.perm().lock().check_owner(&creds)?;
            shm.remove();
            Ok(0)
        }
        SHM_LOCK | SHM_UNLOCK => {
            let shm = shm::SEGMENTS.by_id(id)?;
            shm.perm().lock().check_owner(&creds)?;
            shm.set_locked(command == SHM_LOCK);
            Ok(0)
        }
        _ => Err(EINVAL),
    }
}

fn semget(cur: &mut Current, key: i32, count: i32, flags: Hex) -> Result<i32> {
    sem::get(key, count, flags.0 as i32, &cur.task.creds())
}

fn semop(cur: &mut Current, id: i32, ops: UserPtr<SemBuf>, count: u64) -> Result<()> {
    operate(cur, id, ops, count, u64::MAX)
}

fn semtimedop(cur: &mut Current, id: i32, ops: UserPtr<SemBuf>, count: u64, timeout: UserPtr<Timespec>) -> Result<()> {
    let deadline = if timeout.is_null() {
        u64::MAX
    } else {
        time::monotonic().saturating_add(cur.mm.read_value(timeout)?.to_ns()?)
    };
    operate(cur, id, ops, count, deadline)
}

fn operate(cur: &mut Current, id: i32, ops: UserPtr<SemBuf>, count: u64, deadline: u64) -> Result<()> {
    if count == 0 {
        return Err(EINVAL);
    }
    if count > sem::max_operations() {
        return Err(E2BIG);
    }
    let ops = cur.mm.read_array(ops, count as usize)?;
    let set = sem::SETS.by_id(id)?;
    if ops.iter().any(|op| usize::from(op.number) >= set.count) {
        return Err(crate::errno::EFBIG);
    }
    let wanted = if ops.iter().any(|op| op.op != 0) { WRITE } else { READ };
    set.perm().lock().check(&cur.task.creds(), wanted)?;
    set.operate(&ops, &cur.task, deadline)
}

/// struct seminfo.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SemLimits {
    map: i32,
    sets: i32,
    semaphores: i32,
    undo: i32,
    per_set: i32,
    operations: i32,
    undo_entries: i32,
    undo_size: i32,
    max_value: i32,
    max_adjustment: i32,
}

fn int(value: u64) -> i32 {
    value.min(i32::MAX as u64) as i32
}

fn semctl(cur: &mut Current, id: i32, number: i32, command: i32, argument: UserAddr) -> Result<i32> {
    let creds = cur.task.creds();
    let pid = cur.task.process.pid;
    match command {
        IPC_INFO | SEM_INFO => {
            let all = sem::SETS.all();
            let usage = command == SEM_INFO;
            let limits = SemLimits {
                map: int(sem::max_semaphores()),
                sets: int(sem::max_sets()),
                semaphores: int(sem::max_semaphores()),
                undo: int(sem::max_semaphores()),
                per_set: int(sem::max_per_set()),
                operations: int(sem::max_operations()),
                undo_entries: int(sem::max_operations()),
                undo_size: if usage { all.len() as i32 } else { 20 },
                max_value: sem::SEMVMX,
                max_adjustment: if usage { all.iter().map(|s| s.count as i32).sum() } else { sem::SEMVMX },
            };
            write(cur, argument, &limits)?;
            Ok(sem::SETS.highest())
        }
        IPC_STAT | SEM_STAT | SEM_STAT_ANY => {
            let (id, set) = if command == IPC_STAT { (0, sem::SETS.by_id(id)?) } else { sem::SETS.by_place(id)? };
            if command != SEM_STAT_ANY {
                set.perm().lock().check(&creds, READ)?;
            }
            write(cur, argument, &set.stat())?;
            Ok(id)
        }
        IPC_SET => {
            let wanted = cur.mm.read_value(UserPtr::<sem::UserSem>::new(argument))?;
            let set = sem::SETS.by_id(id)?;
            {
                let mut perm = set.perm().lock();
                perm.check_owner(&creds)?;
                perm.set(&wanted.perm)?;
            }
            set.changed();
            Ok(0)
        }
        IPC_RMID => {
            let set = sem::SETS.by_id(id)?;
            set.perm().lock().check_owner(&creds)?;
            set.remove();
            Ok(0)
        }
        SETVAL => {
            let value = argument.0 as i32;
            if !(0..=sem::SEMVMX).contains(&value) {
                return Err(ERANGE);
            }
            let set = sem::SETS.by_id(id)?;
            let place = usize::try_from(number).ok().filter(|&n| n < set.count).ok_or(EINVAL)?;
            set.perm().lock().check(&creds, WRITE)?;
            set.set_values(place, &[value as u16], pid)?;
            Ok(0)
        }
        SETALL => {
            let set = sem::SETS.by_id(id)?;
            set.perm().lock().check(&creds, WRITE)?;
            let values = cur.mm.read_array(UserPtr::<u16>::new(argument), set.count)?;
            set.set_values(0, &values, pid)?;
            Ok(0)
        }
        GETALL => {
            let set = sem::SETS.by_id(id)?;
            set.perm().lock().check(&creds, READ)?;
            cur.mm.write(argument, set.values().as_bytes())?;
            Ok(0)
        }
        GETVAL | GETPID | GETNCNT | GETZCNT => {
            let set = sem::SETS.by_id(id)?;
            set.perm().lock().check(&creds, READ)?;
            match command {
                GETVAL => set.value(number),
                GETPID => set.last_pid(number),
                _ => set.waiters(number, command == GETZCNT),
            }
        }
        _ => Err(EINVAL),
    }
}

fn msgget(cur: &mut Current, key: i32, flags: Hex) -> Result<i32> {
    msg::get(key, flags.0 as i32, &cur.task.creds())
}

/// `message`: a long with the type, and the text behind it.
fn msgsnd(cur: &mut Current, id: i32, message: UserAddr, size: u64, flags: Hex) -> Result<()> {
    if size > msg::max_message() || id < 0 {
        return Err(EINVAL);
    }
    let kind = cur.mm.read_value(UserPtr::<i64>::new(message))?;
    if kind < 1 {
        return Err(EINVAL);
    }
    let mut text: Vec<u8> = alloc::vec![0; size as usize];
    cur.mm.read(message.offset(8)?, &mut text)?;
    let queue = msg::QUEUES.by_id(id)?;
    queue.perm().lock().check(&cur.task.creds(), WRITE)?;
    queue.send(kind, text, flags.0 as i32 & IPC_NOWAIT != 0, cur.task.process.pid)
}

fn msgrcv(cur: &mut Current, id: i32, message: UserAddr, size: u64, kind: i64, flags: Hex) -> Result<usize> {
    let flags = flags.0 as i32;
    let size = usize::try_from(size).ok().filter(|&s| s <= isize::MAX as usize && id >= 0).ok_or(EINVAL)?;
    let (nowait, truncate) = (flags & IPC_NOWAIT != 0, flags & MSG_NOERROR != 0);
    let copy = flags & MSG_COPY != 0;
    if copy && (!nowait || flags & MSG_EXCEPT != 0) {
        return Err(EINVAL);
    }
    let queue = msg::QUEUES.by_id(id)?;
    queue.perm().lock().check(&cur.task.creds(), READ)?;
    let (kind, text) = if copy {
        queue.peek(kind, size, truncate)?
    } else {
        let wanted = msg::Wanted { kind, except: flags & MSG_EXCEPT != 0 };
        queue.receive(size, wanted, truncate, nowait, cur.task.process.pid)?
    };
    cur.mm.write_value(UserPtr::new(message), &kind)?;
    cur.mm.write(message.offset(8)?, &text)?;
    Ok(text.len())
}

/// struct msginfo.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MsgLimits {
    pool: i32,
    map: i32,
    max: i32,
    queue: i32,
    queues: i32,
    segment: i32,
    total: i32,
    segments: u16,
    _pad: u16,
}

fn msgctl(cur: &mut Current, id: i32, command: i32, buffer: UserAddr) -> Result<i32> {
    let creds = cur.task.creds();
    match command {
        IPC_INFO | MSG_INFO => {
            let usage = command == MSG_INFO;
            let (messages, bytes) = msg::totals();
            let limits = MsgLimits {
                pool: if usage {
                    msg::QUEUES.all().len() as i32
                } else {
                    int(msg::max_queues() * msg::max_queue() / 1024)
                },
                map: int(if usage { messages } else { msg::max_queue() }),
                max: int(msg::max_message()),
                queue: int(msg::max_queue()),
                queues: int(msg::max_queues()),
                segment: 16,
                total: int(if usage { bytes } else { msg::max_queue() }),
                segments: 0xffff,
                _pad: 0,
            };
            write(cur, buffer, &limits)?;
            Ok(msg::QUEUES.highest())
        }
        IPC_STAT | MSG_STAT | MSG_STAT_ANY => {
            let (id, queue) =
                if command == IPC_STAT { (0, msg::QUEUES.by_id(id)?) } else { msg::QUEUES.by_place(id)? };
            if command != MSG_STAT_ANY {
                queue.perm().lock().check(&creds, READ)?;
            }
            write(cur, buffer, &queue.stat())?;
            Ok(id)
        }
        IPC_SET => {
            let wanted = cur.mm.read_value(UserPtr::<UserMsg>::new(buffer))?;
            let queue = msg::QUEUES.by_id(id)?;
            queue.perm().lock().check_owner(&creds)?;
            queue.set(&wanted, &creds)?;
            Ok(0)
        }
        IPC_RMID => {
            let queue = msg::QUEUES.by_id(id)?;
            queue.perm().lock().check_owner(&creds)?;
            queue.remove();
            Ok(0)
        }
        _ => Err(EINVAL),
    }
}
