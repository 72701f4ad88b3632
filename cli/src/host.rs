//! Facts about the host that decisions depend on.

/// Bytes of memory the host has.
pub fn memory_total() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// CPUs this process may run on.
pub fn allowed_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// Whether AppArmor is in force.
pub fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// Whether SELinux is in force, or would be when asked.
pub fn has_selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

/// The host's name, which a container without one of its own has too.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
