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
#[ignore = "the table is not complete yet"]
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
    assert!(all.contains("execve(") && all.contains("exit_group("), "{all}");
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
