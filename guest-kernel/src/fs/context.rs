//! Where a task's paths start, and its umask: what CLONE_FS shares.

use alloc::sync::Arc;

use super::Path;
use crate::sync::SpinLock;

#[derive(Clone)]
struct Inner {
    root: Path,
    cwd: Path,
    umask: u32,
}

pub struct FsContext {
    inner: SpinLock<Inner>,
}

impl FsContext {
    pub fn new(root: Path, umask: u32) -> Arc<Self> {
        Arc::new(FsContext { inner: SpinLock::new(Inner { cwd: root.clone(), root, umask }) })
    }

    /// A copy for fork(2) without CLONE_FS.
    pub fn copy(&self) -> Arc<Self> {
        Arc::new(FsContext { inner: SpinLock::new(self.inner.lock().clone()) })
    }

    pub fn root(&self) -> Path {
        self.inner.lock().root.clone()
    }

    pub fn cwd(&self) -> Path {
        self.inner.lock().cwd.clone()
    }

    pub fn set_root(&self, root: Path) {
        let old = core::mem::replace(&mut self.inner.lock().root, root);
        drop(old);
    }

    pub fn set_cwd(&self, cwd: Path) {
        let old = core::mem::replace(&mut self.inner.lock().cwd, cwd);
        drop(old);
    }

    pub fn umask(&self) -> u32 {
        self.inner.lock().umask
    }

    pub fn set_umask(&self, umask: u32) -> u32 {
        core::mem::replace(&mut self.inner.lock().umask, umask & 0o777)
    }
}
