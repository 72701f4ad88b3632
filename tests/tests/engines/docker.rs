//! Docker's daemon, with containerd and its shim between it and the runtime.

use std::{fs, process::Command, time::Duration};

use runsc_tests::{
    command::{Finished, Running},
    host::{self, TempDir},
    terminal::Terminal,
};

use crate::support::{Daemon, LIMIT, available, ended, nothing_left, rootfs_tar, wait_for, wrapper};

/// What every container gets: there is no network.
const RUN: &[&str] = &["run", "--network=none"];

struct Docker {
    daemon: Daemon,
    dir: TempDir,
}

impl Docker {
    /// None where there is no Docker.
    fn new() -> Option<Docker> {
        if !available(&["dockerd", "docker", "containerd", "containerd-shim-runc-v2", "runc", "tar"]) {
            return None;
        }
        let dir = TempDir::new("docker");
        let path = |name: &str| dir.path().join(name);
        let config = serde_json::json!({
            "runtimes": { "runsc": { "path": wrapper(dir.path(), "") } }, "default-runtime": "runsc", "bridge": "none",
            "iptables": false, "ip6tables": false, "storage-driver": "vfs", "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "data-root": path("data"), "exec-root": path("exec"), "pidfile": path("pid"),
            "hosts": [format!("unix://{}", path("sock").display())],
        });
        fs::write(path("daemon.json"), config.to_string()).expect("write");
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(path("daemon.json"));
        let daemon = Daemon::start(&mut command, &path("log"));
        let docker = Docker { daemon, dir };
        wait_for("dockerd", || docker.finish(&["version"]).code() == 0);
        let tar = rootfs_tar(docker.dir.path());
        docker.does(&["import", &tar.display().to_string(), "box"]);
        Some(docker)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_CONFIG", self.dir.path().join("client"));
        command.arg(format!("--host=unix://{}", self.dir.path().join("sock").display())).args(args);
        command
    }

    fn finish(&self, args: &[&str]) -> Finished {
        Running::start(&mut self.command(args), Vec::new()).finish(LIMIT)
    }

    /// What a command says that ends with 0.
    #[track_caller]
    fn does(&self, args: &[&str]) -> String {
        ended(self.finish(args), 0).stdout()
    }

    /// `docker run --rm` of the image.
    fn run(&self, flags: &[&str], program: &[&str]) -> Finished {
        self.finish(&[RUN, &["--rm"], flags, &["box"], program].concat())
    }

    fn inspect(&self, name: &str, what: &str) -> String {
        self.does(&["inspect", "--format", &format!("{{{{.{what}}}}}"), name]).trim().to_owned()
    }

    /// Everything is gone once the containers are removed and the daemon has ended.
    fn end(self) {
        let Docker { daemon, dir } = self;
        let states = fs::read_dir(dir.path().join("exec/runtime-runc/moby")).into_iter().flatten().flatten();
        let left: Vec<_> = states.map(|e| e.path()).filter(|path| path.is_dir()).collect();
        assert!(left.is_empty(), "states are left: {left:?}");
        drop(daemon);
        nothing_left(dir.path());
    }
}

#[test]
fn containers() {
    let Some(docker) = Docker::new() else { return };
    assert_eq!(ended(docker.run(&[], &["echo", "hello"]), 0).stdout(), "hello\n");
    ended(docker.run(&[], &["sh", "-c", "exit 7"]), 7);
    ended(docker.run(&[], &["no-such-program"]), 127);
    ended(docker.run(&[], &["/bin/plain"]), 126);
    let flags = [
        "--user=5:6",
        "--workdir=/data",
        "--env=A=b",
        "--hostname=name",
        "--read-only",
        "--tmpfs=/t",
        "--cap-drop=ALL",
    ];
    let script = "id -u; id -g; pwd; echo $A; hostname; touch /x 2>/dev/null || echo refused; echo > /t/x && echo kept";
    assert_eq!(ended(docker.run(&flags, &["sh", "-c", script]), 0).stdout(), "5\n6\n/data\nb\nname\nrefused\nkept\n");

    let script = "trap 'echo ended; exit 5' TERM; echo out; while :; do sleep 0.1; done";
    docker.does(&[RUN, &["--detach", "--name=life", "box", "sh", "-c", script]].concat());
    wait_for("its words", || docker.does(&["logs", "life"]).contains("out"));
    assert_eq!(docker.does(&["exec", "life", "echo", "hi"]), "hi\n");
    ended(docker.finish(&["exec", "life", "sh", "-c", "exit 9"]), 9);
    let missing = docker.finish(&["exec", "life", "no-such-program"]);
    let words = missing.stdout() + &missing.stderr();
    assert!(words.contains("executable file not found in $PATH"), "{}", missing.describe());
    docker.does(&["exec", "--detach", "life", "sleep", "1000"]);
    // The container's process and the one just started.
    wait_for("two processes", || docker.does(&["top", "life"]).lines().count() == 3);
    assert!(docker.does(&["top", "life"]).contains("sleep 1000"));
    docker.does(&["stats", "--no-stream", "life"]);
    docker.does(&["update", "--memory=200m", "--memory-swap=200m", "life"]);
    docker.does(&["pause", "life"]);
    assert_eq!(docker.inspect("life", "State.Status"), "paused");
    docker.does(&["unpause", "life"]);
    docker.does(&["stop", "--time=20", "life"]);
    assert_eq!(docker.inspect("life", "State.ExitCode"), "5");
    docker.does(&["start", "life"]);
    docker.does(&["restart", "--time=0", "life"]);
    docker.does(&["kill", "life"]);
    wait_for("the end", || docker.inspect("life", "State.ExitCode") == "137");
    docker.does(&["rm", "life"]);

    docker.does(&[RUN, &["--detach", "--name=again", "--restart=on-failure:2", "box", "sh", "-c", "exit 3"]].concat());
    wait_for("two restarts", || {
        docker.inspect("again", "RestartCount") == "2" && docker.inspect("again", "State.Status") == "exited"
    });
    assert_eq!(docker.inspect("again", "State.ExitCode"), "3");
    docker.does(&["rm", "--force", "again"]);

    let health =
        ["--detach", "--name=healthy", "--health-cmd=test -e /data/ok", "--health-interval=1s", "--health-retries=1"];
    docker.does(&[RUN, &health, &["box", "sleep", "1000"]].concat());
    wait_for("a failed check", || docker.inspect("healthy", "State.Health.Status") == "unhealthy");
    docker.does(&["exec", "healthy", "touch", "/data/ok"]);
    wait_for("a good check", || docker.inspect("healthy", "State.Health.Status") == "healthy");
    docker.does(&["rm", "--force", "healthy"]);

    let mut terminal = Terminal::start(docker.command(&[RUN, &["--rm", "-it", "box", "sh"]].concat()));
    terminal.expect("/ # ");
    terminal.expect_resize();
    terminal.type_("sleep 100\n");
    terminal.expect("sleep 100\r");
    std::thread::sleep(Duration::from_millis(500) * host::time_scale());
    terminal.type_("\x03");
    terminal.expect("/ # ");
    terminal.type_("exit 4\n");
    assert_eq!(terminal.end(), 4);
    docker.end();
}
