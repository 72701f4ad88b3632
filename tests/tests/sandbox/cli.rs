//! What the command line says about itself, and tracing.

use std::time::Duration;

use runsc_tests::{
    bundle::Bundle,
    host, on_sandboxes,
    platform::{Kind, Platform},
    sandbox::{Ended, Runsc},
};
use serde_json::Value;

fn runsc(args: &[&str]) -> Ended {
    Runsc::new(Kind::Native).limit(Duration::from_secs(20)).run(args)
}

fn output(args: &[&str]) -> String {
    let ended = runsc(args);
    ended.assert_code(0);
    ended.finished.stdout()
}

#[test]
fn version() {
    let text = output(&["--version"]);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("runsc version ") && lines[1].starts_with("spec: 1."), "{text}");
    assert_eq!(output(&["-version"]), text);
}

#[test]
fn help() {
    let text = output(&["help"]);
    for command in ["run", "do", "spec", "list", "state", "kill", "delete", "help", "flags"] {
        assert!(text.contains(command), "help does not name {command}: {text}");
        assert!(output(&["help", command]).contains(command));
    }
    assert!(output(&["help", "platforms"]).contains("ptrace"));
    assert!(output(&["flags"]).contains("platform"));
}

#[test]
fn what_engines_ask() {
    let features: Value = serde_json::from_str(&output(&["features"])).expect("JSON");
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert!(features["mountOptions"].as_array().is_some_and(|options| options.iter().any(|o| o == "ro")));
    assert!(features["linux"]["capabilities"].as_array().is_some_and(|caps| caps.iter().any(|c| c == "CAP_CHOWN")));
    assert!(output(&["checkpoint", "--help"]).contains("not supported"));
    assert!(output(&["completion", "bash"]).contains("complete "));
    // The last of them counts.
    let twice = output(&["--log-format=nonsense", "-log-format=json", "-platform", "kvm", "-platform=ptrace", "flags"]);
    assert!(twice.contains("set to \"ptrace\""), "{twice}");
}

/// A command line that is not understood is told in the log, too.
#[test]
fn usage_errors_reach_the_log() {
    let dir = host::TempDir::new("usage");
    let log = dir.path().join("log");
    let path = log.display().to_string();
    runsc(&["-log", &path, "-log-format=json", "create", "--nonsense", "x"]).assert_code(128);
    let line = std::fs::read_to_string(&log).expect("log");
    let value: Value = serde_json::from_str(&line).expect("one line of JSON");
    assert_eq!(value["level"], "error");
    assert!(value["msg"].as_str().is_some_and(|msg| msg.contains("--nonsense")), "{line}");
}

#[test]
fn system_call_table() {
    let text = output(&["help", "syscalls", "--format", "json"]);
    let table: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    for (number, name) in [(0, "read"), (1, "write"), (9, "mmap"), (57, "fork"), (59, "execve"), (202, "futex")] {
        assert!(table.iter().any(|row| row["number"] == number && row["name"] == name), "no row of {name}");
    }
    let csv = output(&["help", "syscalls", "--format", "csv"]);
    assert!(csv.lines().count() > table.len() && csv.lines().any(|line| line.contains("execve")), "{csv}");
    assert!(output(&["help", "syscalls"]).contains("execve"));
}

/// Every call that counts as supported names an ABI program.
#[test]
fn every_system_call_names_a_test() {
    let table: Vec<Value> = serde_json::from_str(&output(&["help", "syscalls", "--format", "json"])).expect("JSON");
    for row in table.iter().filter(|row| row["level"] != "unsupported") {
        let test = row["test"].as_str().unwrap_or_default();
        let source = runsc_tests::binary::workspace().join(format!("tests/abi/{test}.c"));
        assert!(source.is_file(), "{}: there is no tests/abi/{test}.c", row["name"]);
    }
}

/// And that program uses the call.
#[test]
fn every_system_call_has_a_test() {
    // Calls that C programs make through functions of other names.
    let functions: &[(&str, &[&str])] = &[
        ("arch_prctl", &["SYS_arch_prctl"]),
        ("clock_nanosleep", &["clock_nanosleep"]),
        ("clone", &["clone(", "fork("]),
        ("exit", &["SYS_exit", "pthread_create"]),
        ("exit_group", &["_exit("]),
        ("eventfd2", &["eventfd("]),
        ("faccessat", &["access("]),
        ("faccessat2", &["access("]),
        ("getdents", &["readdir("]),
        ("getdents64", &["readdir(", "SYS_getdents64"]),
        ("newfstatat", &["fstatat(", "stat("]),
        ("mq_getsetattr", &["mq_getattr("]),
        ("openat", &["open("]),
        ("openat2", &["openat2"]),
        ("ppoll", &["ppoll("]),
        ("pselect6", &["pselect("]),
        ("prlimit64", &["prlimit(", "setrlimit("]),
        ("pread64", &["pread("]),
        ("pwrite64", &["pwrite("]),
        ("preadv2", &["preadv("]),
        ("pwritev2", &["pwritev("]),
        ("restart_syscall", &["nanosleep("]),
        ("rt_sigprocmask", &["sigprocmask("]),
        ("rt_sigreturn", &["SYS_rt_sigreturn", "sigaction("]),
        ("rt_sigqueueinfo", &["sigqueue("]),
        ("rt_tgsigqueueinfo", &["pthread_sigqueue(", "SYS_rt_tgsigqueueinfo"]),
        ("rseq", &["pthread_create"]),
        ("sched_getparam", &["sched_getparam"]),
        ("set_tid_address", &["pthread_create", "fork("]),
        ("set_robust_list", &["SYS_set_robust_list"]),
        ("signalfd4", &["signalfd("]),
        ("syslog", &["klogctl("]),
        ("statx", &["statx("]),
        ("umount2", &["umount"]),
        ("vfork", &["vfork("]),
    ];
    let table: Vec<Value> = serde_json::from_str(&output(&["help", "syscalls", "--format", "json"])).expect("JSON");
    let mut wrong = Vec::new();
    for row in table.iter().filter(|row| row["level"] != "unsupported") {
        let (name, test) = (row["name"].as_str().unwrap_or_default(), row["test"].as_str().unwrap_or_default());
        let source = runsc_tests::binary::workspace().join(format!("tests/abi/{test}.c"));
        let Ok(text) = std::fs::read_to_string(&source) else {
            wrong.push(format!("{name}: there is no tests/abi/{test}.c"));
            continue;
        };
        let own = [format!("SYS_{name}"), format!("{}(", name.trim_start_matches("rt_"))];
        let others = functions.iter().find(|(call, _)| *call == name).map_or(&[][..], |(_, functions)| functions);
        if !own.iter().any(|word| text.contains(word)) && !others.iter().any(|word| text.contains(word)) {
            wrong.push(format!("{name}: tests/abi/{test}.c does not use it"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} calls:\n{}", wrong.len(), table.len(), wrong.join("\n"));
}

fn run_spec_makes_a_bundle(platform: &Platform) {
    let bundle = Bundle::new(&[]);
    let made = runsc(&["spec", "--bundle", &bundle.path().display().to_string(), "--", "/bin/echo", "from spec"]);
    made.assert_code(0);
    let path = bundle.path().display().to_string();
    let ended = Runsc::new(platform.kind).run(&["run", "--bundle", &path, "specified"]);
    assert_eq!(ended.finished.stdout(), "from spec\n", "{}", ended.describe());
    ended.assert_code(0);
}

fn run_strace(platform: &Platform) {
    let strace = |flags: &[&str]| {
        let mut runsc = Runsc::new(platform.kind).flag("--strace");
        for flag in flags {
            runsc = runsc.flag(*flag);
        }
        let ended = runsc.do_(&["/bin/cat", "/no/such/file", "/etc/hostname"]);
        ended.assert_code(1);
        ended.log
    };
    let all = strace(&[]);
    assert!(all.contains("\"/no/such/file\"") && all.contains("ENOENT"), "{all}");
    assert!(all.contains("AT_FDCWD") && all.contains("exit_group("), "{all}");
    let some = strace(&["--strace-syscalls=openat,read"]);
    assert!(some.contains("openat(") && !some.contains("exit_group("), "{some}");
}

fn run_do_keeps_cwd_and_environment(platform: &Platform) {
    let dir = host::TempDir::new("cwd");
    let runsc = Runsc::new(platform.kind).cwd(dir.path()).env("SOME_VARIABLE", "kept");
    let ended = runsc.do_(&["sh", "-c", "pwd; echo $SOME_VARIABLE"]);
    assert_eq!(ended.finished.stdout(), format!("{}\nkept\n", dir.path().display()), "{}", ended.describe());
    let ended = Runsc::new(platform.kind).run(&["do", "--cwd", "/usr", "--", "pwd"]);
    assert_eq!(ended.finished.stdout(), "/usr\n", "{}", ended.describe());
    let volume = host::TempDir::new("volume");
    let map = format!("{}:/mnt", volume.path().display());
    let ended = Runsc::new(platform.kind).run(&["do", "--volume", &map, "--", "sh", "-c", "echo out > /mnt/f"]);
    ended.assert_code(0);
    assert_eq!(std::fs::read_to_string(volume.path().join("f")).expect("the volume's file"), "out\n");
}

on_sandboxes! {
    spec_makes_a_bundle = run_spec_makes_a_bundle;
    strace = run_strace;
    do_keeps_cwd_and_environment = run_do_keeps_cwd_and_environment;
}
