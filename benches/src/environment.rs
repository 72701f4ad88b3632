//! Where the benchmark runs: natively, under another runtime, under runsc on a platform.

use std::{
    env,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use runsc_tests::{
    binary::{BINARY, runsc, workspace},
    bundle::Bundle,
    host::{TempDir, find_program},
    platform::{Kind, hardware_kvm},
    programs,
};

use crate::options::Options;

pub struct Environment {
    pub name: &'static str,
    launcher: Launcher,
    bundle: Bundle,
    state: TempDir,
}

enum Launcher {
    Native,
    /// An OCI runtime with the flags before its command.
    Runtime(PathBuf, Vec<String>),
}

/// One row of micro's output.
pub struct Row {
    pub name: String,
    pub unit: String,
    pub samples: Vec<f64>,
    pub failure: Option<String>,
}

impl Environment {
    pub fn usable(options: &Options) -> Result<Vec<Environment>> {
        let mut found = vec![("native", Launcher::Native)];
        // Nothing here needs a cgroup.
        for (name, flags) in [("runc", &[][..]), ("crun", &["--cgroup-manager=disabled"])] {
            if let Some(path) = find_program(name) {
                found.push((name, Launcher::Runtime(path, flags.iter().map(|flag| (*flag).to_owned()).collect())));
            }
        }
        let mut ours = |name, kind: Kind| {
            let flags = kind.flag().into_iter().map(str::to_owned).collect();
            found.push((name, Launcher::Runtime(runsc().to_path_buf(), flags)));
        };
        if options.wants_environment("ptrace") {
            ours("ptrace", Kind::Ptrace);
        }
        if options.wants_environment("kvm") && hardware_kvm() {
            ours("kvm", Kind::Kvm);
        }
        let mut usable = Vec::new();
        for (name, launcher) in found.into_iter().filter(|(name, _)| options.wants_environment(name)) {
            let mut bundle = Bundle::new(&["/bin/true"]);
            bundle.add(&programs::bench("micro"), "micro");
            bundle.config["process"]["rlimits"] = Vec::<u8>::new().into();
            let environment = Environment { name, launcher, bundle, state: TempDir::new(name) };
            match environment.start_to_exit() {
                Ok(_) => usable.push(environment),
                Err(error) => eprintln!("{name} is left out: {error:#}"),
            }
        }
        Ok(usable)
    }

    fn new_id(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        format!("bench-{}-{}-{}", self.name, std::process::id(), NUMBER.fetch_add(1, Relaxed))
    }

    /// The bundle for a process with these arguments.
    fn bundle_for(&self, args: &[&str]) -> Result<String> {
        let mut config = self.bundle.config.clone();
        config["process"]["args"] = args.into();
        std::fs::write(self.bundle.path().join("config.json"), config.to_string()).context("config.json")?;
        Ok(self.bundle.path().display().to_string())
    }

    fn runtime(&self, program: &std::path::Path, flags: &[String]) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.state.path()).args(flags).stdin(Stdio::null());
        if program.ends_with("crun") {
            hide_second_cgroup(&mut command);
        }
        command
    }

    /// Runs a program of the bundle's root.
    fn run(&self, args: &[&str]) -> Result<Output> {
        let mut command = match &self.launcher {
            Launcher::Native => {
                let mut command = Command::new(self.bundle.root().join(args[0].trim_start_matches('/')));
                // The first word tells busybox which applet it is.
                command.arg0(args[0]).args(&args[1..]).stdin(Stdio::null());
                command
            }
            Launcher::Runtime(program, flags) => {
                let bundle = self.bundle_for(args)?;
                let mut command = self.runtime(program, flags);
                command.args(["run", "--bundle", &bundle, &self.new_id()]);
                command
            }
        };
        command.output().with_context(|| format!("run {command:?}"))
    }

    /// Milliseconds from starting /bin/true to its end.
    pub fn start_to_exit(&self) -> Result<f64> {
        let start = Instant::now();
        let output = self.run(&["/bin/true"])?;
        let took = start.elapsed();
        ensure!(
            output.status.success(),
            "/bin/true: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(took.as_secs_f64() * 1e3)
    }

    pub fn micro(&self, options: &Options) -> Result<Vec<Row>> {
        let time = options.sample_milliseconds().to_string();
        let root = self.bundle.root().join("data").display().to_string();
        let directory = if matches!(self.launcher, Launcher::Native) { &*root } else { "/data" };
        let mut args = vec!["/micro", "-t", &time, "-n", "3", "-d", directory];
        if options.rows.is_empty() {
            args.push("all");
            if matches!(self.launcher, Launcher::Native) {
                args.push("ptrace_pingpong");
            }
        } else {
            let micro =
                options.rows.iter().map(String::as_str).filter(|row| !["start_to_exit", "memory_of_ten"].contains(row));
            let before = args.len();
            args.extend(micro);
            if args.len() == before {
                return Ok(Vec::new());
            }
        }
        let output = self.run(&args)?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            eprintln!("{}: micro: {}: {}", self.name, output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(text.lines().filter_map(parse).collect())
    }

    /// Starts `sleep` and leaves it; what ends it.
    pub fn start_sleeping(&self) -> Result<Sleeping<'_>> {
        match &self.launcher {
            Launcher::Native => {
                let mut command = Command::new(self.bundle.root().join("bin/sleep"));
                command.arg0("sleep").arg("1000").stdin(Stdio::null());
                Ok(Sleeping::Process(command.spawn().context("sleep")?))
            }
            Launcher::Runtime(program, flags) => {
                let bundle = self.bundle_for(&["/bin/sleep", "1000"])?;
                let id = self.new_id();
                let mut command = self.runtime(program, flags);
                command.args(["run", "--detach", "--bundle", &bundle, &id]).stdout(Stdio::null()).stderr(Stdio::null());
                let status = command.status().context("run --detach")?;
                ensure!(status.success(), "run --detach: {status}");
                Ok(Sleeping::Container(self, id))
            }
        }
    }
}

/// crun refuses a host that has both versions of cgroups mounted, so it gets a mount namespace where the second is not.
fn hide_second_cgroup(command: &mut Command) {
    const SECOND: &std::ffi::CStr = c"/sys/fs/cgroup/unified";
    if !std::path::Path::new("/sys/fs/cgroup/unified").exists() {
        return;
    }
    // SAFETY: the closure makes system calls only, which are safe between fork and exec, with strings that live for ever.
    unsafe {
        command.pre_exec(|| {
            let private = libc::MS_REC | libc::MS_PRIVATE;
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()) != 0
                || libc::umount2(SECOND.as_ptr(), libc::MNT_DETACH) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

pub enum Sleeping<'a> {
    Process(std::process::Child),
    Container(&'a Environment, String),
}

impl Drop for Sleeping<'_> {
    fn drop(&mut self) {
        match self {
            Sleeping::Process(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Sleeping::Container(environment, id) => {
                if let Launcher::Runtime(program, flags) = &environment.launcher {
                    let _ = environment.runtime(program, flags).args(["delete", "--force", id]).output();
                }
            }
        }
    }
}

fn parse(line: &str) -> Option<Row> {
    let mut words = line.split_whitespace();
    let (name, unit) = (words.next()?.to_owned(), words.next()?.to_owned());
    if unit == "failed" {
        return Some(Row { name, unit, samples: Vec::new(), failure: Some(words.collect::<Vec<_>>().join(" ")) });
    }
    let samples: Vec<f64> = words.filter_map(|word| word.parse().ok()).collect();
    (!samples.is_empty()).then_some(Row { name, unit, samples, failure: None })
}

/// Runs this program again in the emulated machine.
pub fn run_in_machine() -> Result<()> {
    programs::bench("micro");
    let status = Command::new(workspace().join("tests/svm/machine"))
        .args(["-t", "3000", "env", &format!("{BINARY}={}", runsc().display())])
        .arg(env::current_exe().context("path of the benchmark")?)
        .args(env::args().skip(1).filter(|arg| arg != "--machine" && arg != "--bench"))
        .status()
        .context("start the emulated machine")?;
    if !status.success() {
        bail!("the emulated machine ended with {status}");
    }
    Ok(())
}
