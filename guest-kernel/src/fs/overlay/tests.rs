//! The overlay over the real gofer.

use std::{fs, vec::Vec};

use super::{OverlayFs, node::Node};
use crate::{
    errno::{ENOENT, ENOTEMPTY},
    fs::{
        FileType, Inode, NewAttr, NewNode, RenameFlags, SetAttr,
        gofer::tests::{Fixture, fixture},
    },
    mm::io::{IoDst, IoSrc},
};

const ATTR: NewAttr = NewAttr { mode: 0o640, uid: 7, gid: 8 };

fn overlay(name: &str) -> (Fixture, std::sync::Arc<Node>) {
    let f = fixture(name, true);
    fs::create_dir_all(f.dir.join("etc/deep")).unwrap();
    fs::write(f.dir.join("etc/hosts"), "localhost").unwrap();
    fs::write(f.dir.join("etc/deep/leaf"), "leaf").unwrap();
    let (_, root) = OverlayFs::mount(f.root.clone()).unwrap();
    (f, root)
}

fn names(node: &Node) -> Vec<std::string::String> {
    let mut names: Vec<_> =
        node.listing().unwrap().iter().map(|e| std::string::String::from_utf8_lossy(&e.name).into_owned()).collect();
    names.sort();
    names
}

fn content(node: &Node) -> Vec<u8> {
    let mut buffer = std::vec![0; 1000];
    let n = match (node.content(), &node.lower) {
        (Some(content), _) => content.read(&mut IoDst::kernel(&mut buffer), 0),
        (None, Some(lower)) => lower.read_at(&mut IoDst::kernel(&mut buffer), 0),
        (None, None) => Ok(0),
    };
    buffer.truncate(n.unwrap());
    buffer
}

#[test]
fn names_above_hide_names_below() {
    let (f, root) = overlay("overlay-names");
    let etc = root.find(b"etc").unwrap();
    let hosts = etc.find(b"hosts").unwrap();
    assert_eq!(content(&hosts), b"localhost");
    etc.make(b"new", NewNode::Directory, ATTR).unwrap();
    etc.remove_link(b"hosts", &hosts).unwrap();
    assert_eq!(etc.find(b"hosts").err(), Some(ENOENT));
    assert_eq!(names(&etc), ["deep", "new"]);
    // The name comes back as something else, and goes again.
    let link = etc.make(b"hosts", NewNode::Symlink(b"there"), ATTR).unwrap();
    assert_eq!((link.link_text().unwrap(), link.stat().unwrap().nlink), (b"there".to_vec(), 1));
    etc.remove_link(b"hosts", &link).unwrap();
    assert_eq!(names(&etc), ["deep", "new"]);
    // What differs is not forgotten, though nobody holds it.
    drop((etc, hosts, link));
    assert_eq!(names(&root.find(b"etc").unwrap()), ["deep", "new"]);
    assert_eq!(fs::read_dir(f.dir.join("etc")).unwrap().count(), 2);
}

#[test]
fn attributes_change_without_the_content() {
    let (f, root) = overlay("overlay-attr");
    let leaf = root.find(b"etc").unwrap().find(b"deep").unwrap().find(b"leaf").unwrap();
    let change = SetAttr { mode: Some(0o4711), uid: Some(99), ..SetAttr::default() };
    Inode::set_attr(&*leaf, &change).unwrap();
    drop(leaf);
    let leaf = root.find(b"etc").unwrap().find(b"deep").unwrap().find(b"leaf").unwrap();
    let stat = leaf.stat().unwrap();
    assert_eq!((stat.mode, stat.uid, stat.size), (0o104711, 99, 4));
    assert!(leaf.content().is_none());
    // Truncating copies only what stays.
    Inode::set_attr(&*leaf, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    assert_eq!((leaf.stat().unwrap().size, leaf.stat().unwrap().mode), (0, 0o104711));
    assert_eq!(fs::read(f.dir.join("etc/deep/leaf")).unwrap(), b"leaf");
}

#[test]
fn directories_move_without_copying() {
    let (f, root) = overlay("overlay-move");
    let etc = root.find(b"etc").unwrap();
    etc.move_to(b"deep", &root, b"moved", RenameFlags::empty()).unwrap();
    assert_eq!(names(&root), ["etc", "moved"]);
    assert_eq!(names(&etc), ["hosts"]);
    let moved = root.find(b"moved").unwrap();
    assert_eq!(content(&moved.find(b"leaf").unwrap()), b"leaf");
    assert_eq!(root.remove_dir(b"moved", &moved).err(), Some(ENOTEMPTY));
    // A name that is replaced, one that is exchanged, two names of one file.
    let other = root.make(b"other", NewNode::Fifo, ATTR).unwrap();
    root.move_to(b"other", &etc, b"hosts", RenameFlags::empty()).unwrap();
    assert!(std::sync::Arc::ptr_eq(&etc.find(b"hosts").unwrap(), &other));
    etc.move_to(b"hosts", &moved, b"leaf", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(content(&etc.find(b"hosts").unwrap()), b"leaf");
    assert_eq!(moved.find(b"leaf").unwrap().file_type(), FileType::Fifo);
    let hosts = etc.find(b"hosts").unwrap();
    root.add_link(b"second", &hosts).unwrap();
    assert_eq!(hosts.stat().unwrap().nlink, 2);
    root.remove_link(b"second", &hosts).unwrap();
    etc.remove_link(b"hosts", &hosts).unwrap();
    assert_eq!((hosts.stat().unwrap().nlink, content(&hosts)), (0, b"leaf".to_vec()));
    let leaf = moved.find(b"leaf").unwrap();
    moved.remove_link(b"leaf", &leaf).unwrap();
    root.remove_dir(b"moved", &moved).unwrap();
    assert_eq!(names(&root), ["etc"]);
    assert!(f.dir.join("etc/deep/leaf").exists());
}

/// Content lies in user memory, which unit tests do not have: only what copies nothing is checked here.
#[test]
fn a_new_file_is_empty() {
    let (_f, root) = overlay("overlay-new");
    let file = root.make(b"file", NewNode::Regular, ATTR).unwrap();
    let stat = file.stat().unwrap();
    assert_eq!((stat.mode, stat.uid, stat.gid, stat.size, stat.nlink), (0o100640, 7, 8, 0, 1));
    assert!(file.content().unwrap().write(&mut IoSrc::kernel(b""), 0).is_ok());
    assert_eq!(content(&file), b"");
}
