//! open(2) and its relatives, memfd_create(2), pipe(2).

use alloc::{format, sync::Arc};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::AT_FDCWD;
use crate::{
    errno::{E2BIG, EINVAL, ENAMETOOLONG, Result},
    fs::{File, FileOps, NewAttr, OpenFlags, Resolve, anon, namei, pipe, tmpfs::Tmpfs},
    mm::{frames, user::UserPtr},
    sync::Once,
    syscall::{Arg, Fd, Hex, Level::*, Syscall, UserPath},
    syscalls,
    task::Current,
};

syscalls! { pub CALLS;
    2 open(path: UserPath, flags: OpenArg, mode: Hex) = open, Full, "", "file";
    85 creat(path: UserPath, mode: Hex) = creat, Full, "", "file";
    257 openat(dir: Fd, path: UserPath, flags: OpenArg, mode: Hex) = openat, Full, "", "file";
    437 openat2(dir: Fd, path: UserPath, how: UserPtr<OpenHow>, size: usize) = openat2, Full, "", "file";
    22 pipe(fds: UserPtr<[i32; 2]>) = pipe, Full, "", "pipe";
    293 pipe2(fds: UserPtr<[i32; 2]>, flags: OpenArg) = pipe2, Full, "", "pipe";
    319 memfd_create(name: UserPath, flags: u32) = memfd_create, Partial, "MFD_HUGETLB is EINVAL", "file";
}

/// O_* bits; strace shows their names.
#[derive(Clone, Copy)]
pub struct OpenArg(pub OpenFlags);

impl Arg for OpenArg {
    fn decode(raw: u64) -> Result<Self> {
        Ok(OpenArg(OpenFlags::from_bits_retain(raw as u32)))
    }

    fn show(_: &Current, raw: u64, out: &mut alloc::string::String) {
        let flags = OpenFlags::from_bits_truncate(raw as u32);
        out.push_str(match raw & 3 {
            0 => "O_RDONLY",
            1 => "O_WRONLY",
            2 => "O_RDWR",
            _ => "O_ACCMODE",
        });
        for (name, _) in (flags - OpenFlags::WRONLY - OpenFlags::RDWR).iter_names() {
            out.push_str("|O_");
            out.push_str(name);
        }
    }
}

/// struct open_how.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
pub struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

fn open(cur: &mut Current, path: UserPath, flags: OpenArg, mode: Hex) -> Result<i32> {
    open_at(cur, Fd(AT_FDCWD), path, flags.0, mode.0 as u32, Resolve::empty())
}

fn creat(cur: &mut Current, path: UserPath, mode: Hex) -> Result<i32> {
    let flags = OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC;
    open_at(cur, Fd(AT_FDCWD), path, flags, mode.0 as u32, Resolve::empty())
}

fn openat(cur: &mut Current, dir: Fd, path: UserPath, flags: OpenArg, mode: Hex) -> Result<i32> {
    open_at(cur, dir, path, flags.0, mode.0 as u32, Resolve::empty())
}

fn openat2(cur: &mut Current, dir: Fd, path: UserPath, how: UserPtr<OpenHow>, size: usize) -> Result<i32> {
    if size < size_of::<OpenHow>() {
        return Err(EINVAL);
    }
    if size > 4096 {
        return Err(E2BIG);
    }
    let wanted = cur.mm.read_value(how)?;
    let mut rest = alloc::vec![0u8; size - size_of::<OpenHow>()];
    cur.mm.read(how.addr.offset(size_of::<OpenHow>() as u64)?, &mut rest)?;
    if rest.iter().any(|&b| b != 0) {
        return Err(E2BIG);
    }
    let flags = u32::try_from(wanted.flags).ok().and_then(OpenFlags::from_bits).ok_or(EINVAL)?;
    let resolve = Resolve::from_bits(wanted.resolve).ok_or(EINVAL)?;
    let makes = flags.intersects(OpenFlags::CREAT | OpenFlags::TMPFILE);
    if wanted.mode & !0o7777 != 0 || wanted.mode != 0 && !makes || resolve.contains(Resolve::BENEATH | Resolve::IN_ROOT)
    {
        return Err(EINVAL);
    }
    if resolve.contains(Resolve::CACHED) {
        // Nothing promises that a walk needs no file system: the caller tries again without it.
        return Err(crate::errno::EAGAIN);
    }
    open_at(cur, dir, path, flags, wanted.mode as u32, resolve)
}

fn open_at(cur: &mut Current, dir: Fd, path: UserPath, flags: OpenFlags, mode: u32, resolve: Resolve) -> Result<i32> {
    let text = cur.path(path)?;
    // Unknown bits are ignored, as open(2) always has.
    let flags = OpenFlags::from_bits_truncate(flags.bits());
    let start = cur.start(dir, &text)?;
    let caller = cur.caller();
    let file = namei::open(&caller, start, &text, flags, mode & 0o7777, resolve)?;
    cur.install(file, flags.contains(OpenFlags::CLOEXEC))
}

impl Current {
    /// Gives a file the lowest free descriptor.
    pub fn install(&self, file: Arc<File>, close_on_exec: bool) -> Result<i32> {
        if crate::mm::kmem::under_pressure() {
            return Err(crate::errno::ENFILE);
        }
        self.task.files().insert(file, close_on_exec, 0, self.fd_limit())
    }

    /// Gives two files descriptors and tells them at `fds`; neither stays when something fails.
    pub fn install_pair(
        &self,
        first: Arc<File>,
        second: Arc<File>,
        close_on_exec: bool,
        fds: UserPtr<[i32; 2]>,
    ) -> Result<()> {
        let files = self.task.files();
        let first = self.install(first, close_on_exec)?;
        let second = match self.install(second, close_on_exec) {
            Ok(fd) => fd,
            Err(error) => {
                drop(files.remove(first));
                return Err(error);
            }
        };
        if let Err(error) = self.mm.write_value(fds, &[first, second]) {
            drop(files.remove(first));
            drop(files.remove(second));
            return Err(error);
        }
        Ok(())
    }
}

fn pipe(cur: &mut Current, fds: UserPtr<[i32; 2]>) -> Result<()> {
    pipe2(cur, fds, OpenArg(OpenFlags::empty()))
}

fn pipe2(cur: &mut Current, fds: UserPtr<[i32; 2]>, flags: OpenArg) -> Result<()> {
    let flags = flags.0;
    if flags.bits() & !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK | OpenFlags::DIRECT).bits() != 0 {
        return Err(EINVAL);
    }
    let (read, write) = pipe::pair(flags, &cur.task.creds());
    cur.install_pair(read, write, flags.contains(OpenFlags::CLOEXEC), fds)
}

fn memfd_create(cur: &mut Current, name: UserPath, flags: u32) -> Result<i32> {
    const CLOEXEC: u32 = 1;
    const ALLOW_SEALING: u32 = 2;
    if flags & !(CLOEXEC | ALLOW_SEALING) != 0 {
        return Err(EINVAL);
    }
    let name = cur.mm.read_cstr(name.0, 249).map_err(|e| if e == ENAMETOOLONG { EINVAL } else { e })?;
    static MEMFDS: Once<Arc<Tmpfs>> = Once::new();
    let fs = MEMFDS.call_once(|| Tmpfs::new(frames::usage().0, "tmpfs"));
    let creds = cur.task.creds();
    let shown = format!("/memfd:{} (deleted)", alloc::string::String::from_utf8_lossy(&name));
    let node = fs.make_file(shown.clone(), NewAttr { mode: 0o777, uid: creds.fsuid, gid: creds.fsgid });
    if flags & ALLOW_SEALING != 0 {
        node.allow_sealing();
    }
    let ops: Arc<dyn FileOps> = node.clone();
    let file = File::new(ops, anon::place(shown.as_bytes(), node), OpenFlags::RDWR | OpenFlags::LARGEFILE);
    cur.install(file, flags & CLOEXEC != 0)
}
