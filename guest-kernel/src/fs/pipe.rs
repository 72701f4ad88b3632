//! Pipes and FIFOs (pipe(7)): a ring of bytes with readers and writers.

use alloc::{
    collections::VecDeque,
    format,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hashbrown::HashMap;

use super::{File, FileOps, FileType, Inode, OpenFlags, anon, poll, ring::Ring};
use crate::{
    errno::{EAGAIN, EBUSY, EINVAL, ENOTTY, ENXIO, EPERM, EPIPE, Error, Restart, Result},
    mm::{
        io::{IoDst, IoSrc},
        user::{UserAddr, UserPtr},
    },
    sync::{Mutex, PollTable, SpinLock, WaitQueue},
    task::{Current, creds::Creds},
};

/// Writes up to this size are not mixed with others.
pub const PIPE_BUF: usize = 4096;
const DEFAULT_CAPACITY: usize = 64 << 10;
/// /proc/sys/fs/pipe-max-size.
pub const MAX_CAPACITY: usize = 1 << 20;

/// A piece of what a pipe holds: bytes that flow together, or one packet (O_DIRECT).
struct Piece {
    len: usize,
    packet: bool,
}

/// What a pipe holds.
struct Content {
    ring: Ring,
    /// Empty while there are no packets.
    pieces: VecDeque<Piece>,
}

impl Content {
    fn room(&self) -> usize {
        // A packet takes a page of what Linux counts, however short it is.
        if self.pieces.len() >= self.ring.capacity() / PIPE_BUF { 0 } else { self.ring.room() }
    }

    /// Writes `len` bytes, which must fit.
    fn write(&mut self, src: &mut IoSrc<'_>, len: usize, packet: bool) -> Result<usize> {
        let before = self.ring.len();
        let n = self.ring.write(src, len)?;
        if n == 0 || !packet && self.pieces.is_empty() {
            return Ok(n);
        }
        if self.pieces.is_empty() && before > 0 {
            self.pieces.push_back(Piece { len: before, packet: false });
        }
        match self.pieces.back_mut() {
            Some(last) if !last.packet && !packet => last.len += n,
            _ => self.pieces.push_back(Piece { len: n, packet }),
        }
        Ok(n)
    }

    /// Reads from the first piece only. What a packet's reader does not take is lost.
    fn read(&mut self, dst: &mut IoDst<'_>) -> Result<usize> {
        let Some(piece) = self.pieces.front_mut() else { return self.ring.read(dst) };
        let done = self.ring.peek(0, piece.len, dst)?;
        let gone = if piece.packet { piece.len } else { done };
        piece.len -= gone;
        if piece.len == 0 {
            self.pieces.pop_front();
        }
        self.ring.consume(gone);
        Ok(done)
    }
}

#[derive(Default)]
struct Ends {
    readers: usize,
    writers: usize,
    /// How many were ever opened: an open of a FIFO waits for these to move.
    reader_count: u64,
    writer_count: u64,
}

pub struct Pipe {
    content: Mutex<Content>,
    ends: SpinLock<Ends>,
    /// Readers wait for bytes, writers for room, and both for each other's opening.
    readable: Arc<WaitQueue>,
    writable: Arc<WaitQueue>,
}

impl Pipe {
    fn new() -> Arc<Self> {
        Arc::new(Pipe {
            content: Mutex::new(Content { ring: Ring::new(DEFAULT_CAPACITY), pieces: VecDeque::new() }),
            ends: SpinLock::new(Ends::default()),
            readable: Arc::new(WaitQueue::new()),
            writable: Arc::new(WaitQueue::new()),
        })
    }

    fn has_readers(&self) -> bool {
        self.ends.lock().readers > 0
    }

    fn has_writers(&self) -> bool {
        self.ends.lock().writers > 0
    }

    fn end(self: &Arc<Self>, flags: OpenFlags) -> Arc<PipeEnd> {
        let (read, write) = (flags.readable(), flags.writable());
        {
            let mut ends = self.ends.lock();
            ends.readers += usize::from(read);
            ends.writers += usize::from(write);
            ends.reader_count += u64::from(read);
            ends.writer_count += u64::from(write);
        }
        self.readable.wake_all();
        self.writable.wake_all();
        Arc::new(PipeEnd { pipe: self.clone(), read, write, no_hangup_at: AtomicU64::new(u64::MAX) })
    }

    /// tee(2): up to `max` bytes from the front, which stay; None when a reader would have to wait.
    pub fn try_peek(&self, max: usize) -> Option<Result<Vec<u8>>> {
        let content = self.content.lock();
        if content.ring.is_empty() && self.has_writers() {
            return None;
        }
        let mut bytes = alloc::vec![0; max.min(content.ring.len())];
        let copied = content.ring.peek(0, bytes.len(), &mut IoDst::kernel(&mut bytes));
        Some(copied.map(|_| bytes))
    }

    /// Waits until [`Pipe::try_peek`] gives something.
    pub fn wait_peek(&self, max: usize) -> Result<Vec<u8>> {
        self.readable.wait_until(|| self.try_peek(max))?
    }

    /// Bytes waiting, for FIONREAD.
    pub fn len(&self) -> usize {
        self.content.lock().ring.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// F_GETPIPE_SZ.
    pub fn capacity(&self) -> usize {
        self.content.lock().ring.capacity()
    }

    /// F_SETPIPE_SZ: rounded up; returns what it became.
    pub fn set_capacity(&self, wanted: usize, privileged: bool) -> Result<usize> {
        if wanted > MAX_CAPACITY {
            return Err(if privileged { EINVAL } else { EPERM });
        }
        let capacity = wanted.max(PIPE_BUF).next_power_of_two();
        let mut content = self.content.lock();
        if content.ring.len() > capacity {
            return Err(EBUSY);
        }
        content.ring.set_capacity(capacity);
        drop(content);
        self.writable.wake(poll::OUT);
        Ok(capacity)
    }

    /// One attempt: None when a reader would have to wait.
    fn try_read(&self, dst: &mut IoDst<'_>) -> Option<Result<usize>> {
        if dst.remaining() == 0 {
            return Some(Ok(0));
        }
        let mut content = self.content.lock();
        if content.ring.is_empty() {
            return if self.has_writers() { None } else { Some(Ok(0)) };
        }
        let result = content.read(dst);
        drop(content);
        if matches!(result, Ok(n) if n > 0) {
            self.writable.wake(poll::OUT | poll::WRNORM);
        }
        Some(result)
    }

    /// One attempt: None when a writer would have to wait. `whole`: all of it or nothing. `packet`: what is written stays one.
    fn try_write(&self, src: &mut IoSrc<'_>, whole: bool, packet: bool) -> Option<Result<usize>> {
        if !self.has_readers() {
            return Some(Err(EPIPE));
        }
        let mut content = self.content.lock();
        let wanted = if packet { src.remaining().min(PIPE_BUF) } else { src.remaining() };
        let len = wanted.min(content.room());
        if len == 0 || (whole || packet) && len < wanted {
            return None;
        }
        let result = content.write(src, len, packet);
        drop(content);
        if matches!(result, Ok(n) if n > 0) {
            self.readable.wake(poll::IN | poll::RDNORM);
        }
        Some(result)
    }
}

/// One end (or, of a FIFO opened O_RDWR, both).
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    read: bool,
    write: bool,
    /// Of a reader that opened a FIFO without waiting for a writer: how many writers there had been. Until the next one
    /// comes, it sees no hang-up. `u64::MAX` for all others.
    no_hangup_at: AtomicU64,
}

impl PipeEnd {
    pub fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    /// Writes what there is room for, at least something unless `nonblock`.
    pub fn write_now(&self, bytes: &[u8], nonblock: bool) -> Result<usize> {
        let attempt = || self.pipe.try_write(&mut IoSrc::kernel(bytes), false, false);
        match attempt() {
            Some(result) => result,
            None if nonblock => Err(EAGAIN),
            None => self.pipe.writable.wait_until(attempt)?,
        }
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let (last_reader, last_writer) = {
            let mut ends = self.pipe.ends.lock();
            ends.readers -= usize::from(self.read);
            ends.writers -= usize::from(self.write);
            (self.read && ends.readers == 0, self.write && ends.writers == 0)
        };
        if last_reader {
            self.pipe.writable.wake_all();
        }
        if last_writer {
            self.pipe.readable.wake_all();
        }
    }
}

impl FileOps for PipeEnd {
    fn read(&self, file: &File, dst: &mut IoDst<'_>, _offset: u64) -> Result<usize> {
        if let Some(result) = self.pipe.try_read(dst) {
            return result;
        }
        if file.nonblocking() {
            return Err(EAGAIN);
        }
        self.pipe.readable.wait_until(|| self.pipe.try_read(dst))?
    }

    fn write(&self, file: &File, src: &mut IoSrc<'_>, _offset: u64) -> Result<usize> {
        if src.remaining() == 0 {
            return Ok(0);
        }
        let mut done = 0;
        loop {
            let whole = done == 0 && src.remaining() <= PIPE_BUF;
            let packet = file.flags().contains(OpenFlags::DIRECT);
            let result = match self.pipe.try_write(src, whole, packet) {
                Some(result) => result,
                None if file.nonblocking() => Err(EAGAIN),
                None => match self.pipe.writable.wait_until(|| self.pipe.try_write(src, whole, packet)) {
                    Ok(result) => result,
                    Err(interrupted) => Err(interrupted),
                },
            };
            match result {
                Ok(n) => {
                    done += n;
                    if n == 0 || src.remaining() == 0 {
                        return Ok(done);
                    }
                }
                Err(EPIPE) => return Err(EPIPE),
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
        }
    }

    fn poll(&self, _file: &File, interest: u32, table: Option<&mut PollTable>) -> u32 {
        if let Some(table) = table {
            if self.read {
                table.add(&self.pipe.readable, interest | poll::ALWAYS);
            }
            if self.write {
                table.add(&self.pipe.writable, interest | poll::ALWAYS);
            }
        }
        let (len, room) = {
            let content = self.pipe.content.lock();
            (content.ring.len(), content.room())
        };
        let (readers, writers, writer_count) = {
            let ends = self.pipe.ends.lock();
            (ends.readers, ends.writers, ends.writer_count)
        };
        let mut ready = 0;
        if self.read {
            if len > 0 {
                ready |= poll::IN | poll::RDNORM;
            }
            if writers == 0 && writer_count != self.no_hangup_at.load(Relaxed) {
                ready |= poll::HUP;
            }
        }
        if self.write {
            if room >= PIPE_BUF {
                ready |= poll::OUT | poll::WRNORM;
            }
            if readers == 0 {
                ready |= poll::ERR;
            }
        }
        ready
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, cur: &mut Current, _file: &Arc<File>, command: u32, argument: u64) -> Result<u64> {
        const FIONREAD: u32 = 0x541b;
        if command != FIONREAD {
            return Err(ENOTTY);
        }
        let len = self.pipe.len() as i32;
        cur.mm.write_value(UserPtr::new(UserAddr(argument)), &len)?;
        Ok(0)
    }
}

/// pipe2(2): the read and the write end.
pub fn pair(flags: OpenFlags, creds: &Creds) -> (Arc<File>, Arc<File>) {
    let pipe = Pipe::new();
    let again = pipe.clone();
    // Through /proc/self/fd. Unlike a FIFO's, a pipe's other side is not waited for: it may have come and gone.
    let reopen = move |flags: OpenFlags| -> Result<Arc<dyn FileOps>> { Ok(again.end(flags)) };
    let path =
        anon::path(FileType::Fifo, 0o600, creds, |ino| format!("pipe:[{ino}]"), Some(alloc::boxed::Box::new(reopen)));
    let kept = flags & (OpenFlags::NONBLOCK | OpenFlags::DIRECT);
    let read = File::new(pipe.end(OpenFlags::empty()), path.clone(), kept);
    // The reader has had its writer from the start.
    let write = File::new(pipe.end(OpenFlags::WRONLY), path, kept | OpenFlags::WRONLY);
    (read, write)
}

/// Pipes behind FIFO inodes that are open, by device and inode number.
static FIFOS: SpinLock<Option<Fifos>> = SpinLock::new(None);
type Fifos = HashMap<(u64, u64), Weak<Pipe>>;

/// Opens a FIFO of a file system.
pub fn open_fifo(inode: &Arc<dyn Inode>, flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
    let stat = inode.stat()?;
    let pipe = {
        let mut fifos = FIFOS.lock();
        let fifos = fifos.get_or_insert_default();
        match fifos.get(&(stat.dev, stat.ino)).and_then(Weak::upgrade) {
            Some(pipe) => pipe,
            None => {
                fifos.retain(|_, pipe| pipe.strong_count() > 0);
                let pipe = Pipe::new();
                fifos.insert((stat.dev, stat.ino), Arc::downgrade(&pipe));
                pipe
            }
        }
    };
    open_end(&pipe, flags)
}

/// fifo(7): waits for the other side unless O_NONBLOCK or O_RDWR.
fn open_end(pipe: &Arc<Pipe>, flags: OpenFlags) -> Result<Arc<dyn FileOps>> {
    let nonblock = flags.contains(OpenFlags::NONBLOCK);
    let (read, write) = (flags.readable(), flags.writable());
    if write && !read && nonblock && !pipe.has_readers() {
        return Err(ENXIO);
    }
    // Whether the other side is there is asked before this side shows: it may do its work and leave as soon as it is met.
    let (met, readers, writers) = {
        let ends = pipe.ends.lock();
        (if read { ends.writers > 0 } else { ends.readers > 0 }, ends.reader_count, ends.writer_count)
    };
    let end = pipe.end(flags);
    if met || read && write {
        return Ok(end);
    }
    if nonblock {
        end.no_hangup_at.store(writers, Relaxed);
        return Ok(end);
    }
    let met = || {
        let ends = pipe.ends.lock();
        // Who has come and gone meanwhile counts as well.
        let came = if read { ends.writer_count > writers } else { ends.reader_count > readers };
        came.then_some(())
    };
    let queue = if read { &pipe.readable } else { &pipe.writable };
    queue.wait_until(met).map_err(|_| Error::Restart(Restart::Sys))?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &File, bytes: &[u8]) -> Result<usize> {
        file.write(&mut IoSrc::kernel(bytes))
    }

    fn read(file: &File, len: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        let n = file.read(&mut IoDst::kernel(&mut buffer))?;
        buffer.truncate(n);
        Ok(buffer)
    }

    #[test]
    fn bytes_come_out_in_order_through_a_full_ring() {
        let (r, w) = pair(OpenFlags::NONBLOCK, &Creds::root());
        let mut sent = 0u32;
        let mut seen = 0u32;
        for round in 0..200 {
            let block: Vec<u8> = (0..1000 + round * 37).map(|i| ((sent as usize + i) % 251) as u8).collect();
            match write(&w, &block) {
                Ok(n) => sent += n as u32,
                Err(error) => assert_eq!(error, EAGAIN),
            }
            for byte in read(&r, 900 + round * 31).unwrap_or_default() {
                assert_eq!(byte, (seen % 251) as u8);
                seen += 1;
            }
        }
        assert!(sent > 65536);
    }

    #[test]
    fn a_full_pipe_holds_its_capacity_and_atomic_writes_are_whole() {
        let (r, w) = pair(OpenFlags::NONBLOCK, &Creds::root());
        assert_eq!(write(&w, &[1; 100_000]), Ok(65536));
        assert_eq!(write(&w, &[1; 1]), Err(EAGAIN));
        assert_eq!(read(&r, 100).unwrap().len(), 100);
        assert_eq!(write(&w, &[2; 101]), Err(EAGAIN));
        assert_eq!(write(&w, &[2; 100]), Ok(100));
        assert_eq!(w.poll(poll::OUT, None), 0);
    }

    #[test]
    fn packets_are_read_one_at_a_time() {
        let (r, w) = pair(OpenFlags::NONBLOCK, &Creds::root());
        assert_eq!(write(&w, b"flow"), Ok(4));
        w.set_status(OpenFlags::NONBLOCK | OpenFlags::DIRECT).unwrap();
        assert_eq!((write(&w, b"first"), write(&w, b"second")), (Ok(5), Ok(6)));
        w.set_status(OpenFlags::NONBLOCK).unwrap();
        assert_eq!((write(&w, b"on"), write(&w, b"ward")), (Ok(2), Ok(4)));
        assert_eq!(read(&r, 2).unwrap(), b"fl");
        assert_eq!(read(&r, 100).unwrap(), b"ow");
        assert_eq!(read(&r, 3).unwrap(), b"fir");
        assert_eq!(read(&r, 100).unwrap(), b"second");
        assert_eq!(read(&r, 100).unwrap(), b"onward");
        assert_eq!(read(&r, 100), Err(EAGAIN));
    }

    #[test]
    fn ends_that_close_are_seen() {
        let (r, w) = pair(OpenFlags::empty(), &Creds::root());
        assert_eq!(write(&w, b"x"), Ok(1));
        assert_eq!(r.poll(poll::IN, None), poll::IN);
        drop(w);
        assert_eq!(r.poll(poll::IN, None), poll::IN | poll::HUP);
        assert_eq!(read(&r, 10).unwrap(), b"x");
        assert_eq!(read(&r, 10).unwrap(), b"");
        let (r, w) = pair(OpenFlags::empty(), &Creds::root());
        drop(r);
        assert_eq!(write(&w, b"x"), Err(EPIPE));
        assert_ne!(w.poll(0, None) & poll::ERR, 0);
    }
}
