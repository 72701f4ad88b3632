//! An address space: mappings over a page table.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use sentry_abi::{
    boot::MAX_CPUS,
    layout::{PAGE_SIZE, USER_TOP},
};

use super::{
    Pager, frames,
    page_table::{self, PageTable},
    shootdown::{Followed, Generation},
    vma::{Vma, VmaKind},
};
use crate::{
    arch,
    counters::{Counter, count},
    errno::{ENOMEM, Result},
    sched,
    sync::{Mutex, MutexGuard},
};

/// Where things are: what exec decided, for brk, /proc/pid/stat and the auxiliary vector.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    /// Highest address of the stack mapping.
    pub stack_top: u64,
    /// mmap(2) places mappings below this, downwards.
    pub mmap_base: u64,
    pub args: (u64, u64),
    pub env: (u64, u64),
    pub auxv: (u64, u64),
}

pub struct AddressSpace {
    root: u64,
    pub(super) weak: Weak<AddressSpace>,
    pub(super) inner: Mutex<Inner>,
    /// Raised by every flush that other CPUs must follow.
    generation: Generation,
    followed: [Followed; MAX_CPUS],
    /// Pages mapped, for RSS.
    pub(super) resident: AtomicU64,
    /// Highest RSS so far, pages.
    pub(super) peak: AtomicU64,
    /// What membarrier(2) was registered for, by its MEMBARRIER_CMD_* bits.
    pub barriers: AtomicU32,
    limit_stack: AtomicU64,
    limit_data: AtomicU64,
    limit_total: AtomicU64,
}

pub(super) struct Inner {
    pub table: PageTable,
    /// By start address; disjoint.
    pub vmas: BTreeMap<u64, Vma>,
    pub layout: Layout,
    /// Bytes mapped.
    pub total: u64,
    /// From here to `layout.mmap_base` no page is free; 0: nothing is known.
    pub full_from: u64,
    /// Where the last fault in anonymous memory stopped, and how many pages it mapped.
    pub stream: (u64, u64),
}

static TEMPLATE: AtomicU64 = AtomicU64::new(0);

/// Remembers the kernel half that every page table shares (0: none).
pub fn init(boot_root: u64) {
    TEMPLATE.store(boot_root, Relaxed);
}

/// CPU and the root whose generation it last followed.
static LOADED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

impl AddressSpace {
    pub fn new() -> Result<Arc<Self>> {
        let table = PageTable::new(TEMPLATE.load(Relaxed))?;
        let root = table.root();
        arch::create_space(root)?;
        let inner = Inner {
            table,
            vmas: BTreeMap::new(),
            layout: Layout { mmap_base: USER_TOP, ..Layout::default() },
            total: 0,
            full_from: 0,
            stream: (0, 0),
        };
        Ok(Arc::new_cyclic(|weak| AddressSpace {
            root,
            weak: weak.clone(),
            inner: Mutex::new(inner),
            generation: Generation::new(),
            followed: [const { Followed::new() }; MAX_CPUS],
            resident: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            barriers: AtomicU32::new(0),
            limit_stack: AtomicU64::new(8 << 20),
            limit_data: AtomicU64::new(u64::MAX),
            limit_total: AtomicU64::new(u64::MAX),
        }))
    }

    /// Names the address space to the CPU.
    #[inline]
    pub fn root(&self) -> u64 {
        self.root
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    pub fn layout(&self) -> Layout {
        self.lock().layout
    }

    pub fn set_layout(&self, layout: Layout) {
        let mut inner = self.lock();
        inner.layout = layout;
        inner.full_from = 0;
    }

    /// The mappings, by address: for /proc.
    pub fn mappings(&self) -> Vec<Vma> {
        self.lock().vmas.values().cloned().collect()
    }

    /// Bytes mapped and bytes resident.
    pub fn usage(&self) -> (u64, u64) {
        (self.lock().total, self.resident.load(Relaxed) * PAGE_SIZE)
    }

    /// Highest resident size so far, bytes.
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed) * PAGE_SIZE
    }

    /// Follows flushes that this CPU missed while it was not in this address space. Just before user mode.
    #[inline]
    pub fn synchronize(&self) {
        let cpu = arch::cpu_index();
        let loaded = LOADED[cpu].load(Relaxed);
        if loaded != self.root {
            LOADED[cpu].store(self.root, Relaxed);
        }
        if !self.generation.must_follow(&self.followed[cpu]) {
            return;
        }
        // Loading another root flushes; staying on the same one needs it spelt out.
        if loaded == self.root {
            arch::flush(self.root, 0, u64::MAX);
        }
    }

    /// Entries of `[start, end)` have changed: on return no CPU uses the old ones. The caller holds the lock.
    pub(super) fn flush(&self, start: u64, end: u64) {
        count(Counter::TlbFlushes);
        if arch::flush(self.root, start, end - start) {
            return;
        }
        let target = self.generation.raise(&self.followed[arch::cpu_index()]);
        let mut waiting: smallvec::SmallVec<[usize; 8]> = smallvec::SmallVec::new();
        for cpu in sched::user_cpus(self.root) {
            count(Counter::Shootdowns);
            arch::send_interrupt(cpu, sentry_abi::irq::IPI);
            waiting.push(cpu);
        }
        // They leave user mode at once; before they come back they follow the generation.
        for cpu in waiting {
            while Generation::is_behind(sched::view(cpu), &self.followed[cpu], self.root, target) {
                core::hint::spin_loop();
            }
        }
    }

    /// RLIMIT_STACK, RLIMIT_DATA and RLIMIT_AS in bytes, which the process keeps up to date.
    pub fn set_limits(&self, stack: u64, data: u64, total: u64) {
        self.limit_stack.store(stack, Relaxed);
        self.limit_data.store(data, Relaxed);
        self.limit_total.store(total, Relaxed);
    }

    pub(super) fn data_limit(&self) -> u64 {
        self.limit_data.load(Relaxed)
    }

    pub(super) fn stack_limit(&self) -> u64 {
        self.limit_stack.load(Relaxed)
    }

    pub(super) fn check_limit(&self, inner: &Inner, more: u64) -> Result<()> {
        if inner.total.saturating_add(more) > self.limit_total.load(Relaxed) { Err(ENOMEM) } else { Ok(()) }
    }

    pub(super) fn mapped(&self, pages: u64) {
        let now = self.resident.fetch_add(pages, Relaxed) + pages;
        self.peak.fetch_max(now, Relaxed);
    }

    /// Removes the entries of `[start, end)` and gives up what they held. Returns whether anything was mapped.
    pub(super) fn clear(&self, inner: &Inner, start: u64, end: u64) -> bool {
        let mut pages: Vec<u64> = Vec::new();
        let mut any = 0;
        inner.table.for_each(start, end, |_, entry| {
            let old = entry.swap(0, SeqCst);
            any += 1;
            pages.push(old & page_table::ADDRESS);
        });
        if any == 0 {
            return false;
        }
        self.flush(start, end);
        self.resident.fetch_sub(any, Relaxed);
        for gpa in pages {
            frames::put(gpa);
        }
        true
    }

    /// Removes translations of bytes `[first, last)` of an object, which shrank or changes its pages.
    pub(super) fn revoke(&self, pager: &dyn Pager, first: u64, last: u64, private_too: bool) {
        let inner = self.lock();
        for vma in inner.vmas.values() {
            let VmaKind::Object { pager: mapped, offset } = &vma.kind else { continue };
            if !core::ptr::addr_eq(Arc::as_ptr(mapped), pager) || first >= offset + vma.len() || last <= *offset {
                continue;
            }
            let start = vma.start + first.saturating_sub(*offset);
            let end = (vma.start + (last - offset).min(vma.len())).min(vma.end);
            if private_too || !vma.is_private() {
                self.clear(&inner, start, end);
                continue;
            }
            // Keep private copies: only what still shows the object goes.
            let mut gone = Vec::new();
            inner.table.for_each(start, end, |address, entry| {
                let value = entry.load(SeqCst);
                if value & page_table::ANONYMOUS == 0 {
                    entry.store(0, SeqCst);
                    gone.push((address, value & page_table::ADDRESS));
                }
            });
            if let (Some(a), Some(b)) = (gone.first(), gone.last()) {
                self.flush(a.0, b.0 + PAGE_SIZE);
                self.resident.fetch_sub(gone.len() as u64, Relaxed);
                for (_, gpa) in gone {
                    frames::put(gpa);
                }
            }
        }
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        arch::destroy_space(self.root);
        for loaded in &LOADED {
            // The next address space may get the same root page.
            let _ = loaded.compare_exchange(self.root, 0, Relaxed, Relaxed);
        }
        for vma in inner.vmas.values() {
            if matches!(vma.kind, VmaKind::Kernel { .. }) {
                continue;
            }
            inner.table.for_each(vma.start, vma.end, |_, entry| {
                frames::put(entry.swap(0, SeqCst) & page_table::ADDRESS);
            });
            if let VmaKind::Object { pager, .. } = &vma.kind {
                pager.mappings().remove(&self.weak);
            }
        }
    }
}
