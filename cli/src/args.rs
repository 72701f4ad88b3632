//! The command line as clap sees it: global flags out of the table, and each command's own flags and operands.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command, builder::ValueParser};

use crate::flags::table::{self, Kind};

/// Commands that the command line has and this version does not do yet.
pub const LATER: &[&str] = &[
    "checkpoint",
    "cpu-features",
    "export-metrics",
    "metric-metadata",
    "mitigate",
    "port-forward",
    "read-control",
    "restore",
    "statefile",
    "tar",
    "trace",
    "usage",
    "write-control",
];

/// A flag that is bare or carries `=true` / `=false`.
fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::Set)
        .overrides_with(name)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .default_value("false")
        .value_parser(clap::value_parser!(bool))
        .hide_default_value(true)
        .hide_possible_values(true)
        .value_name("BOOL")
        .help(help)
}

fn value(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::Set)
        .overrides_with(name)
        .value_name(value_name)
        .value_parser(ValueParser::os_string())
        .allow_hyphen_values(true)
        .help(help)
}

fn list(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::Append)
        .value_name(value_name)
        .value_parser(ValueParser::os_string())
        .allow_hyphen_values(true)
        .help(help)
}

fn operand(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).value_name(value_name).value_parser(ValueParser::os_string()).help(help)
}

fn id() -> Arg {
    operand("id", "ID", "name of the container").required(true)
}

fn sub(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about)
}

fn global(command: Command) -> Command {
    let mut command = command;
    for flag in table::GLOBAL {
        let mut arg = Arg::new(flag.name)
            .long(flag.name)
            .action(ArgAction::Set)
            // As in Go's flag package, the last of them counts.
            .overrides_with(flag.name)
            .value_parser(ValueParser::string())
            .help(flag.help)
            .hide(flag.name.starts_with("TESTONLY"));
        arg = match flag.kind {
            Kind::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
            Kind::Int => arg.value_name("N").allow_hyphen_values(true),
            Kind::Text | Kind::Choice(_) => arg.value_name("VALUE").allow_hyphen_values(true),
        };
        command = command.arg(arg);
    }
    command
}

/// Flags of install and uninstall.
fn docker(command: Command) -> Command {
    command.arg(value("config_file", "PATH", "default: /etc/docker/daemon.json").alias("config-file")).arg(value(
        "runtime",
        "NAME",
        "name of the runtime; default: runsc",
    ))
}

fn creation(command: Command) -> Command {
    command
        .arg(value("bundle", "DIR", "directory with config.json; default: the current one").short('b'))
        .arg(value("console-socket", "PATH", "socket that receives the terminal's master descriptor"))
        .arg(value("pid-file", "PATH", "file the container's process id is written to"))
        .arg(value("preserve-fds", "N", "pass descriptors 3 to N+2 to the container"))
        .arg(switch("no-new-keyring", "accepted; the sandbox has no keyrings of the host").hide(true))
        .arg(switch("no-pivot", "accepted; the root is never a mount of the host").hide(true))
        .arg(id())
}

fn update(command: Command) -> Command {
    crate::commands::update::FLAGS
        .iter()
        .fold(command, |command, (flag, _, _, _, help)| command.arg(value(flag, "VALUE", help)))
}

pub fn command() -> Command {
    let root = Command::new("runsc")
        .about("An OCI container runtime that gives every container its own kernel")
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommand_value_name("COMMAND")
        .allow_external_subcommands(true)
        .external_subcommand_value_parser(ValueParser::os_string());
    global(root)
        .subcommand(creation(sub("create", "make a container that waits for start")))
        .subcommand(
            sub("completion", "print a script that completes command lines of runsc in a shell").arg(
                Arg::new("shell")
                    .value_name("SHELL")
                    .value_parser(clap::value_parser!(clap_complete::Shell))
                    .required(true),
            ),
        )
        .subcommand(
            sub("debug", "look into a running sandbox")
                .arg(switch("stacks", "print what every task and CPU does"))
                .arg(switch("ps", "print the processes inside"))
                .arg(switch("counters", "print the sandbox's counters"))
                .arg(value("strace", "on|off|CALLS", "trace all, no, or the listed system calls in the debug log"))
                .arg(id()),
        )
        .subcommand(
            sub("delete", "remove a container that has ended")
                .arg(switch("force", "kill it first; one that is gone already is no error").short('f'))
                .arg(operand("id", "ID", "names of containers").required(true).num_args(1..)),
        )
        .subcommand(
            sub("do", "run a command in a sandbox over the host's root, which stays as it is")
                .arg(value("root", "DIR", "root directory of the sandbox; default /"))
                .arg(value("cwd", "DIR", "working directory; default: the current one"))
                .arg(value("ip", "ADDRESS", "accepted; there is no network yet"))
                .arg(switch("quiet", "print nothing of our own"))
                .arg(list("volume", "SRC[:DST]", "mount a directory or file of the host, writable").short('v'))
                .arg(switch("force-overlay", "overlay the root in memory, which is the default").hide(true))
                .arg(value("uid-map", "MAP", "accepted for compatibility").hide(true))
                .arg(
                    operand("command", "COMMAND", "what to run, with its arguments")
                        .required(true)
                        .num_args(1..)
                        .trailing_var_arg(true)
                        .allow_hyphen_values(true),
                ),
        )
        .subcommand(
            sub("events", "print what the host counts for a container, as JSON, again and again")
                .arg(switch("stats", "once"))
                .arg(value("interval", "TIME", "time between two lines; default 5s"))
                .arg(id()),
        )
        .subcommand(
            sub("exec", "run another process in a container")
                .arg(value("process", "FILE", "the process as OCI JSON, instead of a command").short('p'))
                .arg(switch("detach", "do not wait for its end").short('d'))
                .arg(value("pid-file", "PATH", "file for the id of the process that stands for it"))
                .arg(value("internal-pid-file", "PATH", "as --pid-file").hide(true))
                .arg(value("console-socket", "PATH", "socket that receives the terminal's master descriptor"))
                .arg(switch("tty", "give it a terminal").short('t'))
                .arg(value("user", "UID[:GID]", "user and group").short('u'))
                .arg(value("cwd", "DIR", "working directory"))
                .arg(list("env", "NAME=VALUE", "another environment variable").short('e'))
                .arg(list("cap", "CAP", "another capability, such as CAP_CHOWN").short('c'))
                .arg(list("additional-gids", "GID", "another supplementary group").short('g'))
                .arg(switch("no-new-privs", "set no_new_privs"))
                .arg(value("preserve-fds", "N", "pass descriptors 3 to N+2 to it"))
                .arg(switch("ignore-paused", "also in a paused container, where it waits"))
                .arg(value("cgroup", "PATH", "accepted; processes of a container share its cgroup").hide(true))
                .arg(value("apparmor", "PROFILE", "accepted; AppArmor does not see the process").hide(true))
                .arg(value("process-label", "LABEL", "accepted; SELinux does not see the process").hide(true))
                .arg(switch("no-subreaper", "accepted; no process is reparented to us").hide(true))
                .arg(id())
                .arg(
                    operand("command", "COMMAND", "what to run, with its arguments")
                        .num_args(0..)
                        .trailing_var_arg(true)
                        .allow_hyphen_values(true),
                ),
        )
        .subcommand(sub("features", "print what this runtime supports, as JSON"))
        .subcommand(sub("flags", "list the global flags with their values"))
        .subcommand(
            sub("help", "describe commands, system calls and platforms")
                .arg(
                    Arg::new("format")
                        .long("format")
                        .short('o')
                        .value_parser(["text", "table", "json", "csv"])
                        .default_value("text")
                        .help("format of the system call table"),
                )
                .arg(operand("topic", "TOPIC", "a command, syscalls or platforms").num_args(0..)),
        )
        .subcommand(
            docker(sub("install", "add this runtime to the configuration of Docker"))
                .arg(switch("experimental", "also switch on Docker's experimental features"))
                .arg(
                    Arg::new("clobber")
                        .long("clobber")
                        .action(ArgAction::Set)
                        .overrides_with("clobber")
                        .num_args(0..=1)
                        .require_equals(true)
                        .default_missing_value("true")
                        .default_value("true")
                        .value_parser(clap::value_parser!(bool))
                        .hide_possible_values(true)
                        .value_name("BOOL")
                        .help("replace a runtime of the same name"),
                )
                .arg(
                    operand("args", "FLAGS", "global flags that Docker calls the runtime with")
                        .num_args(0..)
                        .trailing_var_arg(true)
                        .allow_hyphen_values(true),
                ),
        )
        .subcommand(
            sub("kill", "send a signal to a container")
                .arg(switch("all", "to every process of it").short('a'))
                .arg(value("pid", "PID", "to this process of it"))
                .arg(id())
                .arg(operand("signal", "SIGNAL", "number or name; default TERM").allow_hyphen_values(true)),
        )
        .subcommand(
            sub("list", "list containers")
                .arg(
                    Arg::new("format")
                        .long("format")
                        .short('f')
                        .value_parser(["table", "json"])
                        .default_value("table")
                        .help("table or json"),
                )
                .arg(switch("quiet", "names only").short('q')),
        )
        .subcommand(sub("pause", "stop every process of a container until resume").arg(id()))
        .subcommand(
            sub("ps", "list the processes of a container")
                .arg(
                    Arg::new("format")
                        .long("format")
                        .short('f')
                        .value_parser(["table", "json"])
                        .default_value("table")
                        .help("table, or json: the ids of the processes of the host that stand for them"),
                )
                .arg(id())
                .arg(operand("options", "OPTIONS", "accepted: options of ps(1)").num_args(0..).hide(true)),
        )
        .subcommand(sub("resume", "let a paused container go on").arg(id()))
        .subcommand(
            creation(sub("run", "make a container, start it and wait for its end"))
                .arg(switch("detach", "do not wait for its end").short('d'))
                .arg(switch("keep", "keep the state of a container that has ended"))
                .arg(switch("no-subreaper", "accepted; no process is reparented to us").hide(true)),
        )
        .subcommand(
            sub("spec", "write a config.json to start from")
                .arg(value("bundle", "DIR", "directory to write to; default: the current one").short('b'))
                .arg(value("cwd", "DIR", "working directory of the process"))
                .arg(value("netns", "PATH", "network namespace to name"))
                .arg(
                    operand("args", "ARGS", "command of the container; default sh")
                        .num_args(0..)
                        .trailing_var_arg(true)
                        .allow_hyphen_values(true),
                ),
        )
        .subcommand(sub("start", "start a container that create made").arg(id()))
        .subcommand(sub("state", "print a container's state as JSON").arg(id()))
        .subcommand(docker(sub("uninstall", "remove this runtime from the configuration of Docker")))
        .subcommand(update(
            sub("update", "give a container other limits")
                .arg(value("resources", "FILE", "linux.resources as JSON; -: standard input").short('r'))
                .arg(id()),
        ))
        .subcommand(
            sub("wait", "wait for the end of a container and print its status")
                .arg(value("pid", "PID", "wait for this process of it"))
                .arg(id()),
        )
        .subcommand(sub("boot", "internal: run a sandbox").hide(true).arg(value(
            "start-fd",
            "FD",
            "descriptor of the description",
        )))
        .subcommand(sub("gofer", "internal: serve files").hide(true).arg(value(
            "start-fd",
            "FD",
            "descriptor of the description",
        )))
}

/// Reads a boolean of a command.
pub fn is_set(matches: &clap::ArgMatches, name: &str) -> bool {
    matches.get_one::<bool>(name).copied().unwrap_or(false)
}

/// Reads a value of a command.
pub fn os<'a>(matches: &'a clap::ArgMatches, name: &str) -> Option<&'a OsString> {
    matches.get_one::<OsString>(name)
}

#[cfg(test)]
mod tests {
    #[test]
    fn clap_finds_no_fault() {
        super::command().debug_assert();
    }
}
