//! The alternate signal stack (sigaltstack(2)).

use crate::errno::{EINVAL, ENOMEM, EPERM, Result};

pub const SS_ONSTACK: i32 = 1;
pub const SS_DISABLE: i32 = 2;
pub const SS_AUTODISARM: i32 = i32::MIN;
const MINSIGSTKSZ: u64 = 2048;

/// struct sigaltstack (stack_t).
#[derive(Clone, Copy, PartialEq, Eq, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct StackT {
    pub sp: u64,
    pub flags: i32,
    pub _pad: i32,
    pub size: u64,
}

/// What a thread has set; size 0: none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AltStack {
    pub sp: u64,
    pub size: u64,
    autodisarm: bool,
}

impl AltStack {
    /// Whether a stack pointer is on it. A stack that disarms itself counts as left once it is disarmed.
    pub fn contains(&self, sp: u64) -> bool {
        !self.autodisarm && sp > self.sp && sp - self.sp <= self.size
    }

    pub fn top(&self) -> u64 {
        self.sp + self.size
    }

    /// Whether a handler with SA_ONSTACK switches to it from `sp`.
    pub fn usable_from(&self, sp: u64) -> bool {
        self.size > 0 && !self.contains(sp)
    }

    /// What a frame that starts at `sp` and was put on this stack must not leave.
    pub fn holds(&self, sp: u64) -> bool {
        sp >= self.sp && sp < self.top()
    }

    /// As programs see it.
    pub fn to_user(&self, sp: u64) -> StackT {
        let mut flags = if self.size == 0 {
            SS_DISABLE
        } else if self.contains(sp) {
            SS_ONSTACK
        } else {
            0
        };
        if self.autodisarm {
            flags |= SS_AUTODISARM;
        }
        StackT { sp: self.sp, flags, _pad: 0, size: self.size }
    }

    /// Sets it. `sp`: the stack pointer of the caller, who must not be on the old one.
    pub fn set(&mut self, new: &StackT, sp: u64) -> Result<()> {
        if self.contains(sp) {
            return Err(EPERM);
        }
        let mode = new.flags & !SS_AUTODISARM;
        if mode != 0 && mode != SS_ONSTACK && mode != SS_DISABLE {
            return Err(EINVAL);
        }
        if mode == SS_DISABLE {
            *self = AltStack::default();
            return Ok(());
        }
        if new.size < MINSIGSTKSZ {
            return Err(ENOMEM);
        }
        new.sp.checked_add(new.size).ok_or(ENOMEM)?;
        *self = AltStack { sp: new.sp, size: new.size, autodisarm: new.flags & SS_AUTODISARM != 0 };
        Ok(())
    }

    /// A handler has started on it.
    pub fn entered(&mut self) {
        if self.autodisarm {
            *self = AltStack::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_refuses_small_and_busy_stacks() {
        let mut stack = AltStack::default();
        let new = StackT { sp: 0x1000, flags: 0, _pad: 0, size: 0x2000 };
        assert_eq!(stack.set(&StackT { size: 100, ..new }, 0), Err(ENOMEM));
        assert_eq!(stack.set(&StackT { flags: 8, ..new }, 0), Err(EINVAL));
        assert_eq!(stack.set(&new, 0), Ok(()));
        assert_eq!(stack.set(&new, 0x1800), Err(EPERM));
        assert_eq!(stack.to_user(0x1800).flags, SS_ONSTACK);
        assert_eq!(stack.to_user(0x8000).flags, 0);
        assert_eq!(stack.set(&StackT { flags: SS_DISABLE, ..new }, 0), Ok(()));
        assert_eq!(stack.to_user(0).flags, SS_DISABLE);
    }

    #[test]
    fn autodisarm_forgets_the_stack() {
        let mut stack = AltStack::default();
        let new = StackT { sp: 0x1000, flags: SS_AUTODISARM, _pad: 0, size: 0x2000 };
        stack.set(&new, 0).unwrap();
        assert!(stack.usable_from(0x1800));
        stack.entered();
        assert_eq!(stack.to_user(0x1800).flags, SS_DISABLE);
    }
}
