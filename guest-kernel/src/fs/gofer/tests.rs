//! The client against the real gofer, through a queue in shared memory, in one process.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
    vec::Vec,
};

use devices::{
    gofer::{GoferBackend, GoferConfig, Root, serve},
    virtio::{Backend, QueueSetup, Transport},
};
use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketFlags, SocketType},
};
use sentry_abi::{fuse, virtio::feature};

use super::{Client, GoferFs, Node, Owner};
use crate::{
    counters::{Counter, get},
    drivers::virtio::Queue,
    errno::{EEXIST, ENOENT, ENOTEMPTY},
    mm::{
        dma::hosted::device_memory,
        io::{IoDst, IoSrc},
    },
    sync::Mutex,
};

/// Counters are the process's: tests that count run one at a time.
static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

pub struct Fixture {
    pub root: Arc<Node>,
    client: Arc<Client>,
    pub dir: PathBuf,
    socket: Arc<std::os::fd::OwnedFd>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _one: std::sync::MutexGuard<'static, ()>,
}

pub fn fixture(name: &str, exclusive: bool) -> Fixture {
    let one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let dir = std::env::temp_dir().join(std::format!("runsc-client-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let (mut kicks, call) = Transport::events(1).unwrap();
    let kick = kicks.remove(0);
    let device_fd = device_memory().try_clone().unwrap();
    let (queue, [desc, avail, used]) = Queue::hosted(fuse::QUEUE_SIZE);
    let config = GoferConfig {
        roots: std::vec![Root {
            fd: rustix::fs::open(&dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap(),
            readonly: false,
        }],
        device_fd,
        kick: kick.try_clone().unwrap(),
        call,
        vmm_socket: theirs,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let threads = std::vec![
        std::thread::spawn(move || serve(config).unwrap()),
        // Registers do nothing here: the doorbell is rung all the time.
        std::thread::spawn(move || while !stopping.load(SeqCst) {
            kick.write(1).unwrap();
            std::thread::sleep(Duration::from_micros(50));
        }),
    ];
    let socket = Arc::new(ours);
    let setup = QueueSetup { size: fuse::QUEUE_SIZE, desc, avail, used };
    GoferBackend::new(socket.clone()).activate(&[setup], feature::EVENT_IDX).unwrap();
    let client = Client::new(queue);
    client.init().unwrap();
    let (_, root) = GoferFs::mount(client.clone(), 0, exclusive, 42).unwrap();
    Fixture { root, client, dir, socket, stop, threads, _one: one }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).unwrap();
        self.stop.store(true, SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Requests that `run` takes.
fn requests<R>(run: impl FnOnce() -> R) -> (u64, R) {
    let before = get(Counter::GoferRequests);
    let result = run();
    (get(Counter::GoferRequests) - before, result)
}

fn read(node: &Node, offset: u64, len: usize) -> Vec<u8> {
    let mut buffer = std::vec![0; len];
    let n = node.read_at(&mut IoDst::kernel(&mut buffer), offset).unwrap();
    buffer.truncate(n);
    buffer
}

fn write(node: &Node, data: &[u8], offset: u64, append: bool) -> (usize, u64) {
    node.write_at(&mut IoSrc::kernel(data), offset, append).unwrap()
}

fn owner() -> Owner {
    Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() }
}

#[test]
fn what_is_known_is_not_asked_for_again() {
    let f = fixture("cache", true);
    fs::write(f.dir.join("file"), "content").unwrap();
    let node = f.root.lookup_name(b"file").unwrap();
    let (asked, size) = requests(|| node.attr().unwrap().size);
    assert_eq!((asked, size), (0, 7));
    // Opening and reading a small file is one request, and its end is known.
    let (asked, data) = requests(|| read(&node, 0, 4096));
    assert_eq!((asked, &data[..]), (1, &b"content"[..]));
    let (asked, data) = requests(|| read(&node, 7, 4096));
    assert_eq!((asked, data.len()), (0, 0));
    // The same inode is the same node.
    fs::hard_link(f.dir.join("file"), f.dir.join("link")).unwrap();
    assert!(Arc::ptr_eq(&f.root.lookup_name(b"link").unwrap(), &node));
    // After a listing nothing in the directory needs a look-up, present or absent.
    let listing = f.root.list().unwrap();
    assert_eq!(listing.entries.len(), 2);
    let (asked, ()) = requests(|| {
        assert!(Arc::ptr_eq(&f.root.lookup_name(b"file").unwrap(), &node));
        assert_eq!(f.root.lookup_name(b"absent").err(), Some(ENOENT));
        f.root.list().unwrap();
    });
    assert_eq!(asked, 0);
}

#[test]
fn a_shared_mount_sees_the_changes_of_others() {
    let f = fixture("shared", false);
    fs::write(f.dir.join("file"), "one").unwrap();
    let node = f.root.lookup_name(b"file").unwrap();
    assert_eq!(read(&node, 0, 100), b"one");
    fs::write(f.dir.join("file"), "longer than before").unwrap();
    assert_eq!(node.attr().unwrap().size, 18);
    assert_eq!(read(&node, 4, 100), b"er than before");
    assert!(f.root.still(b"file", Some(node.id())));
    fs::remove_file(f.dir.join("file")).unwrap();
    fs::write(f.dir.join("other"), "").unwrap();
    fs::rename(f.dir.join("other"), f.dir.join("file")).unwrap();
    assert!(!f.root.still(b"file", Some(node.id())));
    assert!(f.root.still(b"absent", None));
    assert!(!f.root.still(b"file", None));
}

#[test]
fn a_path_is_walked_in_one_request() {
    let f = fixture("walk", true);
    fs::create_dir_all(f.dir.join("usr/lib/deep")).unwrap();
    symlink("usr/lib", f.dir.join("lib")).unwrap();
    let (asked, ()) = requests(|| {
        f.root.prefetch_names(&[b"usr", b"lib", b"deep", b"absent"]);
        let lib = f.root.lookup_name(b"usr").unwrap().lookup_name(b"lib").unwrap();
        assert_eq!(lib.lookup_name(b"deep").unwrap().lookup_name(b"absent").err(), Some(ENOENT));
    });
    assert_eq!(asked, 1);
    f.root.prefetch_names(&[b"lib", b"deep"]);
    let (asked, target) = requests(|| f.root.lookup_name(b"lib").unwrap().link_target().unwrap());
    assert_eq!((asked, &target[..]), (0, &b"usr/lib"[..]));
}

#[test]
fn writes_reach_the_host_at_once() {
    let f = fixture("write", true);
    let node = f.root.make_file(b"new", 0o644, owner()).unwrap();
    assert_eq!(f.root.make_file(b"new", 0o644, owner()).err(), Some(EEXIST));
    assert_eq!(write(&node, b"hello", 0, false), (5, 5));
    assert_eq!(write(&node, b" world", 0, true), (6, 11));
    assert_eq!(fs::read(f.dir.join("new")).unwrap(), b"hello world");
    assert_eq!((node.size(), node.attr().unwrap().size), (11, 11));
    assert_eq!(read(&node, 6, 100), b"world");
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    assert_eq!(write(&node, &big, 100, false), (big.len(), 100 + big.len() as u64));
    assert_eq!(read(&node, 100, big.len()), big);
    assert_eq!(read(&node, 11, 89), [0; 89]);
    let change = fuse::SetAttrIn { valid: fuse::fattr::SIZE, size: 4, ..Default::default() };
    node.set_attr(change).unwrap();
    assert_eq!(read(&node, 0, 100), b"hell");
    assert_eq!(fs::read(f.dir.join("new")).unwrap(), b"hell");
    node.fsync(false).unwrap();
    node.fallocate(0, 0, 8192).unwrap();
    assert_eq!(node.size(), 8192);
}

#[test]
fn names_come_and_go() {
    let f = fixture("names", true);
    let dir = f.root.make_dir(b"d", 0o755, owner()).unwrap();
    let file = dir.make_file(b"f", 0o600, owner()).unwrap();
    write(&file, b"kept", 0, false);
    dir.make_symlink(b"l", b"nowhere", owner()).unwrap();
    dir.make_node(b"p", 0o010600, owner()).unwrap();
    f.root.make_link(b"hard", &file).unwrap();
    file.attr().unwrap();
    assert_eq!(dir.list().unwrap().entries.len(), 3);
    assert_eq!(f.root.remove(b"d", &dir, true).err(), Some(ENOTEMPTY));
    dir.move_name(b"f", &f.root, b"moved", 0).unwrap();
    assert_eq!(dir.lookup_name(b"f").err(), Some(ENOENT));
    assert!(Arc::ptr_eq(&f.root.lookup_name(b"moved").unwrap(), &file));
    for name in [&b"l"[..], b"p"] {
        let child = dir.lookup_name(name).unwrap();
        dir.remove(name, &child, false).unwrap();
    }
    f.root.remove(b"d", &dir, true).unwrap();
    f.root.remove(b"hard", &file, false).unwrap();
    f.root.remove(b"moved", &file, false).unwrap();
    assert_eq!(file.attr().unwrap().nlink, 0);
    assert_eq!(read(&file, 0, 10), b"kept");
    assert_eq!(fs::read_dir(&f.dir).unwrap().count(), 0);
}

#[test]
fn many_tasks_share_the_queue() {
    let f = fixture("parallel", true);
    for i in 0..8 {
        fs::write(f.dir.join(std::format!("f{i}")), std::vec![i as u8; 200_000]).unwrap();
    }
    let failures = Mutex::new(0);
    std::thread::scope(|scope| {
        for i in 0..8u8 {
            let (root, failures) = (&f.root, &failures);
            scope.spawn(move || {
                let node = root.lookup_name(std::format!("f{i}").as_bytes()).unwrap();
                for round in 0..20 {
                    let data = read(&node, round * 1000, 100_000);
                    if data.len() != 100_000 || data.iter().any(|byte| *byte != i) {
                        *failures.lock() += 1;
                    }
                }
            });
        }
    });
    assert_eq!(*failures.lock(), 0);
    let _ = &f.client;
}
