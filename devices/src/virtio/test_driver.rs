//! A driver for tests: builds chains in device memory as the sentry does.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::Ordering,
};

use rustix::fs::MemfdFlags;
use sentry_abi::{
    layout,
    virtio::{QueueLayout, desc},
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceMemory, QueueSetup, device_memory};

pub const SIZE: u64 = 4 << 20;
/// Buffers start here.
const DATA: u64 = layout::DEVICE_BASE + (1 << 20);

pub fn memfd() -> OwnedFd {
    let fd = rustix::fs::memfd_create("test-device", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, SIZE).unwrap();
    fd
}

pub struct Driver {
    pub memory: DeviceMemory,
    pub setup: QueueSetup,
    layout: QueueLayout,
    avail: u16,
    used: u16,
}

impl Driver {
    /// A queue at page `index` of device memory.
    pub fn new(fd: impl AsFd, size: u16, index: u64) -> Driver {
        let base = layout::DEVICE_BASE + index * 0x8000;
        let layout = QueueLayout { size };
        let setup =
            QueueSetup { size, desc: base + layout.desc(), avail: base + layout.avail(), used: base + layout.used() };
        Driver { memory: device_memory(fd.as_fd()).unwrap(), setup, layout, avail: 0, used: 0 }
    }

    pub fn write_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.setup.desc + desc::SIZE * u64::from(index));
        self.memory.write_obj(addr, at).unwrap();
        self.memory.write_obj(len, GuestAddress(at.0 + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at.0 + 14)).unwrap();
    }

    pub fn publish(&mut self, head: u16) {
        let slot = self.avail % self.layout.size;
        self.memory.write_obj(head, GuestAddress(self.setup.avail + 4 + 2 * u64::from(slot))).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    pub fn set_avail_index(&self, index: u16) {
        self.memory.store(index, GuestAddress(self.setup.avail + 2), Ordering::Release).unwrap();
    }

    /// Asks for an event at the next completion.
    pub fn want_event(&self) {
        let used_event = GuestAddress(self.setup.avail + 4 + 2 * u64::from(self.layout.size));
        self.memory.store(self.used, used_event, Ordering::SeqCst).unwrap();
    }

    /// Puts one request into the queue, in two readable and two writable buffers.
    pub fn submit(&mut self, request: &[u8], room: usize) {
        let (a, b) = request.split_at(request.len() / 2);
        self.memory.write_slice(a, GuestAddress(DATA)).unwrap();
        self.memory.write_slice(b, GuestAddress(DATA + 0x20_0000 - 0x1000)).unwrap();
        let answer = self.answer();
        let first = room.min(24);
        self.write_descriptor(0, DATA, a.len() as u32, desc::NEXT, 1);
        self.write_descriptor(1, DATA + 0x20_0000 - 0x1000, b.len() as u32, desc::NEXT, 2);
        self.write_descriptor(2, answer.0, first as u32, desc::NEXT | desc::WRITE, 3);
        self.write_descriptor(3, answer.1, (room - first) as u32, desc::WRITE, 0);
        self.publish(0);
    }

    fn answer(&self) -> (u64, u64) {
        (DATA + 0x8_0000, DATA + 0x9_0000)
    }

    /// The completed request's answer.
    pub fn take(&mut self, room: usize) -> Option<Vec<u8>> {
        let index: u16 = self.memory.load(GuestAddress(self.setup.used + 2), Ordering::Acquire).unwrap();
        if index == self.used {
            return None;
        }
        let at = self.setup.used + 4 + 8 * u64::from(self.used % self.layout.size);
        let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        let (first, second) = self.answer();
        let mut out = vec![0; room.min(len as usize)];
        let split = out.len().min(24);
        self.memory.read_slice(&mut out[..split], GuestAddress(first)).unwrap();
        self.memory.read_slice(&mut out[split..], GuestAddress(second)).unwrap();
        Some(out)
    }

    /// One request, its answer.
    pub fn call(&mut self, kick: &EventFd, call: &EventFd, request: &[u8], room: usize) -> Vec<u8> {
        self.want_event();
        self.submit(request, room);
        kick.write(1).unwrap();
        for _ in 0..5000 {
            if let Some(answer) = self.take(room) {
                return answer;
            }
            if call.read().is_err() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        panic!("no answer");
    }
}
