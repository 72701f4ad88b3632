//! Directories: reading them, and making, removing and renaming what is in them.

use std::{mem::MaybeUninit, os::fd::AsFd};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Stat},
    io::Errno,
};
use sentry_abi::fuse;
use zerocopy::IntoBytes;

use super::{
    nodes::{check_name, stat_at},
    server::{Call, Outcome, Server, take_name},
};

impl Server {
    /// Checks that `name` may be made or removed below the request's node.
    fn begin_change<'a>(&mut self, parent: u64, name: &'a [u8]) -> Result<&'a [u8], Errno> {
        self.nodes.check_writable(parent)?;
        if self.nodes.kind(parent)? != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        check_name(name)
    }

    /// Answers with the entry of what was just made.
    fn made(&mut self, call: &mut Call<'_>, name: &[u8], mode: u32) -> Outcome {
        let parent = call.header.nodeid;
        let dir = self.nodes.fd(parent)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new = rustix::fs::openat2(&dir, name, flags, Mode::empty(), super::nodes::BENEATH)?;
        self.give_to(new.as_fd(), dir.as_fd(), &call.header, mode)?;
        let stat = super::nodes::stat_of(new.as_fd())?;
        let id = self.nodes.enter(parent, name, &stat)?;
        let entry = self.nodes.entry(id, &stat);
        call.reply(&entry)
    }

    pub fn mkdir(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::MkDirIn = call.arg()?;
        let rest = call.rest()?;
        let name = self.begin_change(call.header.nodeid, take_name(&mut &rest[..])?)?;
        let dir = self.nodes.fd(call.header.nodeid)?;
        rustix::fs::mkdirat(&dir, name, Mode::from_bits_truncate(arg.mode & 0o7777))?;
        self.made(call, name, 0).inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR);
        })
    }

    pub fn mknod(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::MkNodIn = call.arg()?;
        let rest = call.rest()?;
        let name = self.begin_change(call.header.nodeid, take_name(&mut &rest[..])?)?;
        let kind = FileType::from_raw_mode(arg.mode);
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            // A device node on the host could be opened by others there.
            FileType::CharacterDevice | FileType::BlockDevice => return Err(Errno::PERM),
            _ => return Err(Errno::INVAL),
        }
        let dir = self.nodes.fd(call.header.nodeid)?;
        rustix::fs::mknodat(&dir, name, kind, Mode::from_bits_truncate(arg.mode & 0o7777), 0)?;
        self.made(call, name, 0).inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
        })
    }

    pub fn symlink(&mut self, call: &mut Call<'_>) -> Outcome {
        let rest = call.rest()?;
        let mut rest = &rest[..];
        let name = self.begin_change(call.header.nodeid, take_name(&mut rest)?)?;
        let target = take_name(&mut rest)?;
        let dir = self.nodes.fd(call.header.nodeid)?;
        rustix::fs::symlinkat(target, &dir, name)?;
        self.made(call, name, 0).inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
        })
    }

    pub fn link(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::LinkIn = call.arg()?;
        let rest = call.rest()?;
        let parent = call.header.nodeid;
        let name = self.begin_change(parent, take_name(&mut &rest[..])?)?;
        self.nodes.check_same_root(arg.oldnodeid, parent)?;
        if self.nodes.kind(arg.oldnodeid)? == FileType::Directory {
            return Err(Errno::PERM);
        }
        let dir = self.nodes.fd(parent)?;
        let (old_dir, old_name, _fd) = self.nodes.path(arg.oldnodeid)?;
        rustix::fs::linkat(old_dir, &old_name, &dir, name, AtFlags::SYMLINK_FOLLOW)?;
        let stat = stat_at(dir.as_fd(), name)?;
        self.nodes.changed(arg.oldnodeid, &stat);
        let id = self.nodes.enter(parent, name, &stat)?;
        let entry = self.nodes.entry(id, &stat);
        call.reply(&entry)
    }

    pub fn unlink(&mut self, call: &mut Call<'_>, directory: bool) -> Outcome {
        let rest = call.rest()?;
        let parent = call.header.nodeid;
        let name = self.begin_change(parent, take_name(&mut &rest[..])?)?;
        self.nodes.pin(parent, name)?;
        let dir = self.nodes.fd(parent)?;
        rustix::fs::unlinkat(&dir, name, if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() })
    }

    pub fn rename(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::Rename2In = call.arg()?;
        let rest = call.rest()?;
        let mut rest = &rest[..];
        let (old, new) = (call.header.nodeid, arg.newdir);
        let old_name = self.begin_change(old, take_name(&mut rest)?)?;
        let new_name = self.begin_change(new, take_name(&mut rest)?)?;
        self.nodes.check_same_root(old, new)?;
        let flags = RenameFlags::from_bits_retain(arg.flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let replaced = if exchange { self.nodes.known(new, new_name) } else { self.nodes.pin(new, new_name)? };
        let out = fuse::RenameOut { moved: self.nodes.known(old, old_name), replaced };
        let (old_dir, new_dir) = (self.nodes.fd(old)?, self.nodes.fd(new)?);
        rustix::fs::renameat_with(&old_dir, old_name, &new_dir, new_name, flags)?;
        self.nodes.moved(out.moved, new, new_name);
        if exchange {
            self.nodes.moved(out.replaced, old, old_name);
        }
        call.reply(&out)
    }

    /// Entries from the cookie `offset` on, as many as fit; none: the end.
    pub fn read_dir(&mut self, call: &mut Call<'_>, plus: bool) -> Outcome {
        let arg: fuse::ReadIn = call.arg()?;
        let id = call.header.nodeid;
        if self.nodes.kind(id)? != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let room = (arg.size.min(fuse::MAX_DATA) as usize).min(call.chain.writable());
        let dir = self.nodes.open(id, OFlags::RDONLY | OFlags::DIRECTORY)?;
        if arg.offset != 0 {
            rustix::fs::seek(&dir, SeekFrom::Start(arg.offset))?;
        }
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&dir, &mut buffer);
        let mut out = Vec::with_capacity(room.min(64 << 10));
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(_) if !out.is_empty() => break,
                Err(error) => return Err(error),
            };
            let name = entry.file_name().to_bytes();
            let size = if plus { fuse::dirent_plus_size(name.len()) } else { fuse::dirent_size(name.len()) };
            if out.len() + size > room {
                if out.is_empty() {
                    return Err(Errno::INVAL);
                }
                break;
            }
            let mut dirent = fuse::Dirent {
                ino: entry.ino(),
                off: entry.next_entry_cookie(),
                namelen: name.len() as u32,
                kind: dirent_kind(entry.file_type()),
            };
            if plus {
                let mut entry_out = fuse::EntryOut::default();
                if !matches!(name, b"." | b"..") {
                    match stat_at(dir.as_fd(), name) {
                        Ok(stat) => entry_out = self.seen(id, name, &stat, &mut dirent)?,
                        // It has just been removed.
                        Err(Errno::NOENT) => continue,
                        // Shown, and looked up by itself when it is used.
                        Err(_) => {}
                    }
                }
                out.extend_from_slice(fuse::DirentPlus { entry: entry_out, dirent }.as_bytes());
            } else {
                out.extend_from_slice(dirent.as_bytes());
            }
            out.extend_from_slice(name);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        call.bytes(&out)
    }

    fn seen(
        &mut self,
        parent: u64,
        name: &[u8],
        stat: &Stat,
        dirent: &mut fuse::Dirent,
    ) -> Result<fuse::EntryOut, Errno> {
        let node = self.nodes.enter(parent, name, stat)?;
        let entry = self.nodes.entry(node, stat);
        dirent.ino = entry.attr.ino;
        dirent.kind = (stat.st_mode & libc::S_IFMT) >> 12;
        Ok(entry)
    }
}

/// DT_*.
fn dirent_kind(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        kind => kind.as_raw_mode() >> 12,
    }
}
