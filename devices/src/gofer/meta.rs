//! Attributes, links and extended attributes.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};
use sentry_abi::fuse::{self, fattr};

use super::{
    nodes::stat_of,
    server::{Call, Outcome, Server, take_name},
};

/// Largest value or list of extended attributes (XATTR_SIZE_MAX).
const XATTR_MAX: usize = 64 << 10;

impl Server {
    pub fn get_attr(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::GetAttrIn = call.arg()?;
        let stat = if arg.fh != 0 {
            stat_of(self.files.get(arg.fh)?.as_fd())?
        } else {
            stat_of(self.nodes.fd(call.header.nodeid)?.as_fd())?
        };
        let attr = self.nodes.attr(&stat);
        call.reply(&fuse::AttrOut { attr, ..Default::default() })
    }

    pub fn set_attr(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::SetAttrIn = call.arg()?;
        let id = call.header.nodeid;
        self.nodes.check_writable(id)?;
        let kind = self.nodes.kind(id)?;
        // Owner before mode: a change of owner clears set-user-ID bits that the mode may set again.
        if arg.valid & (fattr::UID | fattr::GID) != 0 {
            let uid = (arg.valid & fattr::UID != 0).then(|| Uid::from_raw(arg.uid));
            let gid = (arg.valid & fattr::GID != 0).then(|| Gid::from_raw(arg.gid));
            let fd = self.nodes.fd(id)?;
            rustix::fs::chownat(&fd, c"", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if arg.valid & fattr::MODE != 0 {
            if kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            let (dir, name, _fd) = self.nodes.path(id)?;
            rustix::fs::chmodat(dir, &name, Mode::from_bits_truncate(arg.mode & 0o7777), AtFlags::empty())?;
        }
        if arg.valid & fattr::SIZE != 0 {
            if arg.size > i64::MAX as u64 {
                return Err(Errno::INVAL);
            }
            if arg.valid & fattr::FH != 0 {
                rustix::fs::ftruncate(self.files.get(arg.fh)?, arg.size)?;
            } else {
                match kind {
                    FileType::RegularFile => {}
                    FileType::Directory => return Err(Errno::ISDIR),
                    _ => return Err(Errno::INVAL),
                }
                let file = self.nodes.open(id, OFlags::WRONLY)?;
                rustix::fs::ftruncate(&file, arg.size)?;
            }
        }
        let times = fattr::ATIME | fattr::MTIME | fattr::ATIME_NOW | fattr::MTIME_NOW;
        if arg.valid & times != 0 {
            let time = |set, now, sec: u64, nsec: u32| Timespec {
                tv_sec: sec as i64,
                tv_nsec: if arg.valid & now != 0 {
                    rustix::fs::UTIME_NOW
                } else if arg.valid & set != 0 {
                    nsec.min(999_999_999).into()
                } else {
                    rustix::fs::UTIME_OMIT
                },
            };
            let times = Timestamps {
                last_access: time(fattr::ATIME, fattr::ATIME_NOW, arg.atime, arg.atimensec),
                last_modification: time(fattr::MTIME, fattr::MTIME_NOW, arg.mtime, arg.mtimensec),
            };
            let (dir, name, _fd) = self.nodes.path(id)?;
            rustix::fs::utimensat(dir, &name, &times, AtFlags::empty())?;
        }
        let stat = stat_of(self.nodes.fd(id)?.as_fd())?;
        self.nodes.changed(id, &stat);
        let attr = self.nodes.attr(&stat);
        call.reply(&fuse::AttrOut { attr, ..Default::default() })
    }

    /// Gives a new file to the request's user; the group follows a set-group-ID directory.
    pub fn give_to(
        &self,
        new: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
        header: &fuse::InHeader,
        mode: u32,
    ) -> Result<(), Errno> {
        let (stat, dir) = (stat_of(new)?, stat_of(dir)?);
        let gid = if dir.st_mode & libc::S_ISGID != 0 { dir.st_gid } else { header.gid };
        if (stat.st_uid, stat.st_gid) == (header.uid, gid) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(header.uid), Gid::from_raw(gid));
        rustix::fs::chownat(new, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
        if mode & (libc::S_ISUID | libc::S_ISGID) != 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG {
            rustix::fs::fchmod(new, Mode::from_bits_truncate(mode & 0o7777))?;
        }
        Ok(())
    }

    pub fn link_target(&mut self, id: u64) -> Result<Vec<u8>, Errno> {
        if self.nodes.kind(id)? != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let fd = self.nodes.fd(id)?;
        Ok(rustix::fs::readlinkat(&fd, c"", Vec::new())?.into_bytes())
    }

    pub fn read_link(&mut self, call: &mut Call<'_>) -> Outcome {
        let target = self.link_target(call.header.nodeid)?;
        call.bytes(&target)
    }

    pub fn stat_fs(&mut self, call: &mut Call<'_>) -> Outcome {
        let fd = self.nodes.fd(call.header.nodeid)?;
        let stat = rustix::fs::fstatfs(&fd)?;
        call.reply(&fuse::StatFsOut {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: stat.f_bsize as u32,
            namelen: stat.f_namelen as u32,
            frsize: stat.f_frsize as u32,
            ..Default::default()
        })
    }

    pub fn get_xattr(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::GetXattrIn = call.arg()?;
        let rest = call.rest()?;
        let name = take_name(&mut &rest[..])?;
        if !readable_xattr(name) {
            return Err(Errno::NODATA);
        }
        let file = self.xattr_file(call.header.nodeid)?;
        let mut value = vec![0; XATTR_MAX];
        let len = rustix::fs::fgetxattr(&file, name, &mut value)?;
        answer_xattr(call, arg.size, &value[..len])
    }

    pub fn list_xattr(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::GetXattrIn = call.arg()?;
        let file = match self.xattr_file(call.header.nodeid) {
            Ok(file) => file,
            Err(Errno::NODATA) => return answer_xattr(call, arg.size, &[]),
            Err(error) => return Err(error),
        };
        let mut names = vec![0; XATTR_MAX];
        let len = rustix::fs::flistxattr(&file, &mut names)?;
        let shown: Vec<u8> = names[..len]
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| readable_xattr(name.strip_suffix(&[0]).unwrap_or(name)))
            .flatten()
            .copied()
            .collect();
        answer_xattr(call, arg.size, &shown)
    }

    pub fn set_xattr(&mut self, call: &mut Call<'_>) -> Outcome {
        let arg: fuse::SetXattrIn = call.arg()?;
        self.nodes.check_writable(call.header.nodeid)?;
        let size = arg.size as usize;
        if size > XATTR_MAX || call.chain.readable() > XATTR_MAX + fuse::MAX_NAME + 1 {
            return Err(Errno::TOOBIG);
        }
        let rest = call.chain.read_vec(call.chain.readable()).map_err(|_| Errno::INVAL)?;
        let mut value = &rest[..];
        let name = take_name(&mut value)?;
        if !name.starts_with(b"user.") {
            return Err(Errno::OPNOTSUPP);
        }
        let value = value.get(..size).ok_or(Errno::INVAL)?;
        let flags = XattrFlags::from_bits(arg.flags).ok_or(Errno::INVAL)?;
        let file = self.xattr_file(call.header.nodeid)?;
        rustix::fs::fsetxattr(&file, name, value, flags)
    }

    pub fn remove_xattr(&mut self, call: &mut Call<'_>) -> Outcome {
        self.nodes.check_writable(call.header.nodeid)?;
        let rest = call.rest()?;
        let name = take_name(&mut &rest[..])?;
        if !name.starts_with(b"user.") {
            return Err(Errno::NODATA);
        }
        let file = self.xattr_file(call.header.nodeid)?;
        rustix::fs::fremovexattr(&file, name)
    }

    /// Only regular files and directories have attributes of the kinds served here.
    fn xattr_file(&mut self, id: u64) -> Result<std::os::fd::OwnedFd, Errno> {
        match self.nodes.kind(id)? {
            FileType::RegularFile | FileType::Directory => self.nodes.open(id, OFlags::RDONLY),
            _ => Err(Errno::NODATA),
        }
    }
}

/// Attributes of the host's security modules and of trusted users are not the container's business.
fn readable_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability"
}

fn answer_xattr(call: &mut Call<'_>, size: u32, value: &[u8]) -> Outcome {
    if size == 0 {
        return call.reply(&fuse::GetXattrOut { size: value.len() as u32, padding: 0 });
    }
    if value.len() > size as usize {
        return Err(Errno::RANGE);
    }
    call.bytes(value)
}
