//! containerd, with its shim between it and the runtime, driven by ctr.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use runsc_tests::{
    command::{Finished, Running},
    host::{self, TempDir},
    terminal::Terminal,
};

use crate::support::{Daemon, LIMIT, available, ended, nothing_left, rootfs_tar, wait_for, wrapper};

const IMAGE: &str = "box:latest";

struct Containerd {
    daemon: Daemon,
    runtime: PathBuf,
    dir: TempDir,
}

impl Containerd {
    /// None where there is no containerd.
    fn new() -> Option<Containerd> {
        if !available(&["containerd", "ctr", "containerd-shim-runc-v2", "tar", "sha256sum"]) {
            return None;
        }
        let dir = TempDir::new("ctd");
        let path = dir.path().display().to_string();
        let config = format!(
            "version = 2\nroot = \"{path}/root\"\nstate = \"{path}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{path}/sock\"\n[ttrpc]\naddress = \"{path}/sock.ttrpc\"\n"
        );
        fs::write(dir.path().join("config.toml"), config).expect("write");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(dir.path().join("config.toml"));
        let daemon = Daemon::start(&mut command, &dir.path().join("log"));
        let containerd = Containerd { daemon, runtime: wrapper(dir.path(), ""), dir };
        wait_for("containerd", || containerd.finish(&["version"]).code() == 0);
        let image = containerd.image();
        containerd.does(&["image", "import", "--no-unpack", &image.display().to_string()]);
        Some(containerd)
    }

    /// An image as `docker save` writes it.
    fn image(&self) -> PathBuf {
        let dir = self.dir.path().join("image");
        fs::create_dir(&dir).expect("mkdir");
        fs::rename(rootfs_tar(self.dir.path()), dir.join("layer.tar")).expect("rename");
        let sum =
            ended(Running::start(Command::new("sha256sum").arg(dir.join("layer.tar")), Vec::new()).finish(LIMIT), 0);
        let sum = sum.stdout().split_whitespace().next().expect("sum").to_owned();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
        });
        fs::write(dir.join("config.json"), config.to_string()).expect("write");
        let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
        fs::write(dir.join("manifest.json"), manifest.to_string()).expect("write");
        let tar = self.dir.path().join("image.tar");
        let mut command = Command::new("tar");
        command.arg("-C").arg(&dir).arg("-cf").arg(&tar).args(["manifest.json", "config.json", "layer.tar"]);
        ended(Running::start(&mut command, Vec::new()).finish(LIMIT), 0);
        tar
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.dir.path().join("sock"));
        // Its name is part of the containers' cgroups.
        command.arg("--namespace").arg(self.dir.path().file_name().expect("name")).args(args);
        command
    }

    fn finish(&self, args: &[&str]) -> Finished {
        Running::start(&mut self.command(args), Vec::new()).finish(LIMIT)
    }

    #[track_caller]
    fn does(&self, args: &[&str]) -> String {
        ended(self.finish(args), 0).stdout()
    }

    /// `ctr run` of the image in container `id`.
    fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Vec<String> {
        let runtime = format!("--runc-binary={}", self.runtime.display());
        let root = format!("--runc-root={}", self.dir.path().join("runtime").display());
        let image = format!("docker.io/library/{IMAGE}");
        let own = ["run", "--snapshotter=native", &runtime, &root];
        [&own[..], flags, &[&image, id], program].concat().into_iter().map(str::to_owned).collect()
    }

    fn run_finished(&self, flags: &[&str], id: &str, program: &[&str]) -> Finished {
        let args = self.run(flags, id, program);
        self.finish(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn status(&self, id: &str) -> String {
        let list = self.does(&["task", "list"]);
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
        line.and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_owned()
    }

    fn end(self) {
        let Containerd { daemon, dir, .. } = self;
        let states: Vec<_> = fs::read_dir(dir.path().join("runtime")).into_iter().flatten().flatten().collect();
        let left = states.iter().flat_map(|e| fs::read_dir(e.path()).into_iter().flatten().flatten());
        let left = left.filter(|e| e.path().is_dir()).count();
        assert_eq!(left, 0, "states of containers are left");
        drop(daemon);
        nothing_left(dir.path());
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // The parent of the containers' groups, which runtimes leave. One that is in use stays.
            let _ = fs::remove_dir(hierarchy.path().join(dir.path().file_name().expect("name")));
        }
    }
}

#[test]
fn containers() {
    let Some(containerd) = Containerd::new() else { return };
    let ran = |id: &str, program: &[&str]| containerd.run_finished(&["--rm"], id, program);
    assert_eq!(ended(ran("a", &["echo", "hello"]), 0).stdout(), "hello\n");
    ended(ran("a", &["sh", "-c", "exit 7"]), 7);
    let missing = ran("a", &["no-such-program"]);
    assert!(
        missing.code() != 0 && missing.stderr().contains("executable file not found in $PATH"),
        "{}",
        missing.describe()
    );

    ended(containerd.run_finished(&["--detach"], "b", &["sleep", "1000"]), 0);
    assert_eq!(containerd.status("b"), "RUNNING");
    assert_eq!(containerd.does(&["task", "exec", "--exec-id=1", "b", "echo", "hi"]), "hi\n");
    ended(containerd.finish(&["task", "exec", "--exec-id=2", "b", "sh", "-c", "exit 5"]), 5);
    let missing = containerd.finish(&["task", "exec", "--exec-id=3", "b", "no-such-program"]);
    assert!(missing.stderr().contains("executable file not found in $PATH"), "{}", missing.describe());
    let pid = containerd
        .does(&["task", "ps", "b"])
        .lines()
        .nth(1)
        .and_then(|l| l.split_whitespace().next()?.parse::<u32>().ok());
    assert!(pid.is_some_and(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(false)));
    containerd.does(&["task", "metrics", "b"]);
    containerd.does(&["task", "pause", "b"]);
    assert_eq!(containerd.status("b"), "PAUSED");
    containerd.does(&["task", "resume", "b"]);
    assert_eq!(containerd.status("b"), "RUNNING");
    containerd.does(&["task", "kill", "--signal=KILL", "b"]);
    wait_for("the end", || containerd.status("b") == "STOPPED");
    // It tells the task's status with its own.
    containerd.finish(&["task", "delete", "b"]);
    assert_eq!(containerd.status("b"), "");
    containerd.does(&["container", "delete", "b"]);
    containerd.end();
}

#[test]
fn terminals() {
    let Some(containerd) = Containerd::new() else { return };
    let shell = |mut terminal: Terminal| {
        terminal.expect("/ # ");
        terminal.expect_resize();
        terminal.type_("sleep 100\n");
        terminal.expect("sleep 100\r");
        std::thread::sleep(Duration::from_millis(500) * host::time_scale());
        terminal.type_("\x03");
        terminal.expect("/ # ");
        terminal.type_("exit 4\n");
        assert_eq!(terminal.end(), 4);
    };
    let args = containerd.run(&["--rm", "--tty"], "a", &["sh"]);
    shell(Terminal::start(containerd.command(&args.iter().map(String::as_str).collect::<Vec<_>>())));
    ended(containerd.run_finished(&["--detach"], "b", &["sleep", "1000"]), 0);
    shell(Terminal::start(containerd.command(&["task", "exec", "--tty", "--exec-id=1", "b", "sh"])));
    containerd.does(&["task", "kill", "--signal=KILL", "b"]);
    wait_for("the end", || containerd.status("b") == "STOPPED");
    containerd.finish(&["task", "delete", "b"]);
    containerd.does(&["container", "delete", "b"]);
    containerd.end();
}
