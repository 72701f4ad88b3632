//! Requests to the gofer and their answers.

use alloc::{sync::Arc, vec::Vec};

use sentry_abi::fuse::{self, Opcode};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    counters::{Counter, count},
    drivers::virtio::{Buffer, Queue},
    errno::{EIO, ENAMETOOLONG, Errno, Error, Result},
    mm::dma::DmaBuffer,
    sync::SpinLock,
};

/// A request buffer: the request in its first half, the answer in the second.
const HALF: usize = 8 << 10;
const OUT: usize = size_of::<fuse::OutHeader>();
/// Request buffers kept for reuse.
const POOL: usize = 8;
/// Forgotten nodes and closed files are told to the gofer in batches of this many.
const FORGET_BATCH: usize = 64;
const RELEASE_BATCH: usize = 16;

/// Who owns what a request makes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Connection to the gofer; one for all mounts.
pub struct Client {
    queue: Arc<Queue>,
    pool: SpinLock<Vec<DmaBuffer>>,
    pending: SpinLock<Pending>,
}

/// What the gofer is told with the next request: nobody waits for it.
#[derive(Default)]
struct Pending {
    forgets: Vec<fuse::ForgetOne>,
    releases: Vec<u64>,
    changes: Vec<(u64, fuse::SetAttrIn)>,
    /// One of the files was open for writing: it is not kept open longer than need be.
    urgent: bool,
}

/// An answer without its header.
pub struct Reply<'a> {
    client: &'a Client,
    buffer: Option<DmaBuffer>,
    len: usize,
}

/// Where an answer's data goes, or a request's data comes from, beside the request buffer.
pub enum Data<'a> {
    None,
    /// `len` bytes from the start are sent.
    Out(&'a DmaBuffer, usize),
    /// The answer goes on here, at most `len` bytes.
    In(&'a DmaBuffer, usize),
}

impl Client {
    pub fn new(queue: Arc<Queue>) -> Arc<Client> {
        Arc::new(Client { queue, pool: SpinLock::default(), pending: SpinLock::default() })
    }

    /// Greets the gofer.
    pub fn init(&self) -> Result<()> {
        let arg = fuse::InitIn { major: fuse::MAJOR, minor: fuse::MINOR, ..Default::default() };
        let answer: fuse::InitOut = self.call(Opcode::Init, 0, Owner::default(), &[arg.as_bytes()])?.object()?;
        if answer.major == fuse::MAJOR { Ok(()) } else { Err(EIO) }
    }

    /// One request; `args` are concatenated.
    pub fn call(&self, opcode: Opcode, node: u64, owner: Owner, args: &[&[u8]]) -> Result<Reply<'_>> {
        self.call_with(opcode, node, owner, args, HALF, Data::None)
    }

    /// One request with at most `room` bytes of answer in the request buffer, and data.
    pub fn call_with(
        &self,
        opcode: Opcode,
        node: u64,
        owner: Owner,
        args: &[&[u8]],
        room: usize,
        data: Data<'_>,
    ) -> Result<Reply<'_>> {
        self.flush_pending();
        self.send(opcode, node, owner, args, room, data)
    }

    fn send(
        &self,
        opcode: Opcode,
        node: u64,
        owner: Owner,
        args: &[&[u8]],
        room: usize,
        data: Data<'_>,
    ) -> Result<Reply<'_>> {
        count(Counter::GoferRequests);
        let buffer = self.pool.lock().pop();
        let buffer = match buffer {
            Some(buffer) => buffer,
            None => DmaBuffer::new(2 * HALF)?,
        };
        let mut reply = Reply { client: self, buffer: None, len: 0 };
        let mut at = size_of::<fuse::InHeader>();
        for arg in args {
            if at + arg.len() > HALF {
                return Err(ENAMETOOLONG);
            }
            buffer.write(at, arg);
            at += arg.len();
        }
        let out = if let Data::Out(_, len) = data { len } else { 0 };
        let header = fuse::InHeader {
            len: (at + out) as u32,
            opcode: opcode as u32,
            unique: buffer.gpa(),
            nodeid: node,
            uid: owner.uid,
            gid: owner.gid,
            ..Default::default()
        };
        buffer.write_object(0, &header);
        let room = (OUT + room).min(HALF);
        let mut pieces = smallvec::SmallVec::<[Buffer; 3]>::new();
        pieces.push(Buffer { gpa: buffer.gpa(), len: at as u32, writable: false });
        if let Data::Out(data, len) = data {
            pieces.push(Buffer { gpa: data.gpa(), len: len as u32, writable: false });
        }
        let silent = matches!(opcode, Opcode::BatchForget | Opcode::BatchRelease);
        if !silent {
            pieces.push(Buffer { gpa: buffer.gpa() + HALF as u64, len: room as u32, writable: true });
        }
        let mut most = room;
        if let Data::In(data, len) = data {
            pieces.push(Buffer { gpa: data.gpa(), len: len as u32, writable: true });
            most += len;
        }
        let len = self.queue.submit(&pieces)?.wait() as usize;
        let answer: fuse::OutHeader = buffer.read_object(HALF);
        reply.buffer = Some(buffer);
        if silent {
            return Ok(reply);
        }
        if len < OUT || len > most || answer.unique != header.unique || answer.len as usize != len {
            return Err(EIO);
        }
        match answer.error {
            0 => {}
            error @ -4095..0 => return Err(Error::Errno(Errno(-error as u16))),
            _ => return Err(EIO),
        }
        reply.len = len - OUT;
        Ok(reply)
    }

    /// `nlookup` look-ups of a node are not held any more. Told later: may be called anywhere.
    pub fn forget(&self, nodeid: u64, nlookup: u64) {
        self.pending.lock().forgets.push(fuse::ForgetOne { nodeid, nlookup });
    }

    /// An open file is not needed any more. Told later: may be called anywhere.
    pub fn release(&self, fh: u64, writable: bool) {
        let mut pending = self.pending.lock();
        pending.releases.push(fh);
        pending.urgent |= writable;
    }

    /// Changes attributes of a node with the next request: may be called anywhere.
    pub fn change_later(&self, nodeid: u64, change: fuse::SetAttrIn) {
        self.pending.lock().changes.push((nodeid, change));
    }

    fn flush_pending(&self) {
        let (forgets, releases, changes) = {
            let mut pending = self.pending.lock();
            let due = |len: usize, batch: usize| len >= batch;
            let forgets = due(pending.forgets.len(), FORGET_BATCH);
            let releases = pending.urgent || due(pending.releases.len(), RELEASE_BATCH);
            let forgets = if forgets { core::mem::take(&mut pending.forgets) } else { Vec::new() };
            let releases = if releases { core::mem::take(&mut pending.releases) } else { Vec::new() };
            pending.urgent &= releases.is_empty();
            (forgets, releases, core::mem::take(&mut pending.changes))
        };
        for (node, change) in changes {
            // Nobody is there to be told of a failure.
            drop(self.send(Opcode::SetAttr, node, Owner::default(), &[change.as_bytes()], HALF, Data::None));
        }
        // What fails here stays known to the gofer, which bounds its nodes and files.
        for batch in forgets.chunks(4 * FORGET_BATCH) {
            self.tell(Opcode::BatchForget, batch.len(), batch.as_bytes());
        }
        for batch in releases.chunks(16 * RELEASE_BATCH) {
            self.tell(Opcode::BatchRelease, batch.len(), batch.as_bytes());
        }
    }

    fn tell(&self, opcode: Opcode, count: usize, items: &[u8]) {
        let arg = fuse::BatchForgetIn { count: count as u32, dummy: 0 };
        drop(self.send(opcode, 0, Owner::default(), &[arg.as_bytes(), items], 0, Data::None));
    }
}

impl Reply<'_> {
    /// Bytes of the answer, those in the request's data buffer included.
    pub fn len(&self) -> usize {
        self.len
    }

    fn read(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        match &self.buffer {
            Some(buffer) if at + bytes.len() <= self.len && OUT + at + bytes.len() <= HALF => {
                buffer.read(HALF + OUT + at, bytes);
                Ok(())
            }
            _ => Err(EIO),
        }
    }

    /// The object at `at`; EIO when the answer is too short for it.
    pub fn object_at<T: FromBytes + IntoBytes>(&self, at: usize) -> Result<T> {
        let mut object = T::new_zeroed();
        self.read(at, object.as_mut_bytes())?;
        Ok(object)
    }

    pub fn object<T: FromBytes + IntoBytes>(&self) -> Result<T> {
        self.object_at(0)
    }

    /// `len` bytes from `at`.
    pub fn bytes(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        if len > HALF {
            return Err(EIO);
        }
        let mut bytes = alloc::vec![0; len];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take() else { return };
        let mut pool = self.client.pool.lock();
        if pool.len() < POOL {
            pool.push(buffer);
        }
    }
}
