//! The device's thread: requests, subscriptions, events.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Weak,
        mpsc::{Receiver, Sender, channel},
    },
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use sentry_abi::{
    console::{Event, MAX_DATA, Op, REQUEST_QUEUE_SIZE, Request, Response},
    virtio::device_id,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use super::{ioctl, stream::Stream};
use crate::virtio::{
    Backend, BadChain, Chain, DeviceMemory, DeviceQueue, QueueError, QueueSetup, Spinner, device_memory,
    event_descriptor,
};

const QUEUE_SIZES: [u16; 2] = [REQUEST_QUEUE_SIZE, sentry_abi::console::EVENT_QUEUE_SIZE];
/// Requests served before streams are looked at again.
const BATCH: usize = 64;
/// Streams there may be at a time.
const MAX_STREAMS: usize = 8192;

pub struct ConsoleConfig {
    /// By the index that the container's configuration names.
    pub streams: Vec<Stream>,
    /// The memfd of device memory.
    pub device_fd: OwnedFd,
    /// Doorbells of the request and event queues, and completions; all non-blocking.
    pub kicks: [EventFd; 2],
    pub call: EventFd,
}

enum Message {
    Activate(Vec<QueueSetup>, u64),
    Reset,
    /// New streams; their indices, or the streams back when there is no room.
    Add(Vec<Stream>, Sender<Option<Vec<u32>>>),
    Remove(Vec<u32>),
}

/// Adds streams to a running device; cheap to clone.
#[derive(Clone)]
pub struct Streams {
    messages: Sender<Message>,
    wake: Arc<EventFd>,
}

impl Streams {
    fn send(&self, message: Message) -> Result<()> {
        self.messages.send(message).ok().context("the console thread has ended")?;
        self.wake.write(1).context("waking the console thread")
    }

    /// The indices that the sentry names them by.
    pub fn add(&self, streams: Vec<Stream>) -> Result<Vec<u32>> {
        let (answer, answered) = channel();
        self.send(Message::Add(streams, answer))?;
        answered.recv().context("the console thread has ended")?.context("the sandbox has too many streams")
    }

    /// Takes back what the sentry was not told about.
    pub fn remove(&self, indices: Vec<u32>) {
        // A thread that has ended has no streams.
        let _ = self.send(Message::Remove(indices));
    }
}

/// What stands behind the register page: passes the queues to the device's thread.
pub struct ConsoleBackend {
    thread: Streams,
    /// Dropped with the backend, which ends the thread.
    _alive: Arc<()>,
}

impl ConsoleBackend {
    pub fn streams(&self) -> Streams {
        self.thread.clone()
    }
}

impl Backend for ConsoleBackend {
    fn device_id(&self) -> u32 {
        device_id::CONSOLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, queues: &[QueueSetup], features: u64) -> Result<()> {
        self.thread.send(Message::Activate(queues.to_vec(), features))
    }

    fn reset(&mut self) {
        // A thread that has ended serves no queue either.
        let _ = self.thread.send(Message::Reset);
    }
}

/// Starts the device's thread; it ends when the backend is dropped.
pub fn spawn(config: ConsoleConfig) -> Result<ConsoleBackend> {
    let streams = config.streams.into_iter().map(Some).collect();
    let memory = device_memory(config.device_fd.as_fd())?;
    let (messages, receiver) = channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).context("eventfd")?);
    let alive = Arc::new(());
    let mut device = Device {
        memory,
        streams,
        messages: receiver,
        backend: Arc::downgrade(&alive),
        wake: wake.clone(),
        kicks: config.kicks,
        call: config.call,
        queues: None,
        spinner: Spinner::default(),
    };
    std::thread::Builder::new()
        .name("console".into())
        .stack_size(128 << 10)
        .spawn(move || {
            if let Err(error) = device.run() {
                log::error!("console: {error:#}");
            }
        })
        .context("console thread")?;
    Ok(ConsoleBackend { thread: Streams { messages, wake }, _alive: alive })
}

impl Drop for ConsoleBackend {
    fn drop(&mut self) {
        self._alive = Arc::default();
        // So that the thread sees its owner gone. Only a full counter could fail, and then it is awake.
        let _ = self.thread.wake.write(1);
    }
}

struct Device {
    memory: DeviceMemory,
    streams: Vec<Option<Stream>>,
    messages: Receiver<Message>,
    backend: Weak<()>,
    wake: Arc<EventFd>,
    kicks: [EventFd; 2],
    call: EventFd,
    /// Requests and events.
    queues: Option<[DeviceQueue; 2]>,
    spinner: Spinner,
}

impl Device {
    fn run(&mut self) -> Result<()> {
        loop {
            if let Err(error) = self.serve() {
                log::error!("console: {error}");
                self.queues = None;
            }
            if !self.sleep()? {
                return Ok(());
            }
        }
    }

    fn serve(&mut self) -> Result<(), QueueError> {
        self.send_events()?;
        let Some([requests, _]) = &mut self.queues else { return Ok(()) };
        for _ in 0..BATCH {
            if let Some(mut chain) = requests.pop()? {
                answer(&mut self.streams, &mut chain)?;
                requests.complete(chain)?;
            } else if !self.spinner.spin(|| requests.pending())? && !requests.arm()? {
                return Ok(());
            }
        }
        // More may be there: the doorbell is rung for ourselves.
        let _ = self.kicks[0].write(1);
        Ok(())
    }

    fn send_events(&mut self) -> Result<(), QueueError> {
        let Some([_, events]) = &mut self.queues else { return Ok(()) };
        for (index, stream) in self.streams.iter_mut().enumerate() {
            let Some(stream) = stream else { continue };
            while !stream.pending.is_empty() {
                let Some(mut chain) = events.pop()? else {
                    // Without a buffer it stays pending until the sentry gives one.
                    if events.arm()? {
                        continue;
                    }
                    return Ok(());
                };
                let bits = std::mem::replace(&mut stream.pending, PollFlags::empty()).bits();
                chain.write_object(&Event { index: index as u32, events: bits.into() })?;
                events.complete(chain)?;
            }
        }
        Ok(())
    }

    /// Sleeps until there is something to do; false when the backend is gone.
    fn sleep(&mut self) -> Result<bool> {
        let (wake, kicks) = (event_descriptor(&self.wake), [&self.kicks[0], &self.kicks[1]].map(event_descriptor));
        let mut fds = vec![PollFd::from_borrowed_fd(wake, PollFlags::IN)];
        fds.extend(kicks.map(|kick| PollFd::from_borrowed_fd(kick, PollFlags::IN)));
        let fixed = fds.len();
        let mut watched = Vec::new();
        for (index, stream) in self.streams.iter().enumerate() {
            if let Some(stream) = stream
                && !stream.interest.is_empty()
            {
                fds.push(PollFd::from_borrowed_fd(stream.fd(), stream.interest));
                watched.push(index);
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let fired = fds.iter().map(|fd| fd.revents()).collect::<Vec<_>>();
        drop(fds);
        let events = [&*self.wake, &self.kicks[0], &self.kicks[1]];
        for (event, revents) in events.into_iter().zip(&fired[..fixed]) {
            if !revents.is_empty() {
                // Empty when it was ours: nothing to do.
                let _ = event.read();
            }
        }
        for (index, revents) in watched.into_iter().zip(&fired[fixed..]) {
            if let Some(stream) = &mut self.streams[index]
                && !revents.is_empty()
            {
                stream.interest = PollFlags::empty();
                stream.pending |= *revents;
            }
        }
        loop {
            match self.messages.try_recv() {
                Ok(Message::Activate(setups, features)) => self.activate(&setups, features),
                Ok(Message::Reset) => self.queues = None,
                // Who asked may have given up.
                Ok(Message::Add(streams, answer)) => drop(answer.send(self.add(streams))),
                Ok(Message::Remove(indices)) => {
                    for index in indices {
                        if let Some(slot) = self.streams.get_mut(index as usize) {
                            *slot = None;
                        }
                    }
                }
                Err(_) => return Ok(self.backend.strong_count() > 0),
            }
        }
    }

    /// None when there are too many.
    fn add(&mut self, new: Vec<Stream>) -> Option<Vec<u32>> {
        let used = self.streams.iter().flatten().count();
        if used + new.len() > MAX_STREAMS {
            return None;
        }
        let mut free = 0;
        let mut indices = Vec::with_capacity(new.len());
        for stream in new {
            while self.streams.get(free).is_some_and(Option::is_some) {
                free += 1;
            }
            match self.streams.get_mut(free) {
                Some(slot) => *slot = Some(stream),
                None => self.streams.push(Some(stream)),
            }
            indices.push(free as u32);
        }
        Some(indices)
    }

    fn activate(&mut self, setups: &[QueueSetup], features: u64) {
        let make = |setup: &QueueSetup| -> Result<DeviceQueue> {
            Ok(DeviceQueue::new(self.memory.clone(), *setup, features, self.call.try_clone()?)?)
        };
        self.queues = match setups {
            [requests, events] => make(requests)
                .and_then(|requests| Ok([requests, make(events)?]))
                .inspect_err(|error| log::error!("console: {error:#}"))
                .ok(),
            _ => None,
        };
    }
}

/// Answers one request. An error is a chain that cannot carry the answer.
fn answer(streams: &mut [Option<Stream>], chain: &mut Chain) -> Result<(), BadChain> {
    let request: Request = chain.read_object()?;
    let head = chain.reserve(size_of::<Response>())?;
    let result = match serve(streams, &request, chain) {
        Ok(value) => value,
        Err(error) => {
            chain.rewind();
            chain.reserve(size_of::<Response>())?;
            -i64::from(error.raw_os_error())
        }
    };
    chain.fill(&head, Response { result }.as_bytes())
}

fn serve(streams: &mut [Option<Stream>], request: &Request, chain: &mut Chain) -> Result<i64, Errno> {
    let slot = streams.get_mut(request.index as usize).ok_or(Errno::BADF)?;
    let stream = slot.as_mut().ok_or(Errno::BADF)?;
    let len = request.len.min(MAX_DATA) as usize;
    let offset = if request.offset < 0 { None } else { Some(request.offset) };
    match Op::from_raw(request.op).ok_or(Errno::NOSYS)? {
        Op::Read => Ok(stream.read(chain, len.min(chain.writable()), offset)? as i64),
        Op::Write => Ok(stream.write(chain, len.min(chain.readable()), offset)? as i64),
        Op::Poll => {
            let mask = PollFlags::from_bits_truncate(request.arg as u16);
            let ready = stream.poll(mask)?;
            if !mask.difference(ready).is_empty() && ready.is_empty() {
                stream.interest |= mask;
            }
            Ok(ready.bits().into())
        }
        Op::Ioctl => {
            let mut data = [0; 36];
            let given = chain.readable().min(data.len());
            chain.read_exact(&mut data[..given]).map_err(|_| Errno::INVAL)?;
            let back = ioctl::perform(stream.fd(), request.arg, request.offset, &mut data)?;
            chain.write_all(&data[..back]).map_err(|_| Errno::INVAL)?;
            Ok(0)
        }
        Op::Seek => Ok(stream.seek(request.offset, request.arg)? as i64),
        Op::GetFlags => Ok(stream.flags().bits().into()),
        Op::Truncate => {
            let size = u64::try_from(request.offset).map_err(|_| Errno::INVAL)?;
            rustix::fs::ftruncate(stream.fd(), size).map(|()| 0)
        }
        Op::Stat => {
            let stat = stream.stat()?;
            chain.write_object(&stat).map_err(|_| Errno::INVAL)?;
            Ok(0)
        }
        Op::Sync => rustix::fs::fsync(stream.fd()).map(|()| 0),
        Op::Close => {
            *slot = None;
            Ok(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
    };

    use sentry_abi::virtio::feature;

    use super::*;
    use crate::virtio::{Transport, test_driver};

    struct Client {
        requests: test_driver::Driver,
        events: test_driver::Driver,
        kicks: Vec<EventFd>,
        call: EventFd,
        _backend: ConsoleBackend,
    }

    fn client(streams: Vec<OwnedFd>) -> Client {
        let device_fd = test_driver::memfd();
        let requests = test_driver::Driver::new(&device_fd, REQUEST_QUEUE_SIZE, 0);
        let events = test_driver::Driver::new(&device_fd, REQUEST_QUEUE_SIZE, 1);
        let (kicks, call) = Transport::events(2).unwrap();
        let clones = [kicks[0].try_clone().unwrap(), kicks[1].try_clone().unwrap()];
        let streams = streams.into_iter().map(|fd| Stream::new(fd).unwrap()).collect();
        let config = ConsoleConfig { streams, device_fd, kicks: clones, call: call.try_clone().unwrap() };
        let mut backend = spawn(config).unwrap();
        backend.activate(&[requests.setup, events.setup], feature::EVENT_IDX).unwrap();
        Client { requests, events, kicks, call, _backend: backend }
    }

    impl Client {
        fn call(&mut self, op: Op, arg: u64, offset: i64, data: &[u8], len: u32) -> (i64, Vec<u8>) {
            let request = Request { op: op as u32, arg, offset, len, ..Default::default() };
            let bytes = [request.as_bytes(), data].concat();
            let room = if op == Op::Read || op == Op::Stat || op == Op::Ioctl { len as usize } else { 0 };
            let mut answer = self.requests.call(&self.kicks[0], &self.call, &bytes, 8 + room);
            let data = answer.split_off(8);
            (i64::from_le_bytes(answer.try_into().unwrap()), data)
        }

        fn read(&mut self, len: u32) -> (i64, Vec<u8>) {
            self.call(Op::Read, 0, -1, &[], len)
        }

        fn write(&mut self, data: &[u8]) -> i64 {
            self.call(Op::Write, 0, -1, data, data.len() as u32).0
        }
    }

    const AGAIN: i64 = -(libc::EAGAIN as i64);

    #[test]
    fn an_idle_pipe_is_subscribed_to_and_then_read() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let shared = reader.try_clone().unwrap();
        let mut c = client(vec![reader]);
        assert_eq!(c.read(100).0, AGAIN);
        let readable = u64::from(PollFlags::IN.bits());
        assert_eq!(c.call(Op::Poll, readable, 0, &[], 0).0, 0);
        // An event buffer, and data afterwards.
        c.events.want_event();
        c.events.submit(&[], 16);
        c.kicks[1].write(1).unwrap();
        rustix::io::write(&writer, b"data").unwrap();
        let event = loop {
            match c.events.take(16) {
                Some(event) => break event,
                None => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        };
        assert_eq!(event, Event { index: 0, events: u32::from(PollFlags::IN.bits()) }.as_bytes());
        assert_eq!(c.call(Op::Poll, readable, 0, &[], 0).0, 1);
        assert_eq!(c.read(100), (4, b"data".to_vec()));
        drop(writer);
        assert_eq!(c.read(100).0, 0);
        // Our own flags were never put on the description that others have.
        assert!(!rustix::fs::fcntl_getfl(&shared).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }

    #[test]
    fn a_full_pipe_does_not_block() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut c = client(vec![writer]);
        let data = vec![7; 30_000];
        let mut total = 0;
        loop {
            match c.write(&data) {
                AGAIN => break,
                n if n > 0 => total += n,
                other => panic!("{other}"),
            }
        }
        assert!(total >= 4096);
        let mut file = File::from(reader);
        let mut sink = vec![0; total as usize];
        file.read_exact(&mut sink).unwrap();
        assert!(c.write(b"more") == 4);
        drop(file);
        assert_eq!(c.write(b"x"), -i64::from(libc::EPIPE));
        assert_eq!(c.call(Op::Close, 0, 0, &[], 0).0, 0);
        assert_eq!(c.write(b"x"), -i64::from(libc::EBADF));
    }

    #[test]
    fn a_file_keeps_its_shared_offset() {
        let fd = rustix::fs::memfd_create("stream", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd.try_clone().unwrap());
        file.write_all(b"before ").unwrap();
        let mut c = client(vec![fd]);
        assert_eq!(c.write(b"sandbox "), 8);
        assert_eq!(file.stream_position().unwrap(), 15);
        file.write_all(b"after").unwrap();
        assert_eq!(c.call(Op::Seek, libc::SEEK_SET as u64, 3, &[], 0).0, 3);
        assert_eq!(c.read(4), (4, b"ore ".to_vec()));
        assert_eq!(c.call(Op::Read, 0, 0, &[], 6), (6, b"before".to_vec()));
        let (result, stat) = c.call(Op::Stat, 0, 0, &[], size_of::<sentry_abi::console::Stat>() as u32);
        assert_eq!((result, u64::from_le_bytes(stat[8..16].try_into().unwrap())), (0, 20));
        assert_eq!(c.call(Op::Truncate, 0, 6, &[], 0).0, 0);
        assert_eq!(file.metadata().unwrap().len(), 6);
        // Not a terminal.
        assert_eq!(c.call(Op::Ioctl, libc::TCGETS, 0, &[], 36).0, -i64::from(libc::ENOTTY));
    }

    #[test]
    fn a_terminal_takes_only_listed_ioctls() {
        let Ok(master) = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY) else {
            return;
        };
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let slave = rustix::fs::open(&*name, flags, rustix::fs::Mode::empty()).unwrap();
        let mut c = client(vec![slave]);
        let size = [24u16, 80, 0, 0];
        assert_eq!(c.call(Op::Ioctl, libc::TIOCSWINSZ, 0, size.as_bytes(), 0).0, 0);
        let (result, back) = c.call(Op::Ioctl, libc::TIOCGWINSZ, 0, &[], 8);
        assert_eq!((result, &back[..]), (0, size.as_bytes()));
        let (result, mut termios) = c.call(Op::Ioctl, libc::TCGETS, 0, &[], 36);
        assert_eq!((result, termios.len()), (0, 36));
        // Raw: no ICANON, no ECHO.
        termios[12] &= !(libc::ICANON | libc::ECHO) as u8;
        assert_eq!(c.call(Op::Ioctl, libc::TCSETSF, 0, &termios, 0).0, 0);
        assert_eq!(c.read(10).0, AGAIN);
        rustix::io::write(&master, b"k").unwrap();
        assert_eq!(c.read(10), (1, b"k".to_vec()));
        for forbidden in [libc::TIOCSTI, libc::TIOCSCTTY, libc::TIOCNOTTY, libc::TIOCSETD] {
            assert_eq!(c.call(Op::Ioctl, forbidden, 0, b"x", 0).0, -i64::from(libc::ENOTTY));
        }
    }
}
