//! Several threads: kicks, timers, interrupts, two vCPUs in one address space.
#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use common::{CODE, NX, Rig, STACK, W};
use sentry_abi::{
    context::{TrapKind, state, vector},
    irq,
    layout::PAGE_SIZE,
    para::Op,
};
use vmm::vcpu::{Entry, Exit, Vm};
use vmm_sys_util::eventfd::EventFd;

fn monotonic() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[test]
fn interrupts_reach_user_mode() {
    let program = program!(busy: "2: inc rbx", "jmp 2b");
    let rig = Rig::new(1);
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    rig.vm.register_irq(event.try_clone().unwrap(), irq::DEVICE0 + 32).unwrap();
    let vm = rig.vm.clone();
    let helper = thread::spawn(move || {
        for round in 0..200 {
            thread::sleep(Duration::from_micros(round * 7));
            vm.raise_irq(0, irq::IPI).unwrap();
        }
        thread::sleep(Duration::from_millis(20));
        event.write(1).unwrap();
    });
    rig.run(0, move |sentry| {
        let root = sentry.space(program);
        let ctx = sentry.rig.context(1, CODE, STACK);
        let mut rbx = 0;
        let mut seen = 0;
        while seen & 1 << (irq::DEVICE0 + 32) == 0 {
            assert_eq!(sentry.enter(ctx, root), TrapKind::Interrupt);
            assert_ne!(ctx.state & state::LOADED, 0);
            assert!(ctx.regs.rbx >= rbx);
            rbx = ctx.regs.rbx;
            seen |= sentry.call(Op::TakePending, [0; 4]);
        }
        assert_ne!(seen & 1 << irq::IPI, 0);
        // The timer, in user mode and asleep.
        for _ in 0..3 {
            let start = Instant::now();
            sentry.call(Op::SetTimer, [monotonic() + 3_000_000, 0, 0, 0]);
            assert_eq!(sentry.enter(ctx, root), TrapKind::Interrupt);
            assert!(start.elapsed() >= Duration::from_millis(3));
            assert_eq!(sentry.call(Op::TakePending, [0; 4]), 1 << irq::TIMER);
        }
        sentry.call(Op::SetTimer, [monotonic() + 3_000_000, 0, 0, 0]);
        sentry.call(Op::Wait, [u64::MAX, 0, 0, 0]);
        assert_eq!(sentry.call(Op::TakePending, [0; 4]), 1 << irq::TIMER);
        let start = Instant::now();
        sentry.call(Op::Wait, [monotonic() + 2_000_000, 0, 0, 0]);
        assert!(start.elapsed() >= Duration::from_millis(2));
        assert_eq!(sentry.call(Op::TakePending, [0; 4]), 0);
    });
    helper.join().unwrap();
}

#[test]
fn kicks_return_from_run() {
    let program = program!(kicked: "2: inc rbx", "jmp 2b");
    let rig = Rig::new(1);
    let kicker = rig.vm.kicker();
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let helper = thread::spawn(move || {
        while !seen.load(SeqCst) {
            kicker.kick(0);
            thread::sleep(Duration::from_micros(300));
        }
    });
    let mut interrupted = 0;
    let (vm, done) = (rig.vm.clone(), stop.clone());
    rig.run_with(
        0,
        move |sentry| {
            let root = sentry.space(program);
            let ctx = sentry.rig.context(1, CODE, STACK);
            assert_eq!(sentry.enter(ctx, root), TrapKind::Interrupt);
            assert!(ctx.regs.rbx > 0);
            sentry.call(Op::TakePending, [0; 4]);
            // Also while it sleeps.
            sentry.call(Op::Wait, [monotonic() + 5_000_000, 0, 0, 0]);
            done.store(true, SeqCst);
        },
        |exit| {
            assert!(matches!(exit, Exit::Interrupted), "{exit:?}");
            interrupted += 1;
            if interrupted == 50 {
                vm.raise_irq(0, irq::IPI).unwrap();
            }
        },
    )
    .unwrap();
    helper.join().unwrap();
    assert!(interrupted >= 50);
}

type Job = Box<dyn FnOnce(&common::Sentry) + Send>;

/// Runs each closure as the sentry of a vCPU on a thread of its own.
fn on_cpus(rig: &Arc<Rig>, sentries: Vec<Job>) {
    // The end of a vCPU ends the stubs it has threads in: so they end together.
    let end = Arc::new(Barrier::new(sentries.len()));
    thread::scope(|scope| {
        for (cpu, sentry) in sentries.into_iter().enumerate() {
            let (rig, end) = (rig.clone(), end.clone());
            scope.spawn(move || {
                rig.run(cpu as u32, move |own| {
                    sentry(own);
                    end.wait();
                })
            });
        }
    });
}

#[test]
fn two_vcpus_in_one_space() {
    // Adds what the page says until told to stop by r15.
    let program = program!(two:
        "mov rdi, 0x20000000",
        "2: mov rsi, [rdi]",
        "mov eax, 1",
        "syscall",
        "jmp 2b");
    let rig = Rig::new(2);
    const DATA: u64 = 0x2000_0000;
    let root = Arc::new(AtomicU64::new(0));
    let generation = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let pages: Vec<u64> = (0..8).map(|_| rig.user_pages(1)).collect();
    for (index, page) in pages.iter().enumerate() {
        rig.memory.write(*page, &(index as u64).to_le_bytes()).unwrap();
    }

    let (root0, generation0, done0, pages0) = (root.clone(), generation.clone(), done.clone(), pages.clone());
    let changer = move |sentry: &common::Sentry| {
        let rig = &sentry.rig;
        let space = sentry.space(program);
        rig.map(space, DATA, pages0[0], NX);
        root0.store(space, SeqCst);
        let ctx = rig.context(1, CODE, STACK);
        for round in 1..2000u64 {
            rig.entry(space, DATA).store(0, SeqCst);
            sentry.flush(space, DATA, PAGE_SIZE);
            // Nobody sees the old page from here on: it may be reused.
            rig.memory.write(pages0[(round - 1) as usize % 8], &0xdead_u64.to_le_bytes()).unwrap();
            rig.memory.write(pages0[round as usize % 8], &round.to_le_bytes()).unwrap();
            generation0.store(round, SeqCst);
            rig.map(space, DATA, pages0[round as usize % 8], NX);
            if round % 16 == 0 {
                while sentry.enter(ctx, space) != TrapKind::Syscall {}
                assert_eq!(ctx.regs.rsi, round);
            }
        }
        done0.store(true, SeqCst);
    };
    let reader = move |sentry: &common::Sentry| {
        while root.load(SeqCst) == 0 {
            thread::yield_now();
        }
        let space = root.load(SeqCst);
        let ctx = sentry.rig.context(2, CODE, STACK);
        let mut reads = 0;
        while !done.load(SeqCst) {
            let before = generation.load(SeqCst);
            match sentry.enter(ctx, space) {
                TrapKind::Syscall => {
                    let after = generation.load(SeqCst);
                    assert_ne!(ctx.regs.rsi, 0xdead, "a page that was flushed");
                    assert!(ctx.regs.rsi >= before.saturating_sub(1) && ctx.regs.rsi <= after + 1);
                    reads += 1;
                }
                TrapKind::Exception => assert_eq!(ctx.vector, vector::PF),
                other => panic!("{other:?}"),
            }
        }
        assert!(reads > 0);
    };
    on_cpus(&rig, vec![Box::new(changer), Box::new(reader)]);
}

#[test]
fn a_task_moves_between_vcpus() {
    let program = program!(moving: "2: inc rbx", "mov eax, 1", "syscall", "movq xmm5, rbx", "jmp 2b");
    let rig = Rig::new(2);
    let root = Arc::new(AtomicU64::new(0));
    let turn = Arc::new(AtomicU64::new(0));
    let context = Arc::new(AtomicU64::new(0));
    const ROUNDS: u64 = 200;
    let step = move |cpu: u64| {
        let (root, turn, context) = (root.clone(), turn.clone(), context.clone());
        move |sentry: &common::Sentry| {
            if cpu == 0 {
                root.store(sentry.space(program), SeqCst);
                context.store(&raw mut *sentry.rig.context(9, CODE, STACK) as u64, SeqCst);
                turn.store(2, SeqCst);
            }
            loop {
                let now = turn.load(SeqCst);
                if now >= ROUNDS {
                    return;
                }
                if now < 2 || now % 2 != cpu {
                    thread::yield_now();
                    continue;
                }
                let ctx = unsafe { &mut *(context.load(SeqCst) as *mut sentry_abi::context::UserContext) };
                let space = root.load(SeqCst);
                sentry.syscall(ctx, space);
                sentry.load(ctx);
                assert_eq!(ctx.regs.rbx, now - 1);
                assert_eq!(sentry.call(Op::SaveXstate, [&raw mut *ctx as u64, 0, 0, 0]), 0);
                let area = unsafe { std::slice::from_raw_parts(ctx.xsave as *const u8, 576) };
                assert_eq!(area[160 + 80..168 + 80], (now - 2).to_le_bytes());
                turn.store(now + 1, SeqCst);
            }
        }
    };
    on_cpus(&rig, vec![Box::new(step(0)), Box::new(step(1))]);
}

#[test]
fn an_ipi_stops_the_other_vcpu() {
    let program = program!(other: "2: inc rbx", "jmp 2b");
    let rig = Rig::new(2);
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = ready.clone();
    on_cpus(
        &rig,
        vec![
            Box::new(move |sentry: &common::Sentry| {
                let root = sentry.space(program);
                let ctx = sentry.rig.context(1, CODE, STACK);
                ready.store(true, SeqCst);
                for _ in 0..100 {
                    assert_eq!(sentry.enter(ctx, root), TrapKind::Interrupt);
                    assert_eq!(sentry.call(Op::TakePending, [0; 4]), 1 << irq::IPI);
                    sentry.call(Op::SendInterrupt, [1, u64::from(irq::IPI), 0, 0]);
                }
            }),
            Box::new(move |sentry: &common::Sentry| {
                while !is_ready.load(SeqCst) {
                    thread::yield_now();
                }
                for _ in 0..100 {
                    sentry.call(Op::SendInterrupt, [0, u64::from(irq::IPI), 0, 0]);
                    sentry.call(Op::Wait, [u64::MAX, 0, 0, 0]);
                    assert_eq!(sentry.call(Op::TakePending, [0; 4]), 1 << irq::IPI);
                }
            }),
        ],
    );
}

#[test]
fn writes_of_one_vcpu_are_seen_by_the_other() {
    let program = program!(shared:
        "mov rdi, 0x20000000",
        "mov ecx, 100000",
        "2: lock inc qword ptr [rdi]",
        "dec ecx",
        "jnz 2b",
        "mov eax, 60",
        "syscall");
    let rig = Rig::new(2);
    let page = rig.user_pages(1);
    let root = Arc::new(AtomicU64::new(0));
    let sentry = move |cpu: u64| {
        let root = root.clone();
        move |sentry: &common::Sentry| {
            if cpu == 0 {
                let space = sentry.space(program);
                sentry.rig.map(space, 0x2000_0000, page, W | NX);
                root.store(space, SeqCst);
            }
            while root.load(SeqCst) == 0 {
                thread::yield_now();
            }
            let ctx = sentry.rig.context(cpu + 1, CODE, STACK);
            assert_eq!(sentry.syscall(ctx, root.load(SeqCst)), 60);
        }
    };
    on_cpus(&rig, vec![Box::new(sentry(0)), Box::new(sentry(1))]);
    let mut bytes = [0; 8];
    rig.memory.read(page, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 200_000);
}

#[test]
fn vcpus_do_not_exist_beyond_their_number() {
    let rig = Rig::new(1);
    assert!(rig.vm.create_vcpu(1, Entry { rip: 0, params: 0 }).is_err());
    assert!(rig.vm.raise_irq(1, irq::IPI).is_err());
    rig.vm.kicker().kick(7);
}

#[test]
fn the_filter_of_vcpu_threads_suffices() {
    let program = program!(confined:
        "mov rdi, 0x20000000",
        "2: mov rsi, [rdi]",
        "mov eax, 1",
        "syscall",
        "jmp 2b");
    let rig = Rig::new(1);
    rig.run_confined(0, move |sentry| {
        let rig = &sentry.rig;
        sentry.call(Op::SetCpuBase, [rig.memory.direct_base(), 0, 0, 0]);
        for task in 1..50 {
            let root = sentry.space(program);
            let ctx = rig.context(task, CODE, STACK);
            assert_eq!(sentry.enter(ctx, root), TrapKind::Exception);
            let made = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC);
            assert_eq!(made.unwrap_err(), rustix::io::Errno::PERM);
            rig.map(root, 0x2000_0000, rig.user_pages(1), W | NX);
            assert_eq!(sentry.syscall(ctx, root), 1);
            sentry.flush(root, 0x2000_0000, PAGE_SIZE);
            sentry.call(Op::SetTimer, [monotonic() + 200_000, 0, 0, 0]);
            while sentry.enter(ctx, root) == TrapKind::Syscall {}
            assert_eq!(sentry.call(Op::TakePending, [0; 4]), 1 << irq::TIMER);
            sentry.load(ctx);
            sentry.call(Op::SaveXstate, [&raw mut *ctx as u64, 0, 0, 0]);
            sentry.call(Op::Wait, [monotonic() + 100_000, 0, 0, 0]);
            sentry.call(Op::DestroySpace, [root, 0, 0, 0]);
        }
    });
}
