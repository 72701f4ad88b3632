//! The flight recorder of a vCPU: its last calls and what they answered, for reports.

use std::fmt::Write;

const LENGTH: usize = 16;

#[derive(Clone, Copy, Default)]
struct Entry {
    op: u64,
    a0: u64,
    a1: u64,
    result: u64,
}

#[derive(Default)]
pub struct Recorder {
    entries: [Entry; LENGTH],
    next: usize,
}

impl Recorder {
    pub fn record(&mut self, op: u64, args: &[u64; 4], result: u64) {
        self.entries[self.next % LENGTH] = Entry { op, a0: args[0], a1: args[1], result };
        self.next += 1;
    }

    /// One line a call, oldest first.
    pub fn report(&self) -> String {
        const NAMES: [&str; 17] = [
            "?",
            "enter_user",
            "load_registers",
            "save_xstate",
            "create_space",
            "destroy_space",
            "flush_range",
            "wait",
            "set_timer",
            "send_interrupt",
            "take_pending",
            "mmio_write",
            "mmio_read",
            "pio_write",
            "pio_read",
            "register_fixups",
            "set_cpu_base",
        ];
        let mut text = String::new();
        for index in self.next.saturating_sub(LENGTH)..self.next {
            let entry = self.entries[index % LENGTH];
            let name = NAMES.get(entry.op as usize).unwrap_or(&"?");
            let _ = writeln!(text, "  {index}: {name} {:#x} {:#x} -> {:#x}", entry.a0, entry.a1, entry.result);
        }
        text
    }
}
