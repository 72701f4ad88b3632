//! The virtio-mmio register page of one device (virtio 1.2 section 4.2, version 2).

use anyhow::{Context, Result};
use sentry_abi::virtio::{MAGIC, VERSION, feature, reg, status};
use vm_device::{
    MutDeviceMmio,
    bus::{MmioAddress, MmioAddressOffset},
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::QueueSetup;

/// What stands behind a register page.
pub trait Backend: Send {
    /// Virtio device id.
    fn device_id(&self) -> u32;
    /// Largest size of each queue.
    fn queue_sizes(&self) -> &[u16];
    /// The driver is ready: serve these queues. Addresses are not checked yet.
    fn activate(&mut self, queues: &[QueueSetup], features: u64) -> Result<()>;
    /// The driver has reset the device: touch the queues no more.
    fn reset(&mut self);
}

#[derive(Clone, Copy, Default)]
struct QueueRegisters {
    setup: QueueSetup,
    ready: bool,
}

/// Register page. Doorbells are eventfds: the VMM registers them as ioevents, so that a notification is no exit; one that
/// does arrive here is passed on.
pub struct Transport {
    backend: Box<dyn Backend>,
    queues: Vec<QueueRegisters>,
    kicks: Vec<EventFd>,
    call: EventFd,
    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

const FEATURES: u64 = feature::VERSION_1 | feature::EVENT_IDX;

impl Transport {
    /// `kicks`: one per queue; `call`: completions. The server of the queues has duplicates of them.
    pub fn new(backend: Box<dyn Backend>, kicks: Vec<EventFd>, call: EventFd) -> Transport {
        let queues = vec![QueueRegisters::default(); backend.queue_sizes().len()];
        Transport {
            backend,
            queues,
            kicks,
            call,
            status: 0,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        }
    }

    /// New event descriptors for a device with `queues` queues: doorbells and completion.
    pub fn events(queues: usize) -> Result<(Vec<EventFd>, EventFd)> {
        let event = || EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).context("eventfd");
        Ok(((0..queues).map(|_| event()).collect::<Result<_>>()?, event()?))
    }

    /// Doorbells: a write of the index to `mmio + reg::QUEUE_NOTIFY` signals the descriptor.
    pub fn kicks(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        self.kicks.iter().enumerate().map(|(index, kick)| (index as u32, kick))
    }

    /// Signalled for the driver when requests are complete.
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.queue_sel as usize)
    }

    fn read(&self, offset: u64) -> u32 {
        let half = |value: u64, sel: u32| match sel {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.backend.device_id(),
            reg::DEVICE_FEATURES => half(FEATURES, self.device_features_sel),
            reg::QUEUE_NUM_MAX => {
                self.backend.queue_sizes().get(self.queue_sel as usize).map_or(0, |size| u32::from(*size))
            }
            reg::QUEUE_READY => self.queue().is_some_and(|queue| queue.ready).into(),
            // A completion may always have happened.
            reg::INTERRUPT_STATUS => 1,
            reg::STATUS => self.status,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES if self.status & status::FEATURES_OK == 0 => {
                match self.driver_features_sel {
                    0 => set_low(&mut self.driver_features, value),
                    1 => set_high(&mut self.driver_features, value),
                    _ => {}
                };
            }
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    // Only a full counter could fail, and then the server is awake anyhow.
                    let _ = kick.write(1);
                }
            }
            reg::STATUS => self.set_status(value),
            // Queues are set up before the driver is ready.
            _ if self.status & status::DRIVER_OK == 0 => self.write_queue(offset, value),
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let index = self.queue_sel as usize;
        let Some(max) = self.backend.queue_sizes().get(index).copied() else { return };
        let queue = &mut self.queues[index];
        let setup = &mut queue.setup;
        match offset {
            reg::QUEUE_READY => queue.ready = value == 1,
            _ if queue.ready => {}
            reg::QUEUE_NUM => {
                setup.size = u16::try_from(value).ok().filter(|n| *n <= max && n.is_power_of_two()).unwrap_or(0)
            }
            reg::QUEUE_DESC_LOW => set_low(&mut setup.desc, value),
            reg::QUEUE_DESC_HIGH => set_high(&mut setup.desc, value),
            reg::QUEUE_DRIVER_LOW => set_low(&mut setup.avail, value),
            reg::QUEUE_DRIVER_HIGH => set_high(&mut setup.avail, value),
            reg::QUEUE_DEVICE_LOW => set_low(&mut setup.used, value),
            reg::QUEUE_DEVICE_HIGH => set_high(&mut setup.used, value),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            if self.status & status::DRIVER_OK != 0 {
                self.backend.reset();
            }
            self.status = 0;
            self.driver_features = 0;
            self.queues.fill(QueueRegisters::default());
            return;
        }
        let mut value = value & 0xff;
        if value & status::FEATURES_OK != 0
            && (self.driver_features & !FEATURES != 0 || self.driver_features & feature::VERSION_1 == 0)
        {
            value &= !status::FEATURES_OK;
        }
        let ready = value & status::DRIVER_OK != 0 && self.status & status::DRIVER_OK == 0;
        self.status = value;
        if ready {
            let setups: Vec<QueueSetup> = self.queues.iter().map(|queue| queue.setup).collect();
            let all_ready = self.queues.iter().all(|queue| queue.ready && queue.setup.size > 0);
            let activated = if !all_ready || value & status::FEATURES_OK == 0 {
                Err(anyhow::anyhow!("driver is not done: status {value:#x}, queues {setups:?}"))
            } else {
                self.backend.activate(&setups, self.driver_features)
            };
            if let Err(error) = activated {
                log::error!("virtio device {:#x}: {error:#}", self.backend.device_id());
                self.status = (value & !status::DRIVER_OK) | status::NEEDS_RESET;
            }
        }
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = (*target & !0xffff_ffff) | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = (*target & 0xffff_ffff) | (u64::from(value) << 32);
}

impl MutDeviceMmio for Transport {
    fn mmio_read(&mut self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        // Registers are 32 bits wide and accessed as such; anything else reads as zero.
        data.fill(0);
        if data.len() == 4 {
            data.copy_from_slice(&self.read(offset).to_le_bytes());
        }
    }

    fn mmio_write(&mut self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Ok(value) = data.try_into() {
            self.write(offset, u32::from_le_bytes(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Activated = Arc<Mutex<Vec<(Vec<QueueSetup>, u64)>>>;

    struct Fake(Activated);
    impl Backend for Fake {
        fn device_id(&self) -> u32 {
            7
        }
        fn queue_sizes(&self) -> &[u16] {
            &[64, 32]
        }
        fn activate(&mut self, queues: &[QueueSetup], features: u64) -> Result<()> {
            self.0.lock().unwrap().push((queues.to_vec(), features));
            Ok(())
        }
        fn reset(&mut self) {
            self.0.lock().unwrap().clear();
        }
    }

    fn read(transport: &mut Transport, offset: u64) -> u32 {
        let mut data = [0; 4];
        transport.mmio_read(MmioAddress(0xd000_0000), offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(transport: &mut Transport, offset: u64, value: u32) {
        transport.mmio_write(MmioAddress(0xd000_0000), offset, &value.to_le_bytes());
    }

    fn transport() -> (Transport, Activated) {
        let activated = Activated::default();
        let (kicks, call) = Transport::events(2).unwrap();
        (Transport::new(Box::new(Fake(activated.clone())), kicks, call), activated)
    }

    fn set_up_queues(t: &mut Transport) {
        for queue in 0..2 {
            write(t, reg::QUEUE_SEL, queue);
            write(t, reg::QUEUE_NUM, 32);
            write(t, reg::QUEUE_DESC_LOW, 0x1000 + queue);
            write(t, reg::QUEUE_DESC_HIGH, 1);
            write(t, reg::QUEUE_READY, 1);
        }
    }

    #[test]
    fn initialisation_in_the_order_of_the_specification() {
        let (mut t, activated) = transport();
        assert_eq!(read(&mut t, reg::MAGIC_VALUE), MAGIC);
        assert_eq!(read(&mut t, reg::VERSION), 2);
        assert_eq!(read(&mut t, reg::DEVICE_ID), 7);
        write(&mut t, reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        write(&mut t, reg::DEVICE_FEATURES_SEL, 1);
        assert_eq!(read(&mut t, reg::DEVICE_FEATURES), 1);
        write(&mut t, reg::DRIVER_FEATURES_SEL, 1);
        write(&mut t, reg::DRIVER_FEATURES, 1);
        write(&mut t, reg::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        assert_ne!(read(&mut t, reg::STATUS) & status::FEATURES_OK, 0);
        write(&mut t, reg::QUEUE_SEL, 1);
        assert_eq!(read(&mut t, reg::QUEUE_NUM_MAX), 32);
        write(&mut t, reg::QUEUE_SEL, 2);
        assert_eq!(read(&mut t, reg::QUEUE_NUM_MAX), 0);
        set_up_queues(&mut t);
        write(&mut t, reg::STATUS, 15);
        {
            let activated = activated.lock().unwrap();
            assert_eq!(activated.len(), 1);
            assert_eq!(activated[0].0[1].desc, 0x1_0000_1001);
            assert_eq!(activated[0].1, feature::VERSION_1);
        }
        // Fixed once the driver is ready.
        write(&mut t, reg::QUEUE_DESC_LOW, 0x5000);
        write(&mut t, reg::STATUS, 15);
        assert_eq!(activated.lock().unwrap().len(), 1);
        write(&mut t, reg::QUEUE_NOTIFY, 1);
        assert_eq!(t.kicks[1].read().unwrap(), 1);
        write(&mut t, reg::QUEUE_NOTIFY, 9);
        write(&mut t, reg::STATUS, 0);
        assert!(activated.lock().unwrap().is_empty());
    }

    #[test]
    fn a_driver_that_is_not_done_is_not_served() {
        let (mut t, activated) = transport();
        set_up_queues(&mut t);
        write(&mut t, reg::STATUS, 15);
        assert!(activated.lock().unwrap().is_empty());
        assert_ne!(read(&mut t, reg::STATUS) & status::NEEDS_RESET, 0);
    }
}
