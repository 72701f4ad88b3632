//! Podman, with conmon between it and the runtime.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use runsc_tests::{
    command::{Finished, Running},
    host::{self, TempDir},
    terminal::Terminal,
};

use crate::support::{LIMIT, available, ended, nothing_left, rootfs_tar, wait_for, wrapper};

/// What every container gets: there is no network.
const RUN: &[&str] = &["run", "--network=none"];

struct Podman {
    dir: TempDir,
}

impl Podman {
    /// None where there is no Podman.
    fn new() -> Option<Podman> {
        if !available(&["podman", "conmon", "tar"]) {
            return None;
        }
        let podman = Podman { dir: TempDir::new("podman") };
        let dir = podman.dir.path().display().to_string();
        let runtime = wrapper(podman.dir.path(), &format!("--root={dir}/state"));
        let write = |name: &str, text: String| fs::write(podman.dir.path().join(name), text).expect(name);
        write(
            "containers.conf",
            format!(
                "[containers]\ndefault_ulimits = [\"nofile=1024:4096\"]\n\
                 [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runsc\"\n\
                 runtime_supports_json = [\"runsc\"]\n\
                 [engine.runtimes]\nrunsc = [\"{}\"]\n",
                runtime.display()
            ),
        );
        write(
            "storage.conf",
            format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{dir}/graph\"\nrunroot = \"{dir}/run\"\n"),
        );
        let tar = rootfs_tar(podman.dir.path());
        podman.does(&["import", "--quiet", &tar.display().to_string(), "box"]);
        Some(podman)
    }

    fn command(&self, args: &[&str]) -> Command {
        let path = |name: &str| self.dir.path().join(name);
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", path("containers.conf")).env("CONTAINERS_STORAGE_CONF", path("storage.conf"));
        command.env("XDG_RUNTIME_DIR", self.dir.path()).env("TMPDIR", self.dir.path());
        command.arg("--root").arg(path("graph")).arg("--runroot").arg(path("run")).arg("--tmpdir").arg(path("tmp"));
        command.arg("--storage-driver=vfs").args(args);
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

    /// `podman run --rm` of the image.
    fn run(&self, flags: &[&str], program: &[&str]) -> Finished {
        let args: Vec<&str> = [RUN, &["--rm"], flags, &["box"], program].concat();
        self.finish(&args)
    }

    #[track_caller]
    fn says(&self, flags: &[&str], script: &str, text: &str) {
        let finished = ended(self.run(flags, &["sh", "-c", script]), 0);
        assert_eq!(finished.stdout(), text, "{script}: {}", finished.describe());
    }

    fn inspect(&self, name: &str, what: &str) -> String {
        self.does(&["inspect", "--format", &format!("{{{{.{what}}}}}"), name]).trim().to_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Everything is gone once the containers are removed.
    fn end(self) {
        self.does(&["rm", "--force", "--all", "--time", "0"]);
        let states: Vec<_> =
            fs::read_dir(self.file("state")).into_iter().flatten().flatten().map(|e| e.path()).collect();
        assert!(states.iter().all(|path| !path.is_dir()), "states are left: {states:?}");
        // The store mounts itself; what is of containers is gone.
        let containers = self.file("run");
        nothing_left(&containers);
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // After a failure: what it left.
        let _ = self.command(&["rm", "--force", "--all", "--time", "0"]).output();
        let mut mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.retain(|c| c != '\0');
        for line in mounts.lines().rev() {
            let Some(target) = line.split(' ').nth(4).filter(|t| t.starts_with(&*self.dir.path().to_string_lossy()))
            else {
                continue;
            };
            let _ = Command::new("umount").arg(target).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn run() {
    let Some(podman) = Podman::new() else { return };
    podman.says(&[], "echo hello", "hello\n");
    assert_eq!(ended(podman.run(&[], &["sh", "-c", "echo wrong >&2; exit 7"]), 7).stderr(), "wrong\n");
    ended(podman.run(&[], &["no-such-program"]), 127);
    ended(podman.run(&[], &["/bin/plain"]), 126);
    podman.says(
        &["--user=5:6", "--workdir=/data", "--env=A=b", "--hostname=name"],
        "id -u; id -g; pwd; echo $A; hostname",
        "5\n6\n/data\nb\nname\n",
    );
    podman.says(
        &["--cap-drop=all"],
        "while read n v; do if test $n = CapEff:; then echo $v; fi; done < /proc/self/status",
        "0000000000000000\n",
    );
    podman.says(
        &["--read-only"],
        "touch /x 2>/dev/null || echo refused; echo > /tmp/x && echo kept",
        "refused\nkept\n",
    );
    podman.says(
        &["--tmpfs=/t:size=1m,mode=700"],
        "stat -c %a /t; dd if=/dev/zero of=/t/x bs=1M count=2 2>/dev/null; stat -c %s /t/x",
        "700\n1048576\n",
    );
    podman.says(
        &["--ulimit=nofile=77:88", "--sysctl=net.core.somaxconn=99"],
        "ulimit -n; ulimit -Hn; cat /proc/sys/net/core/somaxconn",
        "77\n88\n99\n",
    );
    fs::create_dir(podman.file("volume")).expect("mkdir");
    fs::write(podman.file("volume/in"), "from outside\n").expect("write");
    let volume = format!("--volume={}:/v", podman.file("volume").display());
    podman.says(&[&volume], "cat /v/in; echo inside > /v/out", "from outside\n");
    assert_eq!(fs::read_to_string(podman.file("volume/out")).expect("read"), "inside\n");
    podman.says(&[&format!("{volume}:ro")], "touch /v/x 2>/dev/null || echo refused", "refused\n");
    let args = [RUN, &["--rm", "--interactive", "box", "cat"]].concat();
    let typed = Running::start(&mut podman.command(&args), b"typed".to_vec()).finish(LIMIT);
    assert_eq!(ended(typed, 0).stdout(), "typed");
    podman.end();
}

#[test]
fn life() {
    let Some(podman) = Podman::new() else { return };
    let script = "trap 'echo ended; exit 5' TERM; echo out; echo err >&2; while :; do sleep 0.1; done";
    podman.does(&[RUN, &["--detach", "--name=c", "box", "sh", "-c", script]].concat());
    wait_for("its words", || podman.finish(&["logs", "c"]).stderr().contains("err"));
    assert_eq!(podman.inspect("c", "State.Status"), "running");
    let pid: u32 = podman.inspect("c", "State.Pid").parse().expect("pid");
    assert!(fs::exists(format!("/proc/{pid}")).expect("stat"));
    // An option that Podman does not know lets it ask ps(1) inside.
    assert!(podman.does(&["top", "c", "-ef"]).contains("trap"));
    podman.does(&["stats", "--no-stream", "c"]);

    assert_eq!(podman.does(&["exec", "c", "echo", "hi"]), "hi\n");
    assert_eq!(
        podman.does(&["exec", "--user=5", "--workdir=/data", "--env=A=b", "c", "sh", "-c", "id -u; pwd; echo $A"]),
        "5\n/data\nb\n"
    );
    ended(podman.finish(&["exec", "c", "sh", "-c", "exit 9"]), 9);
    ended(podman.finish(&["exec", "c", "sh", "-c", "kill -KILL $$"]), 137);
    ended(podman.finish(&["exec", "c", "no-such-program"]), 127);
    ended(podman.finish(&["exec", "c", "/bin/plain"]), 126);
    let typed =
        Running::start(&mut podman.command(&["exec", "--interactive", "c", "cat"]), b"typed".to_vec()).finish(LIMIT);
    assert_eq!(ended(typed, 0).stdout(), "typed");
    podman.does(&["exec", "--detach", "c", "sh", "-c", "echo > /data/detached; exec sleep 1000"]);
    wait_for("the detached process", || podman.finish(&["exec", "c", "test", "-e", "/data/detached"]).code() == 0);

    podman.does(&["pause", "c"]);
    assert_eq!(podman.inspect("c", "State.Status"), "paused");
    assert_ne!(podman.finish(&["exec", "c", "true"]).code(), 0);
    podman.does(&["unpause", "c"]);
    assert_eq!(podman.does(&["exec", "c", "echo", "on"]), "on\n");

    podman.does(&["stop", "--time", "20", "c"]);
    assert_eq!(podman.inspect("c", "State.ExitCode"), "5");
    assert!(podman.does(&["logs", "c"]).contains("ended"));
    podman.does(&["start", "c"]);
    podman.does(&["restart", "--time", "0", "c"]);
    podman.does(&["kill", "c"]);
    assert_eq!(podman.does(&["wait", "c"]).trim(), "137");
    podman.does(&["rm", "c"]);
    podman.end();
}

#[test]
fn create_init_start_attach() {
    let Some(podman) = Podman::new() else { return };
    podman.does(&[
        "create",
        "--network=none",
        "--name=c",
        "--interactive",
        "box",
        "sh",
        "-c",
        "read line; echo got $line; exit 3",
    ]);
    podman.does(&["init", "c"]);
    assert_eq!(podman.inspect("c", "State.Status"), "initialized");
    let running =
        Running::start(&mut podman.command(&["start", "--attach", "--interactive", "c"]), b"words\n".to_vec());
    assert_eq!(ended(running.finish(LIMIT), 3).stdout(), "got words\n");
    // One that was made and never started.
    podman.does(&["create", "--network=none", "--name=d", "box", "true"]);
    podman.does(&["init", "d"]);
    podman.does(&["rm", "--force", "d"]);
    podman.end();
}

fn shell_in_a_terminal(mut terminal: Terminal) {
    terminal.expect("/ # ");
    terminal.type_("test -t 0 && echo a\"\" terminal\n");
    terminal.expect("a terminal\r\n");
    terminal.expect_resize();
    terminal.type_("sleep 100\n");
    terminal.expect("sleep 100\r\n");
    std::thread::sleep(Duration::from_millis(500) * host::time_scale());
    terminal.type_("\x03");
    terminal.expect("/ # ");
    terminal.type_("echo status $?\n");
    terminal.expect("status 130\r\n");
    terminal.type_("sleep 100\n");
    terminal.expect("sleep 100\r\n");
    std::thread::sleep(Duration::from_millis(500) * host::time_scale());
    terminal.type_("\x1a");
    terminal.expect("Stopped");
    terminal.expect("/ # ");
    terminal.type_("fg\n");
    terminal.expect("sleep 100\r\n");
    std::thread::sleep(Duration::from_millis(500) * host::time_scale());
    terminal.type_("\x03");
    terminal.expect("/ # ");
    terminal.type_("exit 4\n");
    assert_eq!(terminal.end(), 4);
}

#[test]
fn terminals() {
    let Some(podman) = Podman::new() else { return };
    shell_in_a_terminal(Terminal::start(podman.command(&[RUN, &["--rm", "-it", "box", "sh"]].concat())));
    podman.does(&[RUN, &["--detach", "--name=c", "box", "sleep", "1000"]].concat());
    shell_in_a_terminal(Terminal::start(podman.command(&["exec", "-it", "c", "sh"])));
    podman.end();
}

#[test]
fn build() {
    let Some(podman) = Podman::new() else { return };
    fs::create_dir(podman.file("context")).expect("mkdir");
    fs::write(podman.file("context/Containerfile"), "FROM box\nRUN echo built > /built\nCMD cat /built\n")
        .expect("write");
    let context = podman.file("context").display().to_string();
    podman.does(&["build", "--isolation=oci", "--network=none", "--tag=built", &context]);
    assert_eq!(podman.does(&[RUN, &["--rm", "built"]].concat()), "built\n");
    podman.end();
}
