//! /proc/sys: what the system is set to. Values that the sentry acts on come from there; others are kept as written.

use alloc::{collections::BTreeMap, format, string::String, vec::Vec};

use super::{Entry, Subject, dir, line, setting, text};
use crate::{
    errno::{EINVAL, Result},
    fs::pipe,
    random,
    sync::{Once, SpinLock},
    task::table::PID_MAX,
    uts,
};

/// Values that were set, by path ("net.core.somaxconn").
static VALUES: SpinLock<BTreeMap<&'static str, Vec<u8>>> = SpinLock::new(BTreeMap::new());

/// Longest value that is kept.
const MAX_VALUE: usize = 512;

macro_rules! kept {
    ($($file:literal $path:literal = $default:expr,)*) => {
        &[$({
            fn make(_: &Subject) -> Result<Vec<u8>> {
                Ok(match VALUES.lock().get($path) {
                    Some(value) => [value, &b"\n"[..]].concat(),
                    None => line($default),
                })
            }
            fn set(_: &Subject, value: &[u8]) -> Result<()> {
                keep($path, value)
            }
            setting($file, make, set)
        },)*]
    };
}

fn keep(path: &'static str, value: &[u8]) -> Result<()> {
    if value.len() > MAX_VALUE {
        return Err(EINVAL);
    }
    VALUES.lock().insert(path, value.to_vec());
    Ok(())
}

/// Takes the container's sysctls. Returns the names that there are not.
pub fn configure(sysctls: &[(String, String)]) -> Vec<String> {
    let mut unknown = Vec::new();
    for (name, value) in sysctls {
        match name.as_str() {
            "kernel.hostname" => uts::set_host(value.as_bytes()),
            "kernel.domainname" => uts::set_domain(value.as_bytes()),
            name => match KEPT_PATHS.iter().find(|p| **p == name) {
                Some(path) if keep(path, value.as_bytes()).is_ok() => {}
                _ => unknown.push(String::from(name)),
            },
        }
    }
    unknown
}

macro_rules! paths {
    ($($path:literal,)*) => { &[$($path,)*] };
}

/// What a configuration may set.
static KEPT_PATHS: &[&str] = paths![
    "kernel.core_pattern",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.randomize_va_space",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.swappiness",
    "fs.file-max",
    "fs.mqueue.msg_max",
    "fs.mqueue.msgsize_max",
    "fs.mqueue.queues_max",
    "net.core.somaxconn",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_keepalive_time",
];

pub(super) static SYS: &[Entry] = &[dir("fs", FS), dir("kernel", KERNEL), dir("net", NET), dir("vm", VM)];

static KERNEL: &[Entry] = &[
    text("arch", |_| Ok(line(uts::MACHINE))),
    text("cap_last_cap", |_| Ok(line(crate::task::cap::LAST))),
    setting("core_pattern", |_| kept_or("kernel.core_pattern", "core"), |_, v| keep("kernel.core_pattern", v)),
    text("core_uses_pid", |_| Ok(line(0))),
    setting("domainname", |_| Ok(named(uts::domain())), |_, v| short(v).map(uts::set_domain)),
    text("dmesg_restrict", |_| Ok(line(1))),
    setting("hostname", |_| Ok(named(uts::host())), |_, v| short(v).map(uts::set_host)),
    text("io_uring_disabled", |_| Ok(line(2))),
    setting("msgmax", |_| kept_or("kernel.msgmax", 8192), |_, v| keep("kernel.msgmax", v)),
    setting("msgmnb", |_| kept_or("kernel.msgmnb", 16384), |_, v| keep("kernel.msgmnb", v)),
    setting("msgmni", |_| kept_or("kernel.msgmni", 32000), |_, v| keep("kernel.msgmni", v)),
    text("msg_next_id", |_| Ok(line(-1))),
    text("ngroups_max", |_| Ok(line(65536))),
    text("osrelease", |_| Ok(line(uts::RELEASE))),
    text("ostype", |_| Ok(line(uts::SYSNAME))),
    text("overflowgid", |_| Ok(line(65534))),
    text("overflowuid", |_| Ok(line(65534))),
    text("panic", |_| Ok(line(0))),
    text("perf_event_paranoid", |_| Ok(line(4))),
    text("pid_max", |_| Ok(line(PID_MAX))),
    text("printk", |_| Ok(b"4\t4\t1\t7\n".to_vec())),
    dir("random", RANDOM),
    text("randomize_va_space", |_| Ok(line(2))),
    text("seccomp", |_| Ok(line(0))),
    setting("sem", |_| kept_or("kernel.sem", "32000\t1024000000\t500\t32000"), |_, v| keep("kernel.sem", v)),
    setting("shmall", |_| kept_or("kernel.shmall", 18_446_744_073_692_774_399u64), |_, v| keep("kernel.shmall", v)),
    setting("shmmax", |_| kept_or("kernel.shmmax", 18_446_744_073_692_774_399u64), |_, v| keep("kernel.shmmax", v)),
    setting("shmmni", |_| kept_or("kernel.shmmni", 4096), |_, v| keep("kernel.shmmni", v)),
    text("tainted", |_| Ok(line(0))),
    text("threads-max", |_| Ok(line(PID_MAX - 1000))),
    text("unprivileged_userns_clone", |_| Ok(line(0))),
    text("version", |_| Ok(line(uts::VERSION))),
];

static RANDOM: &[Entry] = &[
    text("boot_id", |_| {
        static BOOT_ID: Once<[u8; 16]> = Once::new();
        Ok(uuid(*BOOT_ID.call_once(fresh)))
    }),
    text("entropy_avail", |_| Ok(line(256))),
    text("poolsize", |_| Ok(line(256))),
    text("uuid", |_| Ok(uuid(fresh()))),
];

static FS: &[Entry] = &[
    text("aio-max-nr", |_| Ok(line(65536))),
    text("aio-nr", |_| Ok(line(0))),
    text("dentry-state", |_| Ok(format!("{0}\t{0}\t45\t0\t0\t0\n", crate::fs::dentry::cached_names()).into_bytes())),
    dir("epoll", &[text("max_user_watches", |_| Ok(line(1_000_000)))]),
    setting("file-max", |_| kept_or("fs.file-max", i64::MAX), |_, v| keep("fs.file-max", v)),
    text("file-nr", |_| Ok(format!("{}\t0\t{}\n", crate::fs::open_files(), i64::MAX).into_bytes())),
    dir("inotify", INOTIFY),
    dir("mqueue", MQUEUE),
    text("nr_open", |_| Ok(line(1 << 20))),
    text("overflowgid", |_| Ok(line(65534))),
    text("overflowuid", |_| Ok(line(65534))),
    text("pipe-max-size", |_| Ok(line(pipe::MAX_CAPACITY))),
    text("protected_hardlinks", |_| Ok(line(0))),
    text("protected_symlinks", |_| Ok(line(0))),
    text("suid_dumpable", |_| Ok(line(0))),
];

static INOTIFY: &[Entry] = kept! {
    "max_queued_events" "fs.inotify.max_queued_events" = 16384,
    "max_user_instances" "fs.inotify.max_user_instances" = 128,
    "max_user_watches" "fs.inotify.max_user_watches" = 65536,
};

static MQUEUE: &[Entry] = kept! {
    "msg_default" "fs.mqueue.msg_default" = 10,
    "msg_max" "fs.mqueue.msg_max" = 10,
    "msgsize_default" "fs.mqueue.msgsize_default" = 8192,
    "msgsize_max" "fs.mqueue.msgsize_max" = 8192,
    "queues_max" "fs.mqueue.queues_max" = 256,
};

static VM: &[Entry] = kept! {
    "max_map_count" "vm.max_map_count" = 65530,
    "min_free_kbytes" "vm.min_free_kbytes" = 4096,
    "mmap_min_addr" "vm.mmap_min_addr" = 65536,
    "overcommit_memory" "vm.overcommit_memory" = 1,
    "overcommit_ratio" "vm.overcommit_ratio" = 50,
    "swappiness" "vm.swappiness" = 60,
    "vfs_cache_pressure" "vm.vfs_cache_pressure" = 100,
};

static NET: &[Entry] = &[dir("core", NET_CORE), dir("ipv4", NET_IPV4)];

static NET_CORE: &[Entry] = kept! {
    "rmem_default" "net.core.rmem_default" = 212_992,
    "rmem_max" "net.core.rmem_max" = 212_992,
    "somaxconn" "net.core.somaxconn" = 4096,
    "wmem_default" "net.core.wmem_default" = 212_992,
    "wmem_max" "net.core.wmem_max" = 212_992,
};

static NET_IPV4: &[Entry] = kept! {
    "ip_forward" "net.ipv4.ip_forward" = 0,
    "ip_local_port_range" "net.ipv4.ip_local_port_range" = "32768\t60999",
    "ip_unprivileged_port_start" "net.ipv4.ip_unprivileged_port_start" = 1024,
    "ping_group_range" "net.ipv4.ping_group_range" = "1\t0",
    "tcp_keepalive_time" "net.ipv4.tcp_keepalive_time" = 7200,
    "tcp_rmem" "net.ipv4.tcp_rmem" = "4096\t131072\t6291456",
    "tcp_syncookies" "net.ipv4.tcp_syncookies" = 1,
    "tcp_wmem" "net.ipv4.tcp_wmem" = "4096\t16384\t4194304",
};

/// Number `index` of a value, or `default` when it was not set (or not to a number).
pub fn number(path: &str, index: usize, default: u64) -> u64 {
    let values = VALUES.lock();
    let text = values.get(path).and_then(|value| core::str::from_utf8(value).ok());
    text.and_then(|text| text.split_ascii_whitespace().nth(index)?.parse().ok()).unwrap_or(default)
}

fn kept_or(path: &str, default: impl core::fmt::Display) -> Result<Vec<u8>> {
    Ok(match VALUES.lock().get(path) {
        Some(value) => [value, &b"\n"[..]].concat(),
        None => line(default),
    })
}

fn named(mut name: Vec<u8>) -> Vec<u8> {
    name.push(b'\n');
    name
}

fn short(name: &[u8]) -> Result<&[u8]> {
    if name.len() > 64 { Err(EINVAL) } else { Ok(name) }
}

fn fresh() -> [u8; 16] {
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    // Version 4, variant 1 (RFC 9562).
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn uuid(b: [u8; 16]) -> Vec<u8> {
    let hex = |part: &[u8]| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    line(format!("{}-{}-{}-{}-{}", hex(&b[..4]), hex(&b[4..6]), hex(&b[6..8]), hex(&b[8..10]), hex(&b[10..])))
}
