//! linux.resources as files of cgroups. Zero means unset where runc has it so.

use anyhow::{Result, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use crate::spec::translate::{MEMORY_OVERHEAD, MIN_MEMORY};

/// A file and what is written to it.
pub type Entry = (String, String);

/// One setting in the terms of both versions. None: the version has no such thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Of config.json, for errors.
    pub field: String,
    pub controller: String,
    pub v1: Option<Entry>,
    pub v2: Option<Entry>,
}

/// What the sandbox itself adds to what the application is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Overhead {
    /// Threads that one task of the application may cost the host.
    pub threads_per_task: u64,
}

impl Overhead {
    /// Threads beyond those: of the VMM, the gofer, and what is kept for later.
    const THREADS: u64 = 64;

    pub fn new(vcpus: u32) -> Overhead {
        Overhead { threads_per_task: u64::from(vcpus) + 1 }
    }

    /// The host's limit on tasks: it counts stubs and our threads, while the sandbox counts the application's.
    fn pids(&self, limit: i64) -> u64 {
        (limit.unsigned_abs()).saturating_mul(self.threads_per_task).saturating_add(Self::THREADS)
    }
}

struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, field: &str, controller: &str, v1: Option<Entry>, v2: Option<Entry>) {
        self.0.push(Setting { field: format!("linux.resources.{field}"), controller: controller.into(), v1, v2 });
    }
}

fn entry(file: impl Into<String>, value: impl ToString) -> Option<Entry> {
    Some((file.into(), value.to_string()))
}

pub fn settings(resources: &LinuxResources, overhead: Overhead) -> Result<Vec<Setting>> {
    let mut out = Settings(Vec::new());
    if let Some(memory) = resources.memory() {
        add_memory(&mut out, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        add_cpu(&mut out, cpu)?;
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            0 => {}
            n if n < 0 => out.add("pids.limit", "pids", entry("pids.max", "max"), entry("pids.max", "max")),
            n => {
                let most = overhead.pids(n);
                out.add("pids.limit", "pids", entry("pids.max", most), entry("pids.max", most));
            }
        }
    }
    if let Some(io) = resources.block_io() {
        add_block_io(&mut out, io);
    }
    for (i, huge) in resources.hugepage_limits().iter().flatten().enumerate() {
        let (size, limit) = (huge.page_size(), huge.limit());
        let valid = size.ends_with("KB") || size.ends_with("MB") || size.ends_with("GB");
        if !valid || !size[..size.len() - 2].bytes().all(|b| b.is_ascii_digit()) {
            bail!("linux.resources.hugepageLimits[{i}].pageSize: {size:?} is not a size such as 2MB");
        }
        out.add(
            &format!("hugepageLimits[{i}]"),
            "hugetlb",
            entry(format!("hugetlb.{size}.limit_in_bytes"), limit),
            entry(format!("hugetlb.{size}.max"), limit_or_max(limit)),
        );
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id().filter(|c| *c != 0) {
            out.add("network.classID", "net_cls", entry("net_cls.classid", class), None);
        }
        for (i, p) in network.priorities().iter().flatten().enumerate() {
            let line = format!("{} {}", p.name(), p.priority());
            out.add(&format!("network.priorities[{i}]"), "net_prio", entry("net_prio.ifpriomap", line), None);
        }
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        let mut line = device.clone();
        if let Some(n) = limit.hca_handles() {
            line += &format!(" hca_handle={n}");
        }
        if let Some(n) = limit.hca_objects() {
            line += &format!(" hca_object={n}");
        }
        out.add(&format!("rdma.{device}"), "rdma", entry("rdma.max", &line), entry("rdma.max", &line));
    }
    add_devices(&mut out, resources.devices().as_deref().unwrap_or_default())?;
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        let Some((controller, _)) = file.split_once('.').filter(|(c, _)| !c.is_empty() && !file.contains('/')) else {
            bail!("linux.resources.unified: {file:?} is not a file of a controller");
        };
        out.add(&format!("unified.{file}"), controller, None, entry(file, value));
    }
    Ok(out.0)
}

fn limit_or_max(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

fn add_memory(out: &mut Settings, memory: &LinuxMemory) -> Result<()> {
    let limit = memory.limit().filter(|l| *l != 0);
    if let Some(limit) = limit {
        check_memory(limit)?;
        out.add(
            "memory.limit",
            "memory",
            entry("memory.limit_in_bytes", limit),
            entry("memory.max", limit_or_max(limit)),
        );
    }
    if let Some(swap) = memory.swap().filter(|s| *s != 0) {
        // The specification's value is memory and swap together, and version 2 has swap alone.
        let alone = match limit {
            _ if swap < 0 => Some("max".to_owned()),
            Some(limit) if limit > 0 && swap >= limit => Some((swap - limit).to_string()),
            Some(limit) if limit > 0 => bail!("linux.resources.memory.swap: {swap} is below the memory limit {limit}"),
            _ => bail!("linux.resources.memory.swap: needs a memory limit"),
        };
        out.add(
            "memory.swap",
            "memory",
            entry("memory.memsw.limit_in_bytes", swap),
            alone.map(|value| ("memory.swap.max".to_owned(), value)),
        );
    }
    if let Some(soft) = memory.reservation().filter(|r| *r != 0) {
        let low = limit_or_max(soft);
        out.add("memory.reservation", "memory", entry("memory.soft_limit_in_bytes", soft), entry("memory.low", low));
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|t| *t != 0) {
        out.add("memory.kernelTCP", "memory", entry("memory.kmem.tcp.limit_in_bytes", tcp), None);
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            bail!("linux.resources.memory.swappiness: {swappiness} is above 100");
        }
        out.add("memory.swappiness", "memory", entry("memory.swappiness", swappiness), None);
    }
    if memory.disable_oom_killer() == Some(true) {
        out.add("memory.disableOOMKiller", "memory", entry("memory.oom_control", 1), None);
    }
    Ok(())
}

/// A limit has to hold the sandbox beside the application.
pub fn check_memory(limit: i64) -> Result<()> {
    let minimum = MEMORY_OVERHEAD + MIN_MEMORY;
    if limit > 0 && limit.unsigned_abs() < minimum {
        bail!(
            "linux.resources.memory.limit: {limit} bytes do not hold a sandbox; the minimum is {minimum} bytes ({} MiB)",
            minimum >> 20
        );
    }
    Ok(())
}

fn add_cpu(out: &mut Settings, cpu: &LinuxCpu) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        // 2 to 262144 become 1 to 10000.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        out.add("cpu.shares", "cpu", entry("cpu.shares", shares), entry("cpu.weight", weight));
    }
    let (quota, period) = (cpu.quota().filter(|q| *q != 0), cpu.period().filter(|p| *p != 0));
    let both = (quota.is_some() || period.is_some())
        .then(|| format!("{} {}", limit_or_max(quota.unwrap_or(-1)), period.unwrap_or(100_000)));
    if let Some(period) = period {
        let v2 = both.clone().filter(|_| quota.is_none()).map(|b| ("cpu.max".to_owned(), b));
        out.add("cpu.period", "cpu", entry("cpu.cfs_period_us", period), v2);
    }
    if let Some(quota) = quota {
        out.add("cpu.quota", "cpu", entry("cpu.cfs_quota_us", quota), both.map(|b| ("cpu.max".to_owned(), b)));
    }
    if let Some(burst) = cpu.burst() {
        out.add("cpu.burst", "cpu", entry("cpu.cfs_burst_us", burst), entry("cpu.max.burst", burst));
    }
    if let Some(idle) = cpu.idle() {
        out.add("cpu.idle", "cpu", entry("cpu.idle", idle), entry("cpu.idle", idle));
    }
    if let Some(period) = cpu.realtime_period().filter(|p| *p != 0) {
        out.add("cpu.realtimePeriod", "cpu", entry("cpu.rt_period_us", period), None);
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|r| *r != 0) {
        out.add("cpu.realtimeRuntime", "cpu", entry("cpu.rt_runtime_us", runtime), None);
    }
    for (name, value) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        let Some(value) = value.as_ref().filter(|v| !v.is_empty()) else { continue };
        if !value.bytes().all(|b| b.is_ascii_digit() || b"-,".contains(&b)) {
            bail!("linux.resources.cpu.{name}: {value:?} is not a list such as 0-3,5");
        }
        let file = format!("cpuset.{name}");
        out.add(&format!("cpu.{name}"), "cpuset", entry(&file, value), entry(&file, value));
    }
    Ok(())
}

fn add_block_io(out: &mut Settings, io: &LinuxBlockIo) {
    if let Some(weight) = io.weight().filter(|w| *w != 0) {
        out.add("blockIO.weight", "blkio", entry("blkio.bfq.weight", weight), entry("io.bfq.weight", weight));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let line = format!("{}:{} {weight}", device.major(), device.minor());
            let v2 = entry("io.bfq.weight", &line);
            out.add("blockIO.weightDevice", "blkio", entry("blkio.bfq.weight_device", line), v2);
        }
    }
    let mut throttle = |field: &str, devices: &Option<Vec<LinuxThrottleDevice>>, v1: &str, v2: &str| {
        for device in devices.iter().flatten() {
            let (number, rate) = (format!("{}:{}", device.major(), device.minor()), device.rate());
            let shown = if rate == 0 { "max".to_owned() } else { rate.to_string() };
            out.add(
                &format!("blockIO.{field}"),
                "blkio",
                entry(format!("blkio.throttle.{v1}"), format!("{number} {rate}")),
                entry("io.max", format!("{number} {v2}={shown}")),
            );
        }
    };
    throttle("throttleReadBpsDevice", io.throttle_read_bps_device(), "read_bps_device", "rbps");
    throttle("throttleWriteBpsDevice", io.throttle_write_bps_device(), "write_bps_device", "wbps");
    throttle("throttleReadIOPSDevice", io.throttle_read_iops_device(), "read_iops_device", "riops");
    throttle("throttleWriteIOPSDevice", io.throttle_write_iops_device(), "write_iops_device", "wiops");
}

/// What the sandbox needs whatever the rules say: null, zero, full, random, urandom, tty, ptmx, terminals, KVM.
const OWN_DEVICES: [&str; 9] = [
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
    "c 10:232 rw",
];

/// Version 1 only: an application reaches no device of the host in any case, and these rules bind our own processes.
fn add_devices(out: &mut Settings, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    for (i, rule) in rules.iter().enumerate() {
        let field = format!("devices[{i}]");
        let typ = rule.typ();
        let kind = typ.as_ref().map_or("a", |t| t.as_str());
        if !matches!(kind, "a" | "b" | "c" | "u" | "p") {
            bail!("linux.resources.{field}.type: {kind:?} is not a, b or c");
        }
        let access = rule.access().as_deref().unwrap_or("rwm");
        if !access.bytes().all(|b| b"rwm".contains(&b)) {
            bail!("linux.resources.{field}.access: {access:?} is not made of r, w and m");
        }
        let number = |n: Option<i64>| n.filter(|n| *n >= 0).map_or("*".to_owned(), |n| n.to_string());
        let kind = if kind == "u" { "c" } else { kind };
        // A rule for all devices has no numbers; one that allows all would take our own restrictions away.
        let line = if kind == "a" {
            "a".to_owned()
        } else {
            format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor()))
        };
        let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
        out.add(&field, "devices", entry(file, line), None);
    }
    for line in OWN_DEVICES {
        out.add("devices", "devices", entry("devices.allow", line), None);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OVERHEAD: Overhead = Overhead { threads_per_task: 3 };

    fn of(json: serde_json::Value) -> Result<Vec<Setting>> {
        settings(&serde_json::from_value(json)?, OVERHEAD)
    }

    fn written(list: &[Setting], unified: bool) -> Vec<String> {
        let side = |s: &Setting| if unified { s.v2.clone() } else { s.v1.clone() };
        list.iter().filter_map(side).map(|(file, value)| format!("{file}={value}")).collect()
    }

    #[test]
    fn memory_and_swap() {
        let list =
            of(json!({"memory": {"limit": 104857600, "swap": 209715200, "reservation": 1048576}})).expect("valid");
        assert_eq!(
            written(&list, false),
            [
                "memory.limit_in_bytes=104857600",
                "memory.memsw.limit_in_bytes=209715200",
                "memory.soft_limit_in_bytes=1048576"
            ]
        );
        assert_eq!(written(&list, true), ["memory.max=104857600", "memory.swap.max=104857600", "memory.low=1048576"]);
        let list = of(json!({"memory": {"limit": -1, "swap": -1}})).expect("valid");
        assert_eq!(written(&list, true), ["memory.max=max", "memory.swap.max=max"]);
    }

    #[test]
    fn cpu_and_pids() {
        let list = of(
            json!({"cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1"}, "pids": {"limit": 10}}),
        )
        .expect("valid");
        assert_eq!(written(&list, true), ["cpu.weight=39", "cpu.max=50000 100000", "cpuset.cpus=0-1", "pids.max=94"]);
        assert_eq!(
            written(&list, false),
            ["cpu.shares=1024", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000", "cpuset.cpus=0-1", "pids.max=94"]
        );
        assert_eq!(written(&of(json!({"pids": {"limit": -1}})).expect("valid"), true), ["pids.max=max"]);
        assert!(
            of(json!({"memory": {"limit": 0}, "pids": {"limit": 0}, "cpu": {"shares": 0}})).expect("unset").is_empty()
        );
    }

    #[test]
    fn errors_name_the_field() {
        for (json, part) in [
            (json!({"memory": {"limit": 4096}}), "memory.limit: 4096 bytes do not hold a sandbox; the minimum is"),
            (json!({"memory": {"limit": 104857600, "swap": 4096}}), "memory.swap"),
            (json!({"memory": {"swap": 4096}}), "memory.swap"),
            (json!({"memory": {"swappiness": 200}}), "memory.swappiness"),
            (json!({"cpu": {"cpus": "../x"}}), "cpu.cpus"),
            (json!({"unified": {"../x": "1"}}), "unified"),
            (json!({"unified": {"nodot": "1"}}), "unified"),
            (json!({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}), "hugepageLimits[0]"),
            (json!({"devices": [{"allow": true, "access": "x"}]}), "devices[0].access"),
        ] {
            let error = format!("{:#}", of(json).expect_err(part));
            assert!(error.contains(part), "{error}");
        }
    }
}
