//! The line discipline (N_TTY): from what is typed to what a program reads, and from what it writes to what is shown.

use alloc::{collections::VecDeque, vec::Vec};

use super::termios::*;
use crate::signal::set::{SIGINT, SIGQUIT, SIGTSTP};

/// Longest line under edit, and bytes typed ahead.
const MAX_LINE: usize = 4095;
const MAX_INPUT: usize = 16 << 10;
/// Bytes shown that nobody has read yet.
const MAX_OUTPUT: usize = 8 << 10;

/// What typing did besides text.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Typed {
    /// Signal for the foreground process group.
    pub signal: Option<u32>,
    /// Something became readable, something was echoed.
    pub readable: bool,
    pub echoed: bool,
}

#[derive(Default)]
pub struct Line {
    pub termios: Termios,
    /// The line under edit, not yet readable in canonical mode.
    edit: Vec<u8>,
    /// Readable bytes.
    ready: VecDeque<u8>,
    /// Lengths of the lines in `ready` (canonical mode); an empty one is an end of file.
    lines: VecDeque<usize>,
    /// Output for the other side.
    output: VecDeque<u8>,
    /// Cursor column, and where the edited line started.
    column: usize,
    start: usize,
    /// The next byte is text, whatever it is (VLNEXT).
    literal: bool,
    /// Output is held (VSTOP).
    pub stopped: bool,
}

impl Line {
    // What the master types.

    /// Whether a byte more would be taken.
    pub fn takes_input(&self) -> bool {
        self.ready.len() + self.edit.len() < MAX_INPUT
    }

    /// One byte from the keyboard.
    pub fn type_byte(&mut self, mut byte: u8, typed: &mut Typed) {
        let t = self.termios;
        if t.input(ISTRIP) {
            byte &= 0x7f;
        }
        if self.literal {
            self.literal = false;
            return self.add(byte, typed);
        }
        if t.input(IXON) {
            if t.is(byte, VSTART) {
                self.stopped = false;
                typed.echoed = true;
                return;
            }
            if t.is(byte, VSTOP) {
                self.stopped = true;
                return;
            }
            if self.stopped && t.input(IXANY) {
                self.stopped = false;
                typed.echoed = true;
            }
        }
        if t.local(ISIG) {
            for (which, signal) in [(VINTR, SIGINT), (VQUIT, SIGQUIT), (VSUSP, SIGTSTP)] {
                if t.is(byte, which) {
                    if !t.local(NOFLSH) {
                        self.flush_input();
                        self.output.clear();
                    }
                    self.stopped = false;
                    self.echo(byte, typed);
                    typed.signal = Some(signal);
                    return;
                }
            }
        }
        match byte {
            b'\r' if t.input(IGNCR) => return,
            b'\r' if t.input(ICRNL) => byte = b'\n',
            b'\n' if t.input(INLCR) => byte = b'\r',
            _ => {}
        }
        if !t.local(ICANON) {
            return self.add(byte, typed);
        }
        if t.local(IEXTEN) && t.is(byte, VLNEXT) {
            self.literal = true;
            if t.local(ECHO) && t.local(ECHOCTL) {
                self.show(b"^\x08");
                typed.echoed = true;
            }
        } else if t.is(byte, VERASE) {
            self.erase_character(typed);
        } else if t.local(IEXTEN) && t.is(byte, VWERASE) {
            self.erase_word(typed);
        } else if t.is(byte, VKILL) {
            self.kill(typed);
        } else if t.local(IEXTEN) && t.is(byte, VREPRINT) {
            self.echo(byte, typed);
            self.show(b"\n");
            let edit = self.edit.clone();
            self.start = self.column;
            edit.iter().for_each(|&b| self.echo(b, typed));
        } else if t.is(byte, VEOF) {
            self.complete(typed);
        } else if byte == b'\n' || t.is(byte, VEOL) || t.local(IEXTEN) && t.is(byte, VEOL2) {
            if byte == b'\n' && t.local(ECHO | ECHONL) {
                self.show(b"\n");
                typed.echoed = true;
            } else if byte != b'\n' {
                self.echo(byte, typed);
            }
            self.edit.push(byte);
            self.complete(typed);
        } else {
            self.add(byte, typed);
        }
    }

    /// A byte of text.
    fn add(&mut self, byte: u8, typed: &mut Typed) {
        if !self.termios.local(ICANON) {
            if self.takes_input() {
                self.ready.push_back(byte);
                typed.readable = true;
            }
            if byte == b'\n' && self.termios.local(ECHO) {
                self.show(b"\n");
                typed.echoed = true;
            } else {
                self.echo(byte, typed);
            }
            return;
        }
        if self.edit.len() >= MAX_LINE {
            return;
        }
        if self.edit.is_empty() {
            self.start = self.column;
        }
        self.edit.push(byte);
        self.echo(byte, typed);
    }

    /// The edited line becomes readable.
    fn complete(&mut self, typed: &mut Typed) {
        self.lines.push_back(self.edit.len());
        self.ready.extend(self.edit.drain(..));
        typed.readable = true;
    }

    fn echo(&mut self, byte: u8, typed: &mut Typed) {
        if !self.termios.local(ECHO) {
            return;
        }
        typed.echoed = true;
        if self.termios.local(ECHOCTL) && is_control(byte) {
            self.show(&[b'^', byte ^ 0x40]);
        } else {
            self.show(&[byte]);
        }
    }

    /// Columns of the edited line up to `len` bytes.
    fn width(&self, len: usize) -> usize {
        let mut column = self.start;
        for &byte in &self.edit[..len] {
            column += match byte {
                b'\t' => 8 - column % 8,
                b if is_control(b) => 2 * usize::from(self.termios.local(ECHOCTL)),
                // Bytes within a character take no room of their own.
                b if self.termios.input(IUTF8) && b & 0xc0 == 0x80 => 0,
                _ => 1,
            };
        }
        column - self.start
    }

    /// Shortens the line under edit to `len` bytes, on the screen too.
    fn shorten(&mut self, len: usize, typed: &mut Typed) {
        let columns = self.width(self.edit.len()) - self.width(len);
        self.edit.truncate(len);
        if self.termios.local(ECHO) {
            for _ in 0..columns {
                self.show(b"\x08 \x08");
            }
            typed.echoed = true;
        }
    }

    fn erase_character(&mut self, typed: &mut Typed) {
        let Some(mut len) = self.edit.len().checked_sub(1) else { return };
        while self.termios.input(IUTF8) && len > 0 && self.edit[len] & 0xc0 == 0x80 {
            len -= 1;
        }
        if self.termios.local(ECHOE) {
            return self.shorten(len, typed);
        }
        self.edit.truncate(len);
        let erase = self.termios.cc[VERASE];
        self.echo(erase, typed);
    }

    fn erase_word(&mut self, typed: &mut Typed) {
        let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
        let end = self.edit.iter().rposition(word).map_or(0, |at| at + 1);
        let start = self.edit[..end].iter().rposition(|b| !word(b)).map_or(0, |at| at + 1);
        self.shorten(start, typed);
    }

    fn kill(&mut self, typed: &mut Typed) {
        if self.termios.local(ECHOK) && self.termios.local(ECHOKE) && self.termios.local(ECHOE) {
            return self.shorten(0, typed);
        }
        self.edit.clear();
        let kill = self.termios.cc[VKILL];
        self.echo(kill, typed);
        if self.termios.local(ECHOK) && self.termios.local(ECHO) {
            self.show(b"\n");
        }
    }

    // What a program reads.

    /// Bytes a read would get now; None when it would wait. `Some(0)` is the end of file.
    pub fn available(&self) -> Option<usize> {
        if self.termios.local(ICANON) {
            self.lines.front().copied()
        } else {
            (!self.ready.is_empty()).then_some(self.ready.len())
        }
    }

    /// Bytes that may be read in all (FIONREAD).
    pub fn queued(&self) -> usize {
        self.ready.len()
    }

    /// The next bytes to read, without taking them.
    pub fn peek(&self, max: usize) -> Vec<u8> {
        self.ready.iter().take(self.available().unwrap_or(0).min(max)).copied().collect()
    }

    /// Takes `count` bytes that were peeked at; 0 takes an end of file.
    pub fn consume(&mut self, count: usize) {
        self.ready.drain(..count);
        let mut left = count;
        while let Some(line) = self.lines.front_mut() {
            if *line > left {
                *line -= left;
                return;
            }
            left -= *line;
            self.lines.pop_front();
            if left == 0 {
                return;
            }
        }
    }

    pub fn flush_input(&mut self) {
        self.edit.clear();
        self.ready.clear();
        self.lines.clear();
    }

    pub fn flush_output(&mut self) {
        self.output.clear();
    }

    /// Sets the attributes. What was typed is kept across a change of mode.
    pub fn set(&mut self, termios: Termios) {
        let was = self.termios.local(ICANON);
        self.termios = termios;
        let is = termios.local(ICANON);
        if was && !is {
            self.ready.extend(self.edit.drain(..));
            self.lines.clear();
        } else if !was && is && !self.ready.is_empty() {
            self.lines.push_back(self.ready.len());
        }
        if !termios.input(IXON) {
            self.stopped = false;
        }
    }

    // What a program shows.

    /// Room for output.
    pub fn room(&self) -> usize {
        MAX_OUTPUT.saturating_sub(self.output.len())
    }

    /// Shows as much of `bytes` as there is room for; returns how much that was.
    pub fn print(&mut self, bytes: &[u8]) -> usize {
        for (done, &byte) in bytes.iter().enumerate() {
            // A newline becomes two bytes, a tab eight.
            if self.room() < 8 {
                return done;
            }
            self.put(byte);
        }
        bytes.len()
    }

    /// Echo: what finds no room is lost.
    fn show(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.room() >= 8 {
                self.put(byte);
            }
        }
    }

    fn put(&mut self, byte: u8) {
        let t = self.termios;
        if !t.output(OPOST) {
            self.output.push_back(byte);
            return self.track(byte);
        }
        match byte {
            b'\n' if t.output(ONLCR) => {
                self.output.extend([b'\r', b'\n']);
                self.column = 0;
            }
            b'\r' if t.output(OCRNL) => {
                self.output.push_back(b'\n');
                self.track(b'\n');
            }
            b'\r' if t.output(ONOCR) && self.column == 0 => {}
            b'\t' if t.oflag & TABDLY == XTABS => {
                let spaces = 8 - self.column % 8;
                self.output.extend(core::iter::repeat_n(b' ', spaces));
                self.column += spaces;
            }
            byte => {
                self.output.push_back(byte);
                self.track(byte);
            }
        }
    }

    fn track(&mut self, byte: u8) {
        self.column = match byte {
            b'\r' => 0,
            b'\t' => (self.column / 8 + 1) * 8,
            8 => self.column.saturating_sub(1),
            b if b < 0x20 || b == 0x7f => self.column,
            b if self.termios.input(IUTF8) && b & 0xc0 == 0x80 => self.column,
            _ => self.column + 1,
        };
    }

    /// Output to read on the other side: nothing while it is stopped.
    pub fn shown(&self) -> usize {
        if self.stopped { 0 } else { self.output.len() }
    }

    pub fn peek_output(&self, max: usize) -> Vec<u8> {
        self.output.iter().take(max.min(self.shown())).copied().collect()
    }

    pub fn consume_output(&mut self, count: usize) {
        self.output.drain(..count);
    }
}

/// Shown as ^X by ECHOCTL.
fn is_control(byte: u8) -> bool {
    byte < 0x20 && byte != b'\t' && byte != b'\n' || byte == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(line: &mut Line, text: &[u8]) -> Typed {
        let mut typed = Typed::default();
        text.iter().for_each(|&b| line.type_byte(b, &mut typed));
        typed
    }

    fn read(line: &mut Line) -> Option<Vec<u8>> {
        let len = line.available()?;
        let bytes = line.peek(len);
        line.consume(bytes.len());
        Some(bytes)
    }

    fn screen(line: &mut Line) -> Vec<u8> {
        let bytes = line.peek_output(usize::MAX);
        line.consume_output(bytes.len());
        bytes
    }

    #[test]
    fn lines_are_edited_before_they_are_read() {
        let mut line = Line::default();
        assert!(!types(&mut line, b"hellx\x7fo").readable);
        assert_eq!(read(&mut line), None);
        assert!(types(&mut line, b"\r").readable);
        assert_eq!(screen(&mut line), b"hellx\x08 \x08o\r\n");
        assert_eq!(read(&mut line).unwrap(), b"hello\n");
        types(&mut line, b"one two\x17\x17three\n");
        assert_eq!(read(&mut line).unwrap(), b"three\n");
        types(&mut line, b"gone\x15kept\n");
        assert_eq!(read(&mut line).unwrap(), b"kept\n");
        types(&mut line, b"a\x16\x03b\n");
        assert_eq!(read(&mut line).unwrap(), b"a\x03b\n");
    }

    #[test]
    fn end_of_file_and_line_boundaries() {
        let mut line = Line::default();
        types(&mut line, b"ab\x04\x04cd\nef\n");
        assert_eq!(read(&mut line).unwrap(), b"ab");
        assert_eq!(read(&mut line).unwrap(), b"");
        assert_eq!(line.peek(2), b"cd");
        line.consume(2);
        assert_eq!(read(&mut line).unwrap(), b"\n");
        assert_eq!(read(&mut line).unwrap(), b"ef\n");
        assert_eq!(read(&mut line), None);
    }

    #[test]
    fn signals_flush_and_raw_mode_passes_all() {
        let mut line = Line::default();
        assert_eq!(types(&mut line, b"abc\x03").signal, Some(SIGINT));
        assert_eq!(read(&mut line), None);
        assert_eq!(screen(&mut line), b"^C");
        let mut raw = line.termios;
        raw.lflag = 0;
        raw.iflag = 0;
        raw.oflag = 0;
        line.set(raw);
        assert_eq!(types(&mut line, b"\x03\r\x7f").signal, None);
        assert_eq!(read(&mut line).unwrap(), b"\x03\r\x7f");
        assert_eq!(line.print(b"x\n"), 2);
        assert_eq!(screen(&mut line), b"x\n");
    }

    #[test]
    fn output_is_bounded_and_held() {
        let mut line = Line::default();
        let much = [b'x'; 3 * MAX_OUTPUT];
        assert!(line.print(&much) < MAX_OUTPUT);
        types(&mut line, b"\x13");
        assert_eq!(line.shown(), 0);
        types(&mut line, b"\x11");
        assert!(line.shown() > 0);
    }
}
