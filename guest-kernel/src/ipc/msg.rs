//! Message queues (msgget(2), msgsnd(2), msgrcv(2), msgctl(2)).

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};

use super::{Object, Perm, Registry, now};
use crate::{
    errno::{E2BIG, EAGAIN, EIDRM, EINVAL, ENOMEM, ENOMSG, EPERM, Error, Restart, Result},
    fs::proc::sysctl_number,
    mm::kmem,
    sync::{SpinLock, WaitQueue},
    task::{Creds, Pid, creds::cap},
};

pub const MSG_NOERROR: i32 = 0o10000;
pub const MSG_EXCEPT: i32 = 0o20000;
pub const MSG_COPY: i32 = 0o40000;

struct Message {
    kind: i64,
    text: Vec<u8>,
}

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    bytes: u64,
    max_bytes: u64,
    sent_at: i64,
    received_at: i64,
    changed_at: i64,
    last_sender: Pid,
    last_receiver: Pid,
    removed: bool,
}

pub struct Queue {
    perm: SpinLock<Perm>,
    state: SpinLock<State>,
    senders: WaitQueue,
    receivers: WaitQueue,
}

impl Object for Queue {
    fn perm(&self) -> &SpinLock<Perm> {
        &self.perm
    }
}

pub static QUEUES: Registry<Queue> = Registry::new();

/// struct msqid64_ds.
#[derive(Clone, Copy, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct UserMsg {
    pub perm: super::UserPerm,
    pub sent_at: i64,
    pub received_at: i64,
    pub changed_at: i64,
    pub bytes: u64,
    pub messages: u64,
    pub max_bytes: u64,
    pub last_sender: i32,
    pub last_receiver: i32,
    pub _unused: [u64; 2],
}

const _: () = assert!(size_of::<UserMsg>() == 120);

/// MSGMAX: bytes of a message.
pub fn max_message() -> u64 {
    sysctl_number("kernel.msgmax", 0, 8192).min(1 << 20)
}

/// MSGMNB: bytes of a queue at first.
pub fn max_queue() -> u64 {
    sysctl_number("kernel.msgmnb", 0, 16384)
}

/// MSGMNI: queues.
pub fn max_queues() -> u64 {
    sysctl_number("kernel.msgmni", 0, 32000)
}

pub fn get(key: i32, flags: i32, creds: &Creds) -> Result<i32> {
    QUEUES.get(
        key,
        flags,
        creds,
        max_queues(),
        |_| Ok(()),
        |perm| {
            Ok(Arc::new(Queue {
                perm: SpinLock::new(perm),
                state: SpinLock::new(State { max_bytes: max_queue(), changed_at: now(), ..State::default() }),
                senders: WaitQueue::new(),
                receivers: WaitQueue::new(),
            }))
        },
    )
}

/// Which message msgrcv(2) takes.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub kind: i64,
    pub except: bool,
}

impl Wanted {
    /// The place of the message in the queue.
    fn find(&self, messages: &VecDeque<Message>) -> Option<usize> {
        match self.kind {
            0 => (!messages.is_empty()).then_some(0),
            kind if kind > 0 => messages.iter().position(|m| (m.kind == kind) != self.except),
            kind => {
                let limit = kind.checked_neg().unwrap_or(i64::MAX);
                let lowest = messages.iter().map(|m| m.kind).filter(|&k| k <= limit).min()?;
                messages.iter().position(|m| m.kind == lowest)
            }
        }
    }
}

impl Queue {
    pub fn send(&self, kind: i64, text: Vec<u8>, nowait: bool, pid: Pid) -> Result<()> {
        if kmem::under_pressure() {
            return Err(ENOMEM);
        }
        let mut message = Some(Message { kind, text });
        let mut attempt = || -> Option<Result<()>> {
            let mut state = self.state.lock();
            if state.removed {
                return Some(Err(EIDRM));
            }
            let len = message.as_ref().map_or(0, |m| m.text.len()) as u64;
            // Messages of no length are counted too: they use memory.
            if state.bytes + len > state.max_bytes || state.messages.len() as u64 >= state.max_bytes {
                return if nowait { Some(Err(EAGAIN)) } else { None };
            }
            state.messages.extend(message.take());
            state.bytes += len;
            state.sent_at = now();
            state.last_sender = pid;
            Some(Ok(()))
        };
        self.senders.wait_until(&mut attempt).unwrap_or(Err(Error::Restart(Restart::NoHandler)))?;
        self.receivers.wake_all();
        Ok(())
    }

    /// The type and text of a message. `size`: what the caller takes, E2BIG beyond unless `truncate`.
    pub fn receive(
        &self,
        size: usize,
        wanted: Wanted,
        truncate: bool,
        nowait: bool,
        pid: Pid,
    ) -> Result<(i64, Vec<u8>)> {
        let mut attempt = || -> Option<Result<Message>> {
            let mut state = self.state.lock();
            if state.removed {
                return Some(Err(EIDRM));
            }
            let Some(at) = wanted.find(&state.messages) else {
                return if nowait { Some(Err(ENOMSG)) } else { None };
            };
            if state.messages.get(at).is_some_and(|m| m.text.len() > size) && !truncate {
                return Some(Err(E2BIG));
            }
            let message = state.messages.remove(at)?;
            state.bytes -= message.text.len() as u64;
            state.received_at = now();
            state.last_receiver = pid;
            Some(Ok(message))
        };
        let mut message = self.receivers.wait_until(&mut attempt).unwrap_or(Err(Error::Restart(Restart::NoHandler)))?;
        self.senders.wake_all();
        message.text.truncate(size);
        Ok((message.kind, message.text))
    }

    /// A copy of message number `index` (MSG_COPY).
    pub fn peek(&self, index: i64, size: usize, truncate: bool) -> Result<(i64, Vec<u8>)> {
        let state = self.state.lock();
        let message = usize::try_from(index).ok().and_then(|i| state.messages.get(i)).ok_or(ENOMSG)?;
        if message.text.len() > size && !truncate {
            return Err(E2BIG);
        }
        Ok((message.kind, message.text.iter().copied().take(size).collect()))
    }

    pub fn remove(&self) {
        let id = self.id();
        let messages = {
            let mut state = self.state.lock();
            state.removed = true;
            core::mem::take(&mut state.messages)
        };
        drop(messages);
        drop(QUEUES.remove(id));
        self.senders.wake_all();
        self.receivers.wake_all();
    }

    /// IPC_SET.
    pub fn set(&self, wanted: &UserMsg, creds: &Creds) -> Result<()> {
        if wanted.max_bytes > max_queue() && !creds.capable(cap::SYS_RESOURCE) {
            return Err(EPERM);
        }
        if wanted.max_bytes > i32::MAX as u64 {
            return Err(EINVAL);
        }
        self.perm.lock().set(&wanted.perm)?;
        {
            let mut state = self.state.lock();
            state.max_bytes = wanted.max_bytes;
            state.changed_at = now();
        }
        self.senders.wake_all();
        Ok(())
    }

    pub fn stat(&self) -> UserMsg {
        let perm = self.perm.lock().to_user();
        let state = self.state.lock();
        UserMsg {
            perm,
            sent_at: state.sent_at,
            received_at: state.received_at,
            changed_at: state.changed_at,
            bytes: state.bytes,
            messages: state.messages.len() as u64,
            max_bytes: state.max_bytes,
            last_sender: state.last_sender,
            last_receiver: state.last_receiver,
            _unused: [0; 2],
        }
    }
}

/// Messages and bytes in all queues, for MSG_INFO.
pub fn totals() -> (u64, u64) {
    QUEUES.all().iter().map(|q| q.stat()).fold((0, 0), |(n, b), q| (n + q.messages, b + q.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_select_messages() {
        let queue: VecDeque<Message> = [3, 1, 2, 1].map(|kind| Message { kind, text: Vec::new() }).into();
        let find = |kind, except| Wanted { kind, except }.find(&queue);
        assert_eq!(find(0, false), Some(0));
        assert_eq!(find(2, false), Some(2));
        assert_eq!(find(3, true), Some(1));
        assert_eq!(find(-2, false), Some(1));
        assert_eq!(find(9, false), None);
        assert_eq!(find(i64::MIN, false), Some(1));
    }
}
