//! struct termios of the kernel ABI, and its bits (termios(3)).

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const NCCS: usize = 19;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Termios {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; NCCS],
}

/// struct winsize.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct WinSize {
    pub rows: u16,
    pub columns: u16,
    pub x: u16,
    pub y: u16,
}

// c_iflag
pub const ISTRIP: u32 = 0o40;
pub const INLCR: u32 = 0o100;
pub const IGNCR: u32 = 0o200;
pub const ICRNL: u32 = 0o400;
pub const IXON: u32 = 0o2000;
pub const IXANY: u32 = 0o4000;
pub const IUTF8: u32 = 0o40000;
// c_oflag
pub const OPOST: u32 = 1;
pub const ONLCR: u32 = 4;
pub const OCRNL: u32 = 0o10;
pub const ONOCR: u32 = 0o20;
pub const TABDLY: u32 = 0o14000;
pub const XTABS: u32 = 0o14000;
// c_lflag
pub const ISIG: u32 = 1;
pub const ICANON: u32 = 2;
pub const ECHO: u32 = 0o10;
pub const ECHOE: u32 = 0o20;
pub const ECHOK: u32 = 0o40;
pub const ECHONL: u32 = 0o100;
pub const NOFLSH: u32 = 0o200;
pub const TOSTOP: u32 = 0o400;
pub const ECHOCTL: u32 = 0o1000;
pub const ECHOKE: u32 = 0o4000;
pub const IEXTEN: u32 = 0o100000;
// c_cc
pub const VINTR: usize = 0;
pub const VQUIT: usize = 1;
pub const VERASE: usize = 2;
pub const VKILL: usize = 3;
pub const VEOF: usize = 4;
pub const VTIME: usize = 5;
pub const VMIN: usize = 6;
pub const VSTART: usize = 8;
pub const VSTOP: usize = 9;
pub const VSUSP: usize = 10;
pub const VEOL: usize = 11;
pub const VREPRINT: usize = 12;
pub const VWERASE: usize = 14;
pub const VLNEXT: usize = 15;
pub const VEOL2: usize = 16;

impl Default for Termios {
    /// What a new pseudo-terminal has on Linux: cooked, echoing, 38400 baud, 8 bits.
    fn default() -> Self {
        Termios {
            iflag: ICRNL | IXON,
            oflag: OPOST | ONLCR,
            cflag: 0o277,
            lflag: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
            line: 0,
            cc: [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0],
        }
    }
}

impl Termios {
    pub fn local(&self, flag: u32) -> bool {
        self.lflag & flag != 0
    }

    pub fn input(&self, flag: u32) -> bool {
        self.iflag & flag != 0
    }

    pub fn output(&self, flag: u32) -> bool {
        self.oflag & flag != 0
    }

    /// Whether `byte` is the control character `which`; 0 disables one.
    pub fn is(&self, byte: u8, which: usize) -> bool {
        self.cc[which] != 0 && self.cc[which] == byte
    }
}
