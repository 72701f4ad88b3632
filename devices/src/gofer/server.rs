//! Requests: decoding, dispatch and answers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{fs::FileType, io::Errno};
use sentry_abi::fuse::{self, Opcode};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    files::Files,
    nodes::{Nodes, check_name},
};
use crate::virtio::{BadChain, Chain};

pub(super) struct Server {
    pub nodes: Nodes,
    pub files: Files,
    pub socket: OwnedFd,
    /// Window handles are never used twice.
    pub next_handle: u64,
}

/// A request being served.
pub(super) struct Call<'a> {
    pub header: fuse::InHeader,
    pub chain: &'a mut Chain,
}

pub(super) type Outcome = Result<(), Errno>;

impl Call<'_> {
    pub fn arg<T: FromBytes + IntoBytes + Immutable>(&mut self) -> Result<T, Errno> {
        self.chain.read_object().map_err(|_| Errno::INVAL)
    }

    /// The rest of a request that holds names.
    pub fn rest(&mut self) -> Result<Vec<u8>, Errno> {
        let len = self.chain.readable();
        if len > fuse::MAX_REQUEST {
            return Err(Errno::INVAL);
        }
        self.chain.read_vec(len).map_err(|_| Errno::INVAL)
    }

    pub fn reply<T: IntoBytes + Immutable>(&mut self, object: &T) -> Outcome {
        self.bytes(object.as_bytes())
    }

    pub fn bytes(&mut self, data: &[u8]) -> Outcome {
        self.chain.write_all(data).map_err(|_| Errno::NOBUFS)
    }
}

/// Takes a NUL-terminated name off the front.
pub(super) fn take_name<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Errno> {
    let end = rest.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
    let name = &rest[..end];
    *rest = &rest[end + 1..];
    Ok(name)
}

impl Server {
    pub fn new(roots: impl Iterator<Item = (OwnedFd, bool)>, socket: OwnedFd) -> Result<Server, Errno> {
        Ok(Server { nodes: Nodes::new(roots)?, files: Files::new(), socket, next_handle: 1 })
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Serves one request. An error is a request that cannot be answered: the queue is broken.
    pub fn handle(&mut self, chain: &mut Chain) -> Result<(), BadChain> {
        let header: fuse::InHeader = chain.read_object()?;
        let opcode = Opcode::from_raw(header.opcode);
        if let Some(Opcode::Forget | Opcode::BatchForget | Opcode::BatchRelease) = opcode {
            // Not answered; a malformed one forgets nothing.
            let _ = self.forget(&mut Call { header, chain });
            return Ok(());
        }
        let head_len = size_of::<fuse::OutHeader>();
        let head = chain.reserve(head_len)?;
        let outcome = match opcode {
            Some(opcode) => self.dispatch(opcode, &mut Call { header, chain }),
            None => Err(Errno::NOSYS),
        };
        let error = match outcome {
            Ok(()) => 0,
            Err(errno) => {
                chain.rewind();
                chain.reserve(head_len)?;
                -errno.raw_os_error()
            }
        };
        let answer = fuse::OutHeader { len: chain.written(), error, unique: header.unique };
        chain.fill(&head, answer.as_bytes())
    }

    fn dispatch(&mut self, opcode: Opcode, call: &mut Call<'_>) -> Outcome {
        match opcode {
            Opcode::Init => self.init(call),
            Opcode::Lookup => self.lookup(call),
            Opcode::Walk => self.walk(call),
            Opcode::Forget | Opcode::BatchForget | Opcode::BatchRelease => Ok(()),
            Opcode::GetAttr => self.get_attr(call),
            Opcode::SetAttr => self.set_attr(call),
            Opcode::ReadLink => self.read_link(call),
            Opcode::StatFs => self.stat_fs(call),
            Opcode::Symlink => self.symlink(call),
            Opcode::MkNod => self.mknod(call),
            Opcode::MkDir => self.mkdir(call),
            Opcode::Unlink => self.unlink(call, false),
            Opcode::RmDir => self.unlink(call, true),
            Opcode::Rename2 => self.rename(call),
            Opcode::Link => self.link(call),
            Opcode::ReadDir => self.read_dir(call, false),
            Opcode::ReadDirPlus => self.read_dir(call, true),
            Opcode::Open => self.open(call),
            Opcode::Create => self.create(call),
            Opcode::Release => self.release(call),
            Opcode::Read => self.read(call),
            Opcode::Write => self.write(call),
            Opcode::FSync => self.fsync(call),
            Opcode::FAllocate => self.fallocate(call),
            Opcode::LSeek => self.lseek(call),
            Opcode::Share => self.share(call),
            Opcode::SetXattr => self.set_xattr(call),
            Opcode::GetXattr => self.get_xattr(call),
            Opcode::ListXattr => self.list_xattr(call),
            Opcode::RemoveXattr => self.remove_xattr(call),
        }
    }

    fn init(&mut self, call: &mut Call<'_>) -> Outcome {
        let wanted: fuse::InitIn = call.arg()?;
        if wanted.major != fuse::MAJOR {
            return Err(Errno::PROTO);
        }
        call.reply(&fuse::InitOut {
            major: fuse::MAJOR,
            minor: fuse::MINOR,
            max_write: fuse::MAX_DATA,
            time_gran: 1,
            max_pages: (fuse::MAX_DATA >> 12) as u16,
            ..Default::default()
        })
    }

    fn forget(&mut self, call: &mut Call<'_>) -> Outcome {
        if call.header.opcode == Opcode::Forget as u32 {
            let arg: fuse::ForgetIn = call.arg()?;
            self.nodes.forget(call.header.nodeid, arg.nlookup);
            return Ok(());
        }
        let arg: fuse::BatchForgetIn = call.arg()?;
        if call.header.opcode == Opcode::BatchRelease as u32 {
            for _ in 0..arg.count {
                self.files.close(call.arg()?);
            }
            return Ok(());
        }
        for _ in 0..arg.count {
            let one: fuse::ForgetOne = call.arg()?;
            self.nodes.forget(one.nodeid, one.nlookup);
        }
        Ok(())
    }

    fn lookup(&mut self, call: &mut Call<'_>) -> Outcome {
        let rest = call.rest()?;
        let name = check_name(take_name(&mut &rest[..])?)?;
        let (id, stat) = self.nodes.lookup(call.header.nodeid, name)?;
        let entry = self.nodes.entry(id, &stat);
        call.reply(&entry)
    }

    fn walk(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::WalkIn = call.arg()?;
        if arg.count as usize > fuse::MAX_WALK {
            return Err(Errno::INVAL);
        }
        let names = call.rest()?;
        let mut names = &names[..];
        let head = call.chain.reserve(size_of::<fuse::WalkOut>()).map_err(|_| Errno::NOBUFS)?;
        let mut out = fuse::WalkOut::default();
        let mut at = call.header.nodeid;
        let mut kind = if arg.count == 0 { self.nodes.kind(at)? } else { FileType::Directory };
        for _ in 0..arg.count {
            if kind != FileType::Directory {
                break;
            }
            let name = take_name(&mut names)?;
            if call.chain.writable() < size_of::<fuse::EntryOut>() {
                out.stopped = -Errno::NOBUFS.raw_os_error();
                break;
            }
            match self.nodes.lookup(at, name) {
                Ok((id, stat)) => {
                    let entry = self.nodes.entry(id, &stat);
                    call.reply(&entry)?;
                    out.found += 1;
                    at = id;
                    kind = FileType::from_raw_mode(stat.st_mode);
                }
                Err(error) => {
                    out.stopped = -error.raw_os_error();
                    break;
                }
            }
        }
        if out.found > 0 && kind == FileType::Symlink {
            let target = self.link_target(at)?;
            // A target that does not fit is asked for by itself.
            if call.bytes(&target).is_ok() {
                out.data_len = target.len() as u32;
            }
        }
        let whole = out.found == arg.count;
        if whole && arg.flags & fuse::walk::OPEN != 0 && kind == FileType::RegularFile {
            match self.open_node(at, arg.open_flags) {
                Ok(fh) => {
                    out.fh = fh;
                    if arg.flags & fuse::walk::SHARE != 0 {
                        out.handle = self.share_file(fh).unwrap_or(0);
                    }
                    if arg.flags & fuse::walk::DATA != 0 {
                        let room = call.chain.writable();
                        let file = self.files.get(fh)?;
                        // What cannot be read now fails when it is read by itself.
                        out.data_len = call.chain.read_from(file.as_fd(), room, Some(0), 0).unwrap_or(0) as u32;
                    }
                }
                Err(error) => out.open_error = -error.raw_os_error(),
            }
        }
        call.chain.fill(&head, out.as_bytes()).map_err(|_| Errno::NOBUFS)
    }
}
