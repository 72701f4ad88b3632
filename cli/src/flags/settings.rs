//! The settings in force: values of the global flags, from the command line and from annotations, checked and typed.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;

use super::table::{self, Effect, Flag, Kind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    JsonK8s,
}

/// What `--platform` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    Auto,
    Kvm,
    Ptrace,
}

/// Which mounts get a writable layer in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    None,
    Root,
    All,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub root: PathBuf,
    pub log: Option<PathBuf>,
    pub log_format: Format,
    pub log_fd: Option<i32>,
    pub debug: bool,
    pub debug_log: Option<String>,
    pub debug_log_fd: Option<i32>,
    pub debug_log_format: Format,
    pub panic_log: Option<String>,
    pub panic_log_fd: Option<i32>,
    pub also_stderr: bool,
    pub strace: bool,
    pub strace_syscalls: Vec<String>,
    pub strace_log_size: u32,
    pub platform: Platform,
    pub net_raw: bool,
    pub file_access_exclusive: bool,
    pub mounts_exclusive: bool,
    pub overlay: Overlay,
    pub watchdog_panics: bool,
    pub cpu_num_from_quota: bool,
    pub allow_flag_override: bool,
    pub systemd_cgroup: bool,
    pub ignore_cgroups: bool,
    pub version: bool,
    /// What it was made from, for overrides.
    values: Values,
    /// Every flag that was set, in the order of the table, for the banner.
    pub given: Vec<(&'static str, String)>,
    /// About flags without effect, for the log once there is one.
    pub warnings: Vec<String>,
}

/// Flag values before they are typed: those of the command line, then overrides.
#[derive(Clone, Debug, Default)]
pub struct Values(Vec<(&'static Flag, String)>);

impl Values {
    pub fn from_matches(matches: &ArgMatches) -> Values {
        let mut values = Values::default();
        for flag in table::GLOBAL {
            if let Some(value) = matches.get_one::<String>(flag.name) {
                values.0.push((flag, value.clone()));
            }
        }
        values
    }

    /// Only what tells where messages go, out of arguments that are not understood as a whole.
    pub fn of_log(args: &[std::ffi::OsString]) -> Values {
        let mut values = Values::default();
        for flag in ["log", "log-format"].iter().filter_map(|name| table::find(name)) {
            let long = format!("--{}", flag.name);
            for (i, arg) in args.iter().enumerate() {
                let Some(rest) = arg.to_str().and_then(|arg| arg.strip_prefix(&long)) else { continue };
                let value = match rest.strip_prefix('=') {
                    Some(value) => Some(value),
                    None if rest.is_empty() => args.get(i + 1).and_then(|value| value.to_str()),
                    None => None,
                };
                if let Some(value) = value {
                    values.set(flag, value);
                }
            }
        }
        values
    }

    pub fn set(&mut self, flag: &'static Flag, value: &str) {
        self.0.retain(|(f, _)| f.name != flag.name);
        self.0.push((flag, value.to_owned()));
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(f, _)| f.name == name).map(|(_, v)| v.as_str())
    }
}

/// Whether `value` is of the flag's kind.
pub fn check_value(flag: &Flag, value: &str) -> Result<()> {
    match flag.kind {
        Kind::Bool if parse_bool(value).is_none() => {
            bail!("flag --{}: {value:?} is neither true nor false", flag.name)
        }
        Kind::Int if value.parse::<i32>().is_err() => bail!("flag --{}: {value:?} is not a number", flag.name),
        Kind::Choice(words) if !words.contains(&value) => {
            bail!("flag --{}: {value:?} is not one of: {}", flag.name, words.join(", "))
        }
        _ => Ok(()),
    }
}

/// The spellings that Go's strconv.ParseBool takes, which callers rely on.
fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

impl Settings {
    /// `internal`: the command is boot or gofer.
    pub fn new(values: Values, internal: bool) -> Result<Settings> {
        let mut given = Vec::new();
        let mut warnings = Vec::new();
        for (flag, value) in &values.0 {
            check_value(flag, value)?;
            let same = match flag.kind {
                Kind::Bool => parse_bool(value) == parse_bool(flag.default),
                _ => value == flag.default,
            };
            if same {
                continue;
            }
            given.push((flag.name, value.clone()));
            match flag.effect {
                Effect::Applied => {}
                Effect::Internal if internal => {}
                Effect::Internal => bail!("flag --{} is for the internal commands boot and gofer only", flag.name),
                Effect::Ignored(why) => warnings.push(format!("flag --{}={value} has no effect: {why}", flag.name)),
                Effect::Refused(why) => bail!("flag --{}={value}: {why}", flag.name),
            }
        }
        let text =
            |name: &str| values.get(name).unwrap_or_else(|| table::find(name).map_or("", |f| f.default)).to_owned();
        let boolean = |name: &str| parse_bool(&text(name)).unwrap_or(false);
        let number = |name: &str| text(name).parse::<i32>().unwrap_or(-1);
        let some = |name: &str| Some(text(name)).filter(|s| !s.is_empty());
        let fd = |name: &str| Some(number(name)).filter(|n| *n >= 0);
        let format = |name: &str| match text(name).as_str() {
            "json" => Format::Json,
            "json-k8s" => Format::JsonK8s,
            _ => Format::Text,
        };

        if number("num-network-channels") < 1 {
            bail!("flag --num-network-channels must be above 0");
        }
        let strace_log_size = match number("strace-log-size") {
            n @ 0..=0x10_0000 => n as u32,
            n => bail!("flag --strace-log-size: {n} is not between 0 and 1048576"),
        };
        let mut settings = Settings {
            root: some("root").map_or_else(default_root, PathBuf::from),
            log: some("log").map(PathBuf::from),
            log_format: format("log-format"),
            log_fd: fd("log-fd"),
            debug: boolean("debug"),
            debug_log: some("debug-log"),
            debug_log_fd: fd("debug-log-fd"),
            debug_log_format: format("debug-log-format"),
            panic_log: some("panic-log"),
            panic_log_fd: fd("panic-log-fd"),
            also_stderr: boolean("alsologtostderr"),
            strace: boolean("strace"),
            strace_syscalls: text("strace-syscalls").split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect(),
            strace_log_size,
            platform: platform(&text("platform"), &mut warnings)?,
            net_raw: boolean("net-raw"),
            file_access_exclusive: text("file-access") == "exclusive",
            mounts_exclusive: text("file-access-mounts") == "exclusive",
            overlay: overlay(&text("overlay2"), &mut warnings)?,
            watchdog_panics: text("watchdog-action") == "panic",
            cpu_num_from_quota: boolean("cpu-num-from-quota"),
            allow_flag_override: boolean("allow-flag-override"),
            systemd_cgroup: boolean("systemd-cgroup"),
            ignore_cgroups: boolean("ignore-cgroups"),
            version: boolean("version"),
            values: Values::default(),
            given,
            warnings,
        };
        if boolean("overlay") {
            if !settings.file_access_exclusive {
                bail!("flag --overlay needs --file-access=exclusive");
            }
            settings.overlay = Overlay::All;
        }
        if settings.root.as_os_str().len() > 4000 {
            bail!("flag --root: the path is too long");
        }
        settings.values = values;
        Ok(settings)
    }

    /// With flags that a bundle sets by annotations, which the caller must have allowed. The state directory and the
    /// logs are the caller's.
    pub fn with_overrides<'a>(self, flags: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Settings> {
        let mut values = self.values.clone();
        let mut any = false;
        for (name, value) in flags {
            if !self.allow_flag_override {
                bail!("annotation dev.gvisor.flag.{name}: needs the flag --allow-flag-override");
            }
            let flag = table::find(name).with_context(|| format!("annotation dev.gvisor.flag.{name}: no such flag"))?;
            if name == "root" || name == "allow-flag-override" || name.contains("log") && name != "strace-log-size" {
                bail!("annotation dev.gvisor.flag.{name}: this flag is the caller's alone");
            }
            check_value(flag, value).with_context(|| format!("annotation dev.gvisor.flag.{name}"))?;
            values.set(flag, value);
            any = true;
        }
        if any { Settings::new(values, false) } else { Ok(self) }
    }
}

fn default_root() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("runsc"),
        None => PathBuf::from("/var/run/runsc"),
    }
}

fn platform(name: &str, warnings: &mut Vec<String>) -> Result<Platform> {
    match name {
        "" | "auto" => Ok(Platform::Auto),
        "kvm" => Ok(Platform::Kvm),
        "ptrace" => Ok(Platform::Ptrace),
        "systrap" => {
            warnings.push("flag --platform=systrap: using ptrace, the fastest platform here that needs no KVM".into());
            Ok(Platform::Ptrace)
        }
        other => bail!("flag --platform: unknown platform {other:?}; valid platforms: kvm, ptrace, systrap"),
    }
}

fn overlay(value: &str, warnings: &mut Vec<String>) -> Result<Overlay> {
    let (which, medium) = value.split_once(':').unwrap_or((value, ""));
    let overlay = match (which, medium) {
        ("none" | "", "") => return Ok(Overlay::None),
        ("root", _) => Overlay::Root,
        ("all", _) => Overlay::All,
        _ => bail!("flag --overlay2: {value:?} is not none, root:memory, root:self, all:memory or all:self"),
    };
    match medium {
        "memory" => Ok(overlay),
        "self" => {
            warnings.push(format!("flag --overlay2={value}: the overlay is kept in memory"));
            Ok(overlay)
        }
        _ if medium.starts_with("dir=/") => {
            bail!("flag --overlay2={value}: an overlay in a directory is not supported yet")
        }
        _ => bail!("flag --overlay2: unknown medium {medium:?}; valid: memory, self"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Settings> {
        let mut values = Values::default();
        for (name, value) in pairs {
            values.set(table::find(name).expect("known flag"), value);
        }
        Settings::new(values, false)
    }

    #[test]
    fn defaults() {
        let s = with(&[]).expect("defaults are valid");
        assert_eq!(s.platform, Platform::Auto);
        assert_eq!(s.strace_log_size, 1024);
        assert!(s.file_access_exclusive && !s.mounts_exclusive && s.warnings.is_empty() && s.given.is_empty());
    }

    #[test]
    fn bad_values_name_the_flag() {
        for (name, value) in [
            ("debug", "maybe"),
            ("log-fd", "x"),
            ("log-format", "xml"),
            ("platform", "qemu"),
            ("num-network-channels", "0"),
            ("strace-log-size", "-5"),
            ("overlay2", "foo"),
        ] {
            let error = with(&[(name, value)]).expect_err(name).to_string();
            assert!(error.contains(&format!("--{name}")), "{error}");
        }
        assert!(with(&[("platform", "qemu")]).expect_err("qemu").to_string().contains("kvm, ptrace"));
    }

    #[test]
    fn overrides_need_permission() {
        let over = |allowed: &str, name: &str| {
            with(&[("allow-flag-override", allowed)]).and_then(|s| s.with_overrides([(name, "true")].into_iter()))
        };
        assert!(over("true", "strace").expect("allowed").strace);
        assert!(over("false", "strace").is_err());
        assert!(over("true", "root").is_err() && over("true", "debug-log").is_err() && over("true", "nope").is_err());
    }

    #[test]
    fn effects() {
        assert!(with(&[("profile", "true")]).is_err());
        assert!(with(&[("profile", "false")]).is_ok());
        assert!(with(&[("debug-log-fd", "3")]).is_err());
        assert_eq!(with(&[("log-packets", "true")]).expect("ignored").warnings.len(), 1);
        assert!(with(&[("overlay", "true"), ("file-access", "shared")]).is_err());
        let s = with(&[("platform", "systrap")]).expect("alias");
        assert_eq!((s.platform, s.warnings.len()), (Platform::Ptrace, 1));
    }
}
