//! The control device: requests of the VMM to the sentry, and its replies.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use sentry_abi::{
    control::{BUFFER, Header, QUEUE_SIZE, Reply, Request},
    virtio::device_id,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::{Backend, DeviceMemory, DeviceQueue, QueueError, QueueSetup, device_memory, event_descriptor};

pub struct ControlConfig {
    /// The memfd of device memory.
    pub device_fd: OwnedFd,
    /// Doorbells of both queues, and completions; all non-blocking.
    pub kicks: [EventFd; 2],
    pub call: EventFd,
}

/// Sends requests to the sentry; cheap to clone.
#[derive(Clone)]
pub struct Sentry(Arc<Shared>);

/// What stands behind the register page. Dropping it ends the device's thread.
pub struct ControlBackend {
    shared: Arc<Shared>,
}

struct Shared {
    memory: DeviceMemory,
    call: EventFd,
    wake: EventFd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Buffers for requests, and replies.
    queues: Option<[DeviceQueue; 2]>,
    next_id: u64,
    /// Requests whose callers wait, and their replies.
    waiting: HashMap<u64, Option<Reply>>,
    ended: bool,
}

/// Makes the device and starts its thread.
pub fn spawn(config: ControlConfig) -> Result<(ControlBackend, Sentry)> {
    let shared = Arc::new(Shared {
        memory: device_memory(config.device_fd.as_fd())?,
        call: config.call,
        wake: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).context("eventfd")?,
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let (thread, kicks) = (shared.clone(), config.kicks);
    std::thread::Builder::new()
        .name("control-device".into())
        .stack_size(128 << 10)
        .spawn(move || {
            if let Err(error) = thread.run(&kicks) {
                log::error!("control device: {error:#}");
            }
        })
        .context("control device thread")?;
    Ok((ControlBackend { shared: shared.clone() }, Sentry(shared)))
}

impl Sentry {
    /// Sends `request` and waits at most `limit` for the reply, which is also the limit for a sentry that has not started.
    pub fn call(&self, request: &Request, limit: Duration) -> Result<Reply> {
        self.request(request, Some(limit))
    }

    /// Waits for the end of process `pid`; its wait status.
    pub fn wait(&self, pid: i32) -> Result<Reply> {
        self.request(&Request::Wait { pid }, None)
    }

    fn request(&self, request: &Request, limit: Option<Duration>) -> Result<Reply> {
        let shared = &*self.0;
        let body = postcard::to_allocvec(request).context("encoding")?;
        if body.len() + size_of::<Header>() > BUFFER {
            bail!("control request of {} bytes", body.len());
        }
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = shared.lock();
        state.next_id += 1;
        let id = state.next_id;
        let header = Header { id, len: body.len() as u32, _pad: 0 };
        loop {
            if state.ended {
                bail!("the sandbox has ended");
            }
            if shared.try_send(&mut state, &header, &body)? {
                break;
            }
            state = shared.wait(state, deadline).context("the sentry takes no control requests")?;
        }
        state.waiting.insert(id, None);
        loop {
            match state.waiting.get_mut(&id).and_then(Option::take) {
                Some(reply) => {
                    state.waiting.remove(&id);
                    return Ok(reply);
                }
                None if state.ended => bail!("the sandbox has ended"),
                None => {}
            }
            state = match shared.wait(state, deadline) {
                Some(state) => state,
                None => {
                    shared.lock().waiting.remove(&id);
                    bail!("the sentry does not answer a control request");
                }
            };
        }
    }
}

impl Sentry {
    /// Answers what only the sentry can and answers at once. None for the rest.
    pub fn answer(&self, request: &super::Request) -> Option<super::Reply> {
        use super::{Reply as Out, Request as In};
        let limit = Duration::from_secs(10);
        let asked = match request {
            In::Signal { container, target, signo } => {
                Request::Signal { container: container.clone(), target: (*target).into(), signo: *signo }
            }
            In::Ps { container } => Request::Ps { container: container.clone() },
            In::Counters => Request::Counters,
            In::Stacks => Request::Stacks,
            In::WindowChanged { pid } => Request::WindowChanged { pid: *pid },
            In::Pause { .. } => Request::Pause,
            In::Resume { .. } => Request::Resume,
            _ => return None,
        };
        Some(match self.call(&asked, limit) {
            Ok(Reply::Done) => Out::Done,
            Ok(Reply::Error(errno)) => {
                Out::error(errno, format!("{:?}: {}", request, std::io::Error::from_raw_os_error(errno)))
            }
            Ok(Reply::Ps(processes)) => Out::Ps { processes },
            Ok(Reply::Counters(values)) => {
                let names = sentry_abi::counters::NAMES.iter().map(|name| name.to_string());
                Out::Counters { counters: names.zip(values).collect() }
            }
            Ok(Reply::Stacks(text)) => Out::Stacks { text },
            Ok(other) => Out::error(libc::EPROTO, format!("the sentry answers {other:?}")),
            Err(error) => Out::error(libc::EIO, format!("{error:#}")),
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change; none when the time is up.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, deadline: Option<Instant>) -> Option<MutexGuard<'a, State>> {
        let Some(deadline) = deadline else {
            return Some(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
        };
        let left = deadline.checked_duration_since(Instant::now())?;
        Some(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    fn try_send(&self, state: &mut State, header: &Header, body: &[u8]) -> Result<bool, QueueError> {
        let Some([requests, _]) = &mut state.queues else { return Ok(false) };
        let sent = match requests.pop()? {
            Some(mut chain) => {
                chain.write_object(header)?;
                chain.write_all(body)?;
                requests.complete(chain)?;
                true
            }
            None => {
                requests.arm()?;
                false
            }
        };
        Ok(sent)
    }

    fn run(&self, kicks: &[EventFd; 2]) -> Result<()> {
        let events = [&self.wake, &kicks[0], &kicks[1]];
        loop {
            {
                let mut state = self.lock();
                if state.ended {
                    return Ok(());
                }
                if let Err(error) = take_replies(&mut state) {
                    log::error!("control device: {error}");
                    state.queues = None;
                }
                self.changed.notify_all();
            }
            let mut fds = events.map(|event| PollFd::from_borrowed_fd(event_descriptor(event), PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
            for (event, fd) in events.iter().zip(&fds) {
                if !fd.revents().is_empty() {
                    // Empty when it was ours: nothing to do.
                    let _ = event.read();
                }
            }
        }
    }

    fn wake(&self) {
        // Only a full counter could fail, and then the thread is awake.
        let _ = self.wake.write(1);
    }
}

fn take_replies(state: &mut State) -> Result<(), QueueError> {
    let State { queues: Some([_, replies]), waiting, .. } = state else { return Ok(()) };
    loop {
        while let Some(mut chain) = replies.pop()? {
            let header: Header = chain.read_object()?;
            let len = (header.len as usize).min(BUFFER);
            let reply = chain.read_vec(len).ok().and_then(|body| postcard::from_bytes(&body).ok());
            replies.complete(chain)?;
            // A reply that nobody waits for (any more) is dropped.
            if let Some(slot) = waiting.get_mut(&header.id) {
                *slot = Some(reply.unwrap_or(Reply::Error(libc::EPROTO)));
            }
        }
        if !replies.arm()? {
            return Ok(());
        }
    }
}

impl Backend for ControlBackend {
    fn device_id(&self) -> u32 {
        device_id::CONTROL
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn activate(&mut self, queues: &[QueueSetup], features: u64) -> Result<()> {
        let shared = &self.shared;
        let make = |setup: &QueueSetup| -> Result<DeviceQueue> {
            Ok(DeviceQueue::new(shared.memory.clone(), *setup, features, shared.call.try_clone()?)?)
        };
        let [requests, replies] = queues else { bail!("{} queues", queues.len()) };
        shared.lock().queues = Some([make(requests)?, make(replies)?]);
        shared.wake();
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.lock().queues = None;
    }
}

impl Drop for ControlBackend {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        self.shared.wake();
    }
}

#[cfg(test)]
mod tests {
    use sentry_abi::{control::Target, virtio::feature};
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;
    use crate::virtio::{Transport, test_driver};

    #[test]
    fn a_request_reaches_the_sentry_and_its_reply_the_caller() {
        let device_fd = test_driver::memfd();
        let mut requests = test_driver::Driver::new(&device_fd, QUEUE_SIZE, 0);
        let mut replies = test_driver::Driver::new(&device_fd, QUEUE_SIZE, 1);
        let (kicks, call) = Transport::events(2).unwrap();
        let clones = [kicks[0].try_clone().unwrap(), kicks[1].try_clone().unwrap()];
        let (mut backend, sentry) = spawn(ControlConfig { device_fd, kicks: clones, call }).unwrap();
        assert!(sentry.call(&Request::Counters, Duration::from_millis(5)).is_err());
        backend.activate(&[requests.setup, replies.setup], feature::EVENT_IDX).unwrap();

        let request = Request::Signal { container: "c".into(), target: Target::All, signo: 15 };
        let expected = request.clone();
        let caller = std::thread::spawn(move || {
            let reply = sentry.call(&request, Duration::from_secs(5)).unwrap();
            (reply, sentry)
        });
        requests.submit(&[], 4096);
        kicks[0].write(1).unwrap();
        let message = loop {
            match requests.take(4096) {
                Some(message) => break message,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let (header, body) = Header::read_from_prefix(&message).unwrap();
        assert_eq!(postcard::from_bytes::<Request>(body).unwrap(), expected);
        let reply = postcard::to_allocvec(&Reply::Error(3)).unwrap();
        // A reply to nobody first.
        for id in [header.id + 9, header.id] {
            let head = Header { id, len: reply.len() as u32, _pad: 0 };
            replies.submit(&[head.as_bytes(), &reply].concat(), 0);
            kicks[1].write(1).unwrap();
            while replies.take(0).is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let (reply, sentry) = caller.join().unwrap();
        assert_eq!(reply, Reply::Error(3));
        drop(backend);
        assert!(sentry.call(&Request::Counters, Duration::from_secs(5)).is_err());
    }
}
