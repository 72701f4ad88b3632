//! Attributes as they are cached.

use sentry_abi::fuse;

use crate::time;

/// What is known of a node's attributes.
#[derive(Clone, Copy, Default)]
pub(super) struct Cached {
    pub attr: fuse::Attr,
    /// Something here has changed the file since: size is exact, the rest is asked for when someone looks.
    pub stale: bool,
    /// Counts changes made here, so that an answer from before one is told apart.
    version: u64,
}

impl Cached {
    pub fn new(attr: fuse::Attr) -> Cached {
        Cached { attr, stale: false, version: 0 }
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// The gofer's answer to a question asked at `version`. Of one that a change here has overtaken nothing is taken.
    pub fn answered(&mut self, attr: fuse::Attr, version: u64) -> bool {
        let current = self.version == version;
        if current {
            (self.attr, self.stale) = (attr, false);
        }
        current
    }

    /// The answer to a request that changed the attributes themselves.
    pub fn set(&mut self, attr: fuse::Attr) {
        (self.attr, self.stale) = (attr, false);
        self.version += 1;
    }

    /// A request of ours has changed them on the host.
    pub fn touched(&mut self) {
        self.stale = true;
        self.version += 1;
    }

    /// `end` is what a write has reached.
    pub fn written(&mut self, end: u64) {
        self.attr.size = self.attr.size.max(end);
        let now = time::realtime();
        (self.attr.mtime, self.attr.mtimensec) = (now / 1_000_000_000, (now % 1_000_000_000) as u32);
        self.touched();
    }
}
