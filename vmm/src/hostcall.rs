//! Host calls (`sentry_abi::hostcall`): what the sentry asks of the VMM beside its devices. The sandbox is hostile: every
//! argument is checked here, sizes are bounded, and a failure is an errno for the sentry.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{FileType, OFlags},
    io::Errno,
};
use sentry_abi::{
    counters::COUNT,
    hostcall::{HostCall, LogLevel, Op},
    layout::{PAGE_SIZE, WINDOW_SIZE},
};

use crate::{boot_params::hostcall_block, clock, memory::GuestMemory, vcpu::Vm, window_files::WindowFiles};

/// Longest log line and panic report taken; the rest is cut.
const MAX_TEXT: u64 = 64 << 10;
const MAX_ENTROPY: u64 = 1 << 20;

/// Where log lines of the sandbox go.
pub type LogSink = Arc<dyn Fn(LogLevel, &str) + Send + Sync>;

/// Hears whether init's program has begun: 0 or a positive errno, and what was to be run.
pub type InitSink = Arc<dyn Fn(i32, &str) + Send + Sync>;
/// Called when the application has run out of memory.
pub type OomSink = Arc<dyn Fn() + Send + Sync>;

/// What a host call comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    StartCpu(u32),
    /// The sandbox has ended with this wait status.
    Exit(i32),
    /// The sentry has failed; its report.
    Panic(String),
}

pub(crate) struct HostCalls {
    pub memory: Arc<GuestMemory>,
    pub vm: Arc<dyn Vm>,
    pub files: WindowFiles,
    pub log: LogSink,
    pub on_init: InitSink,
    pub on_oom: OomSink,
    /// The sentry's counters by number, once it has ended.
    pub counters: Mutex<Vec<u64>>,
}

impl HostCalls {
    /// The call that `cpu` has written to its block.
    pub fn fetch(&self, cpu: u32) -> anyhow::Result<HostCall> {
        let words: [u64; 8] = {
            let mut bytes = [0; size_of::<HostCall>()];
            self.memory.read(hostcall_block(cpu), &mut bytes)?;
            std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[i * 8 + j])))
        };
        let [op, a, b, c, d, e, f, result] = words;
        Ok(HostCall { op, args: [a, b, c, d, e, f], result: result as i64 })
    }

    /// Stores the result into the block of `cpu`.
    pub fn complete(&self, cpu: u32, result: Result<(), Errno>) -> anyhow::Result<()> {
        let result = match result {
            Ok(()) => 0,
            Err(errno) => -i64::from(errno.raw_os_error()),
        };
        let at = hostcall_block(cpu) + std::mem::offset_of!(HostCall, result) as u64;
        self.memory.write(at, &result.to_le_bytes())
    }

    pub fn perform(&self, call: &HostCall) -> Result<Answer, Errno> {
        let [a0, a1, a2, a3, a4, _] = call.args;
        match op(call.op).ok_or(Errno::NOSYS)? {
            Op::Log => (self.log)(level(a0), &self.text(a1, a2)?),
            Op::Exit => {
                let status = i32::try_from(a0).map_err(|_| Errno::INVAL)?;
                if a1 != 0 {
                    self.take_counters(a1)?;
                }
                return Ok(Answer::Exit(status));
            }
            Op::Panic => return Ok(Answer::Panic(self.text(a0, a1).unwrap_or_else(|_| "(no report)".to_owned()))),
            Op::StartCpu => return Ok(Answer::StartCpu(u32::try_from(a0).map_err(|_| Errno::INVAL)?)),
            Op::ClockSample => {
                let sample = clock::sample();
                let words = [sample.tsc, sample.monotonic, sample.realtime, sample.boottime];
                self.write(a0, words.map(u64::to_le_bytes).as_flattened())?;
            }
            Op::WindowMap => self.window_map(a0, a1, a2, a3, a4)?,
            Op::WindowUnmap => {
                window_range(a0, a1)?;
                self.vm.window_unmap(a0, a1).map_err(|error| errno(&error))?;
            }
            Op::ReleaseMemory => self.memory.release(a0, a1).map_err(|error| errno(&error))?,
            Op::Entropy => self.entropy(a0, a1)?,
            Op::WindowForget => {
                if !self.files.forget(a0)? {
                    return Err(Errno::BADF);
                }
            }
            Op::InitResult => {
                let errno = i32::try_from(a0).ok().filter(|errno| (0..4096).contains(errno)).ok_or(Errno::INVAL)?;
                (self.on_init)(errno, &self.text(a1, a2)?);
            }
            Op::OutOfMemory => (self.on_oom)(),
        }
        Ok(Answer::Done)
    }

    fn take_counters(&self, gpa: u64) -> Result<(), Errno> {
        let mut bytes = [0; 8 * COUNT];
        self.memory.read(gpa, &mut bytes).map_err(|_| Errno::FAULT)?;
        let (words, _) = bytes.as_chunks();
        let counters = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
        Ok(())
    }

    fn window_map(&self, handle: u64, offset: u64, len: u64, window_offset: u64, writable: u64) -> Result<(), Errno> {
        window_range(window_offset, len)?;
        let end = offset.checked_add(len).ok_or(Errno::OVERFLOW)?;
        if !offset.is_multiple_of(PAGE_SIZE) || i64::try_from(end).is_err() || writable > 1 {
            return Err(Errno::INVAL);
        }
        let file = self.files.get(handle)?.ok_or(Errno::BADF)?;
        let writable = writable == 1;
        mappable(&file, writable)?;
        self.vm.window_map(window_offset, &file, offset, len, writable).map_err(|error| errno(&error))
    }

    fn entropy(&self, gpa: u64, len: u64) -> Result<(), Errno> {
        if len > MAX_ENTROPY {
            return Err(Errno::INVAL);
        }
        let mut bytes = vec![0; len as usize];
        fill_random(&mut bytes)?;
        self.write(gpa, &bytes)
    }

    fn text(&self, gpa: u64, len: u64) -> Result<String, Errno> {
        let mut bytes = vec![0; len.min(MAX_TEXT) as usize];
        self.memory.read(gpa, &mut bytes).map_err(|_| Errno::FAULT)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.memory.write(gpa, bytes).map_err(|_| Errno::FAULT)
    }
}

/// Only regular files may show in the window (a device's pages could do anything), and only a descriptor open for writing
/// may show writable.
fn mappable(file: &OwnedFd, writable: bool) -> Result<(), Errno> {
    if FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    let access = rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE;
    let allowed = if writable { access == OFlags::RDWR } else { access == OFlags::RDWR || access == OFlags::RDONLY };
    if allowed { Ok(()) } else { Err(Errno::ACCESS) }
}

fn window_range(window_offset: u64, len: u64) -> Result<(), Errno> {
    let aligned = window_offset.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) && len > 0;
    let inside = window_offset.checked_add(len).is_some_and(|end| end <= WINDOW_SIZE);
    if aligned && inside { Ok(()) } else { Err(Errno::INVAL) }
}

fn op(number: u64) -> Option<Op> {
    const ALL: [Op; 12] = [
        Op::Log,
        Op::Exit,
        Op::Panic,
        Op::StartCpu,
        Op::ClockSample,
        Op::WindowMap,
        Op::WindowUnmap,
        Op::ReleaseMemory,
        Op::Entropy,
        Op::WindowForget,
        Op::InitResult,
        Op::OutOfMemory,
    ];
    ALL.into_iter().find(|&op| op as u64 == number)
}

fn level(number: u64) -> LogLevel {
    match number {
        1 => LogLevel::Error,
        2 => LogLevel::Warn,
        3 => LogLevel::Info,
        5 => LogLevel::Strace,
        _ => LogLevel::Debug,
    }
}

/// The errno at the bottom of an error, for the sentry; the whole error goes to our log.
fn errno(error: &anyhow::Error) -> Errno {
    log::warn!("host call: {error:#}");
    error.downcast_ref::<Errno>().copied().unwrap_or(Errno::INVAL)
}

/// Fills the buffer from the host's generator.
pub(crate) fn fill_random(mut bytes: &mut [u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty()) {
            Ok(filled) => bytes = &mut bytes[filled..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use sentry_abi::layout::{KERNEL_BASE, KERNEL_SIZE, USER_BASE, WINDOW_BASE};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::{
        memory::{MemoryConfig, UserBacking},
        vcpu::{Entry, Kick, Platform, Vcpu},
        window_files,
    };

    /// A machine without vCPUs.
    struct NoVm(Arc<GuestMemory>);

    impl Vm for NoVm {
        fn platform(&self) -> Platform {
            unimplemented!("the tests make no vCPU")
        }
        fn create_vcpu(&self, _: u32, _: Entry) -> anyhow::Result<Box<dyn Vcpu>> {
            anyhow::bail!("the tests make no vCPU")
        }
        fn register_ioevent(&self, _: &EventFd, _: u64, _: u32) -> anyhow::Result<()> {
            Ok(())
        }
        fn register_irq(&self, _: EventFd, _: u32) -> anyhow::Result<()> {
            Ok(())
        }
        fn raise_irq(&self, _: u32, _: u32) -> anyhow::Result<()> {
            Ok(())
        }
        fn window_map(
            &self,
            at: u64,
            file: &Arc<OwnedFd>,
            offset: u64,
            len: u64,
            writable: bool,
        ) -> anyhow::Result<()> {
            self.0.window_map(at, file, offset, len, writable)
        }
        fn window_unmap(&self, at: u64, len: u64) -> anyhow::Result<()> {
            self.0.window_unmap(at, len)
        }
        fn kicker(&self) -> Arc<dyn Kick> {
            unimplemented!("the tests make no vCPU")
        }
        fn counters(&self) -> Vec<(sentry_abi::counters::Counter, u64)> {
            Vec::new()
        }
    }

    struct Fixture {
        calls: HostCalls,
        lines: Arc<Mutex<Vec<String>>>,
        gofer: OwnedFd,
    }

    fn fixture() -> Fixture {
        let memory =
            GuestMemory::new(&MemoryConfig { user_size: 2 << 20, user_backing: UserBacking::Anonymous }).unwrap();
        let (ours, gofer) = window_files::tests::pair();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let calls = HostCalls {
            vm: Arc::new(NoVm(memory.clone())),
            memory,
            files: WindowFiles::new(Some(ours)),
            on_init: {
                let sink = sink.clone();
                Arc::new(move |errno, what| sink.lock().unwrap().push(format!("init {what}: {errno}")))
            },
            on_oom: {
                let sink = sink.clone();
                Arc::new(move || sink.lock().unwrap().push("out of memory".to_owned()))
            },
            counters: Mutex::default(),
            log: Arc::new(move |level, line| sink.lock().unwrap().push(format!("{level:?}: {line}"))),
        };
        Fixture { calls, lines, gofer }
    }

    impl Fixture {
        fn call(&self, op: u64, args: &[u64]) -> Result<Answer, Errno> {
            let mut call = HostCall { op, ..HostCall::default() };
            call.args[..args.len()].copy_from_slice(args);
            self.calls.perform(&call)
        }

        fn send(&self, handle: u64, file: impl Into<OwnedFd>) {
            window_files::tests::send(&self.gofer, &handle.to_le_bytes(), Some(&file.into()));
        }
    }

    const MAP: u64 = Op::WindowMap as u64;

    fn memfd() -> File {
        let mut file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all(&[9; 2 * PAGE_SIZE as usize]).unwrap();
        file
    }

    #[test]
    fn unknown_calls_are_enosys() {
        let fixture = fixture();
        for op in [0, 99, u64::MAX] {
            assert_eq!(fixture.call(op, &[]), Err(Errno::NOSYS));
        }
    }

    #[test]
    fn blocks_are_read_and_answered() {
        let fixture = fixture();
        let mut block = [0; 64];
        for (word, chunk) in block.chunks_mut(8).enumerate() {
            chunk.copy_from_slice(&(word as u64 + 1).to_le_bytes());
        }
        fixture.calls.memory.write(hostcall_block(3), &block).unwrap();
        let call = fixture.calls.fetch(3).unwrap();
        assert_eq!((call.op, call.args, call.result), (1, [2, 3, 4, 5, 6, 7], 8));
        fixture.calls.complete(3, Err(Errno::BADF)).unwrap();
        assert_eq!(fixture.calls.fetch(3).unwrap().result, -9);
    }

    #[test]
    fn log_lines_are_bounded_and_checked() {
        let fixture = fixture();
        fixture.calls.memory.write(USER_BASE, b"hello\xff").unwrap();
        assert_eq!(fixture.call(Op::Log as u64, &[2, USER_BASE, 6]), Ok(Answer::Done));
        assert_eq!(fixture.call(Op::Log as u64, &[1, KERNEL_BASE, u64::MAX]), Ok(Answer::Done));
        assert_eq!(fixture.call(Op::Log as u64, &[1, KERNEL_BASE + KERNEL_SIZE, 1]), Err(Errno::FAULT));
        assert_eq!(fixture.call(Op::Log as u64, &[1, WINDOW_BASE, 1]), Err(Errno::FAULT));
        let lines = fixture.lines.lock().unwrap();
        assert_eq!(lines[0], "Warn: hello\u{fffd}");
        assert_eq!(lines[1].len(), "Error: ".len() + MAX_TEXT as usize);
    }

    #[test]
    fn the_start_of_init_is_reported() {
        let fixture = fixture();
        fixture.calls.memory.write(USER_BASE, b"/bin/x").unwrap();
        let op = Op::InitResult as u64;
        assert_eq!(fixture.call(op, &[2, USER_BASE, 6]), Ok(Answer::Done));
        assert_eq!(fixture.call(op, &[u64::MAX, USER_BASE, 6]), Err(Errno::INVAL));
        assert_eq!(fixture.call(op, &[0, u64::MAX, 6]), Err(Errno::FAULT));
        assert_eq!(*fixture.lines.lock().unwrap(), ["init /bin/x: 2"]);
    }

    #[test]
    fn ends_are_reported() {
        let fixture = fixture();
        assert_eq!(fixture.call(Op::Exit as u64, &[0x100]), Ok(Answer::Exit(0x100)));
        assert_eq!(fixture.call(Op::Exit as u64, &[u64::MAX]), Err(Errno::INVAL));
        assert_eq!(fixture.call(Op::Exit as u64, &[0, u64::MAX]), Err(Errno::FAULT));
        fixture.calls.memory.write(USER_BASE, &7u64.to_le_bytes()).unwrap();
        assert_eq!(fixture.call(Op::Exit as u64, &[0, USER_BASE]), Ok(Answer::Exit(0)));
        assert_eq!(fixture.calls.counters.lock().unwrap()[..2], [7, 0]);
        let panic = fixture.call(Op::Panic as u64, &[u64::MAX, 5]);
        assert_eq!(panic, Ok(Answer::Panic("(no report)".to_owned())));
        assert_eq!(fixture.call(Op::StartCpu as u64, &[1]), Ok(Answer::StartCpu(1)));
        assert_eq!(fixture.call(Op::StartCpu as u64, &[1 << 40]), Err(Errno::INVAL));
    }

    #[test]
    fn window_maps_only_what_the_gofer_sent() {
        let fixture = fixture();
        let page = PAGE_SIZE;
        assert_eq!(fixture.call(MAP, &[5, 0, page, 0, 0]), Err(Errno::BADF));
        fixture.send(5, memfd());
        assert_eq!(fixture.call(MAP, &[5, page, page, 2 * page, 1]), Ok(Answer::Done));
        let backing = fixture.calls.memory.window_backing(WINDOW_BASE + 2 * page).unwrap();
        assert!(backing.writable && backing.offset == page);
        for args in [
            [5, 1, page, 0, 0],
            [5, 0, 0, 0, 0],
            [5, 0, page, 1, 0],
            [5, 0, page, WINDOW_SIZE, 0],
            [5, 0, page, u64::MAX - page + 1, 0],
            [5, 0, page, 0, 2],
            [5, 1 << 63, page, 0, 0],
        ] {
            assert_eq!(fixture.call(MAP, &args), Err(Errno::INVAL), "{args:x?}");
        }
        assert_eq!(fixture.call(Op::WindowForget as u64, &[5]), Ok(Answer::Done));
        assert_eq!(fixture.call(MAP, &[5, 0, page, 0, 0]), Err(Errno::BADF));
        assert_eq!(fixture.call(Op::WindowUnmap as u64, &[2 * page, page]), Ok(Answer::Done));
        assert_eq!(fixture.call(Op::WindowUnmap as u64, &[page, u64::MAX]), Err(Errno::INVAL));
        assert!(fixture.calls.memory.window_backing(WINDOW_BASE + 2 * page).is_none());
    }

    #[test]
    fn window_refuses_devices_and_writable_maps_of_read_only_files() {
        let fixture = fixture();
        fixture.send(1, File::open("/dev/zero").unwrap());
        assert_eq!(fixture.call(MAP, &[1, 0, PAGE_SIZE, 0, 0]), Err(Errno::ACCESS));
        fixture.send(2, File::open("/proc/self/exe").unwrap());
        assert_eq!(fixture.call(MAP, &[2, 0, PAGE_SIZE, 0, 1]), Err(Errno::ACCESS));
        assert_eq!(fixture.call(MAP, &[2, 0, PAGE_SIZE, 0, 0]), Ok(Answer::Done));
    }

    #[test]
    fn memory_and_entropy_are_checked() {
        let fixture = fixture();
        assert_eq!(fixture.call(Op::ReleaseMemory as u64, &[KERNEL_BASE, PAGE_SIZE]), Err(Errno::INVAL));
        assert_eq!(fixture.call(Op::ReleaseMemory as u64, &[USER_BASE, PAGE_SIZE]), Ok(Answer::Done));
        assert_eq!(fixture.call(Op::Entropy as u64, &[USER_BASE, 64]), Ok(Answer::Done));
        assert_ne!(fixture.calls.memory.read_obj::<u64>(USER_BASE).unwrap(), 0);
        assert_eq!(fixture.call(Op::Entropy as u64, &[USER_BASE, u64::MAX]), Err(Errno::INVAL));
        assert_eq!(fixture.call(Op::Entropy as u64, &[u64::MAX, 8]), Err(Errno::FAULT));
        assert_eq!(fixture.call(Op::ClockSample as u64, &[USER_BASE]), Ok(Answer::Done));
        assert_eq!(fixture.call(Op::ClockSample as u64, &[u64::MAX - 4]), Err(Errno::FAULT));
    }
}
