//! `runsc features`: the features structure of the OCI runtime specification.

use anyhow::Result;
use serde_json::json;

use crate::{
    spec::{fields, names},
    version,
};

/// Hooks by name, in the order that they run in.
const HOOKS: &[&str] = &["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
const NAMESPACES: &[&str] = &["cgroup", "ipc", "mount", "network", "pid", "user", "uts"];

pub fn run() -> Result<i32> {
    let hooks: Vec<&str> = HOOKS.iter().copied().filter(|hook| fields::is_applied(&format!("hooks.{hook}"))).collect();
    let options: Vec<&str> = names::MOUNT_OPTIONS.iter().map(|(name, _)| *name).collect();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": version::OCI,
        "hooks": hooks,
        "mountOptions": options,
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": names::capability_names(),
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
            "seccomp": { "enabled": false },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
        },
        "annotations": { "org.runsc.version": env!("CARGO_PKG_VERSION") },
    });
    let mut text = serde_json::to_string_pretty(&features)?;
    text.push('\n');
    super::print(&text)
}
