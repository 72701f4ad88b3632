//! The programs of tests/abi: what holds on this host's Linux holds in the sandbox.

use runsc_tests::{on_platforms, platform::Platform, platform::Program, programs};

fn passes(platform: &Platform, name: &str) {
    let program = programs::abi(name);
    let ended = platform.run(&Program::new(&[program]).limit(180));
    let failed: Vec<_> = ended.stdout().lines().filter(|line| line.starts_with("not ok")).map(str::to_owned).collect();
    assert!(ended.code() == 0 && failed.is_empty(), "{name}: {failed:#?}\n{}", ended.describe());
}

on_platforms! {
    clock = |platform: &Platform| passes(platform, "clock");
    device = |platform: &Platform| passes(platform, "device");
    exec = |platform: &Platform| passes(platform, "exec");
    fault = |platform: &Platform| passes(platform, "fault");
    file = |platform: &Platform| passes(platform, "file");
    futex = |platform: &Platform| passes(platform, "futex");
    garbage = |platform: &Platform| passes(platform, "garbage");
    group = |platform: &Platform| passes(platform, "group");
    ident = |platform: &Platform| passes(platform, "ident");
    limit = |platform: &Platform| passes(platform, "limit");
    mmap = |platform: &Platform| passes(platform, "mmap");
    pipe = |platform: &Platform| passes(platform, "pipe");
    proc = |platform: &Platform| passes(platform, "proc");
    process = |platform: &Platform| passes(platform, "process");
    signal = |platform: &Platform| passes(platform, "signal");
    unmap_stress = |platform: &Platform| passes(platform, "unmap_stress");
    vector = |platform: &Platform| passes(platform, "vector");
}
