//! Which backend runs the sandbox's vCPUs.

use std::path::Path;

use anyhow::{Result, bail};

use crate::flags::settings::Platform;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Kvm,
    Ptrace,
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Backend::Kvm => "kvm",
            Backend::Ptrace => "ptrace",
        }
    }
}

/// Decides; an explicit wish that cannot be met is an error at once.
pub fn choose(wish: Platform, state: &Path) -> Result<Backend> {
    let usable = || usable(Some(state));
    match wish {
        Platform::Ptrace => Ok(Backend::Ptrace),
        Platform::Kvm => match usable() {
            Ok(()) => Ok(Backend::Kvm),
            Err(reason) => bail!("--platform=kvm: KVM cannot run a sandbox on this host: {reason}"),
        },
        Platform::Auto => match usable() {
            Ok(()) => Ok(Backend::Kvm),
            Err(reason) => {
                log::info!("platform ptrace: KVM cannot run a sandbox on this host: {reason}");
                Ok(Backend::Ptrace)
            }
        },
    }
}

/// Whether KVM can run the sentry, else what is missing. What was found since this host booted is kept in the directory `cache`.
pub fn usable(cache: Option<&Path>) -> Result<(), String> {
    vmm::kvm::probe(cache).map_err(|reason| reason.to_string())
}
