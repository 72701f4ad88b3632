//! A spin lock that knows, in debug builds, that its holder may not block.

use core::{
    ops::{Deref, DerefMut},
    sync::atomic::Ordering::Relaxed,
};

use crate::arch::percpu;

pub struct SpinLock<T: ?Sized> {
    inner: spin::Mutex<T>,
}

pub struct SpinLockGuard<'a, T: ?Sized> {
    // Dropped before the depth is lowered by `Drop`; the order does not matter to others.
    inner: spin::MutexGuard<'a, T>,
}

impl<T> SpinLock<T> {
    pub const fn new(value: T) -> Self {
        SpinLock { inner: spin::Mutex::new(value) }
    }

    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> SpinLock<T> {
    #[inline]
    pub fn lock(&self) -> SpinLockGuard<'_, T> {
        enter();
        SpinLockGuard { inner: self.inner.lock() }
    }

    #[inline]
    pub fn try_lock(&self) -> Option<SpinLockGuard<'_, T>> {
        let inner = self.inner.try_lock()?;
        enter();
        Some(SpinLockGuard { inner })
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

impl<T: Default> Default for SpinLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized> Deref for SpinLockGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for SpinLockGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: ?Sized> Drop for SpinLockGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if cfg!(all(debug_assertions, sentry_image)) {
            percpu::this().spin_depth.fetch_sub(1, Relaxed);
        }
    }
}

#[inline]
fn enter() {
    if cfg!(all(debug_assertions, sentry_image)) {
        percpu::this().spin_depth.fetch_add(1, Relaxed);
    }
}

/// Checks that the caller may block.
#[inline]
pub(crate) fn assert_may_block() {
    if cfg!(all(debug_assertions, sentry_image)) {
        let depth = percpu::this().spin_depth.load(Relaxed);
        assert!(depth == 0, "a task blocks with {depth} spin locks held");
    }
}
