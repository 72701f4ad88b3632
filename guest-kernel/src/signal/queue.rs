//! Pending signals of a thread or of a process.

use alloc::collections::VecDeque;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{
    info::SigInfo,
    set::{SIGRTMIN, SigSet},
};

/// Entries of all queues, and how many there may be: the limit of a process alone would not bound the sentry's memory.
static TOTAL: AtomicUsize = AtomicUsize::new(0);
const MAX_TOTAL: usize = 1 << 17;

/// Standard signals are pending once; real-time signals queue, in order.
#[derive(Default)]
pub struct Queue {
    set: SigSet,
    list: VecDeque<SigInfo>,
}

impl Queue {
    pub const fn new() -> Self {
        Queue { set: SigSet::EMPTY, list: VecDeque::new() }
    }

    pub fn set(&self) -> SigSet {
        self.set
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Adds; `limit` bounds the entries that carry information. False when a real-time signal did not fit: it is then pending
    /// without information.
    pub fn push(&mut self, info: SigInfo, limit: usize) -> bool {
        let signal = info.signal();
        let pending = self.set.contains(signal);
        if signal < SIGRTMIN && pending {
            return true;
        }
        self.set = self.set.with(signal);
        // Standard signals are few, so they always fit.
        if signal >= SIGRTMIN && (self.list.len() >= limit || TOTAL.load(Relaxed) >= MAX_TOTAL) {
            return false;
        }
        self.list.push_back(info);
        TOTAL.fetch_add(1, Relaxed);
        true
    }

    /// Takes the next signal of `wanted`.
    pub fn take(&mut self, wanted: SigSet) -> Option<SigInfo> {
        let signal = self.set.intersection(wanted).first()?;
        let at = self.list.iter().position(|i| i.signal() == signal);
        let info = match at {
            Some(at) => {
                TOTAL.fetch_sub(1, Relaxed);
                self.list.remove(at)
            }
            None => None,
        };
        if !self.list.iter().any(|i| i.signal() == signal) {
            self.set = self.set.without(SigSet::of(&[signal]));
        }
        // Without an entry the information was dropped; Linux gives SI_USER with zeros.
        Some(info.unwrap_or(SigInfo::new(signal, super::info::code::SI_USER)))
    }

    /// Forgets signals.
    pub fn remove(&mut self, set: SigSet) {
        if !self.set.intersection(set).is_empty() {
            let before = self.list.len();
            self.list.retain(|i| !set.contains(i.signal()));
            TOTAL.fetch_sub(before - self.list.len(), Relaxed);
            self.set = self.set.without(set);
        }
    }

    /// Replaces the information of a pending entry (a timer that expired again). False when there is none.
    pub fn update(&mut self, matches: impl Fn(&SigInfo) -> bool, change: impl FnOnce(&mut SigInfo)) -> bool {
        match self.list.iter_mut().find(|i| matches(i)) {
            Some(info) => {
                change(info);
                true
            }
            None => false,
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        TOTAL.fetch_sub(self.list.len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::set::{SIGTERM, SIGUSR1},
        *,
    };

    fn rt(value: u64) -> SigInfo {
        let mut info = SigInfo::new(SIGRTMIN + 2, -1);
        info.fields[1] = value;
        info
    }

    #[test]
    fn standard_signals_merge_and_real_time_signals_queue() {
        let mut q = Queue::new();
        q.push(SigInfo::user(SIGUSR1, 0, 1, 0), 10);
        q.push(SigInfo::user(SIGUSR1, 0, 2, 0), 10);
        for i in 0..3 {
            assert!(q.push(rt(i), 10));
        }
        let all = SigSet(u64::MAX);
        assert_eq!(q.take(all), Some(SigInfo::user(SIGUSR1, 0, 1, 0)));
        for i in 0..3 {
            assert_eq!(q.take(all).map(|s| s.fields[1]), Some(i));
        }
        assert_eq!(q.take(all), None);
        assert!(q.is_empty());
    }

    #[test]
    fn a_full_queue_keeps_the_signal_but_not_its_information() {
        let mut q = Queue::new();
        assert!(q.push(rt(1), 1));
        assert!(!q.push(rt(2), 1));
        assert!(q.push(SigInfo::kernel(SIGTERM), 1), "standard signals always fit");
        assert_eq!(q.len(), 2);
        q.remove(SigSet::of(&[SIGTERM]));
        assert_eq!(q.take(SigSet(u64::MAX)), Some(rt(1)));
        assert!(q.is_empty());
    }

    #[test]
    fn only_wanted_signals_are_taken() {
        let mut q = Queue::new();
        q.push(SigInfo::kernel(SIGUSR1), 1);
        assert_eq!(q.take(SigSet::of(&[SIGTERM])), None);
        assert!(q.set().contains(SIGUSR1));
    }
}
