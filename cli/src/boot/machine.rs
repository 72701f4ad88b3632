//! The machine of a sandbox: a backend, guest memory and the devices.

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, ensure};
use devices::{
    console::{self, ConsoleConfig, Stream, Streams},
    control::{self, ControlConfig, Sentry},
    gofer::GoferBackend,
    virtio::{Backend as VirtioBackend, Transport},
};
use ptrace_fallback::PtraceVm;
use rustix::fs::{Mode, OFlags};
use sentry_abi::{
    boot::{BootParams, DeviceKind},
    config::SandboxConfig,
    hostcall::LogLevel,
    layout::BOOT_PARAMS_SIZE,
};
use vmm::{
    kvm::KvmVm,
    machine::{DeviceConfig, LogSink, Machine, MachineConfig},
    memory::{GuestMemory, MemoryConfig, UserBacking},
    vcpu::Vm,
};
use vmm_sys_util::eventfd::EventFd;

use super::{control::Progress, oom::Victim};
use crate::{
    platform::Backend,
    sandbox::channel::{Channel, Report},
};

/// What has to be opened before the process has an empty root.
pub enum Host {
    Kvm(OwnedFd),
    Ptrace,
}

impl Host {
    pub fn open(backend: Backend) -> Result<Host> {
        match backend {
            Backend::Kvm => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                Ok(Host::Kvm(rustix::fs::open("/dev/kvm", flags, Mode::empty()).context("open /dev/kvm")?))
            }
            Backend::Ptrace => Ok(Host::Ptrace),
        }
    }

    pub fn descriptor(&self) -> Option<RawFd> {
        match self {
            Host::Kvm(fd) => Some(fd.as_raw_fd()),
            Host::Ptrace => None,
        }
    }
}

/// A descriptor that is served, with its doorbells and its completions.
pub struct Events {
    pub kicks: Vec<EventFd>,
    pub call: EventFd,
}

impl Events {
    pub fn new(queues: usize) -> Result<Events> {
        let (kicks, call) = Transport::events(queues)?;
        Ok(Events { kicks, call })
    }

    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.kicks.iter().chain([&self.call]).map(|e| e.as_raw_fd())
    }

    /// For a device of two queues that rings and answers in a thread of its own.
    fn copies(&self) -> Result<[EventFd; 2]> {
        match &self.kicks[..] {
            [a, b] => Ok([a.try_clone().context("eventfd")?, b.try_clone().context("eventfd")?]),
            kicks => anyhow::bail!("{} queues where two are served", kicks.len()),
        }
    }

    fn device(self, kind: DeviceKind, backend: Box<dyn VirtioBackend>) -> Result<DeviceConfig> {
        let copy = |event: &EventFd| event.try_clone().context("eventfd");
        let queues = self.kicks.iter().map(copy).collect::<Result<_>>()?;
        let irq = copy(&self.call)?;
        Ok(DeviceConfig {
            kind,
            mmio: Arc::new(Mutex::new(Transport::new(backend, self.kicks, self.call))),
            irq,
            queues,
        })
    }
}

/// What a machine is made of.
pub struct Parts {
    pub host: Host,
    pub config: SandboxConfig,
    pub vcpus: u32,
    pub streams: Vec<Stream>,
    /// The socket towards the gofer, and its queue's events.
    pub gofer: Arc<OwnedFd>,
    pub gofer_events: Events,
    pub console_events: Events,
    pub control_events: Events,
    /// Where the container's memory is limited.
    pub victim: Option<Victim>,
}

pub struct Built {
    pub machine: Machine,
    pub memory: Arc<GuestMemory>,
    pub progress: Arc<Progress>,
    pub sentry: Sentry,
    /// For streams of processes that are started later.
    pub streams: Streams,
}

/// Puts it together; nothing runs yet.
pub fn build(parts: Parts, channel: &Arc<Channel>) -> Result<Built> {
    let Parts { host, config, vcpus, streams, gofer, gofer_events, console_events, control_events, victim } = parts;
    let encoded = postcard::to_allocvec(&config).context("encode the configuration")?;
    let room = BOOT_PARAMS_SIZE as usize - size_of::<BootParams>();
    ensure!(encoded.len() <= room, "the configuration takes {} bytes, and {room} are there", encoded.len());

    let user_backing = match &host {
        Host::Kvm(_) => UserBacking::Anonymous,
        Host::Ptrace => UserBacking::Memfd,
    };
    let memory = GuestMemory::new(&MemoryConfig { user_size: config.memory_limit, user_backing })?;
    // First: the ptrace backend forks, which wants a process without other threads.
    let vm: Arc<dyn Vm> = match host {
        Host::Kvm(device) => Arc::new(KvmVm::with_device(device, memory.clone())?),
        Host::Ptrace => PtraceVm::new(memory.clone(), vcpus)?,
    };

    let device_fd = || memory.device_fd().try_clone_to_owned().context("device memory");
    let gofer_device = gofer_events.device(DeviceKind::Gofer, Box::new(GoferBackend::new(gofer.clone())))?;
    let console = console::spawn(ConsoleConfig {
        streams,
        device_fd: device_fd()?,
        kicks: console_events.copies()?,
        call: console_events.call.try_clone().context("eventfd")?,
    })?;
    let streams_of_others = console.streams();
    let console_device = console_events.device(DeviceKind::Console, Box::new(console))?;
    let (backend, sentry) = control::spawn(ControlConfig {
        device_fd: device_fd()?,
        kicks: control_events.copies()?,
        call: control_events.call.try_clone().context("eventfd")?,
    })?;
    let control_device = control_events.device(DeviceKind::Control, Box::new(backend))?;

    let progress = Arc::new(Progress::default());
    let (reported, told) = (progress.clone(), channel.clone());
    let machine = Machine::new(
        vm,
        memory.clone(),
        MachineConfig {
            cpus: vcpus,
            config: encoded,
            devices: vec![gofer_device, console_device, control_device],
            subscribers: Vec::new(),
            window_socket: Some(gofer.try_clone().context("socket of the gofer")?),
            log: log_sink(),
            on_oom: Arc::new(move || {
                if let Some(victim) = &victim {
                    victim.give();
                }
            }),
            on_init: Arc::new(move |errno, message| {
                reported.init(errno, message);
                // The command may have left.
                let _ = told.send(&Report::Init { errno, message: message.to_owned() });
            }),
        },
    )?;
    Ok(Built { machine, memory, progress, sentry, streams: streams_of_others })
}

/// Lines of the sentry in our log. Traces of system calls are asked for by a flag of their own.
fn log_sink() -> LogSink {
    Arc::new(|level, line| match level {
        LogLevel::Error => log::error!(target: "sentry", "{line}"),
        LogLevel::Warn => log::warn!(target: "sentry", "{line}"),
        LogLevel::Info => log::info!(target: "sentry", "{line}"),
        LogLevel::Debug => log::debug!(target: "sentry", "{line}"),
        LogLevel::Strace => log::info!(target: "strace", "{line}"),
    })
}
