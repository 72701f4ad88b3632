//! The global flags: one table that drives parsing, `runsc flags`, help and the warnings about what has no effect.

/// What values a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bare, or `=true` / `=false`.
    Bool,
    Int,
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// What a value other than the default does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Applied,
    /// Accepted with a warning that says why nothing changes.
    Ignored(&'static str),
    /// An error that says why.
    Refused(&'static str),
    /// Only the internal commands boot and gofer may get it.
    Internal,
}

#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub effect: Effect,
    pub help: &'static str,
}

use Effect::{Applied, Ignored, Internal, Refused};
use Kind::{Bool, Choice, Int, Text};

const fn flag(name: &'static str, kind: Kind, default: &'static str, effect: Effect, help: &'static str) -> Flag {
    Flag { name, kind, default, effect, help }
}

const NO_NETWORK: Effect = Ignored("containers have no network yet");
const FORMATS: Kind = Choice(&["text", "json", "json-k8s"]);

pub const GLOBAL: &[Flag] = &[
    flag(
        "root",
        Text,
        "",
        Applied,
        "directory of container state; default $XDG_RUNTIME_DIR/runsc, else /var/run/runsc",
    ),
    flag("log", Text, "", Applied, "file that errors for the caller are appended to"),
    flag("log-format", FORMATS, "text", Applied, "format of --log: text, json, json-k8s"),
    flag("log-fd", Int, "-1", Applied, "descriptor to log to; --log is ignored then"),
    flag("debug", Bool, "false", Applied, "debug logging"),
    flag(
        "debug-log",
        Text,
        "",
        Applied,
        "additional log; ending in / a directory; %ID%, %TIMESTAMP% and %COMMAND% are replaced",
    ),
    flag("debug-log-fd", Int, "-1", Internal, "descriptor of the debug log, for boot and gofer only"),
    flag("debug-log-format", FORMATS, "text", Applied, "format of --debug-log: text, json, json-k8s"),
    flag("panic-log", Text, "", Applied, "file for panics and other last words of the runtime"),
    flag("panic-log-fd", Int, "-1", Internal, "descriptor of the panic log, for boot and gofer only"),
    flag("alsologtostderr", Bool, "false", Applied, "send log messages to stderr too"),
    flag("version", Bool, "false", Applied, "print the version and exit"),
    flag("systemd-cgroup", Bool, "false", Applied, "use systemd for cgroups"),
    flag("strace", Bool, "false", Applied, "trace the application's system calls"),
    flag("strace-syscalls", Text, "", Applied, "comma-separated list of calls to trace; all if empty"),
    flag("strace-log-size", Int, "1024", Applied, "bytes of a buffer that a trace shows"),
    flag("log-packets", Bool, "false", NO_NETWORK, "trace network packets"),
    flag("platform", Text, "", Applied, "kvm or ptrace; default: kvm where it works, else ptrace"),
    flag(
        "network",
        Choice(&["sandbox", "host", "none"]),
        "sandbox",
        Ignored("containers have only a loopback interface yet"),
        "sandbox, host or none",
    ),
    flag("gso", Bool, "true", NO_NETWORK, "hardware segmentation offload"),
    flag("software-gso", Bool, "true", NO_NETWORK, "software segmentation offload"),
    flag("qdisc", Choice(&["none", "fifo"]), "fifo", NO_NETWORK, "queueing discipline of the interfaces: none, fifo"),
    flag("num-network-channels", Int, "1", NO_NETWORK, "queues of a link, above 0"),
    flag("net-raw", Bool, "false", Applied, "let containers have CAP_NET_RAW"),
    flag(
        "file-access",
        Choice(&["exclusive", "shared"]),
        "exclusive",
        Applied,
        "exclusive or shared: whether others change the root's files",
    ),
    flag(
        "file-access-mounts",
        Choice(&["exclusive", "shared"]),
        "shared",
        Applied,
        "exclusive or shared: whether others change the files of volumes",
    ),
    flag(
        "fsgofer-host-uds",
        Bool,
        "false",
        Refused("connecting to Unix sockets of the host is not supported yet"),
        "allow connecting to host Unix sockets on mounts",
    ),
    flag(
        "host-uds",
        Choice(&["none", "open", "create", "all"]),
        "none",
        Refused("Unix sockets of the host are not supported yet"),
        "none, open, create or all",
    ),
    flag(
        "host-fifo",
        Choice(&["none", "open"]),
        "none",
        Refused("FIFOs of the host are not supported yet"),
        "none or open",
    ),
    flag("overlay", Bool, "false", Applied, "writable overlay in memory over every mount"),
    flag("overlay2", Text, "none", Applied, "none, root:memory or all:memory"),
    flag("overlayfs-stale-read", Bool, "true", Applied, "the root may be a host overlay: reopen files on copy-up"),
    flag("watchdog-action", Choice(&["log", "panic"]), "log", Applied, "log or panic: what a stuck task leads to"),
    flag("watchdog", Bool, "true", Ignored("the watchdog only logs and costs nothing"), "watch for stuck tasks"),
    flag(
        "panic-signal",
        Int,
        "-1",
        Refused("a panic with stacks on a signal is not supported yet"),
        "signal that makes the sandbox panic with all stacks",
    ),
    flag("profile", Bool, "false", Refused("profiling is not supported yet"), "allow profiling of the sandbox"),
    flag("rootless", Bool, "false", Applied, "run by a user who is not root, in a user namespace"),
    flag(
        "ref-leak-mode",
        Choice(&["disabled", "log-names", "log-traces"]),
        "disabled",
        Ignored("objects are freed by ownership; there is nothing to trace"),
        "disabled, log-names or log-traces",
    ),
    flag("cpu-num-from-quota", Bool, "false", Applied, "as many vCPUs as the CPU quota, at least 2"),
    flag("ignore-cgroups", Bool, "false", Applied, "leave the host's cgroups alone"),
    flag("directfs", Bool, "true", Ignored("files are always reached through the gofer"), "bypass the gofer"),
    flag("oci-seccomp", Bool, "false", Refused("OCI seccomp filters are not supported yet"), "apply linux.seccomp"),
    flag("allow-flag-override", Bool, "false", Applied, "annotations dev.gvisor.flag.NAME of a bundle may set flags"),
    flag("metric-server", Text, "", Refused("there is no metric server yet"), "address of the metric server"),
    flag("vfs2", Bool, "true", Applied, "accepted; there is one file system layer"),
    flag(
        "TESTONLY-unsafe-nonroot",
        Bool,
        "false",
        Ignored("the sandbox never needs root for itself"),
        "accepted for tests",
    ),
    flag("TESTONLY-test-name-env", Text, "", Ignored("for tests only"), "accepted for tests"),
];

pub fn find(name: &str) -> Option<&'static Flag> {
    GLOBAL.iter().find(|f| f.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_defaults_valid() {
        for (i, f) in GLOBAL.iter().enumerate() {
            assert!(GLOBAL[i + 1..].iter().all(|g| g.name != f.name), "{} twice", f.name);
            super::super::settings::check_value(f, f.default).expect(f.name);
        }
    }
}
