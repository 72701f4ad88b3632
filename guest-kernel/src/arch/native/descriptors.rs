//! Descriptor tables: one GDT and TSS a CPU, one IDT for all, and the stacks that traps come in on.
//!
//! Every vector has an IST stack, so that a trap in the kernel never uses the stack it interrupts. The top 16 bytes of each
//! hold the address of the CPU's block: in kernel mode that is how a handler finds it, since GS may be the user's.

use core::{arch::asm, cell::UnsafeCell};

use sentry_abi::boot::MAX_CPUS;

use super::{
    super::percpu::PerCpu,
    entry,
    registers::{MSR_GS_BASE, MSR_KERNEL_GS_BASE, write_msr},
};

pub(super) const KERNEL_CS: u16 = 0x10;
pub(super) const KERNEL_DS: u16 = 0x18;
/// What SYSRET adds 8 (SS) and 16 (CS) to.
pub(super) const SYSRET_BASE: u16 = 0x23;
const TSS: u16 = 0x38;

/// Null, unused, kernel code and data, unused (32-bit user code), user data and code, TSS (two entries).
const GDT: [u64; 9] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff, 0, 0];

/// A power of two, which finds the top from any address inside.
pub(super) const STACK_SIZE: usize = 16 << 10;

/// One for most vectors; those that may come while another is being handled have their own.
const STACKS: usize = 5;
const IST_COMMON: u8 = 1;
const IST_DEBUG: u8 = 2;
const IST_NMI: u8 = 3;
const IST_DOUBLE_FAULT: u8 = 4;
const IST_MACHINE_CHECK: u8 = 5;

#[repr(C, align(16384))]
struct Stack([u8; STACK_SIZE]);

#[repr(C, align(16))]
struct Tables {
    gdt: [u64; GDT.len()],
    /// Task state segment (Intel SDM volume 3, 8.7), by 32-bit words.
    tss: [u32; 26],
}

#[repr(C)]
struct PerCpuMemory<T>(UnsafeCell<[T; MAX_CPUS]>);

// SAFETY: each CPU changes only its own element, once, before it enables what refers to it.
unsafe impl<T> Sync for PerCpuMemory<T> {}

static STACK_MEMORY: PerCpuMemory<[Stack; STACKS]> =
    PerCpuMemory(UnsafeCell::new([const { [const { Stack([0; STACK_SIZE]) }; STACKS] }; MAX_CPUS]));
static TABLES: PerCpuMemory<Tables> =
    PerCpuMemory(UnsafeCell::new([const { Tables { gdt: GDT, tss: [0; 26] } }; MAX_CPUS]));

#[repr(C, align(4096))]
struct Idt(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: CPU 0 fills it before any other CPU starts; afterwards it is only read.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Fills this CPU's tables and loads them; from here traps are handled.
pub(super) fn load(index: usize, block: &'static PerCpu) {
    // SAFETY: the elements of this CPU, which nobody else uses; the tables stay where they are for good. The segments loaded
    // are flat, like those of the boot state, and the far return goes to the next instruction.
    unsafe {
        let stacks = STACK_MEMORY.0.get().cast::<[Stack; STACKS]>().add(index).cast::<Stack>();
        let tables = TABLES.0.get().cast::<Tables>().add(index);
        for stack in 0..STACKS {
            let top = stacks.add(stack + 1) as u64 - 16;
            (top as *mut u64).write(block as *const _ as u64);
            // IST1 is at byte 36.
            (*tables).tss[9 + 2 * stack] = top as u32;
            (*tables).tss[10 + 2 * stack] = (top >> 32) as u32;
        }
        // No I/O permission bitmap: it would start behind the limit.
        (*tables).tss[25] = (size_of::<[u32; 26]>() as u32) << 16;
        let tss = &raw const (*tables).tss as u64;
        (*tables).gdt[7] = 0x0000_8900_0000_0067 | (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56;
        (*tables).gdt[8] = tss >> 32;
        let gdt = Pointer { limit: (size_of_val(&GDT) - 1) as u16, base: &raw const (*tables).gdt as u64 };
        asm!(
            "lgdt [{gdt}]",
            "push {cs}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {null:e}",
            "mov es, {null:e}",
            "mov fs, {null:e}",
            "mov gs, {null:e}",
            "mov ss, {ds:e}",
            "ltr {tss:x}",
            gdt = in(reg) &gdt,
            cs = in(reg) u64::from(KERNEL_CS),
            ds = in(reg) u32::from(KERNEL_DS),
            tss = in(reg) TSS,
            null = in(reg) 0,
            scratch = out(reg) _,
        );
        write_msr(MSR_GS_BASE, block as *const _ as u64);
        write_msr(MSR_KERNEL_GS_BASE, 0);
        if index == 0 {
            fill_idt(IDT.0.get());
        }
        let idt = Pointer { limit: (size_of::<Idt>() - 1) as u16, base: IDT.0.get() as u64 };
        asm!("lidt [{}]", in(reg) &idt, options(nostack, preserves_flags));
    }
}

/// # Safety
/// `idt` is valid for writes.
unsafe fn fill_idt(idt: *mut [[u64; 2]; 256]) {
    const INTERRUPT_GATE: u64 = 0x8e00;
    for vector in 0..256u64 {
        let ist = match vector {
            1 => IST_DEBUG,
            2 => IST_NMI,
            8 => IST_DOUBLE_FAULT,
            18 => IST_MACHINE_CHECK,
            _ => IST_COMMON,
        };
        // int3, int 4 and int 0x80 are instructions that programs may use.
        let privilege = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
        let handler = entry::vector_address(vector);
        let low = handler & 0xffff
            | u64::from(KERNEL_CS) << 16
            | u64::from(ist) << 32
            | (INTERRUPT_GATE | privilege << 13) << 32
            | (handler >> 16 & 0xffff) << 48;
        // SAFETY: the caller's contract.
        unsafe { (*idt)[vector as usize] = [low, handler >> 32] };
    }
}
