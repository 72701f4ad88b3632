//! Typed system call arguments: how a register becomes a value, and how strace shows it.

use alloc::string::String;
use core::fmt::Write;

use crate::{
    errno::Result,
    mm::user::{UserAddr, UserPtr},
    task::Current,
};

pub trait Arg: Sized {
    fn decode(raw: u64) -> Result<Self>;
    fn show(cur: &Current, raw: u64, out: &mut String);
}

/// What a handler may return.
pub trait IntoReturn {
    fn into_return(self) -> u64;
}

impl IntoReturn for () {
    fn into_return(self) -> u64 {
        0
    }
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Arg for $ty {
            // The ABI defines the low bits of the register for narrower types.
            fn decode(raw: u64) -> Result<Self> { Ok(raw as $ty) }
            fn show(_: &Current, raw: u64, out: &mut String) { let _ = write!(out, "{}", raw as $ty); }
        }
        impl IntoReturn for $ty {
            fn into_return(self) -> u64 { self as i64 as u64 }
        }
    )*};
}
integers!(i32, u32, i64, u64, usize);

impl IntoReturn for UserAddr {
    fn into_return(self) -> u64 {
        self.0
    }
}

/// A file descriptor number, or AT_FDCWD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fd(pub i32);

pub const AT_FDCWD: i32 = -100;

impl Arg for Fd {
    fn decode(raw: u64) -> Result<Self> {
        Ok(Fd(raw as i32))
    }
    fn show(_: &Current, raw: u64, out: &mut String) {
        let _ = match raw as i32 {
            AT_FDCWD => out.write_str("AT_FDCWD"),
            fd => write!(out, "{fd}"),
        };
    }
}

impl IntoReturn for Fd {
    fn into_return(self) -> u64 {
        self.0 as u64
    }
}

/// A number that reads better in hexadecimal (flags without a type of their own).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hex(pub u64);

impl Arg for Hex {
    fn decode(raw: u64) -> Result<Self> {
        Ok(Hex(raw))
    }
    fn show(_: &Current, raw: u64, out: &mut String) {
        let _ = write!(out, "{raw:#x}");
    }
}

impl Arg for UserAddr {
    fn decode(raw: u64) -> Result<Self> {
        Ok(UserAddr(raw))
    }
    fn show(_: &Current, raw: u64, out: &mut String) {
        let _ = if raw == 0 { out.write_str("NULL") } else { write!(out, "{raw:#x}") };
    }
}

impl<T> Arg for UserPtr<T> {
    fn decode(raw: u64) -> Result<Self> {
        Ok(UserPtr::new(UserAddr(raw)))
    }
    fn show(cur: &Current, raw: u64, out: &mut String) {
        UserAddr::show(cur, raw, out)
    }
}

/// A NUL-terminated string in user memory; strace shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserPath(pub UserAddr);

impl Arg for UserPath {
    fn decode(raw: u64) -> Result<Self> {
        Ok(UserPath(UserAddr(raw)))
    }
    fn show(cur: &Current, raw: u64, out: &mut String) {
        let _ = match (raw, cur.mm.read_cstr(UserAddr(raw), 4096)) {
            (0, _) => out.write_str("NULL"),
            (_, Ok(text)) => write!(out, "\"{}\"", text.escape_ascii()),
            (_, Err(_)) => write!(out, "{raw:#x}"),
        };
    }
}
