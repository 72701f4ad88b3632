//! Drives [`super::serve`] through a queue, as the sentry does.

use std::{
    fs,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketFlags, SocketType},
};
use sentry_abi::fuse::{self, Opcode};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{GoferBackend, GoferConfig, Root, link::receive_file, serve};
use crate::virtio::{Backend, QueueSetup, Transport, test_driver};

struct Client {
    driver: test_driver::Driver,
    kick: EventFd,
    call: EventFd,
    socket: Arc<OwnedFd>,
    backend: GoferBackend,
    server: Option<JoinHandle<()>>,
    dir: PathBuf,
}

impl Client {
    /// A gofer over `dir` (node 1) and the same read-only (node 2).
    fn new(name: &str) -> Client {
        let dir = std::env::temp_dir().join(format!("runsc-gofer-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let root = |readonly| Root {
            fd: rustix::fs::open(&dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap(),
            readonly,
        };
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let (mut kicks, call) = Transport::events(1).unwrap();
        let kick = kicks.remove(0);
        let device_fd = test_driver::memfd();
        let driver = test_driver::Driver::new(&device_fd, fuse::QUEUE_SIZE, 0);
        let config = GoferConfig {
            roots: vec![root(false), root(true)],
            device_fd,
            kick: kick.try_clone().unwrap(),
            call: call.try_clone().unwrap(),
            vmm_socket: theirs,
        };
        let server = Some(std::thread::spawn(move || serve(config).unwrap()));
        let socket = Arc::new(ours);
        let mut backend = GoferBackend::new(socket.clone());
        backend.activate(&[driver.setup], sentry_abi::virtio::feature::EVENT_IDX).unwrap();
        Client { driver, kick, call, socket, backend, server, dir }
    }

    fn raw(&mut self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Result<Vec<u8>, i32> {
        let len = size_of::<fuse::InHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let header = fuse::InHeader { len: len as u32, opcode, unique: 77, nodeid, uid, gid, ..Default::default() };
        let mut request = header.as_bytes().to_vec();
        parts.iter().for_each(|part| request.extend_from_slice(part));
        let answer = self.driver.call(&self.kick, &self.call, &request, 64 << 10);
        let (head, rest) = fuse::OutHeader::read_from_prefix(&answer).unwrap();
        assert_eq!((head.unique, head.len as usize), (77, answer.len()));
        if head.error == 0 { Ok(rest.to_vec()) } else { Err(-head.error) }
    }

    fn request(&mut self, opcode: Opcode, nodeid: u64, parts: &[&[u8]]) -> Result<Vec<u8>, i32> {
        self.raw(opcode as u32, nodeid, parts)
    }

    fn object<T: FromBytes>(&mut self, opcode: Opcode, nodeid: u64, parts: &[&[u8]]) -> Result<T, i32> {
        self.request(opcode, nodeid, parts).map(|data| T::read_from_bytes(&data).unwrap())
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<fuse::EntryOut, i32> {
        self.object(Opcode::Lookup, parent, &[name.as_bytes(), b"\0"])
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let arg = fuse::OpenIn { flags: flags as u32, open_flags: 0 };
        self.object::<fuse::OpenOut>(Opcode::Open, node, &[arg.as_bytes()]).map(|out| out.fh)
    }

    fn read(&mut self, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let arg = fuse::ReadIn { fh, offset, size, ..Default::default() };
        self.request(Opcode::Read, 1, &[arg.as_bytes()])
    }

    fn write(&mut self, fh: u64, offset: u64, write_flags: u32, data: &[u8]) -> Result<fuse::WriteOut, i32> {
        let arg = fuse::WriteIn { fh, offset, size: data.len() as u32, write_flags, ..Default::default() };
        self.object(Opcode::Write, 1, &[arg.as_bytes(), data])
    }

    fn walk(&mut self, parent: u64, names: &[&str], flags: u32) -> (fuse::WalkOut, Vec<fuse::EntryOut>, Vec<u8>) {
        let arg = fuse::WalkIn { count: names.len() as u32, flags, ..Default::default() };
        let names: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
        let data = self.request(Opcode::Walk, parent, &[arg.as_bytes(), &names]).unwrap();
        let (out, rest) = fuse::WalkOut::read_from_prefix(&data).unwrap();
        let (entries, target) = rest.split_at(out.found as usize * size_of::<fuse::EntryOut>());
        let entries = entries.chunks(size_of::<fuse::EntryOut>());
        (out, entries.map(|e| fuse::EntryOut::read_from_bytes(e).unwrap()).collect(), target.to_vec())
    }

    fn read_dir(&mut self, node: u64, size: u32) -> Vec<(String, fuse::DirentPlus)> {
        let mut all = Vec::new();
        let mut offset = 0;
        loop {
            let arg = fuse::ReadIn { offset, size, ..Default::default() };
            let data = self.request(Opcode::ReadDirPlus, node, &[arg.as_bytes()]).unwrap();
            if data.is_empty() {
                return all;
            }
            let mut rest = &data[..];
            while !rest.is_empty() {
                let (entry, tail) = fuse::DirentPlus::read_from_prefix(rest).unwrap();
                let len = entry.dirent.namelen as usize;
                all.push((String::from_utf8(tail[..len].to_vec()).unwrap(), entry));
                offset = entry.dirent.off;
                rest = &rest[fuse::dirent_plus_size(len)..];
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).unwrap();
        self.server.take().unwrap().join().unwrap();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn path(client: &Client, name: &str) -> PathBuf {
    client.dir.join(name)
}

fn arg<T: IntoBytes + Immutable>(object: &T) -> &[u8] {
    object.as_bytes()
}

#[test]
fn a_walk_goes_as_far_as_it_can() {
    let mut c = Client::new("walk");
    fs::create_dir_all(path(&c, "usr/bin")).unwrap();
    fs::write(path(&c, "usr/bin/sh"), "shell").unwrap();
    symlink("usr/bin", path(&c, "bin")).unwrap();

    let (out, entries, _) = c.walk(1, &["usr", "bin", "sh"], fuse::walk::OPEN | fuse::walk::SHARE);
    assert_eq!((out.found, out.stopped, out.open_error), (3, 0, 0));
    assert_eq!(entries[2].attr.size, 5);
    assert_eq!(c.read(out.fh, 1, 100).unwrap(), b"hell");
    let (handle, shared) = receive_file(c.socket.as_fd()).unwrap();
    assert_eq!(handle, out.handle);
    let mut content = String::new();
    fs::File::from(shared).read_to_string(&mut content).unwrap();
    assert_eq!(content, "shell");
    assert!(receive_file(c.socket.as_fd()).is_none());

    let node = entries[2].nodeid;
    let (out, _, data) = c.walk(node, &[], fuse::walk::OPEN | fuse::walk::DATA);
    assert_eq!((out.found, out.data_len, &data[..]), (0, 5, &b"shell"[..]));
    assert_ne!(out.fh, 0);

    let (out, entries, target) = c.walk(1, &["bin", "sh"], 0);
    assert_eq!((out.found, out.stopped), (1, 0));
    assert_eq!(entries[0].attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(target, b"usr/bin");
    let (out, ..) = c.walk(1, &["usr", "lib", "x"], 0);
    assert_eq!((out.found, out.stopped), (1, -libc::ENOENT));
    let (out, ..) = c.walk(1, &["usr", "bin", "sh", "x"], fuse::walk::OPEN);
    assert_eq!((out.found, out.stopped, out.fh), (3, 0, 0));
    let (out, ..) = c.walk(1, &["usr", "..", ".."], 0);
    assert_eq!((out.found, out.stopped), (1, -libc::EINVAL));
}

#[test]
fn names_that_leave_the_root_are_refused() {
    let mut c = Client::new("beneath");
    symlink("/etc", path(&c, "link")).unwrap();
    for name in ["..", ".", "", "a/b", "/etc", &"x".repeat(256)] {
        assert!(c.lookup(1, name).is_err(), "{name}");
    }
    // A symbolic link is itself, never what it points at.
    let link = c.lookup(1, "link").unwrap();
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(c.lookup(link.nodeid, "passwd"), Err(libc::ENOTDIR));
    assert_eq!(c.open(link.nodeid, libc::O_RDONLY), Err(libc::EINVAL));
    assert_eq!(c.request(Opcode::ReadLink, link.nodeid, &[]).unwrap(), b"/etc");
    assert_eq!(c.lookup(99, "x"), Err(libc::ESTALE));
}

#[test]
fn files_are_created_written_and_read() {
    let mut c = Client::new("files");
    let create = fuse::CreateIn { flags: libc::O_RDWR as u32, mode: 0o4751, ..Default::default() };
    let out: fuse::CreateOut = c.object(Opcode::Create, 1, &[arg(&create), b"f\0"]).unwrap();
    assert_eq!(out.entry.attr.mode & 0o7777, 0o4751);
    assert_eq!(c.request(Opcode::Create, 1, &[arg(&create), b"f\0"]), Err(libc::EEXIST));
    let fh = out.open.fh;
    assert_eq!(c.write(fh, 0, 0, b"hello").unwrap().size, 5);
    let appended = c.write(fh, 0, fuse::write_flags::APPEND, b" world").unwrap();
    assert_eq!((appended.size, appended.offset), (6, 5));
    assert_eq!(c.read(fh, 0, 100).unwrap(), b"hello world");
    assert_eq!(fs::read(path(&c, "f")).unwrap(), b"hello world");

    let set = fuse::SetAttrIn {
        valid: fuse::fattr::SIZE | fuse::fattr::MODE | fuse::fattr::MTIME,
        size: 3,
        mode: 0o600,
        mtime: 1000,
        ..Default::default()
    };
    let attr: fuse::AttrOut = c.object(Opcode::SetAttr, out.entry.nodeid, &[arg(&set)]).unwrap();
    assert_eq!((attr.attr.size, attr.attr.mode & 0o777, attr.attr.mtime), (3, 0o600, 1000));

    // An unlinked file stays usable by those who know it.
    c.request(Opcode::Unlink, 1, &[b"f\0"]).unwrap();
    assert_eq!(c.lookup(1, "f"), Err(libc::ENOENT));
    assert_eq!(c.read(fh, 0, 100).unwrap(), b"hel");
    let again = c.open(out.entry.nodeid, libc::O_WRONLY).unwrap();
    assert_eq!(c.write(again, 3, 0, b"p").unwrap().size, 1);
    assert_eq!(c.read(fh, 0, 100).unwrap(), b"help");
    let release = fuse::ReleaseIn { fh, ..Default::default() };
    c.request(Opcode::Release, out.entry.nodeid, &[arg(&release)]).unwrap();
    assert_eq!(c.read(fh, 0, 1), Err(libc::EBADF));
}

#[test]
fn directories_are_listed_with_attributes() {
    let mut c = Client::new("dirs");
    for i in 0..200 {
        fs::write(path(&c, &format!("file-{i:03}")), vec![0; i]).unwrap();
    }
    let mut names = c.read_dir(1, 4096);
    names.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(names.len(), 202);
    assert_eq!((names[0].0.as_str(), names[0].1.entry.nodeid), (".", 0));
    assert_eq!((names[12].0.as_str(), names[12].1.entry.attr.size), ("file-010", 10));
    let same = c.lookup(1, "file-010").unwrap();
    assert_eq!(same.nodeid, names[12].1.entry.nodeid);
    // Both look-ups are forgotten: the node is gone.
    let forget = fuse::BatchForgetIn { count: 1, dummy: 0 };
    let one = fuse::ForgetOne { nodeid: same.nodeid, nlookup: 2 };
    c.driver
        .submit(&[fuse::InHeader { opcode: 42, ..Default::default() }.as_bytes(), arg(&forget), arg(&one)].concat(), 0);
    c.kick.write(1).unwrap();
    while c.driver.take(0).is_none() {
        std::thread::yield_now();
    }
    assert_eq!(c.open(same.nodeid, libc::O_RDONLY), Err(libc::ESTALE));
}

#[test]
fn names_are_made_moved_and_removed() {
    let mut c = Client::new("names");
    let mkdir = fuse::MkDirIn { mode: 0o755, umask: 0 };
    let dir: fuse::EntryOut = c.object(Opcode::MkDir, 1, &[arg(&mkdir), b"d\0"]).unwrap();
    let _: fuse::EntryOut = c.object(Opcode::Symlink, dir.nodeid, &[b"l\0", b"../target\0"]).unwrap();
    let fifo = fuse::MkNodIn { mode: libc::S_IFIFO | 0o600, ..Default::default() };
    let fifo: fuse::EntryOut = c.object(Opcode::MkNod, dir.nodeid, &[arg(&fifo), b"p\0"]).unwrap();
    // The host's FIFOs are never opened.
    assert_eq!(c.open(fifo.nodeid, libc::O_RDONLY), Err(libc::EINVAL));
    let device = fuse::MkNodIn { mode: libc::S_IFCHR | 0o600, rdev: 0x103, ..Default::default() };
    assert_eq!(c.request(Opcode::MkNod, dir.nodeid, &[arg(&device), b"null\0"]), Err(libc::EPERM));

    fs::write(path(&c, "d/f"), "x").unwrap();
    let file = c.lookup(dir.nodeid, "f").unwrap();
    let link = fuse::LinkIn { oldnodeid: file.nodeid };
    let linked: fuse::EntryOut = c.object(Opcode::Link, 1, &[arg(&link), b"hard\0"]).unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (file.nodeid, 2));

    let rename = fuse::Rename2In { newdir: 1, ..Default::default() };
    c.request(Opcode::Rename2, 1, &[arg(&rename), b"d\0", b"e\0"]).unwrap();
    // Nodes below are found by their new path.
    assert_eq!(c.lookup(dir.nodeid, "f").unwrap().nodeid, file.nodeid);
    let no_replace = fuse::Rename2In { newdir: 1, flags: libc::RENAME_NOREPLACE, padding: 0 };
    assert_eq!(c.request(Opcode::Rename2, 1, &[arg(&no_replace), b"hard\0", b"e\0"]), Err(libc::EEXIST));
    assert_eq!(c.request(Opcode::RmDir, 1, &[b"e\0"]), Err(libc::ENOTEMPTY));
    for name in ["f", "l", "p"] {
        c.request(Opcode::Unlink, dir.nodeid, &[name.as_bytes(), b"\0"]).unwrap();
    }
    c.request(Opcode::RmDir, 1, &[b"e\0"]).unwrap();
    assert!(!path(&c, "e").exists());
    assert_eq!(fs::metadata(path(&c, "hard")).unwrap().nlink(), 1);
}

#[test]
fn a_read_only_root_is_not_written() {
    let mut c = Client::new("readonly");
    fs::write(path(&c, "f"), "x").unwrap();
    // Node 2 is the read-only view of the same directory; the same file below it is another node.
    let writable = c.lookup(1, "f").unwrap().nodeid;
    c.open(writable, libc::O_RDWR).unwrap();
    let node = c.lookup(2, "f").unwrap().nodeid;
    assert_eq!(c.open(node, libc::O_RDWR), Err(libc::EROFS));
    c.open(node, libc::O_RDONLY).unwrap();
    let set = fuse::SetAttrIn { valid: fuse::fattr::MODE, mode: 0, ..Default::default() };
    let link = fuse::LinkIn { oldnodeid: node };
    assert_eq!(c.request(Opcode::Link, 1, &[arg(&link), b"way-around\0"]), Err(libc::EXDEV));
    let (mkdir, create) = (fuse::MkDirIn::default(), fuse::CreateIn::default());
    let rename = fuse::Rename2In { newdir: 1, ..Default::default() };
    let changes: &[(Opcode, u64, &[&[u8]])] = &[
        (Opcode::Unlink, 2, &[b"f\0"]),
        (Opcode::MkDir, 2, &[mkdir.as_bytes(), b"d\0"]),
        (Opcode::Create, 2, &[create.as_bytes(), b"g\0"]),
        (Opcode::SetAttr, node, &[set.as_bytes()]),
        (Opcode::Rename2, 2, &[rename.as_bytes(), b"f\0", b"g\0"]),
    ];
    for (opcode, node, parts) in changes {
        assert_eq!(c.request(*opcode, *node, parts), Err(libc::EROFS), "{opcode:?}");
    }
}

#[test]
fn a_replaced_file_is_stale() {
    let mut c = Client::new("stale");
    fs::write(path(&c, "f"), "old").unwrap();
    let node = c.lookup(1, "f").unwrap().nodeid;
    fs::rename(path(&c, "f"), path(&c, "g")).unwrap();
    fs::write(path(&c, "f"), "new").unwrap();
    assert_eq!(c.open(node, libc::O_RDONLY), Err(libc::ESTALE));
    assert_ne!(c.lookup(1, "f").unwrap().nodeid, node);
    assert_eq!(c.lookup(1, "g").unwrap().nodeid, node);
    c.open(node, libc::O_RDONLY).unwrap();
}

#[test]
fn bad_requests_get_errors() {
    let mut c = Client::new("bad");
    assert_eq!(c.raw(0x1234, 1, &[]), Err(libc::ENOSYS));
    assert_eq!(c.request(Opcode::Lookup, 1, &[b"no terminator"]), Err(libc::EINVAL));
    assert_eq!(c.request(Opcode::Open, 1, &[&[1, 2]]), Err(libc::EINVAL));
    assert_eq!(c.write(1, 0, 0, b"x"), Err(libc::EBADF));
    assert_eq!(c.read(1, u64::MAX, 8), Err(libc::EBADF));
    let arg = fuse::WriteIn { fh: 1, size: 1 << 30, ..Default::default() };
    assert_eq!(c.request(Opcode::Write, 1, &[arg.as_bytes()]), Err(libc::EINVAL));
    let arg = fuse::WalkIn { count: u32::MAX, ..Default::default() };
    assert_eq!(c.request(Opcode::Walk, 1, &[arg.as_bytes(), b"a\0"]), Err(libc::EINVAL));
    // A queue that is not in device memory is not served; the next one is.
    c.backend.activate(&[QueueSetup { size: 8, desc: 0, avail: 0x1000, used: 0x2000 }], 0).unwrap();
    c.driver = test_driver::Driver::new(c.driver_fd().as_fd(), fuse::QUEUE_SIZE, 1);
    c.backend.activate(&[c.driver.setup], sentry_abi::virtio::feature::EVENT_IDX).unwrap();
    assert_eq!(c.lookup(1, "nothing"), Err(libc::ENOENT));
}

impl Client {
    fn driver_fd(&self) -> OwnedFd {
        use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
        let region = self.driver.memory.iter().next().unwrap();
        region.file_offset().unwrap().file().try_clone().unwrap().into()
    }
}

#[test]
fn attributes_are_the_hosts() {
    let mut c = Client::new("attr");
    fs::write(path(&c, "f"), "12345").unwrap();
    let entry = c.lookup(1, "f").unwrap();
    let host = fs::metadata(path(&c, "f")).unwrap();
    assert_eq!((entry.attr.mode, entry.attr.size, entry.attr.uid), (host.mode(), host.size(), host.uid()));
    assert_eq!((entry.attr.mtime as i64, entry.attr.mtimensec as i64), (host.mtime(), host.mtime_nsec()));
    let statfs: fuse::StatFsOut = c.object(Opcode::StatFs, 1, &[]).unwrap();
    assert!(statfs.blocks > 0 && statfs.namelen >= 255);
    let set = fuse::SetXattrIn { size: 2, ..Default::default() };
    match c.request(Opcode::SetXattr, entry.nodeid, &[arg(&set), b"user.k\0vv"]) {
        Ok(_) => {
            let get = fuse::GetXattrIn { size: 100, padding: 0 };
            assert_eq!(c.request(Opcode::GetXattr, entry.nodeid, &[arg(&get), b"user.k\0"]).unwrap(), b"vv");
            assert_eq!(c.request(Opcode::ListXattr, entry.nodeid, &[arg(&get)]).unwrap(), b"user.k\0");
        }
        // tmpfs before Linux 6.6 has no user attributes.
        Err(error) => assert_eq!(error, libc::EOPNOTSUPP),
    }
    assert_eq!(c.request(Opcode::SetXattr, entry.nodeid, &[arg(&set), b"trusted.k\0vv"]), Err(libc::EOPNOTSUPP));
    assert!(Path::new(&c.dir).exists());
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    fn opcode() -> impl Strategy<Value = u32> {
        prop_oneof![
            8 => prop::sample::select(vec![
                1u32, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 20, 21, 22, 23, 24, 26, 28, 35, 43, 44, 45, 46,
                0x5200, 0x5201,
            ]),
            1 => any::<u32>(),
        ]
    }

    /// Arguments that are almost right, and names that try to get out.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let number = prop_oneof![0u64..6, any::<u64>()];
        let name = prop::sample::select(vec![
            "f", "d", "l", "..", ".", "../x", "/etc", "", "d/f", "user.a", "new", "l/passwd",
        ]);
        let part = prop_oneof![
            number.prop_map(|n| n.to_le_bytes().to_vec()),
            name.prop_map(|name| [name.as_bytes(), b"\0"].concat()),
            prop::collection::vec(any::<u8>(), 0..40),
        ];
        prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever is asked, every request is answered and nothing outside the root changes.
        #[test]
        fn requests_are_answered(requests in prop::collection::vec((opcode(), 0u64..8, body(), 0usize..4096), 1..60)) {
            let mut c = Client::new("hostile/inside");
            let outside = c.dir.parent().unwrap().to_owned();
            fs::write(path(&c, "f"), "content").unwrap();
            fs::create_dir(path(&c, "d")).unwrap();
            symlink("/etc", path(&c, "l")).unwrap();
            fs::write(outside.join("sentinel"), "untouched").unwrap();
            for (opcode, node, body, room) in requests {
                let header = fuse::InHeader {
                    opcode,
                    nodeid: node,
                    unique: 5,
                    uid: rustix::process::getuid().as_raw(),
                    gid: rustix::process::getgid().as_raw(),
                    ..Default::default()
                };
                let request = [header.as_bytes(), &body].concat();
                let room = room.max(size_of::<fuse::OutHeader>());
                let answer = c.driver.call(&c.kick, &c.call, &request, room);
                let (head, _) = fuse::OutHeader::read_from_prefix(&answer).unwrap();
                prop_assert_eq!((head.unique, head.len as usize), (5, answer.len()));
                prop_assert!((-4095..=0).contains(&head.error));
            }
            let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            prop_assert_eq!(names.len(), 2);
            prop_assert_eq!(fs::read(outside.join("sentinel")).unwrap(), b"untouched");
        }
    }
}
