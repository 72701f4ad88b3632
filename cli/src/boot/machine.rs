//! The machine of a sandbox: a backend, guest memory and the devices.

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, bail};
use devices::{
    console::{self, ConsoleConfig},
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

use super::control::Progress;
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

    fn device(self, kind: DeviceKind, backend: Box<dyn VirtioBackend>) -> Result<DeviceConfig> {
        let copy = |event: &EventFd| event.try_clone().context("eventfd");
        let queues = self.kicks.iter().map(copy).collect::<Result<_>>()?;
        let irq = copy(&self.call)?;
        Ok(DeviceConfig { kind, mmio: Arc::new(Mutex::new(Transport::new(backend, self.kicks, self.call))), irq, queues })
    }
}
