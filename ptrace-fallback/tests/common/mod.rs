//! A rig for the tests: guest memory, page tables made by hand, user programs in assembly, and a closure in the sentry's
//! place.
#![allow(dead_code, clippy::undocumented_unsafe_blocks)]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ptrace_fallback::{PtraceVm, entry};
use sentry_abi::{
    context::{TrapKind, UserContext, state},
    counters::Counter,
    layout::{PAGE_SIZE, USER_BASE},
    para::Op,
};
use vmm::{
    memory::{GuestMemory, MemoryConfig, UserBacking},
    vcpu::{Entry, Exit, Vm},
};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const NX: u64 = 1 << 63;
pub const ACCESSED: u64 = 0x20;
pub const DIRTY: u64 = 0x40;

/// Where programs are put.
pub const CODE: u64 = 0x40_0000;
const DONE_PORT: u64 = 0x600;

pub struct Rig {
    pub memory: Arc<GuestMemory>,
    pub vm: Arc<PtraceVm>,
    next_kernel_page: AtomicU64,
    next_user_page: AtomicU64,
}

impl Rig {
    pub fn new(cpus: u32) -> Arc<Rig> {
        struct Print;
        impl log::Log for Print {
            fn enabled(&self, _: &log::Metadata<'_>) -> bool {
                true
            }
            fn log(&self, record: &log::Record<'_>) {
                eprintln!("{}: {}", record.level(), record.args());
            }
            fn flush(&self) {}
        }
        let _ = log::set_logger(&Print).map(|()| log::set_max_level(log::LevelFilter::Info));
        let config = MemoryConfig { user_size: 64 << 20, user_backing: UserBacking::Memfd };
        let memory = GuestMemory::new(&config).unwrap();
        let vm = PtraceVm::new(memory.clone(), cpus).unwrap();
        Arc::new(Rig {
            memory,
            vm,
            next_kernel_page: AtomicU64::new(0x40_0000),
            next_user_page: AtomicU64::new(USER_BASE),
        })
    }

    /// Runs `sentry` on a vCPU of this thread until it returns.
    pub fn run(self: &Arc<Self>, cpu: u32, sentry: impl FnOnce(&Sentry) + 'static) {
        self.run_with(cpu, sentry, |exit| panic!("unexpected exit {exit:?}")).unwrap();
    }

    /// As `run`; other exits go to `on_exit`. An `Err` is the report of a failed sentry.
    pub fn run_with(
        self: &Arc<Self>,
        cpu: u32,
        sentry: impl FnOnce(&Sentry) + 'static,
        on_exit: impl FnMut(Exit<'_>),
    ) -> Result<(), String> {
        self.run_on_thread(cpu, sentry, on_exit, None)
    }

    /// Under the filter that vCPU threads have.
    pub fn run_confined(self: &Arc<Self>, cpu: u32, sentry: impl FnOnce(&Sentry) + Send + 'static) {
        let rig = self.clone();
        std::thread::spawn(move || {
            let role = rig.vm.vcpu_role();
            assert!(role.is_some());
            rig.run_on_thread(cpu, sentry, |exit| panic!("unexpected exit {exit:?}"), role).unwrap();
        })
        .join()
        .unwrap();
    }

    fn run_on_thread(
        self: &Arc<Self>,
        cpu: u32,
        sentry: impl FnOnce(&Sentry) + 'static,
        mut on_exit: impl FnMut(Exit<'_>),
        role: Option<vmm::seccomp::Role>,
    ) -> Result<(), String> {
        type Job = (Sentry, Option<Box<dyn FnOnce(&Sentry)>>);
        extern "sysv64" fn run_job(job: *mut Job) -> ! {
            let (sentry, run) = unsafe { &mut *job };
            run.take().unwrap()(sentry);
            loop {
                sentry.call(Op::PioWrite, [DONE_PORT, 0, 0, 0]);
            }
        }
        // As the image's entry: the stack is aligned, there is no return address.
        #[unsafe(naked)]
        unsafe extern "sysv64" fn start() -> ! {
            std::arch::naked_asm!("call {}", sym run_job)
        }
        let mut job: Box<Job> = Box::new((Sentry { rig: self.clone(), cpu }, Some(Box::new(sentry))));
        let params = &raw mut *job as u64;
        let mut vcpu = self.vm.create_vcpu(cpu, Entry { rip: start as *const () as u64, params }).unwrap();
        if let Some(role) = role {
            vmm::seccomp::confine(role).unwrap();
        }
        loop {
            match vcpu.run().unwrap() {
                Exit::PioWrite { port, .. } if u64::from(port) == DONE_PORT => return Ok(()),
                Exit::Failed(report) => return Err(report),
                exit => on_exit(exit),
            }
        }
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        self.vm.counters().into_iter().find(|(name, _)| *name == counter).unwrap().1
    }

    /// A zeroed page of kernel memory; its guest-physical address.
    pub fn kernel_page(&self) -> u64 {
        self.next_kernel_page.fetch_add(PAGE_SIZE, Ordering::SeqCst)
    }

    /// Contiguous pages of user memory.
    pub fn user_pages(&self, count: u64) -> u64 {
        self.next_user_page.fetch_add(count * PAGE_SIZE, Ordering::SeqCst)
    }

    fn table(&self, gpa: u64) -> &[AtomicU64; 512] {
        unsafe { &*((self.memory.direct_base() + gpa) as *const [AtomicU64; 512]) }
    }

    /// The lowest-level entry for `address`, tables made as needed.
    pub fn entry(&self, root: u64, address: u64) -> &AtomicU64 {
        let mut table = self.table(root);
        for level in [3, 2, 1] {
            let entry = &table[(address >> (12 + 9 * level)) as usize & 511];
            if entry.load(Ordering::SeqCst) == 0 {
                entry.store(self.kernel_page() | P | W | U, Ordering::SeqCst);
            }
            table = self.table(entry.load(Ordering::SeqCst) & 0xf_ffff_ffff_f000);
        }
        &table[(address >> 12) as usize & 511]
    }

    pub fn map(&self, root: u64, address: u64, gpa: u64, flags: u64) {
        self.entry(root, address).store(gpa | P | U | flags, Ordering::SeqCst);
    }

    /// A context in kernel memory with an xsave area.
    pub fn context(&self, task: u64, rip: u64, rsp: u64) -> &'static mut UserContext {
        let base = self.memory.direct_base();
        let pages = self.kernel_page();
        let xsave = self.kernel_page();
        self.kernel_page();
        self.kernel_page();
        let ctx = unsafe { &mut *((base + pages) as *mut UserContext) };
        *ctx = UserContext::new();
        ctx.task = task;
        ctx.regs.rip = rip;
        ctx.regs.rsp = rsp;
        ctx.xsave = base + xsave;
        let area = unsafe { std::slice::from_raw_parts_mut(ctx.xsave as *mut u8, 576) };
        area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        ctx
    }
}

/// What a closure in the sentry's place has.
pub struct Sentry {
    pub rig: Arc<Rig>,
    pub cpu: u32,
}

impl Sentry {
    pub fn call(&self, op: Op, args: [u64; 4]) -> u64 {
        let entry: extern "sysv64" fn(u64, u64, u64, u64, u64) -> u64 = unsafe { std::mem::transmute(entry()) };
        entry(op as u64, args[0], args[1], args[2], args[3])
    }

    /// A new address space with `program` at CODE and a stack page below 0x10_0000.
    pub fn space(&self, program: &[u8]) -> u64 {
        let rig = &self.rig;
        let root = rig.kernel_page();
        let pages = (program.len() as u64).div_ceil(PAGE_SIZE).max(1);
        let code = rig.user_pages(pages);
        rig.memory.write(code, program).unwrap();
        for page in 0..pages {
            rig.map(root, CODE + page * PAGE_SIZE, code + page * PAGE_SIZE, 0);
        }
        rig.map(root, STACK - PAGE_SIZE, rig.user_pages(1), W | NX);
        assert_eq!(self.call(Op::CreateSpace, [root, 0, 0, 0]), 0);
        root
    }

    pub fn enter(&self, ctx: &mut UserContext, root: u64) -> TrapKind {
        let kind = self.call(Op::EnterUser, [&raw mut *ctx as u64, root, 0, 0]);
        match kind {
            1 => TrapKind::Syscall,
            2 => TrapKind::Exception,
            3 => TrapKind::Interrupt,
            4 => TrapKind::ForeignSyscall,
            5 => TrapKind::Dead,
            other => panic!("trap kind {other}"),
        }
    }

    /// Enters and expects a system call; its number.
    #[track_caller]
    pub fn syscall(&self, ctx: &mut UserContext, root: u64) -> u64 {
        let kind = self.enter(ctx, root);
        assert_eq!(
            kind,
            TrapKind::Syscall,
            "vector {} error {:#x} address {:#x} rip {:#x}",
            ctx.vector,
            ctx.error_code,
            ctx.address,
            ctx.regs.rip
        );
        ctx.regs.orig_rax
    }

    pub fn load(&self, ctx: &mut UserContext) {
        assert_eq!(self.call(Op::LoadRegisters, [&raw mut *ctx as u64, 0, 0, 0]), 0);
        assert_eq!(ctx.state & state::LOADED, state::LOADED);
    }

    pub fn flush(&self, root: u64, start: u64, len: u64) {
        assert_eq!(self.call(Op::FlushRange, [root, start, len, 0]), 0);
    }
}

pub const STACK: u64 = 0x10_0000;

/// The bytes of a program in assembly: position independent, put at CODE.
#[macro_export]
macro_rules! program {
    ($name:ident: $($line:literal),* $(,)?) => {{
        mod code {
            std::arch::global_asm!(
                ".pushsection .rodata",
                concat!(".globl ", stringify!($name), "_start"),
                concat!(stringify!($name), "_start:"),
                $($line,)*
                concat!(".globl ", stringify!($name), "_end"),
                concat!(stringify!($name), "_end:"),
                ".popsection",
            );
            /// The bytes between two symbols of this program.
            pub fn bytes() -> &'static [u8] {
                let (start, end): (usize, usize);
                unsafe {
                    std::arch::asm!(
                        concat!("lea {0}, [rip + ", stringify!($name), "_start]"),
                        concat!("lea {1}, [rip + ", stringify!($name), "_end]"),
                        out(reg) start,
                        out(reg) end,
                    );
                    std::slice::from_raw_parts(start as *const u8, end - start)
                }
            }
        }
        code::bytes()
    }};
}
