//! virtio-mmio registers (virtio 1.2 section 4.2.2), device status, feature bits and split queue layout (section 2.7) as both
//! sides use them. Queues and buffers lie in device memory only. Completions are interrupts of their own
//! ([`crate::boot::Device::irq`]): InterruptStatus and InterruptACK exist but nobody has to use them.

pub const MAGIC: u32 = 0x7472_6976;
pub const VERSION: u32 = 2;

pub mod reg {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    /// The doorbell: the queue's index.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

pub mod feature {
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Device ids: virtio's for the file system and the network, ids from the end of its range for our own.
pub mod device_id {
    pub const NET: u32 = 1;
    pub const FS: u32 = 26;
    pub const CONSOLE: u32 = 0xfff0;
    pub const CONTROL: u32 = 0xfff1;
}

pub mod desc {
    pub const SIZE: u64 = 16;
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
}

/// Offsets of a queue's parts when they lie one behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    pub size: u16,
}

impl QueueLayout {
    pub const fn desc(self) -> u64 {
        0
    }
    pub const fn avail(self) -> u64 {
        desc::SIZE * self.size as u64
    }
    /// The used ring is 4-byte aligned and starts a cache line of its own: the two sides write different lines.
    pub const fn used(self) -> u64 {
        (self.avail() + 6 + 2 * self.size as u64).next_multiple_of(64)
    }
    pub const fn bytes(self) -> u64 {
        self.used() + 6 + 8 * self.size as u64
    }
}
