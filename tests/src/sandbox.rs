//! Running things under `runsc`, with its debug log, counters and state directory kept apart for each run.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    binary::runsc,
    command::{Finished, Running, tail},
    host::{self, TempDir},
    platform::Kind,
};

/// One `runsc` command line in the making.
pub struct Runsc {
    kind: Kind,
    dir: TempDir,
    state: Option<PathBuf>,
    global: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    input: Vec<u8>,
    limit: Duration,
}

/// A run under `runsc` that has ended.
pub struct Ended {
    pub finished: Finished,
    /// What `--debug --debug-log` left.
    pub log: String,
    kind: Kind,
}

impl Runsc {
    pub fn new(kind: Kind) -> Runsc {
        Runsc {
            kind,
            dir: TempDir::new("state"),
            state: None,
            global: Vec::new(),
            environment: Vec::new(),
            cwd: None,
            input: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    pub fn flag(mut self, flag: impl Into<OsString>) -> Runsc {
        self.global.push(flag.into());
        self
    }

    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Runsc {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub fn cwd(mut self, dir: &Path) -> Runsc {
        self.cwd = Some(dir.to_path_buf());
        self
    }

    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Runsc {
        self.input = input.into();
        self
    }

    pub fn limit(mut self, limit: Duration) -> Runsc {
        self.limit = limit;
        self
    }

    /// Another state directory than one of its own.
    pub fn state_in(mut self, dir: &str) -> Runsc {
        self.state = Some(dir.into());
        self
    }

    /// The state directory (`--root`).
    pub fn state_dir(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| self.dir.path().join("state"))
    }

    /// What `--debug --debug-log` has left so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("debug.log")
    }

    /// The command line `runsc GLOBAL... ARGS...`, not started.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(runsc());
        command.arg(format!("--root={}", self.state_dir().display())).args(["--debug", "--debug-log"]);
        command.arg(self.log_path());
        if let Some(platform) = self.kind.flag() {
            command.arg(platform);
        }
        if args.first().is_some_and(|command| command.as_ref() != "do") {
            // Processes of a container that is detached show its command line, not ours; `do` passes on what it gets.
            command.env("RUNSC_TEST_STATE", self.state_dir());
        }
        command.args(&self.global).args(args);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        command
    }

    /// Runs a command that leaves a container behind, or fails. The container keeps the standard streams, so they are not
    /// pipes that somebody waits for. Gives the exit status and what went to standard error.
    pub fn detached<S: AsRef<OsStr>>(&self, args: &[S]) -> (i32, String) {
        let errors = self.dir.path().join("stderr");
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&errors).expect("file for standard error"));
        let mut child = command.spawn().expect("start runsc");
        let end = Instant::now() + self.limit * host::time_scale();
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break status;
            }
            if Instant::now() > end {
                child.kill().expect("kill");
                break child.wait().expect("wait");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        (status.code().unwrap_or(-1), fs::read_to_string(&errors).unwrap_or_default())
    }

    pub fn start<S: AsRef<OsStr>>(&self, args: &[S]) -> Running {
        Running::start(&mut self.command(args), self.input.clone())
    }

    /// Runs `runsc GLOBAL... ARGS...` to its end.
    pub fn run<S: AsRef<OsStr>>(self, args: &[S]) -> Ended {
        let finished = self.start(args).finish(self.limit);
        self.ended(finished)
    }

    /// Takes the log of what was started with [`Runsc::start`].
    pub fn ended(&self, finished: Finished) -> Ended {
        Ended { finished, log: self.log(), kind: self.kind }
    }

    /// `runsc do -- PROGRAM ARGS...`
    pub fn do_<S: AsRef<OsStr>>(self, program: &[S]) -> Ended {
        let mut args: Vec<OsString> = vec!["do".into(), "--".into()];
        args.extend(program.iter().map(|arg| arg.as_ref().to_owned()));
        self.run(&args)
    }
}

impl Ended {
    /// Counters by name, from the last `counters:` line of the log.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let Some(line) = self.log.lines().rev().find_map(|line| line.split_once("counters: ").map(|(_, rest)| rest))
        else {
            return BTreeMap::new();
        };
        line.split_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// SHA-256 of the sentry image that ran, from the log.
    pub fn image_hash(&self) -> Option<&str> {
        let (_, rest) = self.log.split_once("sentry image sha256=")?;
        rest.get(..64)
    }

    /// Panics unless the sandbox ran on the platform that was asked for, as its counters tell.
    pub fn assert_platform(&self) {
        let counters = self.counters();
        let count = |name: &str| counters.get(name).copied().unwrap_or(0);
        assert!(!counters.is_empty(), "no counters in the log\n{}", self.describe());
        match self.kind {
            Kind::Kvm => {
                assert!(count("kvm.runs") > 0, "KVM_RUN never returned\n{}", self.describe());
                assert_eq!(count("ptrace.stubs_created"), 0, "a stub was made under KVM\n{}", self.describe());
            }
            Kind::Ptrace => {
                assert!(count("ptrace.stubs_created") > 0, "no stub was made under ptrace\n{}", self.describe());
                assert_eq!(count("kvm.runs"), 0, "KVM_RUN returned under ptrace\n{}", self.describe());
            }
            Kind::Native => {}
        }
        assert!(count("sentry.syscalls") > 0, "the sentry served no system call\n{}", self.describe());
    }

    pub fn describe(&self) -> String {
        format!("{}\n--- end of the debug log\n{}", self.finished.describe(), tail(&self.log))
    }

    /// Panics unless it ended with this status.
    pub fn assert_code(&self, code: i32) {
        assert_eq!(self.finished.code(), code, "exit status\n{}", self.describe());
    }
}
