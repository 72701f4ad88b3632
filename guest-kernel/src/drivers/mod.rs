//! Drivers of the devices the VMM lists in the boot parameters: file server, standard streams, control.

pub mod console;
pub mod control;
mod requests;
pub mod virtio;

use alloc::sync::Arc;

use sentry_abi::boot::{BootParams, DeviceKind};

use crate::{
    mm::dma,
    sync::{Once, SpinLock},
};
use virtio::{Device, Queue};

/// Queues whose completions an interrupt announces, by device number.
static QUEUES: SpinLock<alloc::vec::Vec<(u32, Arc<Queue>)>> = SpinLock::new(alloc::vec::Vec::new());

static GOFER: Once<Arc<Queue>> = Once::new();

/// Finds the devices and gets their queues going.
pub fn init(params: &BootParams) {
    dma::init(params.device);
    let count = (params.device_count as usize).min(params.devices.len());
    for device in &params.devices[..count] {
        let number = device.irq.saturating_sub(sentry_abi::irq::DEVICE0);
        let started = match device.kind {
            kind if kind == DeviceKind::Gofer as u32 => start_gofer(device.mmio, number),
            kind if kind == DeviceKind::Console as u32 => console::start(device.mmio, number),
            kind if kind == DeviceKind::Control as u32 => control::start(device.mmio, number),
            _ => Ok(()),
        };
        if let Err(error) = started {
            crate::warn!("device {number} (kind {}): {error:?}", device.kind);
        }
    }
}

fn start_gofer(mmio: u64, number: u32) -> crate::errno::Result<()> {
    let device = Device::probe(mmio, sentry_abi::virtio::device_id::FS)?;
    let queue = device.queue(0, sentry_abi::fuse::QUEUE_SIZE)?;
    device.start();
    listen(number, &queue);
    GOFER.call_once(|| queue);
    Ok(())
}

/// The file server's queue; none in a sandbox without one.
pub fn gofer() -> Option<&'static Arc<Queue>> {
    GOFER.get()
}

/// Interrupts of device `number` are about `queue`.
fn listen(number: u32, queue: &Arc<Queue>) {
    QUEUES.lock().push((number, queue.clone()));
}

/// Completion interrupts: bit `n` for device `n` of the boot parameters.
pub fn interrupt(devices: u64) {
    let queues: smallvec::SmallVec<[Arc<Queue>; 4]> =
        QUEUES.lock().iter().filter(|(number, _)| devices & (1 << number) != 0).map(|(_, q)| q.clone()).collect();
    for queue in queues {
        queue.interrupt();
    }
}
