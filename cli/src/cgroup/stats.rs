//! What the host counts for a container, in the form runc's `events` prints it.

use serde::Serialize;

use super::{Cgroup, Dir};

/// USER_HZ of every Linux on this architecture.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Stats {
    pub cpu: Cpu,
    pub memory: Memory,
    pub pids: Pids,
    pub blkio: BlockIo,
    pub hugetlb: std::collections::BTreeMap<String, Usage>,
}

#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Cpu {
    pub usage: CpuUsage,
    pub throttling: Throttling,
}

/// Nanoseconds.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct CpuUsage {
    pub total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    pub kernel: u64,
    pub user: u64,
}

#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

/// Bytes; a limit of `u64::MAX` is none.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Usage {
    pub limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    pub failcnt: u64,
}

#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    pub usage: Usage,
    pub swap: Usage,
    pub kernel: Usage,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Usage,
    pub raw: std::collections::BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// 0 is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<IoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<IoEntry>,
}

#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct IoEntry {
    pub major: u64,
    pub minor: u64,
    pub op: String,
    pub value: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What cannot be read counts as 0.
pub fn of(cgroup: &Cgroup) -> Stats {
    let mut stats = Stats::default();
    if let Some(dir) = cgroup.dir("cpuacct") {
        let line = dir.read("cpuacct.stat").unwrap_or_default();
        stats.cpu.usage = CpuUsage {
            total: number(dir, "cpuacct.usage"),
            percpu: numbers(&dir.read("cpuacct.usage_percpu").unwrap_or_default()),
            kernel: keyed(&line, "system") * NANOSECONDS_PER_TICK,
            user: keyed(&line, "user") * NANOSECONDS_PER_TICK,
        };
    }
    if let Some(dir) = cgroup.dir("cpu") {
        let text = dir.read("cpu.stat").unwrap_or_default();
        let throttled = &mut stats.cpu.throttling;
        throttled.periods = keyed(&text, "nr_periods");
        throttled.throttled_periods = keyed(&text, "nr_throttled");
        throttled.throttled_time = keyed(&text, "throttled_time");
        if dir.unified {
            throttled.throttled_time = keyed(&text, "throttled_usec") * 1000;
            stats.cpu.usage.total = keyed(&text, "usage_usec") * 1000;
            stats.cpu.usage.user = keyed(&text, "user_usec") * 1000;
            stats.cpu.usage.kernel = keyed(&text, "system_usec") * 1000;
        }
    }
    if let Some(dir) = cgroup.dir("memory") {
        stats.memory = memory(dir);
    }
    if let Some(dir) = cgroup.dir("pids") {
        stats.pids = Pids { current: number(dir, "pids.current"), limit: number(dir, "pids.max") };
    }
    if let Some(dir) = cgroup.dir("blkio") {
        stats.blkio = block_io(dir);
    }
    if let Some(dir) = cgroup.dir("hugetlb") {
        stats.hugetlb = hugetlb(dir);
    }
    stats
}

fn memory(dir: &Dir) -> Memory {
    let stat = dir.read("memory.stat").unwrap_or_default();
    let raw = stat.lines().filter_map(|l| l.split_once(' ')).filter_map(|(k, v)| Some((k.to_owned(), v.parse().ok()?)));
    let raw: std::collections::BTreeMap<String, u64> = raw.collect();
    if dir.unified {
        let usage = |name: &str, fails: u64| Usage {
            limit: limit(dir, &format!("{name}.max")),
            usage: number(dir, &format!("{name}.current")),
            max: number(dir, &format!("{name}.peak")),
            failcnt: fails,
        };
        let events = dir.read("memory.events").unwrap_or_default();
        let mut memory = Memory {
            cache: raw.get("file").copied().unwrap_or(0),
            usage: usage("memory", keyed(&events, "max")),
            swap: usage("memory.swap", 0),
            raw,
            ..Memory::default()
        };
        // As version 1 counts it: with memory.
        memory.swap.usage += memory.usage.usage;
        memory.swap.limit = memory.swap.limit.saturating_add(memory.usage.limit);
        return memory;
    }
    let usage = |name: &str| Usage {
        limit: limit(dir, &format!("memory.{name}limit_in_bytes")),
        usage: number(dir, &format!("memory.{name}usage_in_bytes")),
        max: number(dir, &format!("memory.{name}max_usage_in_bytes")),
        failcnt: number(dir, &format!("memory.{name}failcnt")),
    };
    Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: usage(""),
        swap: usage("memsw."),
        kernel: usage("kmem."),
        kernel_tcp: usage("kmem.tcp."),
        raw,
    }
}

fn block_io(dir: &Dir) -> BlockIo {
    if dir.unified {
        let text = dir.read("io.stat").unwrap_or_default();
        let pick = |keys: &[(&str, &str)]| {
            let mut out = Vec::new();
            for line in text.lines() {
                let Some((device, rest)) = line.split_once(' ') else { continue };
                for (key, op) in keys {
                    let found = rest.split(' ').find_map(|f| f.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
                    out.extend(found.and_then(|value| io_entry(device, op, value)));
                }
            }
            out
        };
        return BlockIo {
            io_service_bytes_recursive: pick(&[("rbytes", "Read"), ("wbytes", "Write")]),
            io_serviced_recursive: pick(&[("rios", "Read"), ("wios", "Write")]),
        };
    }
    let pick = |files: [&str; 2]| {
        let text = files.iter().filter_map(|f| dir.read(f)).find(|t| t.contains(':')).unwrap_or_default();
        let entry = |line: &str| {
            let mut fields = line.split(' ');
            io_entry(fields.next()?, fields.next()?, fields.next()?.parse().ok()?)
        };
        text.lines().filter_map(entry).collect()
    };
    BlockIo {
        io_service_bytes_recursive: pick(["blkio.bfq.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"]),
        io_serviced_recursive: pick(["blkio.bfq.io_serviced_recursive", "blkio.throttle.io_serviced"]),
    }
}

fn io_entry(device: &str, op: &str, value: u64) -> Option<IoEntry> {
    let (major, minor) = device.split_once(':')?;
    Some(IoEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, op: op.to_owned(), value })
}

fn hugetlb(dir: &Dir) -> std::collections::BTreeMap<String, Usage> {
    let suffix = if dir.unified { ".current" } else { ".usage_in_bytes" };
    let mut out = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(&dir.path).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugetlb.").and_then(|n| n.strip_suffix(suffix));
        let Some(size) = size.filter(|s| !s.contains('.')) else { continue };
        let file = |of: &str| format!("hugetlb.{size}.{of}");
        let usage = if dir.unified {
            let failcnt = keyed(&dir.read(&file("events")).unwrap_or_default(), "max");
            Usage { limit: limit(dir, &file("max")), usage: number(dir, &file("current")), max: 0, failcnt }
        } else {
            Usage {
                limit: limit(dir, &file("limit_in_bytes")),
                usage: number(dir, &file("usage_in_bytes")),
                max: number(dir, &file("max_usage_in_bytes")),
                failcnt: number(dir, &file("failcnt")),
            }
        };
        out.insert(size.to_owned(), usage);
    }
    out
}

fn number(dir: &Dir, file: &str) -> u64 {
    dir.read(file).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn limit(dir: &Dir, file: &str) -> u64 {
    dir.read(file).and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX)
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect()
}

/// The number behind a name in lines of `name number`.
fn keyed(text: &str, name: &str) -> u64 {
    let find = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(find).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn version_2_in_the_words_of_version_1() {
        let path = std::env::temp_dir().join(format!("runsc-stats-{}", std::process::id()));
        fs::create_dir_all(&path).expect("mkdir");
        for (file, text) in [
            ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 9\n"),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "20\n"),
            ("memory.stat", "anon 60\nfile 40\n"),
            ("memory.events", "low 0\nmax 4\noom 1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.max", "4096\n"),
        ] {
            fs::write(path.join(file), text).expect("write");
        }
        let names = ["cpu", "memory", "pids", "io", "hugetlb"];
        let dir = Dir { path: path.clone(), controllers: names.map(str::to_owned).to_vec(), unified: true };
        let stats = of(&Cgroup { dirs: vec![dir] });
        assert_eq!(stats.cpu.usage, CpuUsage { total: 5000, user: 3000, kernel: 2000, percpu: Vec::new() });
        assert_eq!(stats.cpu.throttling.throttled_time, 9000);
        assert_eq!((stats.memory.usage.usage, stats.memory.usage.limit), (100, u64::MAX));
        assert_eq!((stats.memory.swap.usage, stats.memory.cache, stats.memory.usage.failcnt), (120, 40, 4));
        assert_eq!(stats.pids, Pids { current: 3, limit: 0 });
        assert_eq!(stats.blkio.io_service_bytes_recursive[1].value, 20);
        assert_eq!(stats.hugetlb["2MB"].limit, 4096);
        fs::remove_dir_all(path).expect("clean up");
    }
}
