//! The TLB shootdown protocol, apart from the hardware so that it can be model-checked.
//!
//! An address space has a generation. A CPU about to enter user mode first says so, then looks at the generation, and flushes
//! when it has not followed it. Whoever changed entries raises the generation, then looks which CPUs are in user mode of that
//! address space, interrupts those and waits until each has left or followed. The fences make one of the two see the other.

// `super` supplies the atomics and whether constructors are const: `tests/shootdown.rs` compiles this file over loom.
use super::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
    fence,
};

/// What one CPU publishes.
pub struct CpuView {
    /// Root of the address space whose user code runs here; 0 when none does.
    user: AtomicU64,
}

/// How far one CPU has followed one address space.
pub struct Followed(AtomicU64);

/// The generation of one address space's translations.
pub struct Generation(AtomicU64);

impl CpuView {
    constructor! { CpuView { user: AtomicU64::new(0) } }

    /// User mode of `root` comes next.
    #[inline]
    pub fn enter(&self, root: u64) {
        self.user.store(root, Relaxed);
        // Orders the store before the look at the generation.
        fence(SeqCst);
    }

    #[inline]
    pub fn leave(&self) {
        self.user.store(0, Release);
    }

    #[inline]
    pub fn is_in(&self, root: u64) -> bool {
        self.user.load(Acquire) == root
    }
}

impl Followed {
    constructor! { Followed(AtomicU64::new(0)) }
}

impl Generation {
    constructor! { Generation(AtomicU64::new(1)) }

    /// After `enter`: whether this CPU must flush before it runs user code. It counts as having done so.
    #[inline]
    pub fn must_follow(&self, followed: &Followed) -> bool {
        let now = self.0.load(Acquire);
        if followed.0.load(Relaxed) == now {
            return false;
        }
        followed.0.store(now, Release);
        true
    }

    /// Entries have changed and this CPU has flushed. Returns the generation the others must reach.
    pub fn raise(&self, own: &Followed) -> u64 {
        let now = self.0.fetch_add(1, AcqRel) + 1;
        own.0.store(now, Release);
        // Orders the raise before the look at the CPUs.
        fence(SeqCst);
        now
    }

    /// Whether `cpu`, seen in user mode of `root` after [`Generation::raise`], can still use old translations.
    pub fn is_behind(cpu: &CpuView, followed: &Followed, root: u64, target: u64) -> bool {
        cpu.is_in(root) && followed.0.load(Acquire) < target
    }
}
