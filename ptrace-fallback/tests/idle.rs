//! What an idle vCPU costs the host. On its own: it looks at all threads of the process.
#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::{thread, time::Duration};

use common::{CODE, Rig, STACK};
use sentry_abi::para::Op;

fn monotonic() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[test]
fn an_idle_vcpu_makes_no_wakeups() {
    let rig = Rig::new(1);
    let program = program!(idle: "2: mov eax, 1", "syscall", "jmp 2b");
    rig.run(0, move |sentry| {
        let root = sentry.space(program);
        let ctx = sentry.rig.context(1, CODE, STACK);
        for _ in 0..100 {
            sentry.syscall(ctx, root);
        }
        // The watch over busy stubs ends by itself.
        thread::sleep(Duration::from_millis(60));
        let switches = || {
            std::fs::read_dir("/proc/self/task")
                .unwrap()
                .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok())
                .filter(|status| status.starts_with("Name:\trunsc-events"))
                .filter_map(|status| {
                    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
                    line.split_whitespace().nth(1)?.parse::<u64>().ok()
                })
                .sum::<u64>()
        };
        let before = switches();
        sentry.call(Op::Wait, [monotonic() + 200_000_000, 0, 0, 0]);
        assert_eq!(switches(), before);
    });
}
