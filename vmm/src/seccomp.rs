//! Seccomp filters by thread role. They are data (`seccomp.json`: each rule with its reason), compiled by the build script;
//! anything that no rule allows is EPERM.

use anyhow::{Context, Result};
use seccompiler::sock_filter;

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs the event loop, and ends the sandbox.
    Main,
    /// Runs a KVM vCPU.
    VcpuKvm,
    /// Runs a ptrace vCPU: the sentry itself is code of this thread.
    VcpuPtrace,
    /// Turns completions and timers into interrupts of ptrace vCPUs.
    EventsPtrace,
}

impl Role {
    fn filter(self) -> &'static [sock_filter] {
        match self {
            Role::Main => MAIN,
            Role::VcpuKvm => VCPU_KVM,
            Role::VcpuPtrace => VCPU_PTRACE,
            Role::EventsPtrace => EVENTS_PTRACE,
        }
    }
}

/// Confines the calling thread for the rest of its life.
pub fn confine(role: Role) -> Result<()> {
    seccompiler::apply_filter(role.filter()).with_context(|| format!("seccomp filter of a {role:?} thread"))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn filters_allow_work_and_nothing_else() {
        for role in [Role::Main, Role::VcpuKvm, Role::VcpuPtrace] {
            let thread = std::thread::spawn(move || {
                let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap();
                confine(role).unwrap();
                let mut buffer = [0; 8];
                assert_eq!(rustix::io::read(&event, &mut buffer), Ok(8));
                drop(vec![1u8; 1 << 20]);
                let flags = rustix::fs::OFlags::RDONLY;
                let opened = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty());
                assert_eq!(opened.unwrap_err(), Errno::PERM);
                let socket =
                    rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None);
                assert_eq!(socket.unwrap_err(), Errno::PERM);
                // TIOCGWINSZ: not one of KVM's.
                assert_eq!(rustix::termios::tcgetwinsize(&event).unwrap_err(), Errno::PERM);
            });
            thread.join().unwrap();
        }
    }
}
