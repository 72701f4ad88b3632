//! Files about the whole system, and the part of sysfs that tells how many CPUs there are.

use alloc::{format, string::String, vec::Vec};
use core::{arch::x86_64::__cpuid, fmt::Write};

use super::{Entry, Subject, What, dir, line, link, sysctl::SYS, text};
use crate::{
    counters::{self, Counter},
    errno::{ENOENT, Result},
    mm::{frames, heap},
    sched,
    task::table,
    time, uts,
};

pub(super) static ROOT: Entry = Entry { name: "", mode: 0o555, what: What::Processes(ENTRIES) };

static ENTRIES: &[Entry] = &[
    text("cgroups", |_| Ok(b"#subsys_name\thierarchy\tnum_cgroups\tenabled\n".to_vec())),
    text("cmdline", |_| Ok(b"\n".to_vec())),
    text("cpuinfo", cpuinfo),
    text("devices", |_| Ok(DEVICES.as_bytes().to_vec())),
    text("diskstats", |_| Ok(Vec::new())),
    text("filesystems", |_| Ok(FILESYSTEMS.as_bytes().to_vec())),
    text("interrupts", |_| Ok(interrupts())),
    text("loadavg", loadavg),
    text("meminfo", meminfo),
    link("mounts", |_| Ok(b"self/mounts".to_vec())),
    link("net", |_| Ok(b"self/net".to_vec())),
    text("partitions", |_| Ok(b"major minor  #blocks  name\n\n".to_vec())),
    link("self", |_| Ok(format!("{}", sched::current().ok_or(ENOENT)?.process.pid).into_bytes())),
    text("stat", stat),
    text("swaps", |_| Ok(b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".to_vec())),
    dir("sys", SYS),
    dir("sysvipc", SYSVIPC),
    link("thread-self", |_| {
        let task = sched::current().ok_or(ENOENT)?;
        Ok(format!("{}/task/{}", task.process.pid, task.tid()).into_bytes())
    }),
    dir("tty", &[text("drivers", |_| Ok(TTY_DRIVERS.as_bytes().to_vec()))]),
    text("uptime", uptime),
    text("version", version),
    text("vmstat", vmstat),
];

static SYSVIPC: &[Entry] = &[
    text("msg", |_| Ok(crate::ipc::proc::msg())),
    text("sem", |_| Ok(crate::ipc::proc::sem())),
    text("shm", |_| Ok(crate::ipc::proc::shm())),
];

/// The loopback interface, and sockets.
pub(super) static NET: &[Entry] = &[
    text("dev", |_| {
        Ok(b"Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n".to_vec())
    }),
    text("if_inet6", |_| Ok(b"00000000000000000000000000000001 01 80 10 80       lo\n".to_vec())),
    text("route", |_| {
        Ok(b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n".to_vec())
    }),
    text("tcp", |_| Ok(crate::net::inet::tcp_table(false))),
    text("tcp6", |_| Ok(crate::net::inet::tcp_table(true))),
    text("udp", |_| Ok(crate::net::inet::udp_table(false))),
    text("udp6", |_| Ok(crate::net::inet::udp_table(true))),
    text("unix", |_| Ok(crate::net::unix::proc_table())),
];

const DEVICES: &str =
    "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n136 pts\n\nBlock devices:\n";
const FILESYSTEMS: &str =
    "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tcgroup2\nnodev\tdevpts\nnodev\tmqueue\nnodev\toverlay\n";
const TTY_DRIVERS: &str = "/dev/tty             /dev/tty        5       0 system:/dev/tty\n/dev/console         /dev/console    5       1 system:console\n/dev/ptmx            /dev/ptmx       5       2 system\npty_slave            /dev/pts      136 0-1048575 pty:slave\n";

fn meminfo(_: &Subject) -> Result<Vec<u8>> {
    let (total, free) = frames::usage();
    let kernel = heap::used_bytes();
    let used = total.saturating_sub(free);
    let mut out = String::new();
    for (name, bytes) in [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("Active", used),
        ("Inactive", 0),
        ("Active(anon)", used),
        ("Inactive(anon)", 0),
        ("Active(file)", 0),
        ("Inactive(file)", 0),
        ("Unevictable", 0),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", used),
        ("Mapped", 0),
        ("Shmem", 0),
        ("KReclaimable", 0),
        ("Slab", kernel),
        ("SReclaimable", 0),
        ("SUnreclaim", kernel),
        ("PageTables", 0),
        ("CommitLimit", total),
        ("Committed_AS", used),
        ("VmallocTotal", 0),
        ("VmallocUsed", 0),
        ("HugePages_Total", 0),
    ] {
        let (value, unit) = if name.starts_with("HugePages") { (bytes, "") } else { (bytes / 1024, " kB") };
        let _ = writeln!(out, "{:<16}{value:>8}{unit}", format!("{name}:"));
    }
    let _ = writeln!(out, "{:<16}{:>8} kB", "Hugepagesize:", 2048);
    Ok(out.into_bytes())
}

/// Names of feature bits in the order of their bits; empty ones have none.
const FEATURES_EDX: &str = "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe";
const FEATURES_ECX: &str = "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor";
const FEATURES_7_EBX: &str = "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl";
const FEATURES_EXT_EDX: &str =
    "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow";
const FEATURES_EXT_ECX: &str = "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext";
/// What belongs to the kernel or to virtual machines: not the applications' to know.
const HIDDEN: [&str; 10] = ["vmx", "svm", "smx", "mce", "mca", "mtrr", "monitor", "dca", "sgx", "intel_pt"];

fn features(out: &mut String, names: &str, bits: u32) {
    for (bit, name) in names.split(' ').enumerate() {
        if bits >> bit & 1 != 0 && name != "-" && !HIDDEN.contains(&name) {
            out.push(' ');
            out.push_str(name);
        }
    }
}

fn cpuinfo(_: &Subject) -> Result<Vec<u8>> {
    let (zero, one) = (__cpuid(0), __cpuid(1));
    let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let vendor = String::from_utf8_lossy(&bytes(&[zero.ebx, zero.edx, zero.ecx])).into_owned();
    let (mut family, mut model) = (one.eax >> 8 & 0xf, one.eax >> 4 & 0xf);
    if family == 6 || family == 15 {
        model |= one.eax >> 12 & 0xf0;
    }
    if family == 15 {
        family += one.eax >> 20 & 0xff;
    }
    let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .flat_map(|leaf| {
            let r = __cpuid(leaf);
            bytes(&[r.eax, r.ebx, r.ecx, r.edx])
        })
        .take_while(|&b| b != 0)
        .collect();
    let brand = String::from_utf8_lossy(&brand).trim().replace('\n', " ");
    let mut flags = String::new();
    features(&mut flags, FEATURES_EDX, one.edx);
    let extended = __cpuid(0x8000_0001);
    features(&mut flags, FEATURES_EXT_EDX, extended.edx);
    features(&mut flags, FEATURES_ECX, one.ecx);
    features(&mut flags, FEATURES_EXT_ECX, extended.ecx);
    if zero.eax >= 7 {
        features(&mut flags, FEATURES_7_EBX, __cpuid(7).ebx);
    }
    // The TSC's frequency in kHz, from the conversion of its ticks.
    let khz = (1_000_000u64 << 32) / time::snapshot().mult.max(1);
    let cpus = sched::cpus_online();
    let address = __cpuid(0x8000_0008).eax;
    let mut out = String::new();
    for cpu in 0..cpus {
        let _ = write!(
            out,
            "processor\t: {cpu}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {brand}\nstepping\t: {}\ncpu MHz\t\t: {}.{:03}\ncache size\t: 1024 KB\nphysical id\t: 0\nsiblings\t: {cpus}\ncore id\t\t: {cpu}\ncpu cores\t: {cpus}\napicid\t\t: {cpu}\ninitial apicid\t: {cpu}\nfpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: {}\nwp\t\t: yes\nflags\t\t:{flags}\nbogomips\t: {}.{:02}\nclflush size\t: 64\ncache_alignment\t: 64\naddress sizes\t: {} bits physical, {} bits virtual\npower management:\n\n",
            one.eax & 0xf,
            khz / 1000,
            khz % 1000,
            zero.eax,
            khz / 500,
            khz / 5 % 100,
            address & 0xff,
            address >> 8 & 0xff,
        );
    }
    Ok(out.into_bytes())
}

/// User and system time of all processes there are, ns.
fn cpu_time() -> (u64, u64) {
    table::processes().iter().map(|p| p.usage()).fold((0, 0), |(u, s), usage| (u + usage.user, s + usage.system))
}

fn running() -> usize {
    table::lock().tasks().filter(|t| !t.sched.is_parked()).count()
}

fn stat(_: &Subject) -> Result<Vec<u8>> {
    const TICK: u64 = 10_000_000;
    let cpus = sched::cpus_online() as u64;
    let up = time::monotonic().saturating_sub(time::started());
    let (user, system) = cpu_time();
    let idle = (up * cpus).saturating_sub(user + system);
    let row = |name: String, share: u64| {
        format!("{name} {} 0 {} {} 0 0 0 0 0 0\n", user / TICK / share, system / TICK / share, idle / TICK / share)
    };
    let mut out = row(String::from("cpu "), 1);
    for cpu in 0..cpus {
        out.push_str(&row(format!("cpu{cpu}"), cpus));
    }
    let boot = (time::realtime().saturating_sub(up)) / 1_000_000_000;
    let last = table::lock().last_pid();
    let _ = write!(
        out,
        "intr {}\nctxt {}\nbtime {boot}\nprocesses {last}\nprocs_running {}\nprocs_blocked 0\nsoftirq 0\n",
        counters::get(Counter::Interrupts),
        counters::get(Counter::ContextSwitches),
        running().max(1)
    );
    Ok(out.into_bytes())
}

fn interrupts() -> Vec<u8> {
    let mut out = String::from("    ");
    for cpu in 0..sched::cpus_online() {
        let _ = write!(out, "       CPU{cpu}");
    }
    let _ = write!(out, "\nINT: {:10}   Interrupts\n", counters::get(Counter::Interrupts));
    out.into_bytes()
}

fn uptime(_: &Subject) -> Result<Vec<u8>> {
    let up = time::monotonic().saturating_sub(time::started());
    let (user, system) = cpu_time();
    let idle = (up * sched::cpus_online() as u64).saturating_sub(user + system);
    let show = |ns: u64| format!("{}.{:02}", ns / 1_000_000_000, ns / 10_000_000 % 100);
    Ok(line(format!("{} {}", show(up), show(idle))))
}

fn loadavg(_: &Subject) -> Result<Vec<u8>> {
    // Nothing samples the run queues: what runs now stands for all three.
    let running = running();
    let (tasks, last) = {
        let table = table::lock();
        (table.task_count(), table.last_pid())
    };
    let load = running.saturating_sub(1);
    Ok(line(format!("{load}.00 {load}.00 {load}.00 {}/{tasks} {last}", running.max(1))))
}

fn version(_: &Subject) -> Result<Vec<u8>> {
    Ok(line(format!("{} version {} (runsc) {}", uts::SYSNAME, uts::RELEASE, uts::VERSION)))
}

fn vmstat(_: &Subject) -> Result<Vec<u8>> {
    let (total, free) = frames::usage();
    let mut out = String::new();
    for (name, value) in [
        ("nr_free_pages", free / 4096),
        ("nr_anon_pages", (total - free) / 4096),
        ("pgfault", counters::get(Counter::PageFaults)),
        ("pgmajfault", 0),
        ("oom_kill", counters::get(Counter::OomKills)),
    ] {
        let _ = writeln!(out, "{name} {value}");
    }
    Ok(out.into_bytes())
}

/// CPUs of a mask as ranges: "0-3".
pub(super) fn cpu_list(mask: u64) -> String {
    let mut out = String::new();
    let mut cpu = 0;
    while cpu < 64 {
        if mask >> cpu & 1 == 0 {
            cpu += 1;
            continue;
        }
        let first = cpu;
        while cpu < 64 && mask >> cpu & 1 != 0 {
            cpu += 1;
        }
        if !out.is_empty() {
            out.push(',');
        }
        let _ = if cpu - first == 1 { write!(out, "{first}") } else { write!(out, "{first}-{}", cpu - 1) };
    }
    out
}

fn online(_: &Subject) -> Result<Vec<u8>> {
    Ok(line(cpu_list(online_mask())))
}

fn online_mask() -> u64 {
    let cpus = sched::cpus_online();
    if cpus >= 64 { u64::MAX } else { (1 << cpus) - 1 }
}

pub(super) static SYSFS_ROOT: Entry = Entry { name: "", mode: 0o555, what: What::Dir(SYSFS) };

static SYSFS: &[Entry] = &[
    dir("block", &[]),
    dir("bus", &[]),
    dir("class", &[dir("net", &[])]),
    dir("dev", &[dir("block", &[]), dir("char", &[])]),
    dir("devices", &[dir("system", &[Entry { name: "cpu", mode: 0o755, what: What::Cpus(CPUS) }, dir("node", NODES)])]),
    dir("firmware", &[]),
    dir("fs", &[dir("cgroup", &[])]),
    dir("kernel", &[dir("mm", &[dir("transparent_hugepage", HUGE)])]),
    dir("module", &[]),
    dir("power", &[]),
];

static CPUS: &[Entry] = &[
    text("kernel_max", |_| Ok(line(63))),
    text("offline", |_| Ok(b"\n".to_vec())),
    text("online", online),
    text("possible", online),
    text("present", online),
];

/// Of one CPU. All are cores of one package.
pub(super) static CPU: &[Entry] = &[dir("topology", TOPOLOGY)];

static TOPOLOGY: &[Entry] = &[
    text("core_cpus", one_cpu),
    text("core_cpus_list", cpu_number),
    text("core_id", cpu_number),
    text("core_siblings", all_cpus),
    text("core_siblings_list", online),
    text("die_cpus", all_cpus),
    text("die_cpus_list", online),
    text("die_id", |_| Ok(line(0))),
    text("package_cpus", all_cpus),
    text("package_cpus_list", online),
    text("physical_package_id", |_| Ok(line(0))),
    text("thread_siblings", one_cpu),
    text("thread_siblings_list", cpu_number),
];

fn cpu_number(subject: &Subject) -> Result<Vec<u8>> {
    match subject {
        Subject::Cpu(cpu) => Ok(line(cpu)),
        _ => Err(ENOENT),
    }
}

/// A mask as the kernel prints it: groups of 32 bits.
fn cpu_mask(mask: u64) -> Vec<u8> {
    if sched::cpus_online() > 32 {
        line(format!("{:08x},{:08x}", mask >> 32, mask & 0xffff_ffff))
    } else {
        line(format!("{mask:x}"))
    }
}

fn one_cpu(subject: &Subject) -> Result<Vec<u8>> {
    match subject {
        Subject::Cpu(cpu) => Ok(cpu_mask(1 << cpu)),
        _ => Err(ENOENT),
    }
}

fn all_cpus(_: &Subject) -> Result<Vec<u8>> {
    Ok(cpu_mask(online_mask()))
}

fn node_meminfo(_: &Subject) -> Result<Vec<u8>> {
    let (total, free) = frames::usage();
    let mut out = String::new();
    for (name, bytes) in [("MemTotal", total), ("MemFree", free), ("MemUsed", total.saturating_sub(free))] {
        let _ = writeln!(out, "Node 0 {:<15}{:>8} kB", format!("{name}:"), bytes / 1024);
    }
    Ok(out.into_bytes())
}

static NODES: &[Entry] = &[
    dir(
        "node0",
        &[
            text("cpulist", online),
            text("cpumap", all_cpus),
            text("distance", |_| Ok(line(10))),
            text("meminfo", node_meminfo),
        ],
    ),
    text("has_cpu", |_| Ok(line(0))),
    text("has_memory", |_| Ok(line(0))),
    text("online", |_| Ok(b"0\n".to_vec())),
    text("possible", |_| Ok(b"0\n".to_vec())),
];

static HUGE: &[Entry] =
    &[text("enabled", |_| Ok(b"always madvise [never]\n".to_vec())), text("hpage_pmd_size", |_| Ok(line(2 << 20)))];

#[cfg(test)]
mod tests {
    use super::cpu_list;

    #[test]
    fn cpu_lists() {
        assert_eq!(cpu_list(0b1), "0");
        assert_eq!(cpu_list(0b1111), "0-3");
        assert_eq!(cpu_list(0b1101_0011), "0-1,4,6-7");
        assert_eq!(cpu_list(u64::MAX), "0-63");
    }
}
