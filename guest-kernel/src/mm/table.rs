//! A table in kernel memory that is used before there is a heap: the pages behind it appear, zeroed, on first touch.

use core::ptr::NonNull;

pub struct LazyTable<T: 'static> {
    base: NonNull<T>,
    len: usize,
}

// SAFETY: the table owns its range exclusively, as a Box<[T]> would.
unsafe impl<T: Send> Send for LazyTable<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Sync> Sync for LazyTable<T> {}

impl<T> LazyTable<T> {
    pub const fn empty() -> Self {
        LazyTable { base: NonNull::dangling(), len: 0 }
    }

    pub fn from_static(slice: &'static mut [T]) -> Self {
        LazyTable { len: slice.len(), base: NonNull::from(slice).cast() }
    }

    /// # Safety
    /// `base` is aligned for `T` and starts `len` elements of zeroed kernel memory that nothing else uses, ever; all zero
    /// bits are a valid `T`.
    pub unsafe fn from_memory(base: *mut u8, len: usize) -> Option<Self> {
        Some(LazyTable { base: NonNull::new(base.cast())?, len })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub fn get(&self, index: usize) -> &T {
        assert!(index < self.len);
        // SAFETY: within the table, whose elements are valid from the start.
        unsafe { self.base.add(index).as_ref() }
    }

    #[inline]
    pub fn get_mut(&mut self, index: usize) -> &mut T {
        assert!(index < self.len);
        // SAFETY: within the table, and borrowed exclusively.
        unsafe { self.base.add(index).as_mut() }
    }
}
