//! Whether KVM on this host can run the sentry. That /dev/kvm opens proves nothing (a software KVM may emulate ring 0, or spin
//! for ever): so a guest of a few instructions does what the sentry will do - SYSRET to ring 3, an SSE instruction, SYSCALL and
//! back, a page fault - and a watchdog ends it if it does not come back.

use std::{
    fmt, fs,
    os::fd::AsFd,
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit};

use super::{
    ioctl,
    kick::{self, Kicks},
};
use crate::vcpu::Kick;

/// The guest needs well below a millisecond on hardware, some milliseconds where the hardware is emulated.
const LIMIT: Duration = Duration::from_millis(500);
/// How long it may take to see the kick.
const KICK_LIMIT: Duration = Duration::from_millis(100);
/// Making a virtual machine does not hang, but takes its time on a loaded host that is itself emulated.
const SETUP_LIMIT: Duration = Duration::from_secs(10);
const CACHE_FILE: &str = "kvm-probe";
/// Changes when the probe does, so that results of another version do not count.
const CACHE_VERSION: &str = "1";

/// Why KVM cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reason {}

/// Finds out, or reads what was found out since this host booted from a file in `cache`.
pub fn probe(cache: Option<&Path>) -> Result<(), Reason> {
    // Permission and presence may change at any time and cost nothing to look at.
    let kvm = Kvm::new().map_err(|error| Reason(format!("opening /dev/kvm: {error}")))?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let header = format!("{CACHE_VERSION} {}", boot_id.trim());
    let cached = cache.and_then(|folder| fs::read_to_string(folder.join(CACHE_FILE)).ok());
    if let Some(result) = cached.as_deref().and_then(|text| parse(text, &header)) {
        return result;
    }
    let result = match run_watched(kvm) {
        Ok(result) => result.map_err(|error| Reason(format!("{error:#}"))),
        // A loaded machine may look like that: not a result to keep.
        Err(Hang) => {
            let ms = LIMIT.as_millis();
            return Err(Reason(format!("a guest of a few instructions did not end within {ms} ms")));
        }
    };
    if let Some(folder) = cache {
        let text = match &result {
            Ok(()) => format!("{header}\nok\n"),
            Err(reason) => format!("{header}\n{reason}\n"),
        };
        if let Err(error) = store(folder, &text) {
            log::debug!("keeping the result of the KVM probe: {error:#}");
        }
    }
    result
}

fn parse(text: &str, header: &str) -> Option<Result<(), Reason>> {
    match text.strip_prefix(header)?.strip_prefix('\n')?.trim_end() {
        "" => None,
        "ok" => Some(Ok(())),
        reason => Some(Err(Reason(reason.to_owned()))),
    }
}

/// Replaces the file at once, so that no reader sees half of it.
fn store(folder: &Path, text: &str) -> Result<()> {
    let temporary = folder.join(format!(".{CACHE_FILE}.{}", std::process::id()));
    fs::write(&temporary, text).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, folder.join(CACHE_FILE)).context("renaming")
}

struct Hang;

enum Progress {
    /// The guest is entered now.
    Entering,
    Ended(Result<()>),
}

/// Runs the guest on a thread of its own and kicks it when time is up.
fn run_watched(kvm: Kvm) -> Result<Result<()>, Hang> {
    let kicks = Arc::new(Kicks::default());
    let (sender, receiver) = mpsc::channel();
    let guest_kicks = kicks.clone();
    let spawned = std::thread::Builder::new().name("kvm-probe".to_owned()).spawn(move || {
        // The receiver may have given up.
        let entering = || drop(sender.send(Progress::Entering));
        let result = run(&kvm, &guest_kicks, entering);
        let _ = sender.send(Progress::Ended(result));
    });
    if let Err(error) = spawned {
        return Ok(Err(anyhow!("starting a thread: {error}")));
    }
    match receiver.recv_timeout(SETUP_LIMIT) {
        Ok(Progress::Entering) => {}
        Ok(Progress::Ended(result)) => return Ok(result),
        Err(_) => return Err(Hang),
    }
    for wait in [LIMIT, KICK_LIMIT] {
        if let Ok(Progress::Ended(result)) = receiver.recv_timeout(wait) {
            return Ok(result);
        }
        kicks.kick(0);
    }
    Err(Hang)
}

const ROOT: u64 = 0x1000;
const IDT: u64 = 0x5000;
const GDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const CODE: u64 = 0x8000;
const STACK_TOP: u64 = 0xa000;
const SIZE: u64 = 0x1_0000;
/// Where the guest reports, and what it reports when all went well.
const PORT: u16 = 0x600;
const GOOD: u32 = 0x600d_600d;

/// Layout of the guest's descriptor table, as SYSRET wants it.
const KERNEL_CS: u16 = 0x10;
const KERNEL_DS: u16 = 0x18;
const USER_CS32: u64 = 0x23;

mod guest {
    use std::arch::global_asm;

    global_asm!(
        ".pushsection .rodata.kvm_probe, \"a\"",
        // Other code generation units refer to them.
        ".globl kvm_probe_start, kvm_probe_syscall, kvm_probe_fault, kvm_probe_exception, kvm_probe_end",
        ".hidden kvm_probe_start, kvm_probe_syscall, kvm_probe_fault, kvm_probe_exception, kvm_probe_end",
        ".balign 16",
        "kvm_probe_start:",
        "   lea rcx, [rip + 3f]",
        "   mov r11d, 2",
        "   xor ebx, ebx",
        "   sysretq",
        // Ring 3.
        "3: movups xmm0, [rip + 9f]",
        "   addps xmm0, xmm0",
        "   movd r12d, xmm0",
        "   mov eax, 7",
        "   syscall",
        "   cmp ebx, 8",
        "   jne 4f",
        "   cmp r12d, 0x40000000",
        "   jne 4f",
        // Nothing is mapped there: a page fault, from user mode.
        "   mov rax, [0x100000]",
        "4: ud2",
        "kvm_probe_syscall:",
        "   lea ebx, [rax + 1]",
        "   sysretq",
        "kvm_probe_fault:",
        "   mov eax, 0x600d600d",
        "   cmp dword ptr [rsp], 4",
        "   je 5f",
        "kvm_probe_exception:",
        "   mov eax, 0xbad",
        "5: mov dx, 0x600",
        "   out dx, eax",
        "   hlt",
        ".balign 16",
        // 1.0, which doubled is 2.0 = 0x40000000.
        "9: .long 0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000",
        "kvm_probe_end:",
        ".popsection",
    );

    unsafe extern "C" {
        static kvm_probe_start: u8;
        static kvm_probe_syscall: u8;
        static kvm_probe_fault: u8;
        static kvm_probe_exception: u8;
        static kvm_probe_end: u8;
    }

    pub struct Code {
        pub bytes: &'static [u8],
        pub syscall: u64,
        pub fault: u64,
        pub exception: u64,
    }

    pub fn code() -> Code {
        // SAFETY: the symbols are in this order in one read-only section.
        unsafe {
            let start = &raw const kvm_probe_start;
            let offset = |symbol: *const u8| symbol.offset_from(start) as u64;
            Code {
                bytes: std::slice::from_raw_parts(start, offset(&raw const kvm_probe_end) as usize),
                syscall: offset(&raw const kvm_probe_syscall),
                fault: offset(&raw const kvm_probe_fault),
                exception: offset(&raw const kvm_probe_exception),
            }
        }
    }
}

/// The guest's memory: identity-mapped pages that user mode may reach, descriptor tables, code.
fn image() -> Vec<u8> {
    let code = guest::code();
    let mut image = vec![0; SIZE as usize];
    let mut put = |at: u64, bytes: &[u8]| image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    const PRESENT_WRITABLE_USER: u64 = 7;
    for (table, next) in [(ROOT, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000u64)] {
        put(table, &(next | PRESENT_WRITABLE_USER).to_le_bytes());
    }
    for page in 0..SIZE >> 12 {
        put(0x4000 + page * 8, &(page << 12 | PRESENT_WRITABLE_USER).to_le_bytes());
    }
    for vector in 0..32 {
        let handler = CODE + if vector == 14 { code.fault } else { code.exception };
        let low = handler & 0xffff | u64::from(KERNEL_CS) << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        put(IDT + vector * 16, &low.to_le_bytes());
    }
    // Null, unused, kernel code and data, user 32-bit code (unused), user data and code, the task state segment.
    let tss_low = 0x67 | (TSS & 0xff_ffff) << 16 | 0x8b << 40;
    let descriptors = [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0,
        tss_low,
        0u64,
    ];
    put(GDT, descriptors.map(u64::to_le_bytes).as_flattened());
    // RSP0.
    put(TSS + 4, &STACK_TOP.to_le_bytes());
    put(CODE, code.bytes);
    image
}

fn run(kvm: &Kvm, kicks: &Kicks, entering: impl Fn()) -> Result<()> {
    let missing = super::missing(kvm);
    ensure!(missing.is_empty(), "{} offers guests no {}", module(), missing.join(", "));
    kick::install_handler()?;
    let memory = rustix::fs::memfd_create("runsc-probe", rustix::fs::MemfdFlags::CLOEXEC).context("memfd")?;
    rustix::io::write(&memory, &image()).context("memfd")?;
    let memory = Mapping::new(memory.as_fd())?;

    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    ioctl::set_slot(&vm, 0, 0, SIZE, memory.0 as u64)?;
    vm.set_tss_address(super::TSS_ADDRESS).context("KVM_SET_TSS_ADDR")?;
    vm.set_identity_map_address(super::IDENTITY_MAP_ADDRESS).context("KVM_SET_IDENTITY_MAP_ADDR")?;
    let mut vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
    set_state(&vcpu)?;

    kicks.enter(0, vcpu.get_kvm_run());
    entering();
    let result = match vcpu.run() {
        Ok(VcpuExit::IoOut(PORT, data)) if data == GOOD.to_le_bytes() => Ok(()),
        Ok(VcpuExit::IoOut(..)) => Err(anyhow!("a small guest met an exception that it should not meet")),
        Ok(VcpuExit::InternalError) => Err(anyhow!("KVM cannot execute a small guest (internal error)")),
        Ok(other) => Err(anyhow!("a small guest ended with {other:?}")),
        Err(error) => Err(anyhow!("KVM_RUN: {error}")),
    };
    kicks.leave(0);
    result.with_context(module)
}

fn set_state(vcpu: &kvm_ioctls::VcpuFd) -> Result<()> {
    const MSR_STAR: u32 = 0xc000_0081;
    const MSR_LSTAR: u32 = 0xc000_0082;
    const MSR_FMASK: u32 = 0xc000_0084;
    let code = guest::code();
    let star = USER_CS32 << 48 | u64::from(KERNEL_CS) << 32;
    let msrs = [(MSR_STAR, star), (MSR_LSTAR, CODE + code.syscall), (MSR_FMASK, 0x4_7700)];
    let entries = msrs.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });

    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let flat = |selector, type_, l: u8| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1 - l,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(KERNEL_CS, 0xb, 1);
    let data = flat(KERNEL_DS, 0x3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { base: TSS, limit: 0x67, selector: 0x40, type_: 0xb, present: 1, ..Default::default() };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 79;
    sregs.idt.base = IDT;
    sregs.idt.limit = 32 * 16 - 1;
    // PE, MP, ET, NE, WP, PG; PAE, OSFXSR, OSXMMEXCPT; SCE, LME, LMA, NXE.
    sregs.cr0 = 0x8001_0033;
    sregs.cr3 = ROOT;
    sregs.cr4 = 0x620;
    sregs.efer = 0xd01;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let written = vcpu.set_msrs(&Msrs::from_entries(&entries).context("MSR list")?).context("KVM_SET_MSRS")?;
    if written != entries.len() {
        bail!("KVM refuses MSR {:#x}", entries[written].index);
    }
    let regs = kvm_regs { rip: CODE, rsp: STACK_TOP, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}

/// What implements KVM here.
fn module() -> String {
    for name in ["kvm_intel", "kvm_amd", "kvm_pvm"] {
        if Path::new("/sys/module").join(name).exists() {
            return format!("KVM ({name})");
        }
    }
    "KVM".to_owned()
}

/// The guest's memory in this process.
struct Mapping(*mut libc::c_void);

impl Mapping {
    fn new(file: std::os::fd::BorrowedFd<'_>) -> Result<Mapping> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the kernel chooses.
        let address = unsafe { mmap(std::ptr::null_mut(), SIZE as usize, protection, MapFlags::SHARED, file, 0) };
        Ok(Mapping(address.context("mapping the probe's memory")?))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the virtual machine that used it is gone.
        if let Err(error) = unsafe { rustix::mm::munmap(self.0, SIZE as usize) } {
            log::debug!("unmapping the probe's memory: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn ends_soon_and_names_the_reason() {
        let start = Instant::now();
        let first = probe(None);
        assert!(start.elapsed() < Duration::from_secs(1));
        if let Err(reason) = &first {
            assert!(!reason.to_string().is_empty());
        }
        eprintln!("probe: {first:?} in {:?}", start.elapsed());
    }

    #[test]
    fn results_are_kept_for_this_boot() {
        assert_eq!(parse("1 abc\nok\n", "1 abc"), Some(Ok(())));
        assert_eq!(parse("1 abc\nno XSAVE\n", "1 abc"), Some(Err(Reason("no XSAVE".to_owned()))));
        assert_eq!(parse("1 abcd\nok\n", "1 abc"), None);
        assert_eq!(parse("1 abc\n", "1 abc"), None);
        assert_eq!(parse("", "1 abc"), None);
    }
}
