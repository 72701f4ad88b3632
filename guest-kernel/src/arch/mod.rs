//! The CPU as the sentry uses it: one set of operations over two implementations, chosen once at boot.
//!
//! `native` runs in ring 0 of a KVM guest; `para` calls the ptrace backend for what would be privileged instructions.
//! Unit tests on the host run with neither (`Backend::Hosted`): there only what needs no CPU works.
//! No code outside this module asks which backend it is.

pub mod copy;
pub mod host;
pub mod native;
pub mod para;
pub mod percpu;
#[cfg(sentry_image)]
mod start;
pub mod switch;
pub mod vdso;
pub mod xstate;

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use sentry_abi::{
    boot::BootParams,
    context::{TrapKind, UserContext},
    para::{FixupEntry, Op},
};

use crate::errno::{ENOMEM, Result};

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Backend {
    Hosted = 0,
    Native = 1,
    Para = 2,
}

static BACKEND: AtomicU8 = AtomicU8::new(Backend::Hosted as u8);
static DIRECT_BASE: AtomicU64 = AtomicU64::new(0);

#[inline(always)]
fn backend() -> Backend {
    match BACKEND.load(Relaxed) {
        1 => Backend::Native,
        2 => Backend::Para,
        _ => Backend::Hosted,
    }
}

/// Sets up what every later operation relies on; the first thing CPU 0 does.
pub fn init(params: &BootParams) {
    DIRECT_BASE.store(params.direct_base, Relaxed);
    let para = params.backend == sentry_abi::boot::Backend::Para as u32;
    if para {
        para::init(params.para_entry);
    }
    BACKEND.store(if para { Backend::Para } else { Backend::Native } as u8, Relaxed);
}

/// Sets up this CPU: its per-CPU block, and under KVM its descriptor tables and local APIC.
pub fn init_cpu(index: usize, params: &BootParams) {
    let block = percpu::block(index);
    match backend() {
        Backend::Hosted => {}
        Backend::Native => native::init_cpu(index, block, params),
        Backend::Para => {
            para::call(Op::SetCpuBase, block as *const _ as u64, 0, 0, 0);
            if index == 0 {
                let table = copy::fixup_table();
                para::call(
                    Op::RegisterFixups,
                    params.direct_base + params.image.base,
                    params.direct_base + params.image.base + params.image.size,
                    table.as_ptr() as u64,
                    table.len() as u64,
                );
            }
        }
    }
}

/// The exception table of the instructions in this image that may fault.
pub fn fixups() -> &'static [FixupEntry] {
    copy::fixup_table()
}

/// Where guest-physical `gpa` can be reached. The caller must know that the memory exists and who else uses it.
#[inline(always)]
pub fn direct_map(gpa: u64) -> *mut u8 {
    (DIRECT_BASE.load(Relaxed) + gpa) as *mut u8
}

/// The guest-physical address of an object in kernel memory (heap, stack, image).
#[inline(always)]
pub fn gpa_of<T: ?Sized>(object: *const T) -> u64 {
    (object as *const u8 as u64).wrapping_sub(DIRECT_BASE.load(Relaxed))
}

/// Index of the CPU this runs on. Stable until the caller blocks.
#[inline(always)]
pub fn cpu_index() -> usize {
    percpu::this().index as usize
}

/// Runs the task's user code in the address space `root` until it traps.
#[inline]
pub fn enter_user(ctx: &mut UserContext, root: u64) -> TrapKind {
    match backend() {
        Backend::Native => native::enter_user(ctx, root),
        Backend::Para => para::enter_user(ctx, root),
        Backend::Hosted => TrapKind::Dead,
    }
}

/// Completes `ctx.regs` when the trap left only the system call's arguments in it.
#[inline]
pub fn load_registers(ctx: &mut UserContext) {
    if ctx.state & sentry_abi::context::state::LOADED == 0 {
        match backend() {
            Backend::Native => native::load_registers(ctx),
            Backend::Para => {
                para::call(Op::LoadRegisters, ctx as *mut _ as u64, 0, 0, 0);
            }
            Backend::Hosted => {}
        }
    }
}

/// Brings `ctx.xsave` up to date with this CPU's registers. Needed before the area is read or the task leaves this CPU.
#[inline]
pub fn save_xstate(ctx: &mut UserContext) {
    match backend() {
        Backend::Native => native::save_xstate(ctx),
        Backend::Para => {
            para::call(Op::SaveXstate, ctx as *mut _ as u64, 0, 0, 0);
        }
        Backend::Hosted => {}
    }
}

/// The task whose context is at `ctx` leaves this CPU and may go on on another one: everything of it goes to memory.
pub(crate) fn switch_out(ctx: *mut UserContext) {
    if backend() != Backend::Hosted && !ctx.is_null() {
        // SAFETY: the scheduler calls this for the task that runs on this CPU, whose context lives on its kernel stack and
        // is not otherwise borrowed while the task is inside the scheduler.
        let ctx = unsafe { &mut *ctx };
        load_registers(ctx);
        save_xstate(ctx);
        leave_user_space();
    }
}

/// This CPU lets go of the address space that it last ran user code in: whoever holds that may give it up from now on.
pub fn leave_user_space() {
    if backend() == Backend::Native {
        native::unload_space();
    }
}

/// Announces an address space by the guest-physical address of its root table.
pub fn create_space(root: u64) -> Result<()> {
    if backend() == Backend::Para && para::call(Op::CreateSpace, root, 0, 0, 0) != 0 {
        return Err(ENOMEM);
    }
    Ok(())
}

/// The address space is not used any more; no CPU is in it.
pub fn destroy_space(root: u64) {
    match backend() {
        Backend::Native => native::leave_space(root),
        Backend::Para => {
            para::call(Op::DestroySpace, root, 0, 0, 0);
        }
        Backend::Hosted => {}
    }
}

/// Drops translations of `[start, start + len)`. Returns whether that reached every CPU; if not, the caller must interrupt
/// those that are in the address space.
pub fn flush(root: u64, start: u64, len: u64) -> bool {
    match backend() {
        Backend::Native => {
            native::flush(root, start, len);
            false
        }
        Backend::Para => {
            para::call(Op::FlushRange, root, start, len, 0);
            true
        }
        Backend::Hosted => true,
    }
}

/// Sleeps until an interrupt is pending or CLOCK_MONOTONIC reaches `deadline` (ns; `u64::MAX`: none).
pub fn wait_for_interrupt(deadline: u64) {
    match backend() {
        Backend::Native => native::wait(deadline),
        Backend::Para => {
            para::call(Op::Wait, deadline, 0, 0, 0);
        }
        Backend::Hosted => {}
    }
}

/// Makes the timer bit pending on this CPU at `deadline` (CLOCK_MONOTONIC ns); `u64::MAX` disarms.
pub fn set_timer(deadline: u64) {
    match backend() {
        Backend::Native => native::set_timer(deadline),
        Backend::Para => {
            para::call(Op::SetTimer, deadline, 0, 0, 0);
        }
        Backend::Hosted => {}
    }
}

/// Makes `bit` pending on `cpu` and gets it out of user mode or out of its wait.
pub fn send_interrupt(cpu: usize, bit: u32) {
    match backend() {
        Backend::Native => native::send_interrupt(cpu, bit),
        Backend::Para => {
            para::call(Op::SendInterrupt, cpu as u64, bit as u64, 0, 0);
        }
        Backend::Hosted => {}
    }
}

/// Takes this CPU's pending interrupt bits.
pub fn take_pending() -> u64 {
    match backend() {
        Backend::Native => native::take_pending(),
        Backend::Para => para::call(Op::TakePending, 0, 0, 0, 0),
        Backend::Hosted => 0,
    }
}

/// 32-bit access to a device register page.
pub fn mmio_write32(gpa: u64, value: u32) {
    match backend() {
        // SAFETY: `gpa` is a device register page of the boot parameters, which nothing in the sentry's memory overlaps.
        Backend::Native => unsafe { core::ptr::write_volatile(direct_map(gpa).cast::<u32>(), value) },
        Backend::Para => {
            para::call(Op::MmioWrite, gpa, value as u64, 0, 0);
        }
        Backend::Hosted => {}
    }
}

pub fn mmio_read32(gpa: u64) -> u32 {
    match backend() {
        // SAFETY: as for `mmio_write32`.
        Backend::Native => unsafe { core::ptr::read_volatile(direct_map(gpa).cast::<u32>()) },
        Backend::Para => para::call(Op::MmioRead, gpa, 0, 0, 0) as u32,
        Backend::Hosted => 0,
    }
}

fn pio_write32(port: u16, value: u32) {
    match backend() {
        // SAFETY: the ports written (host call, serial) have no effect on the sentry's memory beyond the host call block.
        Backend::Native => unsafe { core::arch::asm!("out dx, eax", in("dx") port, in("eax") value) },
        Backend::Para => {
            para::call(Op::PioWrite, port as u64, value as u64, 0, 0);
        }
        Backend::Hosted => {}
    }
}

#[inline(always)]
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU and reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// CPUID leaf 1 EDX, which AT_HWCAP is on x86. Read once: it may leave the VM.
pub fn cpu_features() -> u64 {
    static FEATURES: spin::Once<u64> = spin::Once::new();
    *FEATURES.call_once(|| u64::from(core::arch::x86_64::__cpuid(1).edx))
}

/// Return addresses of the calling stack, innermost first, relative to the image. Needs frame pointers.
pub fn backtrace() -> impl Iterator<Item = u64> {
    let image = start_of_image();
    let mut frame: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
    let low = frame;
    core::iter::from_fn(move || {
        // Frames ascend within one stack; anything else is the end.
        if frame < low || frame - low > switch::STACK_SIZE as u64 || !frame.is_multiple_of(8) {
            return None;
        }
        // SAFETY: between the current frame and the stack's size above it, so mapped kernel memory.
        let (next, address) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        if address == 0 {
            return None;
        }
        frame = if next > frame { next } else { 0 };
        Some(address.wrapping_sub(image))
    })
    .take(40)
}

fn start_of_image() -> u64 {
    DIRECT_BASE.load(Relaxed) + sentry_abi::layout::IMAGE_BASE
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        wait_for_interrupt(u64::MAX);
        core::hint::spin_loop();
    }
}
