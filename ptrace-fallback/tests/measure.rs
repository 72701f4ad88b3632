//! What things cost. Not tests: run with `--release -- --ignored --nocapture`, on a quiet machine.
#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::time::Instant;

use common::{CODE, NX, Rig, STACK, W};
use sentry_abi::{
    context::{TrapKind, pf},
    counters::Counter,
    layout::PAGE_SIZE,
};

/// Nanoseconds a round of the plainest ptrace loop there is: SYSEMU, wait, GETREGS, SETREGS, both on one CPU.
fn bare_ping_pong(rounds: u32) -> u64 {
    unsafe {
        let mut saved: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut saved);
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one);
        let pid = libc::fork();
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
            loop {
                libc::syscall(libc::SYS_getpid);
            }
        }
        let mut status = 0;
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        libc::waitpid(pid, &mut status, 0);
        let start = Instant::now();
        for _ in 0..rounds {
            libc::ptrace(libc::PTRACE_SYSEMU, pid, 0, 0);
            libc::waitpid(pid, &mut status, 0);
            libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut registers);
            registers.rax = 1;
            libc::ptrace(libc::PTRACE_SETREGS, pid, 0, &raw mut registers);
        }
        let elapsed = start.elapsed().as_nanos() as u64 / u64::from(rounds);
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, &mut status, 0);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &saved);
        elapsed
    }
}

#[test]
#[ignore = "a measurement"]
fn getpid() {
    let program = program!(getpid: "2: mov eax, 39", "syscall", "jmp 2b");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let root = sentry.space(program);
        let ctx = sentry.rig.context(1, CODE, STACK);
        const ROUNDS: u32 = 20_000;
        let mut ratios = Vec::new();
        for _ in 0..7 {
            let bare = bare_ping_pong(ROUNDS);
            let start = Instant::now();
            for round in 0..ROUNDS {
                assert_eq!(sentry.syscall(ctx, root), 39);
                ctx.regs.rax = u64::from(round);
            }
            let ours = start.elapsed().as_nanos() as u64 / u64::from(ROUNDS);
            ratios.push(ours as f64 / bare as f64);
            println!("getpid: {ours} ns, bare ping-pong {bare} ns, ratio {:.2}", ours as f64 / bare as f64);
        }
        ratios.sort_by(f64::total_cmp);
        println!("median ratio {:.2}", ratios[ratios.len() / 2]);
    });
}

#[test]
#[ignore = "a measurement"]
fn touch_one_megabyte() {
    let program = program!(touch_megabyte:
        "3: mov rdi, 0x20000000",
        "mov ecx, 256",
        "2: mov [rdi], rcx",
        "add rdi, 4096",
        "dec ecx",
        "jnz 2b",
        "mov eax, 1",
        "syscall",
        "jmp 3b");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let rig = &sentry.rig;
        const DATA: u64 = 0x2000_0000;
        let root = sentry.space(program);
        let ctx = rig.context(1, CODE, STACK);
        let pages = rig.user_pages(256);
        // The sentry's part: `chunk` pages at a fault.
        for chunk in [1, 16, 64, 256] {
            let mut best = u64::MAX;
            let mut stops = 0;
            for _ in 0..20 {
                for page in 0..256 {
                    rig.entry(root, DATA + page * PAGE_SIZE).store(0, std::sync::atomic::Ordering::SeqCst);
                }
                sentry.flush(root, DATA, 256 * PAGE_SIZE);
                let before = rig.counter(Counter::StubStops) + rig.counter(Counter::StubRemoteCalls);
                let start = Instant::now();
                loop {
                    match sentry.enter(ctx, root) {
                        TrapKind::Syscall => break,
                        TrapKind::Exception if ctx.error_code & pf::PRESENT == 0 => {
                            let first = (ctx.address - DATA) / PAGE_SIZE / chunk * chunk;
                            for page in first..first + chunk {
                                rig.map(root, DATA + page * PAGE_SIZE, pages + page * PAGE_SIZE, W | NX);
                            }
                        }
                        other => panic!("{other:?}"),
                    }
                }
                best = best.min(start.elapsed().as_nanos() as u64);
                stops = rig.counter(Counter::StubStops) + rig.counter(Counter::StubRemoteCalls) - before;
            }
            println!("1 MB touched, {chunk} pages a fault: {} us, {stops} stops and calls", best / 1000);
        }
    });
}

#[test]
#[ignore = "a measurement"]
fn spaces() {
    let program = program!(exit: "mov eax, 60", "syscall");
    for cpus in [1, 2] {
        Rig::new(cpus).run(0, move |sentry| {
            const ROUNDS: u32 = 300;
            let mut times = [const { Vec::new() }; 3];
            for round in 0..ROUNDS {
                let start = Instant::now();
                let root = sentry.space(program);
                times[0].push(start.elapsed().as_nanos() as u64);
                let ctx = sentry.rig.context(u64::from(round) + 1, CODE, STACK);
                let start = Instant::now();
                assert_eq!(sentry.syscall(ctx, root), 60);
                times[1].push(start.elapsed().as_nanos() as u64);
                let start = Instant::now();
                sentry.call(sentry_abi::para::Op::DestroySpace, [root, 0, 0, 0]);
                times[2].push(start.elapsed().as_nanos() as u64);
            }
            for times in &mut times {
                times.sort();
            }
            let [create, run, destroy] = times.map(|times| times[times.len() / 2] / 1000);
            println!("{cpus} vCPUs: create a space {create} us, first system call {run} us, destroy {destroy} us");
        });
    }
}

#[test]
#[ignore = "a measurement"]
fn copy_on_write() {
    let program = program!(cow:
        "3: mov rdi, 0x20000000",
        "mov ecx, 64",
        "2: mov [rdi], rcx",
        "add rdi, 4096",
        "dec ecx",
        "jnz 2b",
        "mov eax, 1",
        "syscall",
        "jmp 3b");
    let rig = Rig::new(1);
    rig.run(0, move |sentry| {
        let rig = &sentry.rig;
        const DATA: u64 = 0x2000_0000;
        let root = sentry.space(program);
        let ctx = rig.context(1, CODE, STACK);
        let (old, new) = (rig.user_pages(64), rig.user_pages(128));
        let mut times = Vec::new();
        let mut stops = 0;
        for _ in 0..50 {
            for page in 0..64 {
                rig.map(root, DATA + page * PAGE_SIZE, old + page * PAGE_SIZE, W | NX);
            }
            sentry.flush(root, DATA, 64 * PAGE_SIZE);
            assert_eq!(sentry.syscall(ctx, root), 1);
            // As fork leaves it; then each page is copied to where it is contiguous with nothing.
            for page in 0..64 {
                rig.map(root, DATA + page * PAGE_SIZE, old + page * PAGE_SIZE, NX);
            }
            sentry.flush(root, DATA, 64 * PAGE_SIZE);
            let before = rig.counter(Counter::StubStops) + rig.counter(Counter::StubRemoteCalls);
            let start = Instant::now();
            while sentry.enter(ctx, root) == TrapKind::Exception {
                assert_ne!(ctx.error_code & pf::WRITE, 0);
                let page = (ctx.address - DATA) / PAGE_SIZE;
                rig.map(root, ctx.address, new + page * 2 * PAGE_SIZE, W | NX);
                sentry.flush(root, ctx.address, PAGE_SIZE);
            }
            times.push(start.elapsed().as_nanos() as u64);
            stops = rig.counter(Counter::StubStops) + rig.counter(Counter::StubRemoteCalls) - before;
        }
        times.sort();
        println!("copy of 64 pages one by one: {} us, {stops} stops and calls", times[times.len() / 2] / 1000);
    });
}
