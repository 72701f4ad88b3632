//! Which parts of a stub's address space are filled: the contents of the software TLB.
//!
//! Needed so that a flush unmaps only what was mapped, and a fill does not map again what is there.

use std::collections::BTreeMap;

/// A run of pages filled alike: contiguous in virtual and guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    pub start: u64,
    pub len: u64,
    pub gpa: u64,
    pub write: bool,
    pub execute: bool,
}

impl Fill {
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    fn continues(&self, next: &Fill) -> bool {
        self.end() == next.start
            && self.gpa + self.len == next.gpa
            && (self.write, self.execute) == (next.write, next.execute)
    }

    /// The part from `start` on.
    fn tail(&self, start: u64) -> Fill {
        let skip = start - self.start;
        Fill { start, len: self.len - skip, gpa: self.gpa + skip, ..*self }
    }
}

#[derive(Default)]
pub struct Fills {
    map: BTreeMap<u64, Fill>,
}

impl Fills {
    /// Number of host mappings at most.
    pub fn count(&self) -> usize {
        self.map.len()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub fn clear(&mut self) {
        self.map.clear();
    }

    /// The fill that covers `address`.
    pub fn at(&self, address: u64) -> Option<&Fill> {
        self.map.range(..=address).next_back().map(|(_, fill)| fill).filter(|fill| address < fill.end())
    }

    /// Start and end of every fill.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.map.values().map(|fill| (fill.start, fill.end()))
    }

    /// Adds a fill, replacing what was in its range.
    pub fn insert(&mut self, mut fill: Fill) {
        self.remove(fill.start, fill.len);
        if let Some((&start, before)) = self.map.range(..fill.start).next_back()
            && before.continues(&fill)
        {
            fill = Fill { start, len: before.len + fill.len, gpa: before.gpa, ..fill };
        }
        if let Some(after) = self.map.get(&fill.end())
            && fill.continues(after)
        {
            let after = *after;
            self.map.remove(&after.start);
            fill.len += after.len;
        }
        self.map.insert(fill.start, fill);
    }

    /// Removes what is filled in the range and says from where to where that reached.
    pub fn remove(&mut self, start: u64, len: u64) -> Option<(u64, u64)> {
        let end = start.saturating_add(len);
        let first = self.at(start).map_or(start, |fill| fill.start);
        let hit: Vec<Fill> = self.map.range(first..end).map(|(_, &fill)| fill).collect();
        for fill in &hit {
            self.map.remove(&fill.start);
            if fill.start < start {
                self.map.insert(fill.start, Fill { len: start - fill.start, ..*fill });
            }
            if fill.end() > end {
                self.map.insert(end, fill.tail(end));
            }
        }
        Some((hit.first()?.start.max(start), hit.last()?.end().min(end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(start: u64, len: u64, gpa: u64) -> Fill {
        Fill { start, len, gpa, write: true, execute: false }
    }

    #[test]
    fn merges_neighbours() {
        let mut fills = Fills::default();
        fills.insert(fill(0x1000, 0x1000, 0x10_1000));
        fills.insert(fill(0x3000, 0x1000, 0x10_3000));
        fills.insert(fill(0x2000, 0x1000, 0x10_2000));
        assert_eq!(fills.count(), 1);
        assert_eq!(fills.at(0x2fff), Some(&fill(0x1000, 0x3000, 0x10_1000)));
        assert_eq!(fills.at(0x4000), None);
        fills.insert(Fill { write: false, ..fill(0x4000, 0x1000, 0x10_4000) });
        assert_eq!(fills.count(), 2);
    }

    #[test]
    fn removes_the_middle() {
        let mut fills = Fills::default();
        fills.insert(fill(0x1000, 0x8000, 0x10_1000));
        assert_eq!(fills.remove(0x3000, 0x2000), Some((0x3000, 0x5000)));
        assert_eq!(fills.count(), 2);
        assert_eq!(fills.at(0x2000), Some(&fill(0x1000, 0x2000, 0x10_1000)));
        assert_eq!(fills.at(0x3000), None);
        assert_eq!(fills.at(0x5000), Some(&fill(0x5000, 0x4000, 0x10_5000)));
        assert_eq!(fills.remove(0x3000, 0x2000), None);
        assert_eq!(fills.remove(0x2000, 0x4000), Some((0x2000, 0x6000)));
        assert_eq!(fills.remove(0, u64::MAX), Some((0x1000, 0x9000)));
        assert!(fills.is_empty());
    }

    #[test]
    fn replaces() {
        let mut fills = Fills::default();
        fills.insert(fill(0x1000, 0x4000, 0x10_1000));
        fills.insert(fill(0x2000, 0x1000, 0x20_0000));
        assert_eq!(fills.count(), 3);
        assert_eq!(fills.at(0x2000).map(|fill| fill.gpa), Some(0x20_0000));
        assert_eq!(fills.at(0x3000).map(|fill| fill.gpa), Some(0x10_3000));
    }
}
