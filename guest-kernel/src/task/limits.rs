//! Resource limits (getrlimit(2)).

use sentry_abi::config;

pub const RLIM_INFINITY: u64 = u64::MAX;
/// Number of limits.
pub const COUNT: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Resource {
    Cpu = 0,
    Fsize = 1,
    Data = 2,
    Stack = 3,
    Core = 4,
    Rss = 5,
    Nproc = 6,
    Nofile = 7,
    Memlock = 8,
    As = 9,
    Locks = 10,
    Sigpending = 11,
    Msgqueue = 12,
    Nice = 13,
    Rtprio = 14,
    Rttime = 15,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits([Limit; COUNT]);

impl Limits {
    /// What Docker's engine gives when the configuration names nothing.
    pub fn new(configured: &[config::Rlimit]) -> Self {
        let all = |n| Limit { soft: n, hard: n };
        let mut limits = [all(RLIM_INFINITY); COUNT];
        limits[Resource::Stack as usize] = Limit { soft: 8 << 20, hard: RLIM_INFINITY };
        limits[Resource::Core as usize] = all(0);
        limits[Resource::Nofile as usize] = Limit { soft: 1024, hard: 1 << 20 };
        limits[Resource::Memlock as usize] = all(8 << 20);
        limits[Resource::Sigpending as usize] = all(8192);
        limits[Resource::Msgqueue as usize] = all(819_200);
        limits[Resource::Nice as usize] = all(0);
        limits[Resource::Rtprio as usize] = all(0);
        for limit in configured {
            if let Some(slot) = limits.get_mut(limit.resource as usize) {
                *slot = Limit { soft: limit.soft.min(limit.hard), hard: limit.hard };
            }
        }
        Limits(limits)
    }

    #[inline]
    pub fn get(&self, resource: Resource) -> Limit {
        self.0[resource as usize]
    }

    #[inline]
    pub fn soft(&self, resource: Resource) -> u64 {
        self.0[resource as usize].soft
    }

    /// By number as in system calls.
    pub fn by_number(&mut self, resource: u32) -> Option<&mut Limit> {
        self.0.get_mut(resource as usize)
    }
}
