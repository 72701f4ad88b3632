//! Hooks of a bundle: programs of the host that are run at points of a container's life, with its state on standard input
//! (OCI runtime specification, config.md and runtime.md).

pub mod inside;
mod process;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// Points of a container's life, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    /// As config.json names it.
    pub fn name(self) -> &'static str {
        match self {
            Point::Prestart => "prestart",
            Point::CreateRuntime => "createRuntime",
            Point::CreateContainer => "createContainer",
            Point::StartContainer => "startContainer",
            Point::Poststart => "poststart",
            Point::Poststop => "poststop",
        }
    }

    /// The container's status as a hook at this point finds it.
    fn status(self) -> &'static str {
        match self {
            Point::Prestart | Point::CreateRuntime | Point::CreateContainer => "creating",
            Point::StartContainer => "created",
            Point::Poststart => "running",
            Point::Poststop => "stopped",
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Hook {
    pub path: PathBuf,
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// The whole environment.
    #[serde(default)]
    pub env: Option<Vec<String>>,
    /// Seconds.
    #[serde(default)]
    pub timeout: Option<i64>,
}

/// All hooks of a bundle.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    prestart: Option<Vec<Hook>>,
    create_runtime: Option<Vec<Hook>>,
    create_container: Option<Vec<Hook>>,
    start_container: Option<Vec<Hook>>,
    poststart: Option<Vec<Hook>>,
    poststop: Option<Vec<Hook>>,
}

/// What hooks are told about a container.
#[derive(Clone, Debug)]
pub struct Subject {
    pub id: String,
    pub bundle: PathBuf,
    /// A JSON object.
    pub annotations: serde_json::Value,
}

impl Subject {
    pub fn new<'a>(id: &str, bundle: &Path, annotations: impl Iterator<Item = (&'a String, &'a String)>) -> Subject {
        let annotations = annotations.map(|(k, v)| (k.clone(), v.clone().into())).collect();
        Subject { id: id.to_owned(), bundle: bundle.to_owned(), annotations: serde_json::Value::Object(annotations) }
    }

    /// The state as JSON. `pid` is 0 once the container has ended.
    fn state(&self, point: Point, pid: i32) -> Vec<u8> {
        let mut state = serde_json::json!({
            "ociVersion": crate::version::OCI,
            "id": self.id,
            "status": point.status(),
            "pid": pid,
            "bundle": self.bundle,
        });
        if self.annotations.as_object().is_some_and(|a| !a.is_empty()) {
            state["annotations"] = self.annotations.clone();
        }
        state.to_string().into_bytes()
    }
}

impl Hooks {
    /// Checks what every hook needs: an absolute path, variables with a name, and a timeout above 0.
    pub fn of(spec: &oci_spec::runtime::Spec) -> Result<Hooks> {
        let Some(hooks) = spec.hooks() else { return Ok(Hooks::default()) };
        let hooks: Hooks = serde_json::from_value(serde_json::to_value(hooks)?)?;
        for point in [
            Point::Prestart,
            Point::CreateRuntime,
            Point::CreateContainer,
            Point::StartContainer,
            Point::Poststart,
            Point::Poststop,
        ] {
            for (i, hook) in hooks.at(point).iter().enumerate() {
                let field = format!("hooks.{}[{i}]", point.name());
                if !hook.path.is_absolute() {
                    bail!("{field}.path: {:?} is not an absolute path", hook.path);
                }
                if hook.timeout.is_some_and(|t| t <= 0) {
                    bail!("{field}.timeout: must be above 0");
                }
            }
        }
        Ok(hooks)
    }

    pub fn at(&self, point: Point) -> &[Hook] {
        let list = match point {
            Point::Prestart => &self.prestart,
            Point::CreateRuntime => &self.create_runtime,
            Point::CreateContainer => &self.create_container,
            Point::StartContainer => &self.start_container,
            Point::Poststart => &self.poststart,
            Point::Poststop => &self.poststop,
        };
        list.as_deref().unwrap_or_default()
    }

    /// Whether something is to be done between the making of the sandbox's namespaces and of what fills them.
    pub fn before_create(&self) -> bool {
        [Point::Prestart, Point::CreateRuntime, Point::CreateContainer].iter().any(|p| !self.at(*p).is_empty())
    }

    /// Runs the hooks of one point in their order, up to the first that fails.
    pub fn run(&self, point: Point, subject: &Subject, pid: i32) -> Result<()> {
        self.run_as(point, subject, pid, false)
    }

    /// Runs those that belong into the container's namespaces, where this process is. `as_root`: as root of its user
    /// namespace, which the caller has not become yet.
    pub fn run_inside(&self, subject: &Subject, pid: i32, as_root: bool) -> Result<()> {
        self.run_as(Point::CreateContainer, subject, pid, as_root)
    }

    fn run_as(&self, point: Point, subject: &Subject, pid: i32, as_root: bool) -> Result<()> {
        let hooks = self.at(point);
        if hooks.is_empty() {
            return Ok(());
        }
        let state = subject.state(point, pid);
        for (i, hook) in hooks.iter().enumerate() {
            log::debug!("hook {} #{i}: {}", point.name(), hook.path.display());
            process::run(hook, &state, as_root).map_err(|error| {
                error.context(format!("error running {} hook #{i} ({})", point.name(), hook.path.display()))
            })?;
        }
        Ok(())
    }

    /// Runs the hooks that follow the end of a container. A failure is told, and no more follows from it.
    pub fn run_poststop(&self, subject: &Subject) {
        let state = subject.state(Point::Poststop, 0);
        for (i, hook) in self.at(Point::Poststop).iter().enumerate() {
            if let Err(error) = process::run(hook, &state, false) {
                log::warn!("error running poststop hook #{i} ({}): {error:#}", hook.path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hooks(json: serde_json::Value) -> Result<Hooks> {
        let spec = json!({"ociVersion": "1.0.2", "hooks": json});
        Hooks::of(&super::super::spec::bundle::parse(spec.to_string().as_bytes())?.0)
    }

    fn subject() -> Subject {
        let annotations = std::collections::BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        Subject::new("c1", Path::new("/b"), annotations.iter())
    }

    #[test]
    fn state_arguments_and_environment_reach_a_hook() {
        let script =
            "test \"$0\" = zero && test \"$1\" = one && test \"$X\" = y && test -z \"$HOME\" && /bin/cat >&2; exit 3";
        let hooks = hooks(json!({"createRuntime": [
            {"path": "/bin/true"},
            {"path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["X=y"], "timeout": 20},
        ]}))
        .expect("hooks");
        assert!(hooks.before_create());
        let error = format!("{:#}", hooks.run(Point::CreateRuntime, &subject(), 7).expect_err("it fails"));
        for part in ["createRuntime hook #1", "exit status 3", r#""pid":7"#, r#""status":"creating""#, r#""a":"b""#] {
            assert!(error.contains(part), "{part} in {error}");
        }
        hooks.run(Point::Poststart, &subject(), 7).expect("there is none");
    }

    #[test]
    fn a_hook_that_stays_is_ended() {
        let hooks = hooks(json!({"prestart": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}))
            .expect("hooks");
        let error = format!("{:#}", hooks.run(Point::Prestart, &subject(), 1).expect_err("it stays"));
        assert!(error.contains("timeout of 1 s"), "{error}");
    }

    #[test]
    fn errors_name_the_hook() {
        for (json, part) in [
            (json!({"poststop": [{"path": "true"}]}), "hooks.poststop[0].path"),
            (json!({"prestart": [{"path": "/bin/true", "timeout": 0}]}), "hooks.prestart[0].timeout"),
            (json!({"prestart": [{"path": "/bin/true", "env": [1]}]}), "hooks.prestart[0].env[0]"),
        ] {
            let error = format!("{:#}", hooks(json).expect_err(part));
            assert!(error.contains(part), "{error}");
        }
        let missing = hooks(json!({"prestart": [{"path": "/no/such/hook"}]})).expect("hooks");
        let error = format!("{:#}", missing.run(Point::Prestart, &subject(), 1).expect_err("missing"));
        assert!(error.contains("/no/such/hook") && error.contains("No such file"), "{error}");
        missing.run_poststop(&subject());
    }
}
