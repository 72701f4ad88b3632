//! Random operations on files say the same as on the host, and leave the same: on the bundle's root, which is written through
//! and whose names and attributes are cached; on a volume, where everything is asked for again; and on an overlay.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    time::Duration,
};

use runsc_tests::{
    bundle::Bundle,
    command,
    host::{TempDir, time_scale},
    on_sandboxes,
    platform::Platform,
    programs,
    sandbox::Runsc,
};
use serde_json::json;

const SEEDS: [&str; 3] = ["1", "2", "3"];

fn count() -> &'static str {
    if time_scale() > 1 { "500" } else { "2500" }
}

/// Files that are there before: some of them have two names, one is a link, one lies deeper.
fn prepare(dir: &Path) {
    fs::create_dir_all(dir.join("lowd/a")).expect("directory");
    fs::create_dir_all(dir.join("lowd/low1")).expect("directory");
    fs::write(dir.join("low1"), (0..100_000u32).map(|i| (i / 3) as u8).collect::<Vec<_>>()).expect("file");
    fs::write(dir.join("low2"), "small").expect("file");
    fs::write(dir.join("lowd/a/b"), "deep").expect("file");
    symlink("low1", dir.join("e")).expect("link");
    fs::hard_link(dir.join("low2"), dir.join("lowd/low2")).expect("second name");
}

/// Every name with its mode, number of names, and content or link text.
fn tree(dir: &Path) -> BTreeMap<String, (u32, u64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut rest = vec![dir.to_path_buf()];
    while let Some(at) = rest.pop() {
        for entry in fs::read_dir(&at).expect("directory").map(|entry| entry.expect("entry").path()) {
            let meta = entry.symlink_metadata().expect("attributes");
            let name = entry.strip_prefix(dir).expect("below").display().to_string();
            let (links, content) = if meta.is_dir() {
                rest.push(entry);
                (0, Vec::new())
            } else if meta.is_symlink() {
                (meta.nlink(), fs::read_link(&entry).expect("link").into_os_string().into_encoded_bytes())
            } else {
                (meta.nlink(), fs::read(&entry).expect("content"))
            };
            all.insert(name, (meta.mode(), links, content));
        }
    }
    all
}

/// What the host says to a seed, and the tree it leaves.
fn on_the_host(seed: &str) -> (String, TempDir) {
    let dir = TempDir::new("files-host");
    prepare(dir.path());
    let program = programs::program("file_ops");
    let mut native = std::process::Command::new(program);
    native.arg(dir.path()).args([seed, count()]);
    let finished = command::run(&mut native, Duration::from_secs(60));
    assert_eq!(finished.code(), 0, "{}", finished.describe());
    (finished.stdout(), dir)
}

fn same_lines(host: &str, sandbox: &str) {
    for (host, sandbox) in host.lines().zip(sandbox.lines()) {
        assert_eq!(host, sandbox);
    }
    assert_eq!(host.lines().count(), sandbox.lines().count());
}

/// Runs a seed on `/data/work` of a bundle; `place` says where that lies on the host.
fn in_a_bundle(platform: &Platform, flags: &[&str], place: impl Fn(&mut Bundle) -> std::path::PathBuf) {
    for seed in SEEDS {
        let (expected, host) = on_the_host(seed);
        let mut bundle = Bundle::new(&["/file_ops", "/data/work", seed, count()]);
        bundle.add(&programs::program("file_ops"), "file_ops");
        let dir = place(&mut bundle);
        prepare(&dir);
        let before = tree(&dir);
        let path = bundle.write();
        let runsc = flags.iter().fold(Runsc::new(platform.kind), |runsc, flag| runsc.flag(*flag));
        let ended = runsc.run(&["run", "--bundle", &path, "files"]);
        same_lines(&expected, &ended.finished.stdout());
        ended.assert_code(0);
        ended.assert_platform();
        let left = tree(&dir);
        if flags.contains(&"--overlay") {
            assert!(left == before, "the overlay has reached the host");
        } else {
            assert!(left == tree(host.path()), "seed {seed}: another tree is left");
        }
    }
}

fn random_operations_on_the_root(platform: &Platform) {
    in_a_bundle(platform, &[], |bundle| {
        let dir = bundle.root().join("data/work");
        fs::create_dir(&dir).expect("directory");
        dir
    });
}

fn random_operations_on_an_overlay(platform: &Platform) {
    in_a_bundle(platform, &["--overlay"], |bundle| {
        let dir = bundle.root().join("data/work");
        fs::create_dir(&dir).expect("directory");
        dir
    });
}

fn random_operations_on_a_volume(platform: &Platform) {
    in_a_bundle(platform, &[], |bundle| {
        let dir = bundle.path().join("volume");
        fs::create_dir(&dir).expect("directory");
        let source = dir.display().to_string();
        let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
        mounts
            .push(json!({ "destination": "/data/work", "type": "bind", "source": source, "options": ["rbind", "rw"] }));
        dir
    });
}

on_sandboxes! {
    kvm ignored: "minutes in the emulated machine, which seldom lives as long";
    on_the_root = random_operations_on_the_root;
    on_an_overlay = random_operations_on_an_overlay;
    on_a_volume = random_operations_on_a_volume;
}
