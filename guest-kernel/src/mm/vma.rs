//! Mappings of an address space (virtual memory areas).

use alloc::{string::String, sync::Arc};

use bitflags::bitflags;

use super::Pager;

bitflags! {
    /// PROT_* of mmap(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Prot: u32 {
        const READ = 1;
        const WRITE = 2;
        const EXEC = 4;
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct VmaFlags: u32 {
        /// Writes reach the object (MAP_SHARED).
        const SHARED = 1;
        /// Grows downwards on faults below it (a stack).
        const GROWS_DOWN = 2;
        /// Not copied to a child (MADV_DONTFORK).
        const DONT_FORK = 4;
        /// Zeroed in a child (MADV_WIPEONFORK).
        const WIPE_ON_FORK = 8;
        const LOCKED = 16;
        /// MAP_NORESERVE.
        const NO_RESERVE = 32;
    }
}

/// What a mapping shows.
#[derive(Clone)]
pub enum VmaKind {
    Anonymous,
    /// `offset` bytes into the object at the mapping's start; `max_prot` is what mprotect may give (a shared mapping of a
    /// file opened read-only never becomes writable).
    Object {
        pager: Arc<dyn Pager>,
        offset: u64,
    },
    /// Pages of the sentry shown to applications, read-only, without reference counts (vDSO and its data).
    Kernel {
        gpa: u64,
        name: &'static str,
    },
}

#[derive(Clone)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    pub prot: Prot,
    pub max_prot: Prot,
    pub flags: VmaFlags,
    pub kind: VmaKind,
}

impl Vma {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    pub fn is_private(&self) -> bool {
        !self.flags.contains(VmaFlags::SHARED)
    }

    /// The part of this mapping in `[start, end)`, which must overlap it.
    pub fn slice(&self, start: u64, end: u64) -> Vma {
        let (start, end) = (start.max(self.start), end.min(self.end));
        let skip = start - self.start;
        let kind = match &self.kind {
            VmaKind::Anonymous => VmaKind::Anonymous,
            VmaKind::Object { pager, offset } => VmaKind::Object { pager: pager.clone(), offset: offset + skip },
            VmaKind::Kernel { gpa, name } => VmaKind::Kernel { gpa: gpa + skip, name },
        };
        Vma { start, end, kind, ..self.clone() }
    }

    /// Whether `next` continues this mapping, so that both can be one.
    pub fn continues(&self, next: &Vma) -> bool {
        let joined = match (&self.kind, &next.kind) {
            (VmaKind::Anonymous, VmaKind::Anonymous) => true,
            (VmaKind::Object { pager: a, offset: x }, VmaKind::Object { pager: b, offset: y }) => {
                Arc::ptr_eq(a, b) && x + self.len() == *y
            }
            _ => false,
        };
        joined
            && self.end == next.start
            && self.prot == next.prot
            && self.max_prot == next.max_prot
            && self.flags == next.flags
            && !self.flags.contains(VmaFlags::GROWS_DOWN)
    }

    /// Name for /proc/pid/maps; empty for anonymous memory.
    pub fn name(&self) -> String {
        match &self.kind {
            VmaKind::Anonymous => String::new(),
            VmaKind::Object { pager, .. } => pager.identity().2,
            VmaKind::Kernel { name, .. } => String::from(*name),
        }
    }
}
