//! A process that is started in a running container: out of a file of its own, or the bundle's with changes.

use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, Process, UserBuilder};

use super::{bundle, fields};

/// Reads `--process`: an OCI process as JSON, checked like that of a config.json; and warnings.
pub fn load(path: &Path) -> Result<(Process, Vec<String>)> {
    let read = || -> Result<(Process, Vec<String>)> {
        let value: serde_json::Value =
            serde_json::from_slice(&bundle::read_bounded(path)?).context("not valid JSON")?;
        let warnings = fields::check(&serde_json::json!({ "process": value }))?;
        Ok((serde_json::from_value(value)?, warnings))
    };
    read().with_context(|| format!("--process {}", path.display()))
}

/// What flags of `exec` change in the container's own process.
#[derive(Default)]
pub struct Changes {
    pub args: Vec<String>,
    pub cwd: Option<String>,
    pub env: Vec<String>,
    pub terminal: bool,
    /// `UID[:GID]`.
    pub user: Option<String>,
    pub additional_gids: Vec<String>,
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
}

impl Changes {
    pub fn apply(self, mut process: Process) -> Result<Process> {
        process.set_args(Some(self.args));
        process.set_terminal(Some(self.terminal));
        // That of the container's terminal, which is not this one.
        process.set_console_size(None);
        if let Some(cwd) = self.cwd {
            process.set_cwd(cwd.into());
        }
        if let Some(bad) = self.env.iter().find(|e| !e.contains('=') || e.starts_with('=')) {
            bail!("--env {bad}: not NAME=VALUE");
        }
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(self.env);
        process.set_env(Some(env));
        let number =
            |flag: &str, text: &str| text.parse::<u32>().with_context(|| format!("--{flag} {text}: not a number"));
        let mut gids = process.user().additional_gids().clone().unwrap_or_default();
        let (mut uid, mut gid) = (process.user().uid(), process.user().gid());
        if let Some(user) = &self.user {
            let (first, second) = user.split_once(':').map_or((user.as_str(), None), |(u, g)| (u, Some(g)));
            uid = number("user", first)?;
            if let Some(second) = second {
                gid = number("user", second)?;
            }
        }
        for text in &self.additional_gids {
            gids.push(number("additional-gids", text)?);
        }
        let mut user = UserBuilder::default().uid(uid).gid(gid).additional_gids(gids);
        if let Some(umask) = process.user().umask() {
            user = user.umask(umask);
        }
        process.set_user(user.build()?);
        if !self.capabilities.is_empty() {
            process.set_capabilities(Some(with(process.capabilities().as_ref(), &self.capabilities)?));
        }
        if self.no_new_privileges {
            process.set_no_new_privileges(Some(true));
        }
        Ok(process)
    }
}

/// With more capabilities in the sets that a program gets.
fn with(old: Option<&LinuxCapabilities>, names: &[String]) -> Result<LinuxCapabilities> {
    let mut more = Vec::new();
    for name in names {
        let capability: Capability = serde_json::from_value(serde_json::Value::String(name.to_uppercase()))
            .with_context(|| format!("--cap {name}: no such capability"))?;
        more.push(capability);
    }
    let old = old.cloned().unwrap_or_default();
    let extended = |set: &Option<oci_spec::runtime::Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(more.iter().copied());
        set
    };
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(extended(old.bounding()))
        .effective(extended(old.effective()))
        .permitted(extended(old.permitted()))
        .inheritable(old.inheritable().clone().unwrap_or_default())
        .ambient(old.ambient().clone().unwrap_or_default())
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        serde_json::from_value(serde_json::json!({
            "user": {"uid": 1, "gid": 2, "additionalGids": [7], "umask": 18}, "args": ["init"], "cwd": "/", "env": ["A=1"],
            "terminal": true,
        }))
        .expect("a process")
    }

    #[test]
    fn changes() {
        let changes = Changes {
            args: vec!["x".into()],
            env: vec!["B=2".into()],
            user: Some("5:6".into()),
            additional_gids: vec!["8".into()],
            capabilities: vec!["CAP_CHOWN".into()],
            ..Changes::default()
        };
        let new = changes.apply(process()).expect("changed");
        assert_eq!(new.args().as_deref(), Some(&["x".to_owned()][..]));
        assert_eq!(new.env().as_deref(), Some(&["A=1".to_owned(), "B=2".to_owned()][..]));
        assert_eq!((new.user().uid(), new.user().gid(), new.user().umask()), (5, 6, Some(18)));
        assert_eq!(new.user().additional_gids().as_deref(), Some(&[7, 8][..]));
        assert_eq!(new.terminal(), Some(false));
        let caps = new.capabilities().as_ref().and_then(|c| c.permitted().clone()).unwrap_or_default();
        assert!(caps.contains(&Capability::Chown));
    }

    #[test]
    fn bad_changes_name_their_flag() {
        for (changes, part) in [
            (Changes { user: Some("root".into()), ..Changes::default() }, "--user"),
            (Changes { env: vec!["A".into()], ..Changes::default() }, "--env"),
            (Changes { additional_gids: vec!["-1".into()], ..Changes::default() }, "--additional-gids"),
            (Changes { capabilities: vec!["FOO".into()], ..Changes::default() }, "--cap FOO"),
        ] {
            let error = format!("{:#}", changes.apply(process()).expect_err(part));
            assert!(error.contains(part), "{error}");
        }
    }
}
