//! Start of the sandbox: from the boot parameters to the first task; and its end by panic.

use alloc::string::String;
use core::{
    fmt::Write,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use sentry_abi::{boot::BootParams, config::SandboxConfig};

use crate::{arch, drivers, log, mm, sched, syscall, time};

/// Where every CPU arrives, on its boot stack.
pub fn start(params: &'static BootParams, cpu: usize) -> ! {
    if cpu == 0 {
        arch::init(params);
        arch::init_cpu(0, params);
        boot(params);
    } else {
        arch::init_cpu(cpu, params);
    }
    sched::idle_loop()
}

fn boot(params: &'static BootParams) {
    arch::host::init(params);
    arch::xstate::init(params);
    assert!(
        params.magic == sentry_abi::boot::MAGIC && params.version == sentry_abi::boot::VERSION,
        "the VMM speaks another version of the boot parameters"
    );
    mm::kmem::init(params);
    time::init(params);
    crate::random::init(&params.seed);
    sched::set_cpu_count(params.cpu_count as usize);
    let config = match arch::host::config(params) {
        Some(config) => config,
        None => panic!("the sandbox configuration cannot be decoded"),
    };
    log::set_level(config.log_level);
    syscall::configure_strace(&config.strace);
    mm::init(params, config.memory_limit);
    drivers::init(params);
    crate::task::table::set_limit(config.pids_limit);
    start_init(config);
}

fn start_init(_config: SandboxConfig) {}

/// Completion interrupts of devices: bit `n` for device `n` of the boot parameters.
pub fn device_interrupts(devices: u64) {
    crate::drivers::interrupt(devices)
}

static PANICKING: AtomicBool = AtomicBool::new(false);

/// The sentry has a bug: says where and ends the sandbox.
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if PANICKING.swap(true, SeqCst) {
        // A panic while reporting one, or on a second CPU: the first report is the one that counts.
        arch::halt();
    }
    let mut report = String::new();
    let _ = writeln!(report, "sentry panic on cpu {}: {info}", arch::cpu_index());
    for address in arch::backtrace() {
        let _ = writeln!(report, "  at image+{address:#x}");
    }
    report.push_str(&sched::describe());
    arch::host::panic(report.as_bytes())
}
