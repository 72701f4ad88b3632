//! `runsc exec`, the processes that stand for what it starts, `ps`, `pause` and `resume`.

use std::{fs, io::Write, path::PathBuf, process::Stdio, time::Duration};

use runsc_tests::{bundle::Bundle, command::Finished, host, on_sandboxes, platform::Platform, sandbox::Runsc};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// A container that runs until it is dropped.
struct Container {
    runsc: Runsc,
    bundle: Bundle,
}

impl Container {
    fn start(platform: &Platform, script: &str) -> Container {
        let bundle = Bundle::new(&["/bin/sh", "-c", script]);
        fs::write(bundle.root().join("data/plain"), "not a program").expect("write");
        let path = bundle.write();
        let container = Container { runsc: Runsc::new(platform.kind), bundle };
        container.done(&["run", "--detach", "--bundle", &path, "c"]);
        container
    }

    fn done(&self, args: &[&str]) {
        let (code, errors) = self.runsc.detached(args);
        assert_eq!(code, 0, "{args:?}: {errors}");
    }

    /// `exec FLAGS c COMMAND` in the foreground.
    fn exec(&self, args: &[&str]) -> Finished {
        let all: Vec<&str> = ["exec"].iter().chain(args).copied().collect();
        let finished = self.runsc.start(&all).finish(LIMIT);
        assert!(!finished.timed_out, "{}", finished.describe());
        finished
    }

    fn says(&self, args: &[&str], text: &str) {
        let finished = self.exec(args);
        assert_eq!((finished.stdout().as_str(), finished.code()), (text, 0), "{}", finished.describe());
    }

    fn fails(&self, args: &[&str], code: i32, part: &str) {
        let finished = self.exec(args);
        assert_eq!(finished.code(), code, "{}", finished.describe());
        assert!(finished.stderr().contains(part), "{}", finished.describe());
    }

    /// `exec --detach` of a shell; the pid of what stands for it, which becomes a child of this process.
    fn detached(&self, script: &str) -> i32 {
        // SAFETY: this prctl takes plain numbers.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }, 0);
        let file = self.bundle.path().join("exec.pid");
        let file_text = file.display().to_string();
        self.done(&["exec", "--detach", "--pid-file", &file_text, "c", "sh", "-c", script]);
        fs::read_to_string(&file).expect("pid file").parse().expect("pid")
    }

    fn data(&self, name: &str) -> PathBuf {
        self.bundle.root().join("data").join(name)
    }

    fn pids(&self) -> Vec<i64> {
        let output = self.runsc.command(&["ps", "--format", "json", "c"]).output().expect("ps");
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        value.as_array().expect("a list").iter().filter_map(Value::as_i64).collect()
    }

    fn status(&self) -> String {
        let output = self.runsc.command(&["state", "c"]).output().expect("state");
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        value["status"].as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let (code, errors) = self.runsc.detached(&["delete", "--force", "c"]);
        if !std::thread::panicking() {
            assert_eq!(code, 0, "{errors}");
        }
    }
}

/// The wait status of a child.
fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: waitpid writes the status.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid, "{}", std::io::Error::last_os_error());
    status
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: kill touches no memory; the process is a child that was not waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20) * host::time_scale();
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn run_exec(platform: &Platform) {
    let container = Container::start(platform, "while :; do sleep 1; done");
    container.says(&["c", "echo", "hello"], "hello\n");
    let script = "id -u; id -g; id -G; pwd; echo $A; umask; cat /proc/self/status | { while read n v; do case $n in CapEff:) echo $v; esac; done; }";
    container.says(
        &[
            "--user=5:6",
            "--additional-gids",
            "7,8",
            "--cwd",
            "/data",
            "--env",
            "A=some value",
            "--cap",
            "CAP_SYSLOG",
            "c",
            "sh",
            "-c",
            script,
        ],
        "5\n6\n6 7 8\n/data\nsome value\n0022\n0000000000000000\n",
    );
    container.fails(&["c", "sh", "-c", "exit 7"], 7, "");
    container.fails(&["c", "sh", "-c", "kill -TERM $$"], 128 + 15, "");
    container.fails(&["c", "no-such"], 128, "exec: \"no-such\": executable file not found in $PATH");
    container.fails(&["c", "/data/plain"], 128, "exec: \"/data/plain\": permission denied");
    container.fails(&["--cwd", "/nowhere", "c", "true"], 128, "working directory /nowhere");
    container.fails(&["c"], 128, "a command or --process");
    container.fails(&["other", "true"], 128, "does not exist");
    // In the container, as another process that is nobody's child.
    container.says(&["c", "sh", "-c", "test $$ != 1 && echo $PPID; readlink /proc/1/exe"], "0\n/bin/busybox\n");
}

fn run_exec_streams(platform: &Platform) {
    let container = Container::start(platform, "while :; do sleep 1; done");
    let mut child = container
        .runsc
        .command(&["exec", "c", "sh", "-c", "cat; echo done >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    let data = "x".repeat(200_000);
    let sent = data.clone();
    let mut stdin = child.stdin.take().expect("stdin");
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()).expect("write"));
    let output = child.wait_with_output().expect("wait");
    writer.join().expect("writer");
    assert!(output.stdout == data.as_bytes(), "{} bytes came back", output.stdout.len());
    assert_eq!(output.stderr, b"done\n");
}

fn run_exec_by_file(platform: &Platform) {
    let container = Container::start(platform, "while :; do sleep 1; done");
    let file = container.bundle.path().join("process.json");
    let path = file.display().to_string();
    let process = json!({
        "user": { "uid": 3, "gid": 4, "additionalGids": [9] }, "args": ["sh", "-c", "id -u; id -G; pwd; echo $B"],
        "env": ["PATH=/bin", "B=c"], "cwd": "/tmp", "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 50, "hard": 50 }],
    });
    fs::write(&file, process.to_string()).expect("process.json");
    container.says(&["--process", &path, "c"], "3\n4 9\n/tmp\nc\n");
    fs::write(&file, r#"{"args":["true"],"cwd":"/","user":{"uid":"x"}}"#).expect("process.json");
    container.fails(&["--process", &path, "c"], 128, "process.user.uid");
    fs::write(&file, "{").expect("process.json");
    container.fails(&["--process", &path, "c"], 128, "not valid JSON");
}

fn run_proxies(platform: &Platform) {
    let container = Container::start(platform, "while :; do sleep 1; done");
    assert_eq!(wait(container.detached("exit 3")), 3 << 8);
    assert_eq!(libc::WTERMSIG(wait(container.detached("kill -SEGV $$"))), libc::SIGSEGV);
    let pid = container
        .detached("trap 'echo got > /data/term; exit 4' TERM; echo > /data/ready; while :; do sleep 0.1; done");
    wait_for("the process", || container.data("ready").exists());
    assert_eq!(container.pids().len(), 2);
    assert!(container.pids().contains(&i64::from(pid)));
    signal(pid, libc::SIGTERM);
    assert_eq!(wait(pid), 4 << 8);
    assert!(container.data("term").exists());
    // Ending what stands for it ends it.
    let pid = container.detached("exec sleep 1000");
    let inside = || container.exec(&["c", "ps"]).stdout();
    assert!(inside().contains("sleep 1000"));
    signal(pid, libc::SIGKILL);
    assert_eq!(wait(pid), libc::SIGKILL);
    wait_for("the end of sleep", || !inside().contains("sleep 1000"));
    // The end of the container ends them all.
    let pid = container.detached("exec sleep 1000");
    container.done(&["kill", "c", "KILL"]);
    assert_eq!(wait(pid), libc::SIGKILL);
    wait_for("the end", || container.status() == "stopped");
    container.fails(&["c", "true"], 128, "not running");
}

fn run_pause(platform: &Platform) {
    let container =
        Container::start(platform, "n=0; while :; do n=$((n+1)); echo $n > /data/n.new; mv /data/n.new /data/n; done");
    let count = || fs::read_to_string(container.data("n")).ok().and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
    wait_for("the loop", || count() > 3);
    container.done(&["pause", "c"]);
    assert_eq!(container.status(), "paused");
    // One operation may have been on its way to the host.
    std::thread::sleep(Duration::from_millis(200) * host::time_scale());
    let before = count();
    std::thread::sleep(Duration::from_millis(500) * host::time_scale());
    assert_eq!(count(), before);
    container.fails(&["c", "true"], 128, "paused");
    let (code, errors) = container.runsc.detached(&["pause", "c"]);
    assert!(code == 128 && errors.contains("paused"), "{code} {errors}");
    let (code, errors) = container.runsc.detached(&["delete", "c"]);
    assert!(code == 128 && errors.contains("not stopped"), "{code} {errors}");
    container.done(&["resume", "c"]);
    assert_eq!(container.status(), "running");
    wait_for("the loop again", || count() > before + 3);
    container.done(&["pause", "c"]);
    container.done(&["kill", "c", "KILL"]);
    wait_for("the end", || container.status() == "stopped");
}

fn run_ps(platform: &Platform) {
    let container = Container::start(platform, "while :; do sleep 1; done");
    let output = container.runsc.command(&["ps", "c"]).output().expect("ps");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("UID ") && text.lines().next().is_some_and(|l| l.ends_with("CMD")), "{text}");
    assert!(text.lines().any(|l| l.split_whitespace().nth(1) == Some("1") && l.ends_with("sh")), "{text}");
    assert_eq!(container.pids().len(), 1);
}

fn run_debug(platform: &Platform) {
    let container = Container::start(platform, "while :; do sleep 0.1; done");
    let debug = |flags: &[&str]| {
        let args: Vec<&str> = ["debug"].iter().chain(flags).chain(&["c"]).copied().collect();
        let output = container.runsc.command(&args).output().expect("debug");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = debug(&["--ps", "--counters", "--stacks"]);
    assert_eq!(code, Some(0), "{text}");
    for part in ["PPID", "sentry.syscalls ", "process 1 task 1"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let traced = || container.runsc.log().matches("] wait4(").count();
    assert_eq!(traced(), 0);
    assert_eq!(debug(&["--strace=wait4,fork"]).0, Some(0));
    wait_for("a trace", || traced() > 0);
    assert_eq!(debug(&["--strace=off"]).0, Some(0));
    let before = traced();
    container.says(&["c", "sh", "-c", "sleep 0.3"], "");
    // The call that was on its way may still tell its result.
    assert!(traced() <= before + 1);
    assert_eq!(debug(&["--strace=nothing"]).0, Some(128));
    // A process inside, by its number there.
    let pid = container.detached("exec sleep 1000");
    let inside =
        container.exec(&["c", "sh", "-c", "for p in /proc/[0-9]*; do read l < $p/cmdline; echo ${p#/proc/} $l; done"]);
    let number = inside.stdout().lines().find_map(|l| l.strip_suffix(" sleep1000").map(str::to_owned));
    let number = number.unwrap_or_else(|| panic!("no sleep: {}", inside.describe()));
    container.done(&["kill", "--pid", &number, "c", "TERM"]);
    assert_eq!(libc::WTERMSIG(wait(pid)), libc::SIGTERM);
    let (code, errors) = container.runsc.detached(&["wait", "--pid", &number, "c"]);
    assert!(code == 128 && errors.contains("not in the container"), "{code} {errors}");
}

/// The container's pid, as engines know it, takes signals for the container.
fn run_signals_of_the_host(platform: &Platform) {
    let container = Container::start(platform, "trap 'exit 6' USR1; echo > /data/ready; while :; do sleep 0.1; done");
    wait_for("the trap", || container.data("ready").exists());
    let pids = container.pids();
    signal(i32::try_from(pids[0]).expect("pid"), libc::SIGUSR1);
    wait_for("the end", || container.status() == "stopped");
    let (code, _) = container.runsc.detached(&["wait", "c"]);
    assert_eq!(code, 6);
}

on_sandboxes! {
    exec = run_exec;
    exec_streams = run_exec_streams;
    exec_by_file = run_exec_by_file;
    proxies = run_proxies;
    pause = run_pause;
    ps = run_ps;
    debug = run_debug;
    signals_of_the_host = run_signals_of_the_host;
}
