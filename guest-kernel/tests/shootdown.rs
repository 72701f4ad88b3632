//! The shootdown protocol of `mm/shootdown.rs` under loom, which tries every interleaving.

use loom::{sync::Arc, thread};

mod atomic {
    pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
}

macro_rules! constructor {
    ($value:expr) => {
        #[allow(clippy::new_without_default)]
        pub fn new() -> Self {
            $value
        }
    };
}

#[path = "../src/mm/shootdown.rs"]
mod shootdown;

use atomic::{AtomicU64, Ordering::SeqCst};
use shootdown::{CpuView, Followed, Generation};

/// One CPU runs user code that reads a translation; another changes the entry and reuses the page. The user must never read
/// through the old translation after the page was reused.
#[test]
fn no_stale_translation_survives() {
    struct World {
        cpu: CpuView,
        followed: [Followed; 2],
        generation: Generation,
        /// The page table entry: 1 or 2 (pages).
        entry: AtomicU64,
        /// Set when page 1 has been given to somebody else.
        reused: AtomicU64,
        /// A pending interrupt of the user's CPU.
        interrupt: AtomicU64,
    }
    loom::model(|| {
        let world = Arc::new(World {
            cpu: CpuView::new(),
            followed: [Followed::new(), Followed::new()],
            generation: Generation::new(),
            entry: AtomicU64::new(1),
            reused: AtomicU64::new(0),
            interrupt: AtomicU64::new(0),
        });
        // Both CPUs start up to date, the user's with page 1 in its TLB.
        world.generation.must_follow(&world.followed[0]);
        world.generation.must_follow(&world.followed[1]);
        let user = {
            let w = world.clone();
            thread::spawn(move || {
                let mut tlb = 1;
                w.cpu.enter(7);
                if w.generation.must_follow(&w.followed[0]) {
                    tlb = w.entry.load(SeqCst);
                }
                // User code goes on until the interrupt; one access through the translation.
                if w.interrupt.load(SeqCst) == 0 {
                    let reused = w.reused.load(SeqCst);
                    assert!(tlb != 1 || reused == 0, "user code runs on a reused page");
                }
                w.cpu.leave();
            })
        };
        world.entry.store(2, SeqCst);
        let target = world.generation.raise(&world.followed[1]);
        if world.cpu.is_in(7) {
            world.interrupt.store(1, SeqCst);
            while Generation::is_behind(&world.cpu, &world.followed[0], 7, target) {
                thread::yield_now();
            }
        }
        world.reused.store(1, SeqCst);
        user.join().unwrap();
    });
}
