//! From an OCI configuration to what the sandbox is told.

use std::{collections::HashSet, os::unix::ffi::OsStringExt};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{
    Capabilities as OciCapabilities, LinuxDevice, LinuxDeviceType, LinuxPersonalityDomain, Process, Spec,
};
use sentry_abi::config::{Capabilities, ContainerConfig, DeviceNode, ProcessConfig, Rlimit, SandboxConfig, Strace};

use super::{
    bundle::Bundle,
    mounts::{HostRoot, Mounts, Policy},
    names,
};
use crate::{
    cgroup,
    flags::{Settings, settings::Overlay},
    hooks::{Hooks, Subject},
    host,
    namespaces::Namespaces,
    sandbox::Surroundings,
};

/// HOST_NAME_MAX and the length of a domain name that Linux keeps.
const NAME_MAX: usize = 64;
/// MAX_ARG_STRLEN: one argument or variable.
const ARG_MAX: usize = 128 << 10;
/// Tasks of a sandbox without a limit of its own. Each address space may cost the host a process.
pub const DEFAULT_PIDS: u32 = 4096;
const MAX_PIDS: u32 = 32_768;
/// What an application gets at least.
pub const MIN_MEMORY: u64 = 8 << 20;
/// What of a memory limit is the sandbox's own: the VMM, the gofer, the sentry's memory and what the host keeps for them.
pub const MEMORY_OVERHEAD: u64 = 16 << 20;
/// And the most that is added for what the sentry keeps for tasks and files, which grows with the application.
const MAX_GROWTH: u64 = 256 << 20;
/// Application memory has 37 bits of guest-physical addresses at most.
const MAX_MEMORY: u64 = 128 << 30;

/// A sandbox to make: what the sentry is told, and what the gofer serves.
pub struct Plan {
    pub config: SandboxConfig,
    pub roots: Vec<HostRoot>,
    pub vcpus: u32,
    pub terminal: bool,
    pub console_size: Option<(u16, u16)>,
    pub cgroup: Option<cgroup::Plan>,
    pub surroundings: Surroundings,
    pub warnings: Vec<String>,
}

pub fn policy(settings: &Settings) -> Policy {
    Policy {
        root_exclusive: settings.file_access_exclusive,
        mounts_exclusive: settings.mounts_exclusive,
        overlay: settings.overlay,
    }
}

/// The parts of the configuration that settings decide.
pub fn sandbox_config(settings: &Settings, container: ContainerConfig) -> SandboxConfig {
    SandboxConfig {
        container,
        strace: Strace {
            enabled: settings.strace,
            only: settings.strace_syscalls.clone(),
            max_size: settings.strace_log_size,
        },
        log_level: if settings.debug {
            sentry_abi::hostcall::LogLevel::Debug as u8
        } else {
            sentry_abi::hostcall::LogLevel::Info as u8
        },
        memory_limit: default_memory(),
        pids_limit: DEFAULT_PIDS,
        watchdog_panics: settings.watchdog_panics,
        hold: false,
    }
}

/// What an application may use when nothing says less: what the host has.
fn default_memory() -> u64 {
    (host::memory_total() & !0x1f_ffff).clamp(MIN_MEMORY, MAX_MEMORY)
}

pub fn plan(id: &str, bundle: &Bundle, settings: &Settings) -> Result<Plan> {
    let spec = &bundle.spec;
    let Some(root) = spec.root() else { bail!("root: missing") };
    if root.path().as_os_str().is_empty() {
        bail!("root.path: missing");
    }
    let Some(process) = spec.process() else { bail!("process: missing") };
    let policy = policy(settings);
    let overlay = settings.overlay != Overlay::None;
    let mut mounts = Mounts::root(
        bundle.dir.join(root.path()),
        "root.path",
        root.readonly().unwrap_or(false),
        overlay && !root.readonly().unwrap_or(false),
        policy,
    );
    for (i, mount) in spec.mounts().iter().flatten().enumerate() {
        mounts.add(i, mount, &bundle.dir, policy)?;
    }
    mounts.add_standard();

    let linux = spec.linux().as_ref();
    if linux.and_then(|l| l.personality().as_ref()).is_some_and(|p| p.domain() != LinuxPersonalityDomain::PerLinux) {
        bail!("linux.personality.domain: only LINUX is supported");
    }
    if let Some(kind) = linux.and_then(|l| l.rootfs_propagation().as_ref())
        && !kind.is_empty()
        && !matches!(names::mount_option(kind), Some(names::MountOption::Propagation))
    {
        bail!("linux.rootfsPropagation: {kind:?} is not private, slave, shared or unbindable");
    }
    labels(process)?;
    let paths = |list: Option<&Option<Vec<String>>>| list.and_then(|l| l.clone()).unwrap_or_default();
    let container = ContainerConfig {
        id: id.to_owned(),
        hostname: Some(name(spec.hostname(), "hostname")?).filter(|n| !n.is_empty()).unwrap_or_else(host::name),
        domainname: name(spec.domainname(), "domainname")?,
        process: process_config(process, settings)?,
        mounts: mounts.mounts,
        masked_paths: absolute(paths(linux.map(|l| l.masked_paths())), "linux.maskedPaths")?,
        readonly_paths: absolute(paths(linux.map(|l| l.readonly_paths())), "linux.readonlyPaths")?,
        sysctls: linux.and_then(|l| l.sysctl().clone()).unwrap_or_default().into_iter().collect(),
        devices: devices(linux.and_then(|l| l.devices().as_deref()).unwrap_or_default())?,
    };
    let mut config = sandbox_config(settings, container);
    let limits = limits(spec)?;
    if let Some(memory) = limits.memory {
        config.memory_limit = config.memory_limit.min(memory);
    }
    if let Some(pids) = limits.pids {
        config.pids_limit = pids;
    }
    let mut vcpus = host::allowed_cpus();
    if settings.cpu_num_from_quota
        && let Some(cpus) = limits.cpus
    {
        vcpus = vcpus.min(cpus.max(2));
    }
    let mut namespaces = Namespaces::of(spec)?;
    let hooks = Hooks::of(spec)?;
    let mut warnings = bundle.warnings.clone();
    warnings.append(&mut mounts.warnings);
    warnings.append(&mut namespaces.warnings);
    let cgroup = if settings.ignore_cgroups {
        None
    } else {
        Some(cgroup::Plan::new(&cgroup::Request {
            id,
            root: &settings.root,
            path: linux.and_then(|l| l.cgroups_path().as_deref()),
            systemd: settings.systemd_cgroup,
            resources: linux.and_then(|l| l.resources().as_ref()),
            overhead: cgroup::Overhead::new(vcpus),
        })?)
    };
    Ok(Plan {
        config,
        surroundings: Surroundings {
            namespaces,
            hooks,
            subject: Some(Subject::new(id, &bundle.dir, spec.annotations().iter().flatten())),
            roots: mounts.roots.clone(),
            memory_limit: limits.memory_with_overhead.filter(|_| !settings.ignore_cgroups),
        },
        cgroup,
        roots: mounts.roots,
        vcpus,
        terminal: process.terminal().unwrap_or(false),
        console_size: console_size(process),
        warnings,
    })
}

/// Rows and columns that the process's terminal starts with.
pub fn console_size(process: &Process) -> Option<(u16, u16)> {
    process.console_size().and_then(|b| Some((u16::try_from(b.height()).ok()?, u16::try_from(b.width()).ok()?)))
}

fn name(value: &Option<String>, field: &str) -> Result<String> {
    let value = value.clone().unwrap_or_default();
    if value.len() > NAME_MAX {
        bail!("{field}: longer than {NAME_MAX} characters");
    }
    Ok(value)
}

fn absolute(paths: Vec<String>, field: &str) -> Result<Vec<String>> {
    for (i, path) in paths.iter().enumerate() {
        if !path.starts_with('/') || path.len() >= 4096 {
            bail!("{field}[{i}]: {path:?} is not an absolute path of valid length");
        }
    }
    Ok(paths)
}

/// What a host without the security module would have to apply is an error, as it is of runc.
fn labels(process: &Process) -> Result<()> {
    let given = |label: &Option<String>| label.as_ref().is_some_and(|l| !l.is_empty());
    if given(process.apparmor_profile()) && !host::has_apparmor() {
        bail!("process.apparmorProfile: AppArmor is not enabled on the host");
    }
    if given(process.selinux_label()) && !host::has_selinux() {
        bail!("process.selinuxLabel: SELinux is not enabled on the host");
    }
    Ok(())
}

/// Nodes to make. Those that the sandbox's kernel has no device for cannot be opened.
fn devices(devices: &[LinuxDevice]) -> Result<Vec<DeviceNode>> {
    let mut out = Vec::with_capacity(devices.len());
    for (i, device) in devices.iter().enumerate() {
        let field = format!("linux.devices[{i}]");
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::P => libc::S_IFIFO,
            LinuxDeviceType::A => bail!("{field}.type: a is not the type of a device"),
        };
        let number = |name: &str, n: i64, max: u32| {
            u32::try_from(n).ok().filter(|n| *n <= max).with_context(|| format!("{field}.{name}: {n} is not valid"))
        };
        let mode = device.file_mode().unwrap_or(0o666);
        if mode > 0o177_777 {
            bail!("{field}.fileMode: {mode} is not a mode");
        }
        out.push(DeviceNode {
            path: super::mounts::target(device.path()).with_context(|| format!("{field}.path"))?,
            mode: kind | (mode & 0o7777),
            major: number("major", device.major(), 0xfff)?,
            minor: number("minor", device.minor(), 0xf_ffff)?,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        });
    }
    Ok(out)
}

struct Limits {
    /// The application's.
    memory: Option<u64>,
    memory_with_overhead: Option<u64>,
    pids: Option<u32>,
    cpus: Option<u32>,
}

/// What of a memory limit is left to the application.
fn application_memory(limit: u64) -> u64 {
    limit.saturating_sub(MEMORY_OVERHEAD + (limit / 8).min(MAX_GROWTH)).max(MIN_MEMORY)
}

fn limits(spec: &Spec) -> Result<Limits> {
    let mut limits = Limits { memory: None, memory_with_overhead: None, pids: None, cpus: None };
    let Some(resources) = spec.linux().as_ref().and_then(|l| l.resources().as_ref()) else { return Ok(limits) };
    // Zero and negative values mean no limit in all of these.
    if let Some(limit) = resources.memory().as_ref().and_then(|m| m.limit()).filter(|l| *l > 0) {
        cgroup::check_memory(limit)?;
        let limit = limit.unsigned_abs();
        limits.memory = Some(application_memory(limit));
        limits.memory_with_overhead = Some(limit);
    }
    if let Some(limit) = resources.pids().as_ref().map(|p| p.limit()).filter(|l| *l > 0) {
        limits.pids = Some(u32::try_from(limit).unwrap_or(u32::MAX).min(MAX_PIDS));
    }
    if let Some(cpu) = resources.cpu()
        && let (Some(quota), Some(period)) = (cpu.quota().filter(|q| *q > 0), cpu.period())
    {
        if period == 0 {
            bail!("linux.resources.cpu.period: must be above 0");
        }
        limits.cpus = Some(u32::try_from((quota as u64).div_ceil(period)).unwrap_or(u32::MAX));
    }
    Ok(limits)
}

pub fn process_config(process: &Process, settings: &Settings) -> Result<ProcessConfig> {
    let args: Vec<Vec<u8>> = process.args().iter().flatten().map(|a| a.clone().into_bytes()).collect();
    let Some(first) = args.first() else { bail!("process.args: missing or empty") };
    if first.is_empty() {
        bail!("process.args[0]: empty");
    }
    let env: Vec<Vec<u8>> = process.env().iter().flatten().map(|a| a.clone().into_bytes()).collect();
    for (field, list) in [("process.args", &args), ("process.env", &env)] {
        if let Some(i) = list.iter().position(|a| a.len() >= ARG_MAX) {
            bail!("{field}[{i}]: longer than {ARG_MAX} bytes");
        }
    }
    if !process.cwd().is_absolute() || process.cwd().as_os_str().len() >= 4096 {
        bail!("process.cwd: {:?} is not an absolute path of valid length", process.cwd());
    }
    let user = process.user();
    if let Some(umask) = user.umask().filter(|m| *m > 0o777) {
        bail!("process.user.umask: {umask} is above 0777");
    }
    if let Some(adj) = process.oom_score_adj().filter(|a| !(-1000..=1000).contains(a)) {
        bail!("process.oomScoreAdj: {adj} is not between -1000 and 1000");
    }
    Ok(ProcessConfig {
        args,
        env,
        cwd: process.cwd().clone().into_os_string().into_vec(),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        capabilities: capabilities(process, settings)?,
        rlimits: rlimits(process)?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: process.oom_score_adj(),
        stdio: Vec::new(),
        terminal: process.terminal().unwrap_or(false),
    })
}

fn capabilities(process: &Process, settings: &Settings) -> Result<Capabilities> {
    let Some(caps) = process.capabilities() else { return Ok(Capabilities::default()) };
    let mask = if settings.net_raw { names::ALL_CAPABILITIES } else { names::ALL_CAPABILITIES & !names::CAP_NET_RAW };
    let set = |list: &Option<OciCapabilities>| -> Result<u64> {
        let mut bits = 0;
        for cap in list.iter().flatten() {
            bits |= names::capability(*cap).with_context(|| format!("process.capabilities: unknown {cap}"))?;
        }
        Ok(bits & mask)
    };
    Ok(Capabilities {
        bounding: set(caps.bounding())?,
        effective: set(caps.effective())?,
        inheritable: set(caps.inheritable())?,
        permitted: set(caps.permitted())?,
        ambient: set(caps.ambient())?,
    })
}

fn rlimits(process: &Process) -> Result<Vec<Rlimit>> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for (i, limit) in process.rlimits().iter().flatten().enumerate() {
        let resource = names::rlimit(limit.typ());
        if !seen.insert(resource) {
            bail!("process.rlimits[{i}].type: given twice");
        }
        if limit.soft() > limit.hard() {
            bail!("process.rlimits[{i}].soft: {} is above the hard limit {}", limit.soft(), limit.hard());
        }
        out.push(Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::settings::Values;

    fn plan_of(json: serde_json::Value) -> Result<Plan> {
        let (spec, warnings) = super::super::bundle::parse(json.to_string().as_bytes())?;
        let bundle = Bundle { dir: "/bundle".into(), spec, warnings };
        plan("c1", &bundle, &Settings::new(Values::default(), false)?)
    }

    fn config(process: serde_json::Value) -> serde_json::Value {
        serde_json::json!({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process})
    }

    #[test]
    fn the_template_is_a_valid_configuration() {
        let text = super::super::template::config(&["sh".to_owned()], "/", None).expect("template");
        let (spec, warnings) = super::super::bundle::parse(&text).expect("template parses");
        assert_eq!(warnings, Vec::<String>::new());
        let bundle = Bundle { dir: "/bundle".into(), spec, warnings };
        let plan = plan("c1", &bundle, &Settings::new(Values::default(), false).expect("defaults")).expect("plan");
        assert_eq!(plan.roots[0].path, std::path::Path::new("/bundle/rootfs"));
        assert!(plan.roots[0].readonly && plan.terminal);
    }

    #[test]
    fn a_process() {
        let plan = plan_of(config(serde_json::json!({
            "user": {"uid": 3, "gid": 4, "additionalGids": [5], "umask": 18},
            "args": ["a", "b"], "env": ["X=y"], "cwd": "/w",
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_NET_RAW"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
            "noNewPrivileges": true, "oomScoreAdj": -5,
        })))
        .expect("plan");
        let p = &plan.config.container.process;
        assert_eq!((p.uid, p.gid, p.umask, p.oom_score_adj), (3, 4, Some(18), Some(-5)));
        assert_eq!(p.args, [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(p.capabilities.bounding, 1);
        assert_eq!(p.rlimits, [Rlimit { resource: libc::RLIMIT_NOFILE, soft: 10, hard: 20 }]);
    }

    #[test]
    fn errors_name_the_field() {
        let user = serde_json::json!({"uid": 0, "gid": 0});
        for (process, part) in [
            (serde_json::json!({"user": user, "cwd": "/"}), "process.args"),
            (serde_json::json!({"user": user, "cwd": "/", "args": []}), "process.args"),
            (serde_json::json!({"user": user, "cwd": "/", "args": [""]}), "process.args[0]"),
            (serde_json::json!({"user": user, "cwd": "x", "args": ["a"]}), "process.cwd"),
            (
                serde_json::json!({"user": user, "cwd": "/", "args": ["a"],
                    "rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]}),
                "process.rlimits[0]",
            ),
            (serde_json::json!({"user": user, "cwd": "/", "args": ["a"], "oomScoreAdj": 5000}), "oomScoreAdj"),
            (
                serde_json::json!({"user": user, "cwd": "/", "args": ["a"], "capabilities": {"bounding": ["CAP_X"]}}),
                "CAP_X",
            ),
            (
                serde_json::json!({"user": user, "cwd": "/", "args": ["a"],
                    "rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}),
                "RLIMIT_X",
            ),
        ] {
            let error = format!("{:#}", plan_of(config(process)).map(|_| ()).expect_err(part));
            assert!(error.contains(part), "{error}");
        }
        assert!(plan_of(serde_json::json!({"ociVersion": "1.0.2"})).is_err());
    }

    #[test]
    fn labels_of_security_modules_need_them() {
        for (field, there) in [("apparmorProfile", host::has_apparmor()), ("selinuxLabel", host::has_selinux())] {
            let mut process = serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["a"]});
            process[field] = "x".into();
            let plan = plan_of(config(process)).map(|plan| plan.warnings);
            match plan {
                Ok(warnings) => assert!(there && warnings.iter().any(|w| w.contains(field)), "{warnings:?}"),
                Err(error) => assert!(!there && error.to_string().contains(field), "{error}"),
            }
        }
    }

    #[test]
    fn limits_reach_the_sandbox() {
        let mut json = config(serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["a"]}));
        json["linux"] = serde_json::json!({"resources": {"memory": {"limit": 67108864}, "pids": {"limit": 50}}});
        let plan = plan_of(json).expect("plan");
        assert_eq!((plan.config.memory_limit, plan.config.pids_limit), (40 << 20, 50));
    }
}
