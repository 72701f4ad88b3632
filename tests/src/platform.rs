//! What a test runs on. A body is a function of [`Platform`]; [`on_platforms!`] makes a test of it natively, on ptrace and on
//! KVM.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use crate::{
    command::{Finished, Running},
    host, machine,
    sandbox::{Ended, Runsc},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Native,
    Ptrace,
    Kvm,
}

impl Kind {
    pub fn flag(self) -> Option<&'static str> {
        match self {
            Kind::Native => None,
            Kind::Ptrace => Some("--platform=ptrace"),
            Kind::Kvm => Some("--platform=kvm"),
        }
    }
}

/// One way to run a program: the host itself or a sandbox over the host's root.
pub struct Platform {
    pub kind: Kind,
}

/// A program to run: arguments, environment, input.
#[derive(Clone, Default)]
pub struct Program {
    pub args: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    pub input: Vec<u8>,
    pub limit: Option<Duration>,
}

impl Program {
    pub fn new<S: AsRef<OsStr>>(args: &[S]) -> Program {
        Program { args: args.iter().map(|arg| arg.as_ref().to_owned()).collect(), ..Program::default() }
    }

    /// `SHELL -c SCRIPT`
    pub fn shell(shell: &str, script: &str) -> Program {
        Program::new(&[shell, "-c", script])
    }

    pub fn env(mut self, name: &str, value: &str) -> Program {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Program {
        self.input = input.into();
        self
    }

    pub fn limit(mut self, seconds: u64) -> Program {
        self.limit = Some(Duration::from_secs(seconds));
        self
    }
}

impl Platform {
    /// Runs it; in a sandbox also checks from the counters that the platform is the one asked for.
    pub fn run(&self, program: &Program) -> Finished {
        match self.kind {
            Kind::Native => {
                let mut command = Command::new(&program.args[0]);
                command.args(&program.args[1..]);
                command.envs(program.environment.iter().map(|(name, value)| (name, value)));
                Running::start(&mut command, program.input.clone())
                    .finish(program.limit.unwrap_or(Duration::from_secs(60)))
            }
            Kind::Ptrace | Kind::Kvm => {
                let ended = self.sandbox(program);
                if !ended.finished.timed_out {
                    ended.assert_platform();
                }
                ended.finished
            }
        }
    }

    /// Runs it in a sandbox with `runsc do`.
    pub fn sandbox(&self, program: &Program) -> Ended {
        let mut runsc = Runsc::new(self.kind).input(program.input.clone()).env("ABI_SANDBOX", "1");
        for (name, value) in &program.environment {
            runsc = runsc.env(name, value);
        }
        if let Some(limit) = program.limit {
            runsc = runsc.limit(limit);
        }
        runsc.do_(&program.args)
    }

    /// Runs it here and on the host itself: status and standard output must agree.
    pub fn same_as_host(&self, program: &Program) {
        let host = Platform { kind: Kind::Native }.run(program);
        let here = self.run(program);
        assert!(
            host.code() == here.code() && host.stdout == here.stdout,
            "{:?} differs\n=== host: {}\n=== {:?}: {}",
            program.args,
            host.describe(),
            self.kind,
            here.describe()
        );
    }
}

/// Whether KVM here can run a guest kernel, by the binary's own probe.
pub fn hardware_kvm() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        Path::new("/dev/kvm").exists()
            && Runsc::new(Kind::Kvm).limit(Duration::from_secs(20)).do_(&["/bin/true"]).finished.code() == 0
    })
}

/// Set in the emulated machine: its KVM is to be used, and a failure is a failure.
pub const INSIDE_MACHINE: &str = "RUNSC_TEST_MACHINE";

/// Runs a KVM test: on this host's KVM, else in the emulated machine. `name` is the test's path in its test program.
pub fn kvm(name: &str, body: impl FnOnce(&Platform)) {
    if env::var_os(INSIDE_MACHINE).is_some() || hardware_kvm() {
        return body(&Platform { kind: Kind::Kvm });
    }
    match machine::result_of(name) {
        machine::Outcome::Passed => {}
        machine::Outcome::Failed(text) => panic!("in the emulated machine:\n{text}"),
        machine::Outcome::CannotRun(why) => {
            assert!(!host::is_ci(), "this KVM test cannot run: {why}");
            eprintln!("not run: {name}: {why}");
        }
    }
}

/// `on_platforms! { name = body; ... }`: each `body: fn(&Platform)` becomes the tests `native::name`, `ptrace::name` and
/// `kvm::name`. `on_sandboxes!` leaves the native one out. Attributes before a name go to the tests in sandboxes.
#[macro_export]
macro_rules! on_platforms {
    ($($(#[$attribute:meta])* $name:ident = $body:expr;)*) => {
        mod native {
            #[allow(unused_imports, reason = "a body may be a closure")]
            use super::*;
            $(#[test] fn $name() { ($body)(&$crate::platform::Platform { kind: $crate::platform::Kind::Native }) })*
        }
        $crate::on_sandboxes! { $($(#[$attribute])* $name = $body;)* }
    };
}

#[macro_export]
macro_rules! on_sandboxes {
    // On KVM only when asked for (`--ignored`): `reason` says why.
    (kvm ignored: $reason:literal; $($(#[$attribute:meta])* $name:ident = $body:expr;)*) => {
        $crate::on_sandboxes! { @ptrace $($(#[$attribute])* $name = $body;)* }
        $crate::on_sandboxes! { @kvm $(#[ignore = $reason] $name = $body;)* }
    };
    (@ptrace $($(#[$attribute:meta])* $name:ident = $body:expr;)*) => {
        mod ptrace {
            #[allow(unused_imports, reason = "a body may be a closure")]
            use super::*;
            $($(#[$attribute])* #[test] fn $name() { ($body)(&$crate::platform::Platform { kind: $crate::platform::Kind::Ptrace }) })*
        }
    };
    (@kvm $($(#[$attribute:meta])* $name:ident = $body:expr;)*) => {
        mod kvm {
            #[allow(unused_imports, reason = "a body may be a closure")]
            use super::*;
            $($(#[$attribute])* #[test] fn $name() {
                let path = concat!(module_path!(), "::", stringify!($name));
                let (_, name) = path.split_once("::").unwrap_or(("", path));
                $crate::platform::kvm(name, $body)
            })*
        }
    };
    ($($(#[$attribute:meta])* $name:ident = $body:expr;)*) => {
        $crate::on_sandboxes! { @ptrace $($(#[$attribute])* $name = $body;)* }
        $crate::on_sandboxes! { @kvm $($(#[$attribute])* $name = $body;)* }
    };
}
