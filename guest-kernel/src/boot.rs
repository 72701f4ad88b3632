//! Start of the sandbox: from the boot parameters to the first task; and its end by panic.

use alloc::{string::String, sync::Arc};
use core::{
    fmt::Write,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use sentry_abi::{
    boot::BootParams,
    config::{ContainerConfig, ProcessConfig, SandboxConfig},
};

use crate::{
    arch, drivers,
    errno::{Error, Result},
    fs::{FdTable, FsContext, program, stdio},
    log, mm, sched, syscall,
    task::{self, Creds, Resources},
    time,
};

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
    time::vdso::init();
    drivers::init(params);
    crate::task::table::set_limit(config.pids_limit);
    start_init(config);
}

/// Mounts the container's files, gives it its descriptors and starts its program; ends the sandbox when that fails.
fn start_init(config: SandboxConfig) {
    let container = &config.container;
    crate::uts::configure(&container.hostname, &container.domainname);
    let fs = match crate::fs::setup(container) {
        Ok(fs) => fs,
        Err(error) => {
            let message = alloc::format!("{}: {}", error.what, crate::errno::text(error.errno()));
            crate::warn!("{message}");
            arch::host::init_result(error.errno().0, message.as_bytes());
            arch::host::exit(126 << 8);
        }
    };
    match run_init(container, config.hold, fs) {
        Ok(()) => {}
        Err(error) => arch::host::exit(task::init::failure_status(error)),
    }
}

fn run_init(container: &ContainerConfig, hold: bool, fs: Arc<FsContext>) -> Result<()> {
    let creds = Arc::new(Creds::from_config(&container.process));
    let files = FdTable::new();
    let failed = |what: &str, error: Error| {
        let message = alloc::format!("{what}: {}", crate::errno::text(error.errno()));
        arch::host::init_result(error.errno().0, message.as_bytes());
        error
    };
    let caller =
        task::launch::enter(&fs, creds.clone(), &container.process).map_err(|(error, what)| failed(&what, error))?;
    let env = task::launch::environment(&caller, &container.process);
    let process = ProcessConfig { env, ..container.process.clone() };
    let resources = Resources { files: files.clone(), fs, creds };
    let init = task::init::make_init(&process, resources, &mut |path| program::open(&caller, None, path, true))?;
    stdio::install(&container.process, &files, &init.process).map_err(|e| failed("standard streams", e))?;
    task::init::begin(init, hold);
    Ok(())
}

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
