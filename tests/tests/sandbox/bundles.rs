//! `runsc run`, detached containers and the commands around them, over bundles.

use std::{fs, path::Path, time::Duration};

use runsc_tests::{
    bundle::Bundle,
    host, on_sandboxes,
    platform::Platform,
    programs,
    sandbox::{Ended, Runsc},
};
use serde_json::{Value, json};

fn run(platform: &Platform, bundle: &Bundle) -> Ended {
    let path = bundle.write();
    let ended = Runsc::new(platform.kind).run(&["run", "--bundle", &path, "test-container"]);
    assert!(!ended.finished.timed_out, "{}", ended.describe());
    ended
}

fn says(platform: &Platform, bundle: &Bundle, text: &str) {
    let ended = run(platform, bundle);
    assert_eq!(ended.finished.stdout(), text, "{}", ended.describe());
    ended.assert_code(0);
    ended.assert_platform();
}

fn shell(script: &str) -> Bundle {
    Bundle::new(&["/bin/sh", "-c", script])
}

fn run_static_program(platform: &Platform) {
    let bundle = Bundle::new(&["/hello", "5", "x"]);
    bundle.add(&programs::program("hello"), "hello");
    let ended = run(platform, &bundle);
    assert_eq!(ended.finished.stdout(), "hello from 2 argument(s)\n", "{}", ended.describe());
    assert_eq!(ended.finished.stderr(), "and this is stderr\n", "{}", ended.describe());
    ended.assert_code(5);
    ended.assert_platform();
}

fn run_process_fields(platform: &Platform) {
    let mut bundle = shell(
        "id -u; id -g; pwd; echo $A; hostname; umask; cat /proc/self/status | tr -d '\\t' | { while read l; do case $l in NoNewPrivs*) echo $l; esac; done; }",
    );
    let process = &mut bundle.config["process"];
    process["user"] = json!({ "uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [5] });
    process["cwd"] = json!("/data");
    process["env"] = json!(["PATH=/bin", "A=some value"]);
    says(platform, &bundle, "1000\n1001\n/data\nsome value\nsandbox\n0027\nNoNewPrivs:1\n");
}

/// The working directory is made, also in a root that is read-only; HOME comes from /etc/passwd; of two values the last counts.
fn run_what_is_filled_in(platform: &Platform) {
    let mut bundle = shell("pwd; echo $HOME; echo $A");
    fs::write(bundle.root().join("etc/passwd"), "root:x:0:0::/:\nme:x:1000:1000::/data/home:/bin/sh\n").expect("write");
    let process = &mut bundle.config["process"];
    process["user"] = json!({ "uid": 1000, "gid": 1000 });
    process["cwd"] = json!("/data/made/here");
    process["env"] = json!(["PATH=/bin", "A=1", "A=2"]);
    bundle.config["root"]["readonly"] = json!(true);
    says(platform, &bundle, "/data/made/here\n/data/home\n2\n");
}

/// Without a name of its own a container has the host's, as a new uts namespace has.
fn run_no_hostname(platform: &Platform) {
    let mut bundle = shell("hostname");
    bundle.config.as_object_mut().expect("an object").remove("hostname");
    let name = fs::read_to_string("/proc/sys/kernel/hostname").expect("the host's name");
    says(platform, &bundle, &name);
}

fn run_limits(platform: &Platform) {
    let mut bundle = shell("ulimit -n; ulimit -Hn; ulimit -c");
    bundle.config["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }
    ]);
    says(platform, &bundle, "100\n200\n0\n");
}

/// The default writes through to the bundle's root, and what the host has there is seen.
fn run_root_is_written_through(platform: &Platform) {
    let bundle = shell("cat /data/in; echo out > /data/out; mkdir /data/d; mv /data/in /data/moved; ls /data");
    fs::write(bundle.root().join("data/in"), "from the host\n").expect("write");
    says(platform, &bundle, "from the host\nd\nmoved\nout\n");
    assert_eq!(fs::read_to_string(bundle.root().join("data/out")).expect("read"), "out\n");
    assert!(bundle.root().join("data/d").is_dir() && bundle.root().join("data/moved").exists());
}

fn run_overlay_keeps_the_root(platform: &Platform) {
    let bundle = shell("echo changed > /data/in; rm -r /etc; cat /data/in; ls -d /etc 2>/dev/null || echo gone");
    fs::write(bundle.root().join("data/in"), "original\n").expect("write");
    let path = bundle.write();
    let ended = Runsc::new(platform.kind).flag("--overlay").run(&["run", "--bundle", &path, "overlaid"]);
    assert_eq!(ended.finished.stdout(), "changed\ngone\n", "{}", ended.describe());
    assert_eq!(fs::read_to_string(bundle.root().join("data/in")).expect("read"), "original\n");
    assert!(bundle.root().join("etc/passwd").exists());
}

fn run_readonly_root(platform: &Platform) {
    let mut bundle = shell(
        "echo x > /data/f || echo refused; echo y > /tmp/f; mkdir /new 2>/dev/null || echo refused too; cat /etc/passwd > /dev/null && echo readable",
    );
    bundle.config["root"]["readonly"] = json!(true);
    let ended = run(platform, &bundle);
    let lines: Vec<_> = ended.finished.stdout().lines().map(str::to_owned).collect();
    assert_eq!(lines.first().map(String::as_str), Some("refused"), "{}", ended.describe());
    assert!(
        lines.contains(&"refused too".to_owned()) && lines.contains(&"readable".to_owned()),
        "{}",
        ended.describe()
    );
    assert!(!bundle.root().join("data/f").exists());
}

fn run_bind_mounts(platform: &Platform) {
    let outside = host::TempDir::new("volume");
    fs::write(outside.path().join("f"), "shared\n").expect("write");
    let mut bundle = shell(
        "cat /rw/f /ro/f; echo new > /rw/new; echo no > /ro/no 2>/dev/null || echo refused; echo more >> /rw/f; cat /ro/f",
    );
    let source = outside.path().display().to_string();
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({ "destination": "/rw", "type": "bind", "source": source, "options": ["rbind", "rw"] }));
    mounts.push(json!({ "destination": "/ro", "type": "bind", "source": source, "options": ["rbind", "ro"] }));
    says(platform, &bundle, "shared\nshared\nrefused\nshared\nmore\n");
    assert_eq!(fs::read_to_string(outside.path().join("new")).expect("read"), "new\n");
}

fn run_tmpfs_mounts(platform: &Platform) {
    let mut bundle = shell(
        "echo x > /scratch/f; cat /scratch/f; stat -c %a /scratch; dd if=/dev/zero of=/scratch/big bs=1024 count=4096 2>/dev/null || echo full; test -c /dev/null && echo device; echo > /dev/null && echo written",
    );
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.push(
        json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=700"] }),
    );
    says(platform, &bundle, "x\n700\nfull\ndevice\nwritten\n");
}

/// Devices the sandbox has work under any name; of others there is the node, and nothing behind it.
fn run_devices(platform: &Platform) {
    let mut bundle = shell(
        "stat -c '%a %u %F' /dev/extra/mine /dev/sda; head -c 3 /dev/extra/mine | wc -c; cat /dev/sda 2>&1; test -c /dev/null && echo null; test -p /dev/pipe && echo pipe",
    );
    bundle.config["linux"]["devices"] = json!([
        { "path": "/dev/extra/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8 },
        { "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 },
        { "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666 },
        { "path": "/dev/pipe", "type": "p" },
    ]);
    says(
        platform,
        &bundle,
        "640 7 character special file\n666 0 block special file\n3\ncat: can't open '/dev/sda': No such device or address\nnull\npipe\n",
    );
}

/// A mount point behind a symbolic link is where the link leads inside the container, never on the host.
fn run_symlinked_mount_points(platform: &Platform) {
    for readonly in [false, true] {
        let outside = host::TempDir::new("outside");
        let mut bundle = shell("touch /data/x/f && echo inside; ls -d /data/x/f; ls /escape");
        bundle.config["root"]["readonly"] = json!(readonly);
        let root = bundle.root();
        std::os::unix::fs::symlink("/data", root.join("link")).expect("link");
        let up = format!("../../../../../../../..{}", outside.path().display());
        std::os::unix::fs::symlink(&up, root.join("escape")).expect("link");
        fs::create_dir_all(root.join(outside.path().strip_prefix("/").expect("absolute"))).expect("mkdir");
        let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
        for target in ["/link/x", "/escape/y"] {
            mounts.push(json!({ "destination": target, "type": "tmpfs", "source": "tmpfs" }));
        }
        says(platform, &bundle, "inside\n/data/x/f\ny\n");
        assert_eq!(fs::read_dir(outside.path()).expect("directory").count(), 0);
    }
}

fn run_sysctls(platform: &Platform) {
    let mut bundle = shell("cat /proc/sys/kernel/msgmax /proc/sys/net/core/somaxconn");
    bundle.config["linux"]["sysctl"] = json!({ "kernel.msgmax": "4321", "net.core.somaxconn": "77", "net.x.y": "1" });
    says(platform, &bundle, "4321\n77\n");
    bundle.config["linux"]["sysctl"] = json!({ "kernel.no_such_thing": "1" });
    let ended = run(platform, &bundle);
    ended.assert_code(128);
    assert!(ended.finished.stderr().contains("linux.sysctl.kernel.no_such_thing"), "{}", ended.describe());
}

/// What the host can do with files, the container can: the file test program over the gofer's write-through root, and over
/// a tmpfs.
fn run_file_programs(platform: &Platform) {
    for dir in ["/data", "/tmpfs"] {
        let mut bundle = Bundle::new(&["/file"]);
        bundle.add(&programs::abi("file"), "file");
        fs::create_dir_all(bundle.root().join("tmpfs")).expect("mkdir");
        bundle.config["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(json!({ "destination": "/tmpfs", "type": "tmpfs", "source": "t" }));
        bundle.config["process"]["env"] = json!(["PATH=/bin", format!("TEST_DIR={dir}"), "ABI_SANDBOX=1"]);
        bundle.config["process"]["rlimits"] = json!([]);
        let path = bundle.write();
        let ended = Runsc::new(platform.kind).limit(Duration::from_secs(120)).run(&["run", "--bundle", &path, "files"]);
        assert!(ended.finished.code() == 0, "in {dir}: {}", ended.describe());
    }
}

/// The gofer's caches: the second stat of a file costs no request.
fn run_second_stat_is_free(platform: &Platform) {
    let count = |times: u32| {
        let bundle = Bundle::new(&[
            "/bin/sh",
            "-c",
            &format!("i=0; while [ $i -lt {times} ]; do test -e /data/f; i=$((i + 1)); done"),
        ]);
        fs::write(bundle.root().join("data/f"), "x").expect("write");
        let ended = run(platform, &bundle);
        ended.assert_code(0);
        ended.counters().get("sentry.gofer_requests").copied().expect("a counter of gofer requests")
    };
    let (few, many) = (count(2), count(500));
    assert!(many <= few + 2, "2 stats cost {few} requests, 500 cost {many}");
}

/// A mapped file that the host truncates while the sandbox reads, writes and executes it: the access fails, the sandbox lives.
fn run_truncated_under_a_mapping(platform: &Platform) {
    // Pages that begin with a return instruction.
    let whole = [0xc3u8; 16 * 4096];
    let truncate = |path: &Path| {
        let file = fs::OpenOptions::new().write(true).open(path).expect("open");
        move |keep: u64| {
            use std::os::unix::fs::FileExt;
            file.set_len(keep).expect("truncate");
            std::thread::sleep(Duration::from_micros(300));
            file.write_all_at(&whole, 0).expect("write");
            std::thread::sleep(Duration::from_micros(300));
        }
    };
    let volume = host::TempDir::new("volume");
    let mut bundle = Bundle::new(&["/bin/sh", "-c", "/mapped /data/f 3 & /mapped /volume/f 3; wait $! && echo both"]);
    bundle.add(&programs::program("mapped"), "mapped");
    let in_root = bundle.root().join("data/f");
    let in_volume = volume.path().join("f");
    for path in [&in_root, &in_volume] {
        fs::write(path, whole).expect("write");
    }
    bundle.config["mounts"].as_array_mut().expect("mounts").push(
        json!({ "destination": "/volume", "type": "bind", "source": volume.path().display().to_string(), "options": ["rbind", "rw"] }),
    );
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    let mut running = runsc.start(&["run", "--bundle", &path, "truncated"]);
    let (root, volume) = (truncate(&in_root), truncate(&in_volume));
    let mut keep = 0;
    while running.is_running() {
        keep = (keep + 5 * 4096 + 77) % whole.len() as u64;
        root(keep);
        volume(keep);
    }
    let ended = runsc.ended(running.finish(Duration::from_secs(60)));
    assert_eq!(ended.finished.stdout(), "alive\nalive\nboth\n", "{}", ended.describe());
    ended.assert_code(0);
    ended.assert_platform();
}

fn state(runsc: &Runsc, id: &str) -> Option<Value> {
    let output = runsc.command(&["state", id]).output().expect("state");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn done(runsc: &Runsc, args: &[&str]) {
    let (code, errors) = runsc.detached(args);
    assert_eq!(code, 0, "{args:?}: {errors}");
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20) * host::time_scale();
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn run_detached_life(platform: &Platform) {
    let bundle =
        shell("echo started > /data/mark; trap 'echo stopped > /data/mark; exit 3' TERM; while :; do sleep 0.1; done");
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    let pid_file = bundle.path().join("pid");
    let pid_file_text = pid_file.display().to_string();
    done(&runsc, &["run", "--detach", "--pid-file", &pid_file_text, "--bundle", &path, "life"]);
    let pid: i32 = fs::read_to_string(&pid_file).expect("pid file").trim().parse().expect("pid");
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "no process {pid}");
    let value = state(&runsc, "life").expect("state");
    assert_eq!(
        (value["id"].as_str(), value["status"].as_str(), value["pid"].as_i64()),
        (Some("life"), Some("running"), Some(pid.into()))
    );
    assert_eq!(value["bundle"].as_str(), Some(&*path));
    let mark = bundle.root().join("data/mark");
    wait_for("the container's first words", || fs::read_to_string(&mark).is_ok_and(|text| text == "started\n"));
    let list = runsc.command(&["list", "--format", "json"]).output().expect("list");
    let list: Value = serde_json::from_slice(&list.stdout).expect("list's JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list[0]["status"], "running");
    let refused = runsc.command(&["delete", "life"]).output().expect("delete");
    assert!(!refused.status.success(), "deleted a running container");
    let (code, errors) = runsc.detached(&["run", "--bundle", &path, "life"]);
    assert!(code == 128 && errors.contains("life"), "the id is taken: {code} {errors}");
    done(&runsc, &["kill", "life", "TERM"]);
    wait_for("the end", || state(&runsc, "life").is_some_and(|value| value["status"] == "stopped"));
    assert_eq!(fs::read_to_string(&mark).expect("mark"), "stopped\n");
    done(&runsc, &["delete", "life"]);
    assert!(state(&runsc, "life").is_none());
    wait_for("no process left", || host::processes_with(&runsc.state_dir().display().to_string()).is_empty());
    assert_eq!(host::mounts_with(&path), Vec::<String>::new());
    done(&runsc, &["delete", "--force", "life"]);
}

fn run_kill_and_force(platform: &Platform) {
    let bundle = shell("while :; do sleep 1; done");
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    done(&runsc, &["run", "-detach", "-bundle", &path, "a"]);
    done(&runsc, &["run", "--detach=true", "--bundle", &path, "b"]);
    done(&runsc, &["kill", "a", "9"]);
    wait_for("a's end", || state(&runsc, "a").is_some_and(|value| value["status"] == "stopped"));
    assert!(state(&runsc, "b").is_some_and(|value| value["status"] == "running"));
    done(&runsc, &["delete", "--force", "b"]);
    done(&runsc, &["delete", "a"]);
    wait_for("no process left", || host::processes_with(&runsc.state_dir().display().to_string()).is_empty());
}

/// An idle sandbox wakes nobody: the counters of waits and stops do not move.
fn run_idle_makes_no_wakeups(platform: &Platform) {
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    let pid_file = bundle.path().join("pid");
    done(&runsc, &["run", "--detach", "--pid-file", &pid_file.display().to_string(), "--bundle", &path, "idle"]);
    std::thread::sleep(Duration::from_secs(2) * host::time_scale().min(4));
    let switches = || {
        let mut sum = 0u64;
        let mut tasks = 0;
        for (pid, _) in host::processes_with(&runsc.state_dir().display().to_string()) {
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                for line in status.lines().filter(|line| line.contains("ctxt_switches")) {
                    sum += line.split_whitespace().last().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                }
                tasks += 1;
            }
        }
        (tasks, sum)
    };
    let before = switches();
    std::thread::sleep(Duration::from_secs(10));
    let after = switches();
    done(&runsc, &["delete", "--force", "idle"]);
    assert!(before.0 >= 3, "found only {} threads of the sandbox", before.0);
    assert_eq!(before, after, "threads and context switches before and after ten idle seconds");
}

/// The image that runs is the same on both platforms.
fn run_image_is_the_same(platform: &Platform) {
    use runsc_tests::platform::Kind;
    let hash = |kind: Kind| {
        let ended = Runsc::new(kind).do_(&["/bin/true"]);
        ended.assert_code(0);
        ended.assert_platform();
        ended.image_hash().unwrap_or_else(|| panic!("no image hash in the log\n{}", ended.describe())).to_owned()
    };
    let here = hash(platform.kind);
    assert!(here.bytes().all(|byte| byte.is_ascii_hexdigit()), "{here}");
    assert_eq!(here, hash(Kind::Ptrace));
}

/// What the platform promises about a system call: no exit under KVM, one stop under ptrace.
fn run_cost_of_a_system_call(platform: &Platform) {
    use runsc_tests::platform::Kind;
    let counters = |calls: u32| {
        let bundle = Bundle::new(&["/calls", &calls.to_string()]);
        bundle.add(&programs::program("calls"), "calls");
        let ended = run(platform, &bundle);
        ended.assert_code(0);
        ended.counters()
    };
    let (few, many) = (counters(1000), counters(21_000));
    let grown = |name: &str| many.get(name).copied().unwrap_or(0).saturating_sub(few.get(name).copied().unwrap_or(0));
    assert!((20_000..20_100).contains(&grown("sentry.syscalls")), "{} system calls", grown("sentry.syscalls"));
    match platform.kind {
        // Timer interrupts and the like happen in both runs.
        Kind::Kvm => assert!(grown("kvm.runs") < 200, "20,000 calls cost {} returns of KVM_RUN", grown("kvm.runs")),
        _ => {
            let stops = grown("ptrace.stub_stops");
            assert!((19_900..20_400).contains(&stops), "20,000 calls cost {stops} stops");
        }
    }
}

on_sandboxes! {
    static_program = run_static_program;
    process_fields = run_process_fields;
    what_is_filled_in = run_what_is_filled_in;
    no_hostname = run_no_hostname;
    limits = run_limits;
    root_is_written_through = run_root_is_written_through;
    overlay_keeps_the_root = run_overlay_keeps_the_root;
    readonly_root = run_readonly_root;
    bind_mounts = run_bind_mounts;
    tmpfs_mounts = run_tmpfs_mounts;
    devices = run_devices;
    symlinked_mount_points = run_symlinked_mount_points;
    sysctls = run_sysctls;
    file_programs = run_file_programs;
    second_stat_is_free = run_second_stat_is_free;
    truncated_under_a_mapping = run_truncated_under_a_mapping;
    detached_life = run_detached_life;
    kill_and_force = run_kill_and_force;
    idle_makes_no_wakeups = run_idle_makes_no_wakeups;
    image_is_the_same = run_image_is_the_same;
    cost_of_a_system_call = run_cost_of_a_system_call;
}
