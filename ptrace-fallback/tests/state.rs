//! What outlives a trap: extended state, several tasks and spaces on a vCPU; and what ends a task or the sentry.
#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::{
    arch::naked_asm,
    fs::File,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::{CODE, NX, Rig, STACK, W};
use sentry_abi::{
    context::{TrapKind, state, vector},
    counters::Counter,
    layout::{PAGE_SIZE, WINDOW_BASE},
    para::{FixupEntry, Op},
};
use vmm::vcpu::{Exit, Vm};

/// Some of these tests look at all stubs of the process: one runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn vector_registers_survive_system_calls_and_task_switches() {
    let _alone = alone();
    let program = program!(vectors:
        "movq xmm3, rdi",
        "movq xmm15, rdi",
        "2: mov eax, 24",
        "syscall",
        "movq rsi, xmm3",
        "movq rdx, xmm15",
        "jmp 2b");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let root = sentry.space(program);
        let mut tasks: Vec<_> = (1..=3)
            .map(|task| {
                let ctx = sentry.rig.context(task, CODE, STACK);
                ctx.regs.rdi = task * 1000;
                ctx
            })
            .collect();
        // Three tasks share one stub thread.
        for round in 0..50 {
            for (index, ctx) in tasks.iter_mut().enumerate() {
                assert_eq!(sentry.syscall(ctx, root), 24);
                if round > 0 {
                    assert_eq!((ctx.regs.rsi, ctx.regs.rdx), ((index as u64 + 1) * 1000, (index as u64 + 1) * 1000));
                }
                sentry.load(ctx);
                assert_eq!(sentry.call(Op::SaveXstate, [&raw mut **ctx as u64, 0, 0, 0]), 0);
            }
        }
        // A change of the area, as sigreturn makes it.
        let ctx = &mut *tasks[0];
        let area = unsafe { std::slice::from_raw_parts_mut(ctx.xsave as *mut u8, 576) };
        let xmm3 = 160 + 3 * 16;
        assert_eq!(area[xmm3..xmm3 + 8], 1000u64.to_le_bytes());
        area[xmm3..xmm3 + 8].copy_from_slice(&5u64.to_le_bytes());
        ctx.xsave_dirty = 1;
        assert_eq!(sentry.syscall(ctx, root), 24);
        assert_eq!(ctx.xsave_dirty, 0);
        assert_eq!(ctx.regs.rsi, 5);
    });
}

#[test]
fn a_new_task_sees_nothing_of_the_host() {
    let _alone = alone();
    let program = program!(scrubbed:
        "mov r8, [rsp - 8]",
        "movq rsi, xmm0",
        "movq rdx, xmm7",
        "mov r10, fs",
        "mov r9, gs",
        "mov eax, 1",
        "syscall");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let root = sentry.space(program);
        let ctx = sentry.rig.context(1, CODE, STACK);
        assert_eq!(sentry.syscall(ctx, root), 1);
        let regs = &ctx.regs;
        assert_eq!((regs.rsi, regs.rdx, regs.r8, regs.r9, regs.r10), (0, 0, 0, 0, 0));
        sentry.load(ctx);
        assert_eq!((ctx.regs.fs_base, ctx.regs.gs_base), (0, 0));
        assert_eq!((ctx.regs.rbx, ctx.regs.r12, ctx.regs.r15), (0, 0, 0));
    });
}

#[test]
fn registers_are_what_the_sentry_says() {
    let _alone = alone();
    let program = program!(registers: "2: mov eax, 1", "syscall", "jmp 2b");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let root = sentry.space(program);
        let ctx = sentry.rig.context(1, CODE, STACK);
        sentry.syscall(ctx, root);
        sentry.load(ctx);
        ctx.regs.r12 = 12;
        ctx.regs.rbx = 11;
        ctx.regs.fs_base = 0x1234_5000;
        ctx.regs.rip = CODE;
        ctx.state |= state::DIRTY;
        sentry.syscall(ctx, root);
        // A flush in between uses the stub's registers for its own call.
        sentry.flush(root, 0, u64::MAX);
        sentry.load(ctx);
        assert_eq!((ctx.regs.r12, ctx.regs.rbx, ctx.regs.fs_base), (12, 11, 0x1234_5000));
        sentry.syscall(ctx, root);
        sentry.load(ctx);
        assert_eq!((ctx.regs.r12, ctx.regs.rbx, ctx.regs.fs_base), (12, 11, 0x1234_5000));
        // What the host refuses is the task's fault, not the sentry's.
        ctx.regs.fs_base = 1 << 63;
        ctx.state |= state::DIRTY;
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!(ctx.vector, vector::GP);
        ctx.regs.fs_base = 0;
        ctx.state |= state::DIRTY;
        sentry.syscall(ctx, root);
    });
}

#[test]
fn a_killed_stub_ends_its_task_only() {
    let _alone = alone();
    let program = program!(killed: "2: mov eax, 1", "syscall", "jmp 2b");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let roots = [sentry.space(program), sentry.space(program)];
        let contexts = [sentry.rig.context(1, CODE, STACK), sentry.rig.context(2, CODE, STACK)];
        let [first, second] = contexts;
        let before = stubs();
        sentry.syscall(first, roots[0]);
        sentry.syscall(second, roots[1]);
        // The youngest stub is the second space's.
        let pid = *before.iter().max().unwrap();
        unsafe { libc::kill(pid, libc::SIGKILL) };
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(sentry.enter(second, roots[1]), TrapKind::Dead);
        assert_eq!(sentry.enter(second, roots[1]), TrapKind::Dead);
        sentry.flush(roots[1], 0, u64::MAX);
        sentry.syscall(first, roots[0]);
        sentry.call(Op::DestroySpace, [roots[1], 0, 0, 0]);
        assert_eq!(sentry.enter(second, roots[1]), TrapKind::Dead, "a space that does not exist");
        let root = sentry.space(program);
        let third = sentry.rig.context(3, CODE, STACK);
        sentry.syscall(third, root);
    });
}

/// Process ids of this process's stubs.
fn stubs() -> Vec<i32> {
    let own = std::process::id();
    let parent = |pid: i32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|&pid| {
            let mut at = pid;
            while let Some(next) = parent(at) {
                if next == own {
                    return true;
                }
                if next <= 1 {
                    return false;
                }
                at = next as i32;
            }
            false
        })
        .collect()
}

#[test]
fn spaces_come_and_go() {
    let _alone = alone();
    let program = program!(short: "mov eax, 60", "syscall");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let reused = sentry.rig.kernel_page();
        for round in 0..100u64 {
            let root = sentry.space(program);
            let ctx = sentry.rig.context(round + 1, CODE, STACK);
            assert_eq!(sentry.syscall(ctx, root), 60);
            sentry.call(Op::DestroySpace, [root, 0, 0, 0]);
            // The same root for another space.
            sentry.call(Op::CreateSpace, [reused, 0, 0, 0]);
        }
        assert!(stubs().len() < 50, "{} stubs", stubs().len());
    });
}

#[test]
fn files_of_the_window() {
    let _alone = alone();
    let program = program!(window:
        "mov rdi, 0x20000000",
        "mov rsi, [rdi]",
        "mov rdx, [rdi + 4096]",
        "mov eax, 1",
        "syscall",
        "mov [rdi + 8], rsi",
        "mov eax, 2",
        "syscall",
        "mov rsi, [rdi + 8192]",
        "hlt");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        use std::os::unix::fs::FileExt;
        let rig = &sentry.rig;
        const DATA: u64 = 0x2000_0000;
        let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(3 * PAGE_SIZE).unwrap();
        file.write_all_at(&7u64.to_le_bytes(), 0).unwrap();
        file.write_all_at(&8u64.to_le_bytes(), PAGE_SIZE).unwrap();
        let owned = Arc::new(OwnedFd::from(file.try_clone().unwrap()));
        rig.vm.window_map(0x10_0000, &owned, 0, 3 * PAGE_SIZE, true).unwrap();
        let root = sentry.space(program);
        for page in 0..3 {
            rig.map(root, DATA + page * PAGE_SIZE, WINDOW_BASE + 0x10_0000 + page * PAGE_SIZE, W | NX);
        }
        let ctx = rig.context(1, CODE, STACK);
        assert_eq!(sentry.syscall(ctx, root), 1);
        assert_eq!((ctx.regs.rsi, ctx.regs.rdx), (7, 8));
        assert_eq!(rig.entry(root, DATA).load(std::sync::atomic::Ordering::SeqCst) & common::DIRTY, 0);
        assert_eq!(sentry.syscall(ctx, root), 2);
        assert_ne!(rig.entry(root, DATA).load(std::sync::atomic::Ordering::SeqCst) & common::DIRTY, 0);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 8).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 7);
        // The file shrinks.
        file.set_len(PAGE_SIZE).unwrap();
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!((ctx.vector, ctx.address), (vector::FILE_PAST_END, DATA + 2 * PAGE_SIZE));
        // The window lets go of it.
        rig.entry(root, DATA + 2 * PAGE_SIZE);
        sentry.flush(root, 0, u64::MAX);
        rig.vm.window_unmap(0x10_0000, 3 * PAGE_SIZE).unwrap();
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!(ctx.vector, vector::FILE_PAST_END);
        // Many files: descriptors of the gone ones are closed in the stubs.
        drop(owned);
        for _ in 0..300 {
            let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, PAGE_SIZE).unwrap();
            rig.vm.window_map(0, &Arc::new(file), 0, PAGE_SIZE, false).unwrap();
            rig.map(root, DATA, WINDOW_BASE, NX);
            sentry.flush(root, DATA, PAGE_SIZE);
            ctx.regs.rip = CODE;
            ctx.state |= state::DIRTY;
            sentry.enter(ctx, root);
        }
        let pid = *stubs().iter().max().unwrap();
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert!(open < 150, "{open} descriptors");
    });
}

/// Loads from its argument; the fixup answers -1.
#[unsafe(naked)]
extern "sysv64" fn guarded_load(address: u64) -> u64 {
    naked_asm!(
        "2: mov rax, [rdi]",
        "3: ret",
        "4: mov rax, -1",
        "ret",
        ".pushsection .data.rel,\"aw\"",
        ".balign 4",
        ".globl test_fixup",
        "test_fixup: .long 2b - .",
        ".long 3b - (. - 4)",
        ".long 4b - (. - 8)",
        ".popsection",
    )
}

#[test]
fn faults_of_the_sentry() {
    let _alone = alone();
    let rig = Rig::new(1);
    rig.run(0, |sentry| {
        // The table has to lie in kernel memory: move it there, offsets adjusted.
        let base = sentry.rig.memory.direct_base() + sentry.rig.kernel_page();
        unsafe extern "C" {
            static test_fixup: FixupEntry;
        }
        let original = &raw const test_fixup;
        // Kernel memory is too far from this program's code for 32 bits: so the code goes there.
        let entry = unsafe { original.read() };
        let start = (original as i64 + i64::from(entry.start)) as *const u8;
        let code = sentry.rig.memory.direct_base() + sentry.rig.kernel_page();
        unsafe {
            std::ptr::copy_nonoverlapping(start, code as *mut u8, 32);
            rustix::mm::mprotect(
                code as *mut _,
                4096,
                rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::EXEC,
            )
            .unwrap();
        }
        let moved = code as i64 - start as i64 - (base as i64 - original as i64);
        let adjust = |offset: i32| (i64::from(offset) + moved) as i32;
        let entry = FixupEntry { start: adjust(entry.start), end: adjust(entry.end), fixup: adjust(entry.fixup) };
        unsafe { (base as *mut FixupEntry).write(entry) };
        sentry.call(Op::RegisterFixups, [0, u64::MAX, base, 1]);
        let load: extern "sysv64" fn(u64) -> u64 = unsafe { std::mem::transmute(code) };
        let value = 42u64;
        assert_eq!(load(&raw const value as u64), 42);
        assert_eq!(load(0x10), u64::MAX);
        // A page of a file that has shrunk.
        let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, PAGE_SIZE).unwrap();
        let file = Arc::new(file);
        sentry.rig.vm.window_map(0, &file, 0, PAGE_SIZE, false).unwrap();
        let window = sentry.rig.memory.direct_base() + WINDOW_BASE;
        assert_eq!(load(window), 0);
        rustix::fs::ftruncate(&*file, 0).unwrap();
        assert_eq!(load(window), u64::MAX);
    });
    assert_eq!(guarded_load(&raw const rig as u64), Arc::as_ptr(&rig) as u64 - 16);
}

#[test]
fn a_crash_of_the_sentry_is_a_report() {
    let _alone = alone();
    let rig = Rig::new(1);
    let report = rig
        .run_with(0, |_| unsafe { std::ptr::without_provenance_mut::<u64>(0x123450).write_volatile(1) }, |_| {})
        .unwrap_err();
    assert!(report.contains("SIGSEGV in sentry code at 0x"), "{report}");
    assert!(report.contains("address 0x123450"), "{report}");
    let report = Rig::new(1).run_with(0, |_| unsafe { std::arch::asm!("ud2") }, |_| {}).unwrap_err();
    assert!(report.contains("SIGILL"), "{report}");
}

#[test]
fn exits_and_their_answers() {
    let _alone = alone();
    let rig = Rig::new(1);
    let event = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
    rig.vm.register_ioevent(&event, 0xd000_0050, 3).unwrap();
    let mut seen = Vec::new();
    rig.run_with(
        0,
        |sentry| {
            assert_eq!(sentry.call(Op::MmioRead, [0xd000_0000, 0, 0, 0]), 0x7472_6976);
            sentry.call(Op::MmioWrite, [0xd000_0070, 15, 0, 0]);
            sentry.call(Op::MmioWrite, [0xd000_0050, 3, 0, 0]);
            sentry.call(Op::MmioWrite, [0xd000_0050, 4, 0, 0]);
            assert_eq!(sentry.call(Op::PioRead, [0x3fd, 0, 0, 0]), 0x60);
            sentry.call(Op::PioWrite, [0x3f8, 65, 0, 0]);
        },
        |exit| match exit {
            Exit::MmioRead { addr, data } => {
                seen.push((addr, 0));
                data.copy_from_slice(&0x7472_6976_u32.to_le_bytes());
            }
            Exit::PioRead { port, data } => {
                seen.push((u64::from(port), 0));
                data[0] = 0x60;
            }
            Exit::MmioWrite { addr, data } => seen.push((addr, data[0])),
            Exit::PioWrite { port, data } => seen.push((u64::from(port), data[0])),
            other => panic!("{other:?}"),
        },
    )
    .unwrap();
    assert_eq!(seen, [(0xd000_0000, 0), (0xd000_0070, 15), (0xd000_0050, 4), (0x3fd, 0), (0x3f8, 65)]);
    assert_eq!(event.read().unwrap(), 1);
    assert_eq!(rig.counter(Counter::StubStops), 0);
}
