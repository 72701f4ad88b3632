//! User code in stubs: system calls, faults, exceptions.
#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::sync::atomic::Ordering;

use common::{ACCESSED, CODE, DIRTY, NX, P, Rig, STACK, U, W};
use sentry_abi::{
    context::{TrapKind, pf, state, vector},
    counters::Counter,
    layout::PAGE_SIZE,
};

#[test]
fn getpid_is_one_stop() {
    let program = program!(getpid_loop: "2: mov eax, 39", "syscall", "mov r12, rax", "jmp 2b");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let root = sentry.space(program);
        let ctx = sentry.rig.context(1, CODE, STACK);
        assert_eq!(sentry.syscall(ctx, root), 39);
        assert_eq!(ctx.regs.rip, CODE + 7);
        assert_eq!(ctx.regs.rsp, STACK);
        assert_eq!(ctx.state, 0);
        let before = sentry.rig.counter(Counter::StubStops);
        for round in 0..1000 {
            ctx.regs.rax = 0x1_0000_0000 + round;
            assert_eq!(sentry.syscall(ctx, root), 39);
        }
        assert_eq!(sentry.rig.counter(Counter::StubStops) - before, 1000);
        sentry.load(ctx);
        assert_eq!(ctx.regs.r12, 0x1_0000_0000 + 999);
        assert_eq!(ctx.regs.rcx, ctx.regs.rip);
    });
}

#[test]
fn faults_are_filled_or_reported() {
    let program = program!(touch:
        "mov rax, 0x20000000",
        "mov qword ptr [rax], 77",
        "mov rbx, [rax]",
        "mov eax, 1",
        "syscall",
        "hlt");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let rig = &sentry.rig;
        let root = sentry.space(program);
        let ctx = rig.context(1, CODE, STACK);
        const DATA: u64 = 0x2000_0000;
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!((ctx.vector, ctx.address), (vector::PF, DATA));
        assert_eq!(ctx.error_code & (pf::PRESENT | pf::USER), pf::USER);
        // Read-only: the write shows as a protection fault.
        let page = rig.user_pages(1);
        rig.map(root, DATA, page, NX);
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!((ctx.vector, ctx.address), (vector::PF, DATA));
        assert_eq!(ctx.error_code, pf::USER | pf::PRESENT | pf::WRITE);
        rig.map(root, DATA, page, W | NX);
        assert_eq!(sentry.syscall(ctx, root), 1);
        sentry.load(ctx);
        assert_eq!(ctx.regs.rbx, 77);
        let mut bytes = [0; 8];
        rig.memory.read(page, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 77);
        assert_eq!(rig.entry(root, DATA).load(Ordering::SeqCst) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!(ctx.vector, vector::GP);
    });
}

#[test]
fn flush_takes_translations_away() {
    let program = program!(reader:
        "mov rdi, 0x20000000",
        "2: mov rsi, [rdi]",
        "mov eax, 1",
        "syscall",
        "jmp 2b");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let rig = &sentry.rig;
        const DATA: u64 = 0x2000_0000;
        let root = sentry.space(program);
        let ctx = rig.context(1, CODE, STACK);
        let pages = [rig.user_pages(1), rig.user_pages(1)];
        rig.memory.write(pages[0], &1u64.to_le_bytes()).unwrap();
        rig.memory.write(pages[1], &2u64.to_le_bytes()).unwrap();
        for round in 0..20 {
            rig.map(root, DATA, pages[round % 2], NX);
            sentry.flush(root, DATA, PAGE_SIZE);
            assert_eq!(sentry.syscall(ctx, root), 1);
            assert_eq!(ctx.regs.rsi, 1 + round as u64 % 2);
        }
        rig.entry(root, DATA).store(0, Ordering::SeqCst);
        sentry.flush(root, 0, u64::MAX);
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!((ctx.vector, ctx.address), (vector::PF, DATA));
        sentry.flush(root, 0, u64::MAX);
        let flushes = rig.counter(Counter::StubFlushes);
        sentry.flush(root, 0, u64::MAX);
        sentry.flush(root, DATA, PAGE_SIZE);
        assert_eq!(rig.counter(Counter::StubFlushes), flushes, "nothing is filled, nothing to flush");
    });
}

#[test]
fn extents_are_filled_at_once() {
    let program = program!(walk:
        "mov rdi, 0x20000000",
        "mov ecx, 512",
        "2: mov [rdi], rcx",
        "add rdi, 4096",
        "dec ecx",
        "jnz 2b",
        "mov eax, 1",
        "syscall");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let rig = &sentry.rig;
        const DATA: u64 = 0x2000_0000;
        let root = sentry.space(program);
        let ctx = rig.context(1, CODE, STACK);
        let pages = rig.user_pages(512);
        for page in 0..512 {
            rig.map(root, DATA + page * PAGE_SIZE, pages + page * PAGE_SIZE, W | NX);
        }
        assert_eq!(sentry.syscall(ctx, root), 1);
        // One stop for the code, one for all of the data, one for the call.
        assert_eq!(rig.counter(Counter::StubStops), 3);
        let mut bytes = [0; 4];
        rig.memory.read(pages + 511 * PAGE_SIZE, &mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 1);
    });
}

#[test]
fn exceptions_have_their_vectors() {
    let rig = Rig::new(1);
    let cases: Vec<(&'static [u8], u32)> = vec![
        (program!(breakpoint: "int3"), vector::BP),
        (program!(undefined: "ud2"), vector::UD),
        (program!(divide: "xor ecx, ecx", "div ecx"), vector::DE),
        (program!(selector: "mov eax, 0xfff8", "mov ds, eax"), vector::GP),
        (program!(privileged: "cli"), vector::GP),
        (program!(noncanonical: "mov rax, 0x8000000000000000", "mov rax, [rax]"), vector::GP),
        (program!(stack_segment: "mov rbp, 0x8000000000000000", "mov rax, [rbp]"), vector::SS),
        (program!(step: "pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop", "nop"), vector::DB),
        (program!(icebp: ".byte 0xf1"), vector::DB),
        (program!(x87: "push 0", "fldcw [rsp]", "fldz", "fldz", "fdivp", "fwait"), vector::MF),
        (program!(sse: "push 0", "ldmxcsr [rsp]", "xorps xmm0, xmm0", "divss xmm0, xmm0"), vector::XM),
    ];
    rig.run(0, move |sentry| {
        for (task, (program, vector)) in cases.iter().enumerate() {
            let root = sentry.space(program);
            let ctx = sentry.rig.context(task as u64 + 1, CODE, STACK);
            assert_eq!(sentry.enter(ctx, root), TrapKind::Exception, "case {task}");
            assert_eq!(ctx.vector, *vector, "case {task}");
            assert_eq!(ctx.state & state::LOADED, state::LOADED);
        }
    });
}

#[test]
fn other_entries_do_not_reach_the_host() {
    let rig = Rig::new(1);
    let int80 = program!(int80: "mov eax, 20", "int 0x80", "ud2");
    let vsyscall = program!(vsyscall:
        "mov rdi, 0x1234",
        "mov rax, 0xffffffffff600400",
        "call rax",
        "mov rdi, rax",
        "mov eax, 60",
        "syscall");
    let far = program!(far: "push 0x23", "push 0x400010", ".byte 0x48", "retf", "nop", "nop", "nop", "nop", "nop", "nop",
        "nop", "nop", "nop", "nop", "nop", ".byte 0x0f, 0x34");
    rig.run(0, move |sentry| {
        let root = sentry.space(int80);
        let ctx = sentry.rig.context(1, CODE, STACK);
        assert_eq!(sentry.enter(ctx, root), TrapKind::ForeignSyscall);

        let root = sentry.space(vsyscall);
        let ctx = sentry.rig.context(2, CODE, STACK);
        assert_eq!(sentry.syscall(ctx, root), 201);
        assert_eq!(ctx.regs.rdi, 0x1234);
        assert_eq!(ctx.regs.rsp, STACK);
        ctx.regs.rax = 4711;
        assert_eq!(sentry.syscall(ctx, root), 60);
        assert_eq!(ctx.regs.rdi, 4711);

        let root = sentry.space(far);
        let ctx = sentry.rig.context(3, CODE, STACK);
        let kind = sentry.enter(ctx, root);
        assert!(matches!(kind, TrapKind::ForeignSyscall | TrapKind::Exception), "{kind:?}");
        assert_eq!(ctx.regs.rip >> 32, 0, "{:#x}", ctx.regs.rip);
    });
}

#[test]
fn page_table_permissions_hold_at_every_level() {
    let program = program!(load: "mov rax, 0x20000000", "mov rbx, [rax]", "mov eax, 1", "syscall");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let rig = &sentry.rig;
        let root = sentry.space(program);
        let ctx = rig.context(1, CODE, STACK);
        // Supervisor page.
        rig.entry(root, 0x2000_0000).store(rig.user_pages(1) | P | W, Ordering::SeqCst);
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!((ctx.vector, ctx.address), (vector::PF, 0x2000_0000));
        // An entry that points into kernel memory is never mapped.
        rig.entry(root, 0x2000_0000).store(root | P | W | U, Ordering::SeqCst);
        assert_ne!(sentry.enter(ctx, root), TrapKind::Syscall);
    });
}

#[test]
fn a_child_starts_with_what_its_parent_had() {
    let program = program!(forked:
        "2: mov rdi, 0x20000000",
        "mov rsi, [rdi]",
        "mov rdx, [rdi + 0x300000]",
        "mov [rsp - 8], rsi",
        "mov eax, 57",
        "syscall",
        "jmp 2b");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        use sentry_abi::para::Op;
        let rig = &sentry.rig;
        let root = sentry.space(program);
        for address in [0x2000_0000, 0x2030_0000] {
            rig.map(root, address, rig.user_pages(1), W | NX);
        }
        let ctx = rig.context(1, CODE, STACK);
        assert_eq!(sentry.syscall(ctx, root), 57);
        // A fork: the same pages, read-only in both.
        let child = rig.kernel_page();
        assert_eq!(sentry.call(Op::CreateSpace, [child, 0, 0, 0]), 0);
        for address in [CODE, STACK - PAGE_SIZE, 0x2000_0000, 0x2030_0000] {
            let entry = rig.entry(root, address);
            entry.fetch_and(!W, Ordering::SeqCst);
            rig.entry(child, address).store(entry.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        sentry.flush(root, 0, u64::MAX);
        let stops = rig.counter(Counter::StubStops);
        let second = rig.context(2, CODE, STACK);
        // Only the write stops it.
        assert_eq!(sentry.enter(second, child), TrapKind::Exception);
        assert_eq!((second.vector, second.address), (vector::PF, STACK - 8));
        assert_eq!(second.error_code, pf::USER | pf::PRESENT | pf::WRITE);
        assert_eq!(rig.counter(Counter::StubStops) - stops, 1);
        rig.map(child, STACK - PAGE_SIZE, rig.user_pages(1), W | NX);
        assert_eq!(sentry.syscall(second, child), 57);
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!((ctx.vector, ctx.address), (vector::PF, STACK - 8));
    });
}

#[test]
fn the_trampoline_serves_nobody_else() {
    // rbx and rbp as the trampoline takes them: one call, an mmap, listed on the stack.
    let program = program!(intruder:
        "push 0",
        "push 3",
        "push 0x11",
        "push 3",
        "push 0x1000",
        "push 0x30000000",
        "push 9",
        "mov rbx, rsp",
        "mov ebp, 1",
        "mov rax, 0x7ffffff00000",
        "jmp rax");
    let scribble = program!(scribble: "mov rax, 0x7ffffff10000", "mov rcx, [rax]", "mov [rax], rcx");
    let patch = program!(patch: "mov rax, 0x7ffffff00000", "mov byte ptr [rax], 0xc3");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let root = sentry.space(program);
        let ctx = sentry.rig.context(1, CODE, STACK);
        assert_eq!(sentry.syscall(ctx, root), 9);
        assert_eq!((ctx.regs.rdi, ctx.regs.r8), (0x3000_0000, 3));
        for (task, program) in [(2, scribble), (3, patch)] {
            let root = sentry.space(program);
            let ctx = sentry.rig.context(task, CODE, STACK);
            assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
            assert_eq!(ctx.vector, vector::PF);
            assert_ne!(ctx.error_code & pf::WRITE, 0);
        }
        // The answer is an error, so the trampoline stops at its int3, which is the program's own.
        assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
        assert_eq!(ctx.vector, vector::BP);
    });
}

#[test]
fn more_pages_than_the_host_maps() {
    // Reads every second page of 70,000.
    let program = program!(scattered:
        "mov rdi, 0x20000000",
        "mov ecx, 70000",
        "2: add rsi, [rdi]",
        "add rdi, 8192",
        "dec ecx",
        "jnz 2b",
        "mov eax, 1",
        "syscall",
        "mov rsi, [rdi - 8192 * 35000]",
        "mov eax, 2",
        "syscall");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let rig = &sentry.rig;
        let root = sentry.space(program);
        let page = rig.user_pages(1);
        rig.memory.write(page, &1u64.to_le_bytes()).unwrap();
        for index in 0..70_000 {
            rig.map(root, 0x2000_0000 + index * 2 * PAGE_SIZE, page, NX);
        }
        let ctx = rig.context(1, CODE, STACK);
        assert_eq!(sentry.syscall(ctx, root), 1);
        assert_eq!(ctx.regs.rsi, 70_000);
        sentry.flush(root, 0x2000_0000 + 40_000 * 2 * PAGE_SIZE, 100 * PAGE_SIZE);
        assert_eq!(sentry.syscall(ctx, root), 2);
        assert_eq!(ctx.regs.rsi, 1);
    });
}
