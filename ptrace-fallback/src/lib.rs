//! The ptrace backend: a software CPU with a software TLB.
//!
//! The sentry runs as a coroutine of each vCPU's thread, as plain user code of this process. Applications run in stub
//! processes under PTRACE_SYSEMU, one process an address space and one thread in it for each vCPU that enters it. A stub's
//! host mappings are a TLB over the page tables that the sentry keeps in guest memory: a fault walks them and maps what they
//! say, a flush unmaps it.

mod decode;
mod events;
mod files;
mod fills;
mod filter;
mod host;
mod interrupt;
mod pagetable;
mod placement;
mod plan;
mod probe;
mod recorder;
mod space;
mod stub;
mod trap;
mod vcpu;
mod vm;
mod worker;
mod xstate;
mod zygote;

pub use probe::probe;
pub use vcpu::PtraceVcpu;
pub use vm::{PtraceVm, entry};
