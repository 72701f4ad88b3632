//! Files that are written and files that are run are not the same (ETXTBSY, execve(2)).

use alloc::sync::Arc;

use hashbrown::HashMap;

use super::Inode;
use crate::{
    errno::{ETXTBSY, Result},
    sync::SpinLock,
};

/// How often each inode is open for writing (above 0) or run (below), by its address. Who holds a mark keeps the inode.
static MARKS: SpinLock<Option<HashMap<usize, i64>>> = SpinLock::new(None);

/// The inode is open for writing, or is run, while this lives.
pub struct Mark {
    inode: Arc<dyn Inode>,
    step: i64,
}

impl Mark {
    /// ETXTBSY while it is run.
    pub fn writer(inode: &Arc<dyn Inode>) -> Result<Self> {
        Self::take(inode, 1)
    }

    /// ETXTBSY while it is open for writing.
    pub fn program(inode: &Arc<dyn Inode>) -> Result<Self> {
        Self::take(inode, -1)
    }

    fn take(inode: &Arc<dyn Inode>, step: i64) -> Result<Self> {
        let mut marks = MARKS.lock();
        let count = marks.get_or_insert_default().entry(key(inode)).or_insert(0);
        if *count * step < 0 {
            return Err(ETXTBSY);
        }
        *count += step;
        drop(marks);
        Ok(Mark { inode: inode.clone(), step })
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut marks = MARKS.lock();
        let Some(marks) = marks.as_mut() else { return };
        let key = key(&self.inode);
        if let Some(count) = marks.get_mut(&key) {
            *count -= self.step;
            if *count == 0 {
                marks.remove(&key);
            }
        }
    }
}

fn key(inode: &Arc<dyn Inode>) -> usize {
    Arc::as_ptr(inode).cast::<()>() as usize
}
