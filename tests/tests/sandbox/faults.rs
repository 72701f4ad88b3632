//! kill -9 of any of our processes, at any moment: nothing of ours remains, and `delete --force` removes the rest.

use std::{collections::BTreeSet, fs, process::Stdio, thread::sleep, time::Duration};

use runsc_tests::{
    bundle::Bundle,
    command::{Running, tail},
    host, on_sandboxes,
    platform::Platform,
    sandbox::Runsc,
};

/// A sandbox of ours with every process it has, found by descent from `pid` and by the state directory in command lines.
fn processes(runsc: &Runsc, first: &[u32]) -> BTreeSet<u32> {
    let mut all: BTreeSet<u32> =
        host::processes_with(&runsc.state_dir().display().to_string()).into_iter().map(|(pid, _)| pid).collect();
    all.extend(first);
    loop {
        let before = all.len();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            if parent(pid).is_some_and(|parent| all.contains(&parent)) {
                all.insert(pid);
            }
        }
        if all.len() == before {
            return all;
        }
    }
}

fn stat(pid: u32) -> Option<(String, char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(')')?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((head.split_once('(')?.1.to_owned(), state, fields.next()?.parse().ok()?))
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid).map(|(_, _, parent)| parent)
}

fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(_, state, _)| state != 'Z' && state != 'X')
}

fn all_end(pids: &BTreeSet<u32>, what: &str) {
    for _ in 0..500 * host::time_scale() {
        if !pids.iter().any(|&pid| alive(pid)) {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    let left: Vec<_> = pids.iter().filter(|&&pid| alive(pid)).map(|&pid| (pid, stat(pid))).collect();
    panic!("{what}: processes are left: {left:?}");
}

/// Starts a foreground `run`, waits until the container works, kills the `n`th of its processes; false when there is none.
fn kill_nth(platform: &Platform, n: usize) -> bool {
    let bundle = Bundle::new(&[
        "/bin/sh",
        "-c",
        "(while :; do :; done) & while :; do i=$((i + 1)); echo $i > /data/mark; sleep 0.05; done",
    ]);
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    let mut running = runsc.start(&["run", "--bundle", &path, "victim"]);
    for _ in 0..1000 * host::time_scale() {
        if bundle.root().join("data/mark").exists() {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    assert!(bundle.root().join("data/mark").exists(), "the container did not start");
    sleep(Duration::from_millis(50));
    let all = processes(&runsc, &[running.pid()]);
    assert!(all.len() >= 3, "command, VMM and gofer: only {all:?}");
    let Some(&victim) = all.iter().nth(n) else {
        let output = runsc.command(&["delete", "--force", "victim"]).output().expect("delete");
        assert!(output.status.success(), "{output:?}");
        running.finish(Duration::from_secs(20));
        return false;
    };
    let status = stat(victim);
    let what = format!("killed {victim} {status:?} of {all:?}");
    // SAFETY: kill touches no memory; the process is of the sandbox that this test started.
    unsafe { libc::kill(victim as i32, libc::SIGKILL) };
    // A stub in reserve is missed only when it is needed, that of another program than the first ends that program alone, and
    // short-lived ones may have ended by themselves: the sandbox works on.
    let lives = status.is_none_or(|(name, ..)| name == "runsc-stub") && works_on(&bundle, &mut running);
    if !lives {
        all_end(&all, &what);
        let finished = running.finish(Duration::from_secs(20));
        assert!(!finished.timed_out, "{what}: the command hangs: {}", finished.describe());
        assert_ne!(finished.code(), 0, "{what}: it says all went well");
    }
    let output = runsc.command(&["delete", "--force", "victim"]).output().expect("delete");
    assert!(output.status.success(), "{what}: {output:?}");
    assert!(!runsc.state_dir().join("victim").exists(), "{what}: state is left");
    assert_eq!(host::mounts_with(&path), Vec::<String>::new(), "{what}: mounts are left");
    all_end(&all, &format!("{what}, then delete --force"));
    true
}

/// Whether the container still forks, runs programs and writes files a second later.
fn works_on(bundle: &Bundle, running: &mut Running) -> bool {
    let mark = || fs::read_to_string(bundle.root().join("data/mark")).unwrap_or_default();
    sleep(Duration::from_millis(300));
    let before = mark();
    sleep(Duration::from_secs(1));
    running.is_running() && mark() != before
}

fn run_kill_each(platform: &Platform) {
    let mut n = 0;
    while kill_nth(platform, n) {
        n += 1;
    }
    assert!(n >= 3, "only {n} processes");
}

/// kill -9 of the command at many moments of its start.
fn run_kill_while_starting(platform: &Platform) {
    let bundle = Bundle::new(&["/bin/sleep", "100"]);
    let path = bundle.write();
    for delay in [0, 1, 2, 4, 7, 11, 16, 22, 30, 45, 70, 120] {
        let runsc = Runsc::new(platform.kind);
        let mut running = runsc.start(&["run", "--bundle", &path, "starting"]);
        sleep(Duration::from_millis(delay) * host::time_scale());
        let all = processes(&runsc, &[running.pid()]);
        assert!(running.is_running(), "it ended by itself");
        // SAFETY: kill touches no memory; the process is this test's child and has not been reaped.
        unsafe { libc::kill(running.pid() as i32, libc::SIGKILL) };
        all_end(&all, &format!("killed after {delay} ms"));
        sleep(Duration::from_millis(20));
        all_end(&processes(&runsc, &[]), &format!("made while being killed after {delay} ms"));
        let output = runsc.command(&["delete", "--force", "starting"]).output().expect("delete");
        assert!(output.status.success(), "{output:?}");
        running.finish(Duration::from_secs(10));
    }
    assert_eq!(host::mounts_with(&path), Vec::<String>::new());
}

/// Fifty containers are made, started, used and removed at once, and nothing of them is left.
fn run_fifty_at_once(platform: &Platform) {
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let path = bundle.write();
    let runsc = Runsc::new(platform.kind);
    let each = |args: &dyn Fn(&str) -> Vec<String>| {
        let children: Vec<_> = (0..50)
            .map(|n| {
                let mut command = runsc.command(&args(&format!("c{n}")));
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                command.spawn().expect("start runsc")
            })
            .collect();
        let codes: Vec<_> = children.into_iter().map(|mut child| child.wait().expect("wait").code()).collect();
        assert!(codes.iter().all(|code| *code == Some(0)), "{codes:?}: {}", tail(&runsc.log()));
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    each(&|id| words(&["create", "--bundle", &path, id]));
    each(&|id| words(&["start", id]));
    let list = runsc.command(&["list"]).output().expect("list");
    assert_eq!(String::from_utf8_lossy(&list.stdout).matches("running").count(), 50);
    each(&|id| words(&["exec", id, "true"]));
    let all = processes(&runsc, &[]);
    assert!(all.len() >= 100, "VMMs and gofers: only {}", all.len());
    each(&|id| words(&["delete", "--force", id]));
    all_end(&all, "deleted");
    let left =
        fs::read_dir(runsc.state_dir()).expect("state directory").flatten().filter(|e| e.path().is_dir()).count();
    assert_eq!(left, 0, "states are left");
    assert_eq!(host::mounts_with(&path), Vec::<String>::new());
}

/// What a `do` that was killed leaves is removed by the next one.
fn run_kill_do(platform: &Platform) {
    let runsc = Runsc::new(platform.kind);
    let mut running = runsc.start(&["do", "--", "sleep", "1000"]);
    let states =
        || fs::read_dir(runsc.state_dir()).into_iter().flatten().flatten().filter(|e| e.path().is_dir()).count();
    for _ in 0..1000 * host::time_scale() {
        if states() == 1 {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    assert!(states() == 1 && running.is_running());
    let all = processes(&runsc, &[running.pid()]);
    // SAFETY: kill touches no memory; the process is this test's child and has not been reaped.
    unsafe { libc::kill(running.pid() as i32, libc::SIGKILL) };
    running.finish(Duration::from_secs(10));
    all_end(&all, "killed do");
    assert_eq!(states(), 1);
    let other = runsc.start(&["do", "--", "true"]).finish(Duration::from_secs(20));
    assert_eq!(other.code(), 0, "{}", other.describe());
    assert_eq!(states(), 0);
}

on_sandboxes! {
    kvm ignored: "minutes in the emulated machine, which seldom lives as long";
    kill_each_process = run_kill_each;
    kill_while_starting = run_kill_while_starting;
    kill_do = run_kill_do;
    fifty_at_once = run_fifty_at_once;
}
