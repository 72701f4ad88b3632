//! What a bundle asks of the host around its sandbox: hooks, control groups, namespaces.

use std::{
    fs,
    path::{Path, PathBuf},
};

use runsc_tests::{bundle::Bundle, host, on_sandboxes, platform::Platform, sandbox::Runsc};
use serde_json::{Value, json};

fn done(runsc: &Runsc, args: &[&str]) {
    let (code, errors) = runsc.detached(args);
    assert_eq!(code, 0, "{args:?}: {errors}");
}

/// A hook that appends its point, the container's status and pid, and its own network namespace to a file.
fn hook(file: &Path, point: &str) -> Value {
    let script = format!(
        "s=$(cat); s=${{s#*pid\\\":}}; p=${{s%%,*}}; s=${{s#*status\\\":\\\"}}; echo \"{point} ${{s%%\\\"*}} $p $(readlink /proc/self/ns/net)\" >> {}",
        file.display()
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 60 })
}

fn run_hooks_in_order(platform: &Platform) {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let said = bundle.path().join("hooks");
    let points = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    bundle.config["hooks"] = points.iter().map(|p| ((*p).to_owned(), json!([hook(&said, p)]))).collect();
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    let pid_file = bundle.path().join("pid").display().to_string();
    done(&runsc, &["create", "--pid-file", &pid_file, "--bundle", &path, "hooked"]);
    let pid = fs::read_to_string(&pid_file).expect("pid");
    let own = fs::read_link("/proc/self/ns/net").expect("own namespace").display().to_string();
    let its = fs::read_link(format!("/proc/{pid}/ns/net")).expect("its namespace").display().to_string();
    assert_ne!(own, its);
    let lines = || fs::read_to_string(&said).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    let created = [
        format!("prestart creating {pid} {own}"),
        format!("createRuntime creating {pid} {own}"),
        format!("createContainer creating {pid} {its}"),
    ];
    assert_eq!(lines(), created);
    done(&runsc, &["start", "hooked"]);
    assert_eq!(lines()[3..], [format!("poststart running {pid} {own}")]);
    done(&runsc, &["delete", "--force", "hooked"]);
    assert_eq!(lines()[4..], [format!("poststop stopped 0 {own}")]);
}

/// A hook that fails before the container begins ends it; its error is told, and nothing is left.
fn run_hook_that_fails(platform: &Platform) {
    for point in ["prestart", "createRuntime", "createContainer", "poststart"] {
        let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
        let said = bundle.path().join("hooks");
        bundle.config["hooks"][point] =
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo this is wrong >&2; exit 7"] }]);
        bundle.config["hooks"]["poststop"] = json!([hook(&said, "poststop")]);
        let path = bundle.write();
        let runsc = Runsc::new(platform.kind);
        let (code, errors) = runsc.detached(&["run", "--detach", "--bundle", &path, "failing"]);
        assert_eq!(code, 128, "{point}: {errors}");
        for part in [point, "exit status 7", "this is wrong"] {
            assert!(errors.contains(part), "{point}: no {part:?} in {errors}");
        }
        let said = fs::read_to_string(&said).unwrap_or_default();
        assert!(said.starts_with("poststop stopped 0 "), "{point}: {said}");
        assert!(!runsc.state_dir().join("failing").exists(), "{point}: state is left");
        assert_eq!(host::processes_with(&runsc.state_dir().display().to_string()), [], "{point}: processes are left");
    }
}

/// These run in the container, before its own program: their files are the container's.
fn run_hooks_in_the_container(platform: &Platform) {
    let hook = |script: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin", "X=y"], "timeout": 60 }]);
    let mut bundle = Bundle::new(&["/bin/cat", "/data/state", "/data/env"]);
    bundle.config["hooks"]["startContainer"] = hook("cat > /data/state; echo \" $X $(id -u) $(hostname)\" > /data/env");
    let path = bundle.write();
    let ended = Runsc::new(platform.kind).run(&["run", "--bundle", &path, "inside"]);
    let text = ended.finished.stdout();
    let (state, rest) = text.split_once(" y ").unwrap_or((&text, ""));
    assert_eq!(rest, "0 sandbox\n", "{}", ended.describe());
    let state: Value = serde_json::from_str(state).expect("JSON");
    assert_eq!((state["id"].as_str(), state["status"].as_str()), (Some("inside"), Some("created")));

    let runsc = Runsc::new(platform.kind);
    fs::remove_file(bundle.root().join("data/state")).expect("remove");
    done(&runsc, &["create", "--bundle", &path, "steps"]);
    assert!(!bundle.root().join("data/state").exists());
    done(&runsc, &["start", "steps"]);
    assert!(bundle.root().join("data/state").exists());
    done(&runsc, &["delete", "--force", "steps"]);

    bundle.config["hooks"]["startContainer"] = hook("echo this is wrong >&2; exit 7");
    let path = bundle.write();
    for how in [&["run", "--bundle", &path, "wrong"][..], &["run", "--detach", "--bundle", &path, "wrong"][..]] {
        let (code, errors) = runsc.detached(how);
        assert!(
            code == 128 && errors.contains("exit status 7") && errors.contains("this is wrong"),
            "{code}: {errors}"
        );
        assert!(!runsc.state_dir().join("wrong").exists());
    }
    assert_eq!(host::processes_with(&runsc.state_dir().display().to_string()), []);
}

/// What a hook in the container's namespaces mounts in the root is there for the container, and nobody else sees it.
fn run_hook_mounts(platform: &Platform) {
    let mut bundle = Bundle::new(&["/bin/cat", "/data/f"]);
    let script = format!("mount -t tmpfs t {0} && echo mounted > {0}/f", bundle.root().join("data").display());
    bundle.config["hooks"]["createContainer"] =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"] }]);
    let path = bundle.write();
    let ended = Runsc::new(platform.kind).run(&["run", "--bundle", &path, "mounting"]);
    assert_eq!(ended.finished.stdout(), "mounted\n", "{}", ended.describe());
    assert!(!bundle.root().join("data/f").exists());
    assert_eq!(host::mounts_with(&path), Vec::<String>::new());
}

/// The directory of a group with this controller, on version 1 or 2, and whether it is version 2.
fn group(controller: &str, path: &str) -> Option<(PathBuf, bool)> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let place = Path::new(fields.get(1)?);
        let controllers = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
        match *fields.get(2)? {
            "cgroup" if fields.get(3)?.split(',').any(|o| o == controller) => Some((place.join(path), false)),
            "cgroup2" if controllers.split_whitespace().any(|c| c == controller) => Some((place.join(path), true)),
            _ => None,
        }
    })
}

fn run_control_groups(platform: &Platform) {
    let mut bundle = Bundle::new(&["/bin/sh", "-c", "sleep 1000 & sleep 1000"]);
    let name = format!("runsc-test-{}-{:?}", std::process::id(), platform.kind);
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/{name}"));
    bundle.config["linux"]["resources"] = json!({
        "memory": { "limit": 256 << 20 }, "pids": { "limit": 50 }, "cpu": { "quota": 50000, "period": 100000, "shares": 512 },
    });
    let Some((memory, unified)) = group("memory", &name) else {
        println!("no cgroups are mounted here");
        return;
    };
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    let pid_file = bundle.path().join("pid").display().to_string();
    done(&runsc, &["run", "--detach", "--pid-file", &pid_file, "--bundle", &path, "limited"]);
    let read = |controller: &str, v1: &str, v2: &str| {
        let (dir, unified) = group(controller, &name).expect("a group");
        let file = dir.join(if unified { v2 } else { v1 });
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (256 << 20).to_string());
    assert_eq!(read("cpu", "cpu.cfs_quota_us", "cpu.max").split(' ').next(), Some("50000"));
    // Every process of the sandbox is in it.
    let inside = read("memory", "cgroup.procs", "cgroup.procs");
    let inside: Vec<&str> = inside.lines().collect();
    for (pid, command) in host::processes_with(&runsc.state_dir().display().to_string()) {
        assert!(inside.contains(&&*pid.to_string()), "{pid} ({command:?}) is not in {inside:?}");
    }
    assert!(inside.contains(&&*fs::read_to_string(&pid_file).expect("pid")));

    let output = runsc.command(&["events", "--stats", "limited"]).output().expect("events");
    let stats: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((stats["type"].as_str(), stats["id"].as_str()), (Some("stats"), Some("limited")));
    let usage = &stats["data"]["memory"]["usage"];
    assert_eq!(usage["limit"], 256 << 20, "{stats}");
    assert!(usage["usage"].as_u64().is_some_and(|n| n > 1 << 20), "{stats}");
    assert!(stats["data"]["cpu"]["usage"]["total"].as_u64().is_some_and(|n| n > 0), "{stats}");

    let resources = bundle.path().join("resources");
    fs::write(&resources, json!({ "cpu": { "quota": 70000, "period": 100000 } }).to_string()).expect("write");
    done(&runsc, &["update", "--resources", &resources.display().to_string(), "limited"]);
    assert_eq!(read("cpu", "cpu.cfs_quota_us", "cpu.max").split(' ').next(), Some("70000"));
    done(&runsc, &["update", "--memory", "536870912", "limited"]);
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (512 << 20).to_string());
    let (code, errors) = runsc.detached(&["update", "--memory", "4096", "limited"]);
    assert!(code == 128 && errors.contains("the minimum is"), "{code}: {errors}");

    // The place is taken.
    let (code, errors) = runsc.detached(&["run", "--detach", "--bundle", &path, "second"]);
    assert!(code == 128 && errors.contains("linux.cgroupsPath"), "{code}: {errors}");
    done(&runsc, &["delete", "--force", "limited"]);
    assert!(!memory.exists(), "{} is left (version 2: {unified})", memory.display());
}

/// Out of memory ends the process that takes it and nothing else, and the host's count, which engines look at, says so.
fn run_out_of_memory(platform: &Platform) {
    let mut bundle = Bundle::new(&["/bin/sh", "-c", "/eat; echo $? > /data/status; exec sleep 1000"]);
    bundle.add(&runsc_tests::programs::program("eat"), "eat");
    let name = format!("runsc-test-oom-{}-{:?}", std::process::id(), platform.kind);
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/{name}"));
    bundle.config["linux"]["resources"] = json!({ "memory": { "limit": 96 << 20 } });
    let Some((memory, unified)) = group("memory", &name) else {
        println!("no cgroups are mounted here");
        return;
    };
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    done(&runsc, &["run", "--detach", "--bundle", &path, "hungry"]);
    let status = bundle.root().join("data/status");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30) * host::time_scale();
    while !fs::read_to_string(&status).is_ok_and(|s| !s.is_empty()) && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(fs::read_to_string(&status).expect("a status"), "137\n");
    let file = memory.join(if unified { "memory.events" } else { "memory.oom_control" });
    let counts = fs::read_to_string(&file).expect("counts");
    assert!(counts.lines().any(|line| line == "oom_kill 1"), "{counts}");
    done(&runsc, &["delete", "--force", "hungry"]);
    assert!(!memory.exists());
}

fn run_memory_limit_below_the_overhead(platform: &Platform) {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["linux"]["resources"]["memory"]["limit"] = json!(4 << 20);
    let path = bundle.write();
    let ended = Runsc::new(platform.kind).run(&["run", "--bundle", &path, "small"]);
    ended.assert_code(128);
    let errors = ended.finished.stderr();
    assert!(errors.contains("linux.resources.memory.limit") && errors.contains("the minimum is"), "{errors}");
}

/// A process that has namespaces of its own, while this lives.
struct Elsewhere(std::process::Child);

impl Elsewhere {
    fn new() -> Elsewhere {
        use std::process::{Command, Stdio};
        let mut child = Command::new("unshare")
            .args(["--net", "--uts", "sh", "-c", "echo; exec sleep 120"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare");
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut line).expect("its first word");
        Elsewhere(child)
    }

    fn namespace(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.0.id())
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network namespace by path is joined, and one of the wrong kind is told.
fn run_joined_namespaces(platform: &Platform) {
    let other = Elsewhere::new();
    let net = other.namespace("net");
    let wanted = fs::read_link(&net).expect("namespace");
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.config["linux"]["namespaces"] =
        json!([{ "type": "pid" }, { "type": "mount" }, { "type": "network", "path": net }]);
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    let pid_file = bundle.path().join("pid").display().to_string();
    done(&runsc, &["run", "--detach", "--pid-file", &pid_file, "--bundle", &path, "joined"]);
    let pid = fs::read_to_string(&pid_file).expect("pid");
    assert_eq!(fs::read_link(format!("/proc/{pid}/ns/net")).expect("namespace"), wanted);
    done(&runsc, &["delete", "--force", "joined"]);

    bundle.config["linux"]["namespaces"][2]["path"] = json!(other.namespace("uts"));
    let path = bundle.write();
    let (code, errors) = runsc.detached(&["run", "--detach", "--bundle", &path, "wrong"]);
    assert!(code == 128 && errors.contains("linux.namespaces[2].path"), "{code}: {errors}");
}

/// Files that root of the container makes belong to the id it has on the host, and those of that id are root's inside.
fn run_user_namespace(platform: &Platform) {
    use std::os::unix::fs::MetadataExt;
    let mut bundle =
        Bundle::new(&["/bin/sh", "-c", "id -u; stat -c %u:%g /data /data/f; echo x > /data/g; stat -c %u:%g /data/g"]);
    fs::write(bundle.root().join("data/f"), "").expect("write");
    for (name, id) in [("data", 100_000), ("data/f", 100_005)] {
        std::os::unix::fs::chown(bundle.root().join(name), Some(id), Some(id)).expect("chown");
    }
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    bundle.config["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({ "type": "user" }));
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    let path = bundle.write();
    let ended = Runsc::new(platform.kind).run(&["run", "--bundle", &path, "mapped"]);
    assert_eq!(ended.finished.stdout(), "0\n0:0\n5:5\n0:0\n", "{}", ended.describe());
    let made = fs::metadata(bundle.root().join("data/g")).expect("the file");
    assert_eq!((made.uid(), made.gid()), (100_000, 100_000));
}

on_sandboxes! {
    hooks_in_order = run_hooks_in_order;
    hook_that_fails = run_hook_that_fails;
    hooks_in_the_container = run_hooks_in_the_container;
    hook_mounts = run_hook_mounts;
    control_groups = run_control_groups;
    out_of_memory = run_out_of_memory;
    memory_limit_below_the_overhead = run_memory_limit_below_the_overhead;
    joined_namespaces = run_joined_namespaces;
    user_namespace = run_user_namespace;
}
