//! The programs of tests/abi: what holds on this host's Linux holds in the sandbox.

use std::time::Duration;

use runsc_tests::{
    bundle::Bundle,
    command::Finished,
    on_platforms,
    platform::{Kind, Platform, Program},
    programs,
    sandbox::Runsc,
};
use serde_json::json;

fn passes(platform: &Platform, name: &str) {
    let program = programs::abi(name);
    check(name, &platform.run(&Program::new(&[program]).limit(180)));
}

/// In a container with limits, since it uses up whatever there is.
fn passes_in_limits(platform: &Platform, name: &str) {
    if platform.kind == Kind::Native {
        return passes(platform, name);
    }
    let mut bundle = Bundle::new(&["/program"]);
    bundle.add(&programs::abi(name), "program");
    bundle.config["process"]["env"] = json!(["PATH=/bin", "ABI_SANDBOX=1"]);
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096 }]);
    bundle.config["linux"]["resources"] = json!({ "memory": { "limit": 256 << 20 }, "pids": { "limit": 500 } });
    let ended =
        Runsc::new(platform.kind).limit(Duration::from_secs(180)).run(&["run", "--bundle", &bundle.write(), "limits"]);
    check(name, &ended.finished);
    ended.assert_platform();
}

fn check(name: &str, ended: &Finished) {
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
    inotify = |platform: &Platform| passes(platform, "inotify");
    inet = |platform: &Platform| passes(platform, "inet");
    limit = |platform: &Platform| passes_in_limits(platform, "limit");
    mmap = |platform: &Platform| passes(platform, "mmap");
    mqueue = |platform: &Platform| passes(platform, "mqueue");
    peek = |platform: &Platform| passes(platform, "peek");
    pipe = |platform: &Platform| passes(platform, "pipe");
    proc = |platform: &Platform| passes(platform, "proc");
    process = |platform: &Platform| passes(platform, "process");
    mount = |platform: &Platform| passes(platform, "mount");
    sched = |platform: &Platform| passes(platform, "sched");
    signal = |platform: &Platform| passes(platform, "signal");
    sysvipc = |platform: &Platform| passes(platform, "sysvipc");
    unix = |platform: &Platform| passes(platform, "unix");
    timer = |platform: &Platform| passes(platform, "timer");
    unmap_stress = |platform: &Platform| passes(platform, "unmap_stress");
    vector = |platform: &Platform| passes(platform, "vector");
}
