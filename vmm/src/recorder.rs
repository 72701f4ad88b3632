//! The flight recorder: what a vCPU's last exits were, for the report of a sandbox that failed.

use std::fmt::Write;

use crate::vcpu::Exit;

const LENGTH: usize = 32;

#[derive(Default)]
pub(crate) struct Recorder {
    entries: [Entry; LENGTH],
    next: usize,
}

#[derive(Clone, Copy, Default)]
enum Entry {
    #[default]
    Empty,
    MmioRead(u64),
    MmioWrite(u64, u32),
    PioRead(u16),
    PioWrite(u16, u32),
    HostCall(u64, u64, u64),
    Interrupted,
    Failed,
}

impl Recorder {
    pub fn exit(&mut self, exit: &Exit<'_>) {
        self.push(match exit {
            Exit::MmioRead { addr, .. } => Entry::MmioRead(*addr),
            Exit::MmioWrite { addr, data } => Entry::MmioWrite(*addr, word(data)),
            Exit::PioRead { port, .. } => Entry::PioRead(*port),
            Exit::PioWrite { port, data } => Entry::PioWrite(*port, word(data)),
            Exit::Interrupted => Entry::Interrupted,
            Exit::Failed(_) => Entry::Failed,
        });
    }

    pub fn host_call(&mut self, op: u64, first: u64, second: u64) {
        self.push(Entry::HostCall(op, first, second));
    }

    fn push(&mut self, entry: Entry) {
        self.entries[self.next % LENGTH] = entry;
        self.next += 1;
    }

    /// One line an exit, oldest first.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for index in self.next.saturating_sub(LENGTH)..self.next {
            // Writing to a string cannot fail.
            let _ = match self.entries[index % LENGTH] {
                Entry::Empty => Ok(()),
                Entry::MmioRead(addr) => writeln!(text, "  {index}: mmio read {addr:#x}"),
                Entry::MmioWrite(addr, value) => writeln!(text, "  {index}: mmio write {addr:#x} {value:#x}"),
                Entry::PioRead(port) => writeln!(text, "  {index}: pio read {port:#x}"),
                Entry::PioWrite(port, value) => writeln!(text, "  {index}: pio write {port:#x} {value:#x}"),
                Entry::HostCall(op, a, b) => writeln!(text, "  {index}: host call {op} {a:#x} {b:#x}"),
                Entry::Interrupted => writeln!(text, "  {index}: interrupted"),
                Entry::Failed => writeln!(text, "  {index}: failed"),
            };
        }
        text
    }
}

/// The first bytes of an access as a number.
fn word(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_exits_in_order() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.report(), "");
        for port in 0..40 {
            recorder.exit(&Exit::PioWrite { port, data: &[1, 2] });
        }
        let report = recorder.report();
        assert_eq!(report.lines().count(), LENGTH);
        assert_eq!(report.lines().next(), Some("  8: pio write 0x8 0x201"));
        assert_eq!(report.lines().last(), Some("  39: pio write 0x27 0x201"));
    }
}
