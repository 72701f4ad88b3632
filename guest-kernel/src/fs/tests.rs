//! Names, links, mounts, permissions and descriptors over tmpfs.

use std::{
    string::{String, ToString},
    sync::Arc,
    vec,
    vec::Vec,
};

use super::{
    namei::{self, Caller},
    tmpfs::Tmpfs,
    *,
};
use crate::{
    errno::*,
    mm::{
        frames,
        io::{IoDst, IoSrc},
    },
    task::Creds,
};

fn root() -> Caller {
    root_of(1 << 20)
}

fn root_of(size: u64) -> Caller {
    frames::init_hosted();
    let fs = Tmpfs::new(size, "tmpfs");
    let node = fs.make_root(NewAttr { mode: 0o755, uid: 0, gid: 0 });
    let mount = Mount::of(fs, node, "tmpfs", MountFlags::empty());
    let path = mount.root_path();
    Caller { root: path.clone(), cwd: path, creds: Arc::new(Creds::root()), umask: 0o022 }
}

fn user(caller: &Caller, uid: u32) -> Caller {
    let creds =
        Creds { uid, euid: uid, suid: uid, fsuid: uid, gid: uid, egid: uid, sgid: uid, fsgid: uid, ..Creds::default() };
    Caller { creds: Arc::new(creds), ..caller.clone() }
}

fn mkdir(c: &Caller, path: &str) -> Result<()> {
    namei::create(c, None, path.as_bytes(), NewNode::Directory, 0o777).map(drop)
}

fn link(c: &Caller, target: &str, path: &str) {
    namei::create(c, None, path.as_bytes(), NewNode::Symlink(target.as_bytes()), 0o777).unwrap();
}

fn open(c: &Caller, path: &str, flags: OpenFlags) -> Result<Arc<File>> {
    namei::open(c, None, path.as_bytes(), flags, 0o666, Resolve::empty())
}

fn write(c: &Caller, path: &str, text: &str) {
    let file = open(c, path, OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC).unwrap();
    assert_eq!(file.write(&mut IoSrc::kernel(text.as_bytes())), Ok(text.len()));
}

fn read(c: &Caller, path: &str) -> Result<String> {
    let bytes = open(c, path, OpenFlags::empty())?.read_to_end(1 << 20)?;
    Ok(String::from_utf8(bytes).unwrap())
}

fn resolve(c: &Caller, path: &str) -> Result<String> {
    let found = c.walk(None).resolve(path.as_bytes(), true)?;
    Ok(String::from_utf8(found.text(&c.root).0).unwrap())
}

fn names(c: &Caller, path: &str) -> Vec<String> {
    let mut names = Vec::new();
    let dir = open(c, path, OpenFlags::DIRECTORY).unwrap();
    dir.read_entries(&mut |e| {
        names.push(String::from_utf8_lossy(e.name).to_string());
        true
    })
    .unwrap();
    names.sort();
    names
}

#[test]
fn paths_lead_where_they_say() {
    let c = root();
    mkdir(&c, "a").unwrap();
    mkdir(&c, "/a/b/").unwrap();
    write(&c, "a/b/f", "x");
    link(&c, "/a/b", "abs");
    link(&c, "../b/./f", "a/b/rel");
    link(&c, "loop", "loop");
    assert_eq!(resolve(&c, "abs/../b//f").unwrap(), "/a/b/f");
    assert_eq!(resolve(&c, "a/b/rel").unwrap(), "/a/b/f");
    assert_eq!(resolve(&c, "/../..").unwrap(), "/");
    assert_eq!(resolve(&c, "abs/").unwrap(), "/a/b");
    assert_eq!(resolve(&c, "a/b/f/"), Err(ENOTDIR));
    assert_eq!(resolve(&c, "a/b/f/.."), Err(ENOTDIR));
    assert_eq!(resolve(&c, "loop"), Err(ELOOP));
    assert_eq!(resolve(&c, ""), Err(ENOENT));
    assert_eq!(resolve(&c, "a/none"), Err(ENOENT));
    assert_eq!(resolve(&c, &"n".repeat(256)), Err(ENAMETOOLONG));
    // Forty links are followed, one more is not.
    link(&c, "a", "l0");
    for i in 1..41 {
        link(&c, &std::format!("l{}", i - 1), &std::format!("l{i}"));
    }
    assert_eq!(resolve(&c, "l39").unwrap(), "/a");
    assert_eq!(resolve(&c, "l40"), Err(ELOOP));
}

#[test]
fn a_root_confines_and_openat2_restricts() {
    let c = root();
    mkdir(&c, "jail").unwrap();
    mkdir(&c, "jail/in").unwrap();
    write(&c, "secret", "s");
    link(&c, "/secret", "jail/out");
    link(&c, "../secret", "jail/up");
    let jail = c.walk(None).resolve(b"jail", true).unwrap();
    let jailed = Caller { root: jail.clone(), cwd: jail.clone(), ..c.clone() };
    assert_eq!(resolve(&jailed, "../../secret"), Err(ENOENT));
    assert_eq!(resolve(&jailed, "out"), Err(ENOENT));
    assert_eq!(resolve(&jailed, "in/../..").unwrap(), "/");
    let with = |path: &str, resolve| {
        namei::open(&c, Some(jail.clone()), path.as_bytes(), OpenFlags::empty(), 0, resolve).map(drop)
    };
    assert_eq!(with("up", Resolve::empty()), Ok(()));
    assert_eq!(with("up", Resolve::BENEATH), Err(EXDEV));
    assert_eq!(with("out", Resolve::BENEATH), Err(EXDEV));
    assert_eq!(with("/secret", Resolve::BENEATH), Err(EXDEV));
    assert_eq!(with("in", Resolve::BENEATH), Ok(()));
    assert_eq!(with("up", Resolve::IN_ROOT), Err(ENOENT));
    assert_eq!(with("up", Resolve::NO_SYMLINKS), Err(ELOOP));
}

#[test]
fn mounts_are_crossed_both_ways() {
    let c = root();
    mkdir(&c, "m").unwrap();
    write(&c, "m/below", "");
    let fs = Tmpfs::new(1 << 20, "tmpfs");
    let mount = Mount::of(fs.clone(), fs.make_root(NewAttr { mode: 0o755, uid: 0, gid: 0 }), "x", MountFlags::empty());
    let point = c.walk(None).resolve(b"m", true).unwrap();
    mount.attach(&point).unwrap();
    assert_eq!(names(&c, "m"), [".", ".."]);
    write(&c, "m/above", "1");
    assert_eq!(resolve(&c, "m/../m/above").unwrap(), "/m/above");
    assert_eq!(resolve(&c, "m/..").unwrap(), "/");
    assert_eq!(namei::rmdir(&c, None, b"m"), Err(EBUSY));
    assert_eq!(namei::rename(&c, (None, b"m/above"), (None, b"above"), RenameFlags::empty()), Err(EXDEV));
    // A bind mount shows the same files; a read-only one refuses changes through it only.
    mkdir(&c, "bind").unwrap();
    let shown = c.walk(None).resolve(b"m", true).unwrap();
    let place = c.walk(None).resolve(b"bind", true).unwrap();
    Mount::new(fs, shown.dentry.clone(), "x", MountFlags::RDONLY).attach(&place).unwrap();
    assert_eq!(read(&c, "bind/above").unwrap(), "1");
    assert_eq!(open(&c, "bind/above", OpenFlags::RDWR).err(), Some(EROFS));
    assert_eq!(mkdir(&c, "bind/d"), Err(EROFS));
    assert_eq!(mkdir(&c, "m/d"), Ok(()));
    let root = c.root.mount.clone();
    assert_eq!(root.tree().len(), 3);
    assert_eq!(mount.detach(false), Err(EBUSY));
    drop(shown);
    mount.detach(false).unwrap();
    assert_eq!(names(&c, "m"), [".", "..", "below"]);
    assert_eq!(root.detach(false), Err(EBUSY));
}

#[test]
fn a_detached_mount_gives_its_files_back() {
    let c = root();
    mkdir(&c, "m").unwrap();
    let fs = Tmpfs::new(1 << 20, "tmpfs");
    let node = fs.make_root(NewAttr { mode: 0o755, uid: 0, gid: 0 });
    let alive = Arc::downgrade(&node);
    let mount = Mount::of(fs, node, "x", MountFlags::empty());
    mount.attach(&c.walk(None).resolve(b"m", true).unwrap()).unwrap();
    mkdir(&c, "m/a").unwrap();
    write(&c, "m/a/f", "content");
    mount.detach(false).unwrap();
    drop(mount);
    assert!(alive.upgrade().is_none());
}

#[test]
fn a_long_chain_of_removed_directories_is_dropped() {
    let c = root_of(1 << 30);
    let mut at = vec![c.root.clone()];
    for _ in 0..20_000 {
        let inside = Caller { cwd: at.last().unwrap().clone(), ..c.clone() };
        at.push(namei::create(&inside, None, b"d", NewNode::Directory, 0o777).unwrap());
    }
    let deepest = at.pop().unwrap();
    while let Some(dir) = at.pop() {
        namei::rmdir(&Caller { cwd: dir, ..c.clone() }, None, b"d").unwrap();
    }
    std::thread::Builder::new().stack_size(64 << 10).spawn(move || drop(deepest)).unwrap().join().unwrap();
}

#[test]
fn names_are_made_moved_and_removed() {
    let c = root();
    mkdir(&c, "d").unwrap();
    assert_eq!(mkdir(&c, "d"), Err(EEXIST));
    write(&c, "d/f", "one");
    assert_eq!(namei::rmdir(&c, None, b"d"), Err(ENOTEMPTY));
    assert_eq!(namei::unlink(&c, None, b"d"), Err(EISDIR));
    assert_eq!(namei::rmdir(&c, None, b"d/f"), Err(ENOTDIR));
    assert_eq!(namei::rename(&c, (None, b"d"), (None, b"d/in"), RenameFlags::empty()), Err(EINVAL));
    let file = open(&c, "d/f", OpenFlags::empty()).unwrap();
    write(&c, "g", "two");
    namei::rename(&c, (None, b"g"), (None, b"d/f"), RenameFlags::empty()).unwrap();
    assert_eq!(read(&c, "d/f").unwrap(), "two");
    assert_eq!(resolve(&c, "g"), Err(ENOENT));
    // What was replaced lives on while it is open.
    assert_eq!(file.read_to_end(100).unwrap(), b"one");
    assert_eq!(file.stat().unwrap().nlink, 0);
    assert!(file.path().display(&c.root).ends_with(b" (deleted)"));
    write(&c, "x", "x");
    assert_eq!(namei::rename(&c, (None, b"x"), (None, b"d/f"), RenameFlags::NOREPLACE), Err(EEXIST));
    namei::rename(&c, (None, b"x"), (None, b"d/f"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!((read(&c, "x").unwrap(), read(&c, "d/f").unwrap()), ("two".into(), "x".into()));
    let source = c.walk(None).resolve(b"x", true).unwrap();
    namei::link(&c, &source, None, b"y").unwrap();
    assert_eq!(source.inode().stat().unwrap().nlink, 2);
    // A removed directory takes no new names.
    mkdir(&c, "gone").unwrap();
    let gone = c.walk(None).resolve(b"gone", true).unwrap();
    namei::rmdir(&c, None, b"gone").unwrap();
    let inside = Caller { cwd: gone, ..c.clone() };
    assert_eq!(mkdir(&inside, "new"), Err(ENOENT));
    assert_eq!(names(&c, "/"), [".", "..", "d", "x", "y"]);
    assert_eq!(c.root.inode().stat().unwrap().nlink, 3);
}

#[test]
fn permissions_follow_mode_and_owner() {
    let c = root();
    let u = user(&c, 7);
    write(&c, "secret", "s");
    let path = c.walk(None).resolve(b"secret", true).unwrap();
    path.inode().set_attr(&SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    assert_eq!(open(&u, "secret", OpenFlags::empty()).err(), Some(EACCES));
    assert_eq!(mkdir(&u, "d"), Err(EACCES));
    path.inode().set_attr(&SetAttr { uid: Some(7), ..SetAttr::default() }).unwrap();
    assert_eq!(read(&u, "secret").unwrap(), "s");
    // In a sticky directory only the owner removes.
    mkdir(&c, "tmp").unwrap();
    let tmp = c.walk(None).resolve(b"tmp", true).unwrap();
    tmp.inode().set_attr(&SetAttr { mode: Some(0o1777), ..SetAttr::default() }).unwrap();
    write(&u, "tmp/f", "");
    assert_eq!(namei::unlink(&user(&c, 8), None, b"tmp/f"), Err(EPERM));
    assert_eq!(namei::unlink(&u, None, b"tmp/f"), Ok(()));
}

#[test]
fn content_grows_shrinks_and_is_limited() {
    let c = root();
    let file = open(&c, "f", OpenFlags::CREAT | OpenFlags::RDWR).unwrap();
    assert_eq!(file.write_at(&mut IoSrc::kernel(b"end"), 10_000), Ok(3));
    let mut all = vec![1; 10_003];
    assert_eq!(file.read_at(&mut IoDst::kernel(&mut all), 0), Ok(10_003));
    assert!(all[..10_000].iter().all(|&b| b == 0) && all.ends_with(b"end"));
    assert_eq!(file.stat().unwrap().blocks, 8);
    assert_eq!(file.seek(0, 3), Ok(8192));
    file.inode().set_attr(&SetAttr { size: Some(2), ..SetAttr::default() }).unwrap();
    assert_eq!(file.stat().unwrap().blocks, 0);
    file.inode().set_attr(&SetAttr { size: Some(9000), ..SetAttr::default() }).unwrap();
    assert!(file.read_to_end(10_000).unwrap().iter().all(|&b| b == 0));
    let much = vec![7; 2 << 20];
    assert_eq!(file.write_at(&mut IoSrc::kernel(&much), 0), Ok(1 << 20));
    assert_eq!(file.write_at(&mut IoSrc::kernel(b"x"), 2 << 20), Err(ENOSPC));
    namei::unlink(&c, None, b"f").unwrap();
    drop(file);
    // The pages come back with the last reference.
    let again = open(&c, "g", OpenFlags::CREAT | OpenFlags::RDWR | OpenFlags::APPEND).unwrap();
    assert_eq!(again.write(&mut IoSrc::kernel(&much[..100])), Ok(100));
    assert_eq!(again.seek(0, 0), Ok(0));
    assert_eq!(again.write(&mut IoSrc::kernel(b"tail")), Ok(4));
    assert_eq!(again.stat().unwrap().size, 104);
}

#[test]
fn descriptors_are_lowest_first_and_shared_or_copied() {
    let c = root();
    write(&c, "f", "");
    let file = || open(&c, "f", OpenFlags::empty()).unwrap();
    let table = FdTable::new();
    for n in 0..5 {
        assert_eq!(table.insert(file(), n % 2 == 1, 0, 10), Ok(n));
    }
    table.remove(1).unwrap();
    table.remove(3).unwrap();
    assert_eq!(table.remove(3).err(), Some(EBADF));
    assert_eq!(table.insert(file(), false, 2, 10), Ok(3));
    assert_eq!(table.insert(file(), false, 0, 10), Ok(1));
    assert_eq!(table.insert(file(), false, 0, 5).err(), Some(EMFILE));
    assert_eq!(table.insert(file(), true, 7, 10), Ok(7));
    let copy = table.copy();
    table.close_for_exec();
    assert_eq!(table.open_fds(), [0, 1, 2, 3, 4]);
    assert_eq!(copy.open_fds(), [0, 1, 2, 3, 4, 7]);
    assert_eq!(table.remove_range(1, 3).len(), 3);
    assert_eq!(table.insert(file(), false, 0, 10), Ok(1));
    assert_eq!(table.get(-1).err(), Some(EBADF));
    assert_eq!(table.replace(10, file(), false, 10).err(), Some(EBADF));
}

#[test]
fn the_name_cache_forgets_what_is_not_used() {
    let c = root();
    mkdir(&c, "many").unwrap();
    for i in 0..500 {
        assert_eq!(resolve(&c, &std::format!("many/absent{i}")), Err(ENOENT));
        write(&c, &std::format!("many/f{i}"), "");
    }
    assert_eq!(resolve(&c, "many/absent3"), Err(ENOENT));
    write(&c, "many/absent3", "now");
    assert_eq!(read(&c, "many/absent3").unwrap(), "now");
    assert_eq!(names(&c, "many").len(), 503);
}
