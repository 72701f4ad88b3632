//! Everything that runs in a sandbox. One test program, because the emulated machine runs it once with the filter `kvm::`.

mod abi;
mod bad_input;
mod bundles;
mod bundles_host;
mod cli;
mod exec;
mod faults;
mod files;
mod programs;
mod real_input;
mod terminals;
