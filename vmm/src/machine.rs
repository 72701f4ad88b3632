//! A sandbox's machine: memory, devices and vCPUs put together, and the loop that answers a vCPU's exits. It does not know
//! which backend executes the vCPUs.
//!
//! Each vCPU has a thread; vCPU 0 starts at once, the others when the sentry asks. The calling thread runs the host side of
//! the devices (event-manager) until the sandbox has ended.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberOps};
use rustix::io::Errno;
use sentry_abi::{
    boot::{Device, DeviceKind, MAX_CPUS, MAX_DEVICES},
    counters::Counter,
    hostcall::LogLevel,
    irq,
    layout::{BOOT_PARAMS, HOSTCALL_PORT, MMIO_BASE, MMIO_STRIDE, SERIAL_PORT},
};
use vm_device::{
    DeviceMmio,
    bus::{MmioAddress, MmioRange},
    device_manager::{IoManager, MmioManager},
};
use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use crate::hostcall::{InitSink, LogSink, OomSink};
use crate::{
    boot_params,
    hostcall::{Answer, HostCalls},
    image, loader,
    memory::GuestMemory,
    recorder::Recorder,
    seccomp::{self, Role},
    symbols::Symbols,
    vcpu::{Entry, Exit, Vcpu, Vm},
    window_files::WindowFiles,
};

/// Offset of QueueNotify in the virtio-mmio registers (virtio 1.2, 4.2.2).
const QUEUE_NOTIFY: u64 = 0x50;
/// Registers of the 8250.
const SERIAL_PORTS: u16 = 8;
/// How long vCPU threads may take to see that the sandbox has ended.
const STOP_LIMIT: Duration = Duration::from_secs(2);
const VCPU_STACK: usize = 256 << 10;

/// The host side of devices, run by the thread that calls [`Machine::run`].
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// A virtio-mmio device.
pub struct DeviceConfig {
    pub kind: DeviceKind,
    /// Its registers.
    pub mmio: Arc<dyn DeviceMmio + Send + Sync>,
    /// Signalled by the device when it has used buffers.
    pub irq: EventFd,
    /// By queue: signalled when the sentry notifies the queue.
    pub queues: Vec<EventFd>,
}

pub struct MachineConfig {
    pub cpus: u32,
    /// Encoded `sentry_abi::config::SandboxConfig`.
    pub config: Vec<u8>,
    /// Device `n` gets the registers at `MMIO_BASE + n * MMIO_STRIDE` and interrupt bit `DEVICE0 + n`.
    pub devices: Vec<DeviceConfig>,
    pub subscribers: Vec<Subscriber>,
    /// Where the gofer's descriptors come in ([`crate::window_files`]).
    pub window_socket: Option<OwnedFd>,
    pub log: LogSink,
    pub on_init: InitSink,
    pub on_oom: OomSink,
}

/// How a sandbox ended.
#[derive(Debug)]
pub enum Outcome {
    /// The init process's status, as wait(2) encodes it.
    Exited(i32),
    /// The sentry failed; the report.
    Panicked(String),
    /// The sandbox cannot go on; why.
    Failed(String),
}

pub struct Machine {
    shared: Arc<Shared>,
    events: EventManager<Subscriber>,
    threads: Vec<JoinHandle<()>>,
}

/// What vCPU threads and the main thread share.
struct Shared {
    calls: HostCalls,
    io: IoManager,
    serial: Mutex<Serial<NoTrigger, NoEvents, LineLog>>,
    entry: Entry,
    cpus: Vec<Cpu>,
    /// Virtual address and size of the loaded image.
    image_at: (u64, u64),
    outcome: Mutex<Option<Outcome>>,
    ended: EventFd,
    stopping: AtomicBool,
    /// vCPU threads that have not ended.
    running: Mutex<usize>,
    running_changed: Condvar,
    exits: [AtomicU64; 4],
}

#[derive(Default)]
struct Cpu {
    started: Mutex<bool>,
    changed: Condvar,
    recorder: Mutex<Recorder>,
}

/// Access to a running machine from other threads.
#[derive(Clone)]
pub struct MachineHandle(Arc<Shared>);

impl MachineHandle {
    /// Ends the sandbox; the first outcome stands.
    pub fn stop(&self, outcome: Outcome) {
        self.0.end(outcome);
    }

    pub fn counters(&self) -> Vec<(Counter, u64)> {
        let kinds = [Counter::ExitMmio, Counter::ExitPio, Counter::ExitHalt, Counter::ExitInterrupted];
        let mut counters: Vec<_> =
            kinds.into_iter().zip(self.0.exits.iter().map(|exits| exits.load(Relaxed))).collect();
        counters.extend(self.0.calls.vm.counters());
        counters
    }

    /// The sentry's own counters by number, once it has ended; none before.
    pub fn sentry_counters(&self) -> Vec<u64> {
        lock(&self.0.calls.counters).clone()
    }

    /// Last exits of every vCPU.
    pub fn flight_recorder(&self) -> String {
        self.0.flight_recorder()
    }
}

impl Machine {
    /// Loads the sentry and writes its boot parameters; nothing runs yet.
    pub fn new(vm: Arc<dyn Vm>, memory: Arc<GuestMemory>, config: MachineConfig) -> Result<Machine> {
        let MachineConfig { cpus, config, devices, subscribers, window_socket, log, on_init, on_oom } = config;
        ensure!((1..=MAX_CPUS as u32).contains(&cpus), "{cpus} vCPUs: not between 1 and {MAX_CPUS}");
        ensure!(devices.len() <= MAX_DEVICES, "{} devices: at most {MAX_DEVICES}", devices.len());

        let image = loader::load(&memory, image::SENTRY)?;
        let platform = vm.platform();
        let (io, table) = attach(&*vm, devices)?;
        let contents = boot_params::Contents { platform, image, cpus, devices: &table, config: &config };
        boot_params::write(&memory, &contents)?;

        let mut events = EventManager::<Subscriber>::new().map_err(|error| anyhow!("event loop: {error}"))?;
        let ended = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).context("eventfd")?;
        events.add_subscriber(Box::new(Ended(ended.try_clone().context("eventfd")?)));
        for subscriber in subscribers {
            events.add_subscriber(subscriber);
        }

        let shared = Shared {
            entry: Entry { rip: platform.direct_base + image.entry, params: platform.direct_base + BOOT_PARAMS },
            io,
            serial: Mutex::new(Serial::new(NoTrigger, LineLog { log: log.clone(), line: Vec::new() })),
            cpus: (0..cpus).map(|_| Cpu::default()).collect(),
            image_at: (platform.direct_base + image.base, image.size),
            calls: HostCalls {
                memory,
                vm,
                files: WindowFiles::new(window_socket),
                log,
                on_init,
                on_oom,
                counters: Mutex::default(),
            },
            outcome: Mutex::new(None),
            ended,
            stopping: AtomicBool::new(false),
            running: Mutex::new(0),
            running_changed: Condvar::new(),
            exits: Default::default(),
        };
        Ok(Machine { shared: Arc::new(shared), events, threads: Vec::new() })
    }

    pub fn handle(&self) -> MachineHandle {
        MachineHandle(self.shared.clone())
    }

    /// Adds and removes subscribers of the running machine from other threads.
    pub fn endpoint(&self) -> RemoteEndpoint<Subscriber> {
        self.events.remote_endpoint()
    }

    /// Runs the sandbox to its end.
    pub fn run(mut self) -> Result<Outcome> {
        for index in 0..self.shared.cpus.len() as u32 {
            let shared = self.shared.clone();
            *lock(&shared.running) += 1;
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(VCPU_STACK)
                .spawn(move || vcpu_thread(&shared, index));
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    *lock(&self.shared.running) -= 1;
                    self.shared.end(Outcome::Failed(format!("starting vCPU thread {index}: {error}")));
                    break;
                }
            }
        }
        confine(Some(Role::Main));
        self.shared.start_cpu(0).ok();
        let outcome = loop {
            if let Some(outcome) = lock(&self.shared.outcome).take() {
                break outcome;
            }
            if let Err(error) = self.events.run() {
                break Outcome::Failed(format!("event loop: {error}"));
            }
        };
        self.stop_vcpus();
        Ok(outcome)
    }

    fn stop_vcpus(&mut self) {
        let shared = &self.shared;
        shared.stopping.store(true, Relaxed);
        let kicker = shared.calls.vm.kicker();
        let deadline = Instant::now() + STOP_LIMIT;
        let mut running = lock(&shared.running);
        while *running > 0 && Instant::now() < deadline {
            for (index, cpu) in shared.cpus.iter().enumerate() {
                drop(lock(&cpu.started));
                cpu.changed.notify_all();
                kicker.kick(index as u32);
            }
            let wait = shared.running_changed.wait_timeout(running, Duration::from_millis(20));
            running = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        if *running > 0 {
            log::error!("{} vCPU threads have not stopped", *running);
            return;
        }
        drop(running);
        for thread in self.threads.drain(..) {
            // A panic in the thread has become the outcome already.
            let _ = thread.join();
        }
    }
}

/// Puts the devices on the bus and connects their events; the table is for the boot parameters.
fn attach(vm: &dyn Vm, devices: Vec<DeviceConfig>) -> Result<(IoManager, Vec<Device>)> {
    let mut io = IoManager::new();
    let mut table = Vec::new();
    for (index, device) in devices.into_iter().enumerate() {
        let mmio = MMIO_BASE + index as u64 * MMIO_STRIDE;
        let irq = irq::DEVICE0 + index as u32;
        let what = || format!("device {index} ({:?})", device.kind);
        let range =
            MmioRange::new(MmioAddress(mmio), MMIO_STRIDE).map_err(|error| anyhow!("{error:?}")).with_context(what)?;
        io.register_mmio(range, device.mmio).map_err(|error| anyhow!("{error:?}")).with_context(what)?;
        for (queue, fd) in device.queues.iter().enumerate() {
            vm.register_ioevent(fd, mmio + QUEUE_NOTIFY, queue as u32).with_context(what)?;
        }
        vm.register_irq(device.irq, irq).with_context(what)?;
        table.push(Device { kind: device.kind as u32, irq, mmio });
    }
    Ok((io, table))
}

fn vcpu_thread(shared: &Shared, index: u32) {
    /// Counts the thread out, also when it unwinds.
    struct Leave<'a>(&'a Shared, u32);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.end(Outcome::Failed(format!("vCPU thread {} panicked", self.1)));
            }
            *lock(&self.0.running) -= 1;
            self.0.running_changed.notify_all();
        }
    }
    let _leave = Leave(shared, index);
    let cpu = &shared.cpus[index as usize];
    let mut started = lock(&cpu.started);
    while !*started {
        if shared.stopping.load(Relaxed) {
            return;
        }
        started = cpu.changed.wait(started).unwrap_or_else(PoisonError::into_inner);
    }
    drop(started);

    let made = shared.calls.vm.create_vcpu(index, shared.entry);
    let ran = made.and_then(|mut vcpu| {
        confine(shared.calls.vm.vcpu_role());
        shared.run_vcpu(index, &mut *vcpu)
    });
    if let Err(error) = ran {
        shared.end(Outcome::Failed(format!("vCPU {index}: {error:#}\n{}", shared.flight_recorder())));
    }
}

/// Seccomp is one layer of several; a host that refuses filters runs sandboxes without, and says so.
fn confine(role: Option<Role>) {
    if let Some(role) = role
        && let Err(error) = seccomp::confine(role)
    {
        log::warn!("confinement: missing: {error:#}");
    }
}

impl Shared {
    fn run_vcpu(&self, index: u32, vcpu: &mut dyn Vcpu) -> Result<()> {
        while !self.stopping.load(Relaxed) {
            let exit = vcpu.run()?;
            lock(&self.cpus[index as usize].recorder).exit(&exit);
            match exit {
                Exit::MmioRead { addr, data } => {
                    self.count(0);
                    data.fill(0xff);
                    if self.io.mmio_read(MmioAddress(addr), data).is_err() {
                        log::debug!("vCPU {index}: read of {} bytes at {addr:#x}, where nothing is", data.len());
                    }
                }
                Exit::MmioWrite { addr, data } => {
                    self.count(0);
                    if self.io.mmio_write(MmioAddress(addr), data).is_err() {
                        log::debug!("vCPU {index}: write of {} bytes at {addr:#x}, where nothing is", data.len());
                    }
                }
                Exit::PioRead { port, data } => {
                    self.count(1);
                    data.fill(0xff);
                    if let (Some(offset), [byte, ..]) = (serial_offset(port), data) {
                        *byte = lock(&self.serial).read(offset);
                    }
                }
                Exit::PioWrite { port: HOSTCALL_PORT, data } => {
                    self.count(1);
                    if data != index.to_le_bytes() {
                        log::warn!("vCPU {index}: host call of another vCPU: {data:x?}");
                        continue;
                    }
                    self.host_call(index)?;
                }
                Exit::PioWrite { port, data } => {
                    self.count(1);
                    if let (Some(offset), [byte, ..]) = (serial_offset(port), data) {
                        // Only a trigger or a full log could fail: early output is lost then, nothing else.
                        let _ = lock(&self.serial).write(offset, *byte);
                    }
                }
                Exit::Interrupted => self.count(3),
                Exit::Failed(why) => {
                    let place = vcpu.describe();
                    let text = format!("vCPU {index}: {why}\n{place}\n{}", self.flight_recorder());
                    self.end(Outcome::Failed(self.annotate(&text)));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn host_call(&self, index: u32) -> Result<()> {
        let call = self.calls.fetch(index)?;
        lock(&self.cpus[index as usize].recorder).host_call(call.op, call.args[0], call.args[1]);
        let result = match self.calls.perform(&call) {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::StartCpu(cpu)) => self.start_cpu(cpu),
            Ok(Answer::Exit(status)) => {
                self.end(Outcome::Exited(status));
                Ok(())
            }
            Ok(Answer::Panic(report)) => {
                let text = format!("{report}\n{}", self.flight_recorder());
                self.end(Outcome::Panicked(self.annotate(&text)));
                Ok(())
            }
            Err(errno) => Err(errno),
        };
        self.calls.complete(index, result)
    }

    fn start_cpu(&self, cpu: u32) -> Result<(), Errno> {
        let cpu = self.cpus.get(cpu as usize).ok_or(Errno::INVAL)?;
        let mut started = lock(&cpu.started);
        if *started {
            return Err(Errno::BUSY);
        }
        *started = true;
        cpu.changed.notify_all();
        Ok(())
    }

    /// Records how the sandbox ended, unless that is known, and stops every vCPU.
    fn end(&self, outcome: Outcome) {
        self.stopping.store(true, Relaxed);
        lock(&self.outcome).get_or_insert(outcome);
        if let Err(error) = self.ended.write(1) {
            log::error!("waking the main thread: {error}");
        }
    }

    fn annotate(&self, text: &str) -> String {
        Symbols::new(image::SENTRY, self.image_at.0, self.image_at.1).annotate(text)
    }

    fn flight_recorder(&self) -> String {
        let reports = self.cpus.iter().enumerate().filter(|(_, cpu)| *lock(&cpu.started));
        reports.map(|(index, cpu)| format!("vCPU {index}, last exits:\n{}", lock(&cpu.recorder).report())).collect()
    }

    fn count(&self, kind: usize) {
        self.exits[kind].fetch_add(1, Relaxed);
    }
}

/// A thread that panicked while it held a lock has ended the sandbox; the others only have to get out.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serial_offset(port: u16) -> Option<u8> {
    port.checked_sub(SERIAL_PORT).filter(|&offset| offset < SERIAL_PORTS).map(|offset| offset as u8)
}

/// The sentry polls its early console.
struct NoTrigger;

impl Trigger for NoTrigger {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Serial output as log lines.
struct LineLog {
    log: LogSink,
    line: Vec<u8>,
}

impl Write for LineLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        const LONGEST: usize = 1024;
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() >= LONGEST {
                (self.log)(LogLevel::Debug, &String::from_utf8_lossy(&self.line));
                self.line.clear();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Wakes the event loop when the sandbox has ended; the loop looks at the outcome itself.
struct Ended(EventFd);

impl MutEventSubscriber for Ended {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        // Non-blocking: an empty counter only means that it was read before.
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            log::error!("event loop: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use sentry_abi::{boot::Backend, hostcall::Op};

    use super::*;
    use crate::{
        memory::{MemoryConfig, UserBacking},
        vcpu::{Kick, Platform},
        xstate::Xstate,
    };

    /// A backend whose vCPUs make one host call each, then idle: vCPU 0 starts vCPU 1, which ends the sandbox.
    struct Scripted(Arc<GuestMemory>);
    struct ScriptedVcpu {
        memory: Arc<GuestMemory>,
        index: u32,
        called: bool,
        bytes: [u8; 4],
    }

    impl Vm for Scripted {
        fn platform(&self) -> Platform {
            let xstate = Xstate { xcr0: 3, size: 576 };
            Platform { backend: Backend::Para, direct_base: 0x1000_0000_0000, para_entry: 1, boot_root: 0, xstate }
        }
        fn create_vcpu(&self, index: u32, entry: Entry) -> Result<Box<dyn Vcpu>> {
            assert_eq!(entry.params, 0x1000_0000_0000 + BOOT_PARAMS);
            Ok(Box::new(ScriptedVcpu { memory: self.0.clone(), index, called: false, bytes: index.to_le_bytes() }))
        }
        fn register_ioevent(&self, _: &EventFd, _: u64, _: u32) -> Result<()> {
            Ok(())
        }
        fn register_irq(&self, _: EventFd, _: u32) -> Result<()> {
            Ok(())
        }
        fn raise_irq(&self, _: u32, _: u32) -> Result<()> {
            Ok(())
        }
        fn window_map(&self, _: u64, _: &Arc<OwnedFd>, _: u64, _: u64, _: bool) -> Result<()> {
            Ok(())
        }
        fn window_unmap(&self, _: u64, _: u64) -> Result<()> {
            Ok(())
        }
        fn kicker(&self) -> Arc<dyn Kick> {
            struct Nothing;
            impl Kick for Nothing {
                fn kick(&self, _: u32) {}
            }
            Arc::new(Nothing)
        }
        fn counters(&self) -> Vec<(Counter, u64)> {
            Vec::new()
        }
    }

    impl Vcpu for ScriptedVcpu {
        fn run(&mut self) -> Result<Exit<'_>> {
            if self.called {
                std::thread::sleep(Duration::from_millis(1));
                return Ok(Exit::Interrupted);
            }
            self.called = true;
            let (op, argument) = if self.index == 0 { (Op::StartCpu, 1u64) } else { (Op::Exit, 0x300) };
            let block = boot_params::hostcall_block(self.index);
            self.memory.write(block, &(op as u64).to_le_bytes())?;
            self.memory.write(block + 8, &argument.to_le_bytes())?;
            Ok(Exit::PioWrite { port: HOSTCALL_PORT, data: &self.bytes })
        }
        fn describe(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn vcpus_start_on_request_and_the_status_comes_out() {
        let memory =
            GuestMemory::new(&MemoryConfig { user_size: 2 << 20, user_backing: UserBacking::Anonymous }).unwrap();
        let config = MachineConfig {
            cpus: 2,
            config: vec![1, 2, 3],
            devices: Vec::new(),
            subscribers: Vec::new(),
            window_socket: None,
            log: Arc::new(|_, _| {}),
            on_init: Arc::new(|_, _| {}),
            on_oom: Arc::new(|| {}),
        };
        let machine = Machine::new(Arc::new(Scripted(memory.clone())), memory, config).unwrap();
        let handle = machine.handle();
        assert!(matches!(machine.run().unwrap(), Outcome::Exited(0x300)));
        assert!(handle.flight_recorder().contains("host call 2 0x300"));
        assert!(handle.counters().contains(&(Counter::ExitPio, 2)));
    }

    #[test]
    fn serial_output_becomes_lines() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let log: LogSink = Arc::new(move |_, line| lock(&sink).push(line.to_owned()));
        let mut serial = Serial::new(NoTrigger, LineLog { log, line: Vec::new() });
        for byte in b"one\ntwo\nthree" {
            serial.write(0, *byte).unwrap();
        }
        assert_eq!(*lock(&lines), ["one", "two"]);
        assert_eq!(serial_offset(SERIAL_PORT + 5), Some(5));
        assert_eq!(serial_offset(SERIAL_PORT + 8), None);
        assert_eq!(serial_offset(0), None);
    }
}
