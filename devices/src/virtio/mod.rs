//! Virtio over MMIO with split queues that lie in device memory.
//!
//! [`Transport`] is the register page, carried by the VMM's bus. When the driver is ready it hands the queues' addresses to a
//! [`Backend`], which serves them in this process or in a helper; either way the server maps nothing but device memory
//! ([`device_memory`]) and goes through [`DeviceQueue`] and [`Chain`], which check every descriptor.

mod chain;
mod io;
mod memory;
mod queue;
#[cfg(test)]
pub(crate) mod test_driver;
mod transport;

pub use chain::{BadChain, Chain};
pub(crate) use io::event_descriptor;
pub use memory::{DeviceMemory, device_memory};
pub use queue::{DeviceQueue, QueueError, QueueSetup, Spinner};
pub use transport::{Backend, Transport};
