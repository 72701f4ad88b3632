//! Bad input: one clear error that names what and where, the right status, nothing left behind, at once.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use runsc_tests::{
    bundle::Bundle,
    host,
    platform::Kind,
    sandbox::{Ended, Runsc},
};
use serde_json::json;

fn run(bundle: &str, id: &str) -> (Ended, String) {
    let runsc = Runsc::new(Kind::Ptrace).limit(Duration::from_secs(20));
    let state = runsc.state_dir().display().to_string();
    (runsc.run(&["run", "--bundle", bundle, id]), state)
}

/// It fails with 128 and says every one of `words`, and leaves neither a process nor a container.
fn refused(bundle: &str, id: &str, words: &[&str]) {
    let (ended, state) = run(bundle, id);
    refusal(&ended, words);
    assert_eq!(host::processes_with(&state), [], "processes are left");
    assert!(!Path::new(&state).join(id).exists() || id.is_empty(), "the container's state is left");
}

fn refusal(ended: &Ended, words: &[&str]) {
    assert!(!ended.finished.timed_out, "it hung: {}", ended.describe());
    assert_eq!(ended.finished.code(), 128, "{}", ended.describe());
    let text = ended.finished.stderr();
    for word in words {
        assert!(text.contains(word), "the error does not say {word:?}: {}", ended.describe());
    }
    assert!(text.lines().count() <= 3 && !text.contains("panicked"), "not one clear error: {}", ended.describe());
    assert!(ended.finished.stdout.is_empty(), "{}", ended.describe());
}

fn with_config(text: &str, words: &[&str]) {
    let bundle = Bundle::new(&["/bin/true"]);
    bundle.write();
    fs::write(bundle.path().join("config.json"), text).expect("write");
    refused(&bundle.path().display().to_string(), "bad", words);
}

#[test]
fn config_missing() {
    let bundle = Bundle::new(&["/bin/true"]);
    refused(&bundle.path().display().to_string(), "bad", &["config.json"]);
    refused("/nonexistent/bundle", "bad", &["/nonexistent/bundle"]);
}

#[test]
fn config_is_not_json() {
    with_config("", &["config.json"]);
    with_config("this is not JSON", &["config.json"]);
    with_config("{\"ociVersion\": \"1.0.2\", ", &["config.json"]);
    with_config("\0\0\0\0", &["config.json"]);
    with_config("[1, 2, 3]", &["config.json"]);
    with_config("null", &["config.json"]);
    with_config(&"[".repeat(100_000), &["config.json"]);
}

#[test]
fn config_has_wrong_types() {
    let wrong = [
        ("process", json!(7), "config.json"),
        ("root", json!("rootfs"), "config.json"),
        ("mounts", json!({}), "config.json"),
        ("hostname", json!(5), "config.json"),
    ];
    for (field, value, word) in wrong {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.config[field] = value;
        refused(&bundle.write(), "bad", &[word]);
    }
    for (field, value) in [
        ("args", json!("x")),
        ("cwd", json!(1)),
        ("env", json!([1, 2])),
        ("user", json!({ "uid": -1 })),
        ("user", json!({ "uid": 1u64 << 40 })),
    ] {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.config["process"][field] = value;
        refused(&bundle.write(), "bad", &["config.json"]);
    }
}

#[test]
fn config_lacks_what_is_needed() {
    for (field, word) in [("root", "root"), ("process", "process")] {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.config.as_object_mut().expect("object").remove(field);
        refused(&bundle.write(), "bad", &[word]);
    }
    let mut bundle = Bundle::new(&[]);
    bundle.config["process"]["args"] = json!([]);
    refused(&bundle.write(), "bad", &["args"]);
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["process"]["cwd"] = json!("relative/path");
    refused(&bundle.write(), "bad", &["cwd"]);
}

#[test]
fn config_of_absurd_size() {
    with_config(&format!("{{\"ociVersion\": \"1.0.2\", \"x\": \"{}\"}}", "y".repeat(40 << 20)), &["config.json"]);
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["process"]["args"] = json!(vec!["/bin/true".to_owned(); 200_000]);
    refused(&bundle.write(), "bad", &["args"]);
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["hostname"] = json!("h".repeat(5000));
    refused(&bundle.write(), "bad", &["hostname"]);
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["mounts"][1]["options"] = json!(["size=99999999999999999999999"]);
    refused(&bundle.write(), "bad", &["size"]);
}

#[test]
fn root_missing() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["root"]["path"] = json!("no-such-root");
    refused(&bundle.write(), "bad", &["no-such-root"]);
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["root"]["path"] = json!("config.json");
    refused(&bundle.write(), "bad", &["config.json"]);
}

#[test]
fn bind_source_missing() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["mounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({ "destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"] }));
    refused(&bundle.write(), "bad", &["/no/such/source"]);
}

#[test]
fn command_missing() {
    refused(&Bundle::new(&["/no/such/program"]).write(), "bad", &["/no/such/program", "no such file or directory"]);
    refused(
        &Bundle::new(&["no-such-program"]).write(),
        "bad",
        &["no-such-program", "executable file not found in $PATH"],
    );
    refused(&Bundle::new(&[""]).write(), "bad", &[]);
}

#[test]
fn command_not_executable() {
    let bundle = Bundle::new(&["/data/text"]);
    fs::write(bundle.root().join("data/text"), "#!/bin/sh\n").expect("write");
    fs::set_permissions(bundle.root().join("data/text"), fs::Permissions::from_mode(0o644)).expect("chmod");
    refused(&bundle.write(), "bad", &["/data/text", "permission denied"]);
    refused(&Bundle::new(&["/data"]).write(), "bad", &["/data", "permission denied"]);
}

#[test]
fn command_is_a_corrupt_elf() {
    let whole = fs::read(runsc_tests::programs::program("hello")).expect("program");
    let short = &whole[..40];
    let mut machine = whole.clone();
    machine[18] = 40;
    let mut segments = whole[..4096].to_vec();
    segments[64 + 8..64 + 8 + 56].fill(0xff);
    for (name, image) in [("short", short), ("machine", &machine), ("segments", &segments), ("empty", &[][..])] {
        let bundle = Bundle::new(&[&format!("/data/{name}")]);
        let path = bundle.root().join("data").join(name);
        fs::write(&path, image).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        refused(&bundle.write(), "bad", &[name]);
    }
    // Cut off in the middle of its segments: it starts and dies of what it lacks, like on Linux.
    let bundle = Bundle::new(&["/data/cut"]);
    let path = bundle.root().join("data/cut");
    fs::write(&path, &whole[..20_000]).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    let (ended, _) = run(&bundle.write(), "cut");
    assert!([128, 135, 139].contains(&ended.finished.code()), "{}", ended.describe());
}

#[test]
fn ids() {
    let bundle = Bundle::new(&["/bin/true"]);
    let path = bundle.write();
    refused(&path, "", &["id"]);
    refused(&path, "a/b", &["a/b"]);
    refused(&path, "..", &[".."]);
    refused(&path, "../escape", &["../escape"]);
    refused(&path, &"x".repeat(5000), &["id"]);
    refused(&path, "with space", &["with space"]);
    let missing = Runsc::new(Kind::Ptrace).run(&["run", "--bundle", &path]);
    assert_eq!(missing.finished.code(), 128, "{}", missing.describe());
}

#[test]
fn unknown_containers() {
    for args in [&["state", "nobody"][..], &["kill", "nobody", "TERM"], &["delete", "nobody"]] {
        let ended = Runsc::new(Kind::Ptrace).run(args);
        refusal(&ended, &["nobody"]);
    }
    let ended = Runsc::new(Kind::Ptrace).run(&["delete", "--force", "nobody"]);
    ended.assert_code(0);
    let ended = Runsc::new(Kind::Ptrace).run(&["list"]);
    ended.assert_code(0);
}

#[test]
fn state_directory_unusable() {
    let bundle = Bundle::new(&["/bin/true"]);
    let path = bundle.write();
    let file = bundle.path().join("a-file");
    fs::write(&file, "").expect("write");
    for root in [format!("{}/below", file.display()), "/proc/no/state".to_owned(), "/dev/null".to_owned()] {
        let ended = Runsc::new(Kind::Ptrace).state_in(&root).run(&["run", "--bundle", &path, "x"]);
        refusal(&ended, &[&root]);
    }
}

#[test]
fn unknown_flags_and_values() {
    let bad = [
        (&["--platform=vmware", "list"][..], &["vmware", "kvm", "ptrace"][..]),
        (&["--no-such-flag", "list"], &["no-such-flag"]),
        (&["--network=carrier-pigeon", "list"], &["carrier-pigeon"]),
        (&["--debug=perhaps", "list"], &["debug"]),
        (&["no-such-command"], &["no-such-command"]),
        (&["--overlay", "--file-access=shared", "do", "true"], &["overlay"]),
    ];
    for (args, words) in bad {
        let ended = Runsc::new(Kind::Native).limit(Duration::from_secs(10)).run(args);
        assert_eq!(ended.finished.code(), 128, "{args:?}: {}", ended.describe());
        let text = ended.finished.stderr();
        assert!(words.iter().all(|word| text.contains(word)), "{args:?}: {}", ended.describe());
    }
}

/// An explicit `--platform=kvm` where KVM cannot run a guest kernel is refused within a second and says why.
#[test]
fn unusable_kvm_is_refused_at_once() {
    if runsc_tests::platform::hardware_kvm() {
        return;
    }
    let ended = Runsc::new(Kind::Kvm).limit(Duration::from_secs(10)).do_(&["/bin/true"]);
    refusal(&ended, &["kvm"]);
    assert!(ended.finished.elapsed < Duration::from_secs(1), "it took {:?}", ended.finished.elapsed);
}

/// And the automatic choice falls back to ptrace.
#[test]
fn automatic_platform_works() {
    let ended = Runsc::new(Kind::Native).do_(&["/bin/echo", "works"]);
    assert_eq!(ended.finished.stdout(), "works\n", "{}", ended.describe());
    ended.assert_code(0);
}
