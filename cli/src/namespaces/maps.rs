//! The ids of a user namespace.

use std::fs;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::LinuxIdMapping;
use rustix::thread::{Gid, Uid};

/// Lines a map of the kernel has at most (user_namespaces(7)).
const MAX: usize = 340;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMaps {
    uids: String,
    gids: String,
}

impl IdMaps {
    pub fn of(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<IdMaps> {
        Ok(IdMaps { uids: map(uids, "linux.uidMappings")?, gids: map(gids, "linux.gidMappings")? })
    }

    /// Gives the process `pid`, in a user namespace that nobody has mapped yet, its ids.
    pub fn write(&self, pid: i32) -> Result<()> {
        let write = |file: &str, text: &str| fs::write(format!("/proc/{pid}/{file}"), text);
        if !rustix::process::geteuid().is_root() {
            // Without this the group may not be mapped by someone who is not root.
            write("setgroups", "deny").context("setgroups")?;
        }
        let field = "the host refuses these ids";
        write("gid_map", &self.gids).with_context(|| format!("linux.gidMappings: {field}"))?;
        write("uid_map", &self.uids).with_context(|| format!("linux.uidMappings: {field}"))
    }

    /// Becomes root of the namespace.
    pub fn become_root() -> Result<()> {
        // Refused where groups were denied; then there are none to drop.
        let _ = rustix::thread::set_thread_groups(&[]);
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
            .context("linux.gidMappings: group 0 is not mapped")?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
            .context("linux.uidMappings: user 0 is not mapped")
    }
}

fn map(mappings: &[LinuxIdMapping], field: &str) -> Result<String> {
    if mappings.is_empty() {
        bail!("{field}: missing, and linux.namespaces asks for a user namespace");
    }
    if mappings.len() > MAX {
        bail!("{field}: more than {MAX} ranges");
    }
    let mut text = String::new();
    for (i, m) in mappings.iter().enumerate() {
        let last = |first: u32| first.checked_add(m.size()).filter(|_| m.size() > 0);
        if last(m.container_id()).is_none() || last(m.host_id()).is_none() {
            bail!("{field}[{i}].size: {} ids from {} and {} are no range", m.size(), m.container_id(), m.host_id());
        }
        text += &format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
    }
    Ok(text)
}
