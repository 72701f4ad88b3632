//! A lock whose waiters sleep.

use core::ops::{Deref, DerefMut};

use super::WaitQueue;

pub struct Mutex<T: ?Sized> {
    waiters: WaitQueue,
    // Only ever try-locked: waiting happens on the queue, so holding it across a block is fine.
    inner: spin::Mutex<T>,
}

pub struct MutexGuard<'a, T: ?Sized> {
    inner: Option<spin::MutexGuard<'a, T>>,
    waiters: &'a WaitQueue,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Mutex { waiters: WaitQueue::new(), inner: spin::Mutex::new(value) }
    }

    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let inner = match self.inner.try_lock() {
            Some(inner) => inner,
            None => self.waiters.wait_uninterruptible(|| self.inner.try_lock()),
        };
        MutexGuard { inner: Some(inner), waiters: &self.waiters }
    }

    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        Some(MutexGuard { inner: Some(self.inner.try_lock()?), waiters: &self.waiters })
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        match &self.inner {
            Some(inner) => inner,
            None => unreachable!("the guard holds the lock until it is dropped"),
        }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.inner {
            Some(inner) => inner,
            None => unreachable!("the guard holds the lock until it is dropped"),
        }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.inner = None;
        self.waiters.wake_one();
    }
}
