//! Every field of an OCI config.json, its type, and what this runtime does with it. The file is checked against the table
//! before it is decoded, so that an error names the field.

use anyhow::{Result, bail};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Bool,
    I32,
    U16,
    U32,
    I64,
    U64,
    Object,
    /// An object whose keys are free.
    Map,
    List,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Applied,
    /// A value leads to a warning that says why nothing follows from it.
    Ignored(&'static str),
    /// A value is an error that says why.
    Refused(&'static str),
}

use Effect::{Applied, Ignored, Refused};
use Kind::{Bool, I32, I64, List, Map, Object, Text, U16, U32, U64};

struct Field(&'static str, Kind, Effect);

const OTHER: Effect = Ignored("it belongs to another kind of container");
const IDMAP: Effect = Refused("id-mapped mounts are not supported");
const SCHED: Effect = Ignored("processes run under the sandbox's own scheduler");
const SECCOMP: Effect = Ignored("the sandbox's kernel confines the process; linux.seccomp is not applied");

/// `[]` stands for an element, `*` for a key of a map. Fields below an ignored or refused one are not listed.
const FIELDS: &[Field] = &[
    Field("ociVersion", Text, Applied),
    Field("root", Object, Applied),
    Field("root.path", Text, Applied),
    Field("root.readonly", Bool, Applied),
    Field("hostname", Text, Applied),
    Field("domainname", Text, Applied),
    Field("annotations", Map, Applied),
    Field("annotations.*", Text, Applied),
    Field("process", Object, Applied),
    Field("process.terminal", Bool, Applied),
    Field("process.consoleSize", Object, Applied),
    Field("process.consoleSize.height", U64, Applied),
    Field("process.consoleSize.width", U64, Applied),
    Field("process.user", Object, Applied),
    Field("process.user.uid", U32, Applied),
    Field("process.user.gid", U32, Applied),
    Field("process.user.umask", U32, Applied),
    Field("process.user.additionalGids", List, Applied),
    Field("process.user.additionalGids[]", U32, Applied),
    Field("process.user.username", Text, OTHER),
    Field("process.args", List, Applied),
    Field("process.args[]", Text, Applied),
    Field("process.commandLine", Text, OTHER),
    Field("process.env", List, Applied),
    Field("process.env[]", Text, Applied),
    Field("process.cwd", Text, Applied),
    Field("process.capabilities", Object, Applied),
    Field("process.capabilities.bounding", List, Applied),
    Field("process.capabilities.bounding[]", Text, Applied),
    Field("process.capabilities.effective", List, Applied),
    Field("process.capabilities.effective[]", Text, Applied),
    Field("process.capabilities.inheritable", List, Applied),
    Field("process.capabilities.inheritable[]", Text, Applied),
    Field("process.capabilities.permitted", List, Applied),
    Field("process.capabilities.permitted[]", Text, Applied),
    Field("process.capabilities.ambient", List, Applied),
    Field("process.capabilities.ambient[]", Text, Applied),
    Field("process.rlimits", List, Applied),
    Field("process.rlimits[]", Object, Applied),
    Field("process.rlimits[].type", Text, Applied),
    Field("process.rlimits[].soft", U64, Applied),
    Field("process.rlimits[].hard", U64, Applied),
    Field("process.noNewPrivileges", Bool, Applied),
    Field("process.oomScoreAdj", I32, Applied),
    Field("process.apparmorProfile", Text, Ignored("AppArmor does not see processes of a sandbox")),
    Field("process.selinuxLabel", Text, Ignored("SELinux does not see processes of a sandbox")),
    Field("process.ioPriority", Object, SCHED),
    Field("process.scheduler", Object, SCHED),
    Field("process.execCPUAffinity", Object, SCHED),
    Field("mounts", List, Applied),
    Field("mounts[]", Object, Applied),
    Field("mounts[].destination", Text, Applied),
    Field("mounts[].type", Text, Applied),
    Field("mounts[].source", Text, Applied),
    Field("mounts[].options", List, Applied),
    Field("mounts[].options[]", Text, Applied),
    Field("mounts[].uidMappings", List, IDMAP),
    Field("mounts[].gidMappings", List, IDMAP),
    Field("hooks", Object, Applied),
    Field("hooks.prestart", List, Applied),
    Field("hooks.prestart[]", Object, Applied),
    Field("hooks.prestart[].path", Text, Applied),
    Field("hooks.prestart[].args", List, Applied),
    Field("hooks.prestart[].args[]", Text, Applied),
    Field("hooks.prestart[].env", List, Applied),
    Field("hooks.prestart[].env[]", Text, Applied),
    Field("hooks.prestart[].timeout", I64, Applied),
    Field("hooks.createRuntime", List, Applied),
    Field("hooks.createRuntime[]", Object, Applied),
    Field("hooks.createRuntime[].path", Text, Applied),
    Field("hooks.createRuntime[].args", List, Applied),
    Field("hooks.createRuntime[].args[]", Text, Applied),
    Field("hooks.createRuntime[].env", List, Applied),
    Field("hooks.createRuntime[].env[]", Text, Applied),
    Field("hooks.createRuntime[].timeout", I64, Applied),
    Field("hooks.createContainer", List, Applied),
    Field("hooks.createContainer[]", Object, Applied),
    Field("hooks.createContainer[].path", Text, Applied),
    Field("hooks.createContainer[].args", List, Applied),
    Field("hooks.createContainer[].args[]", Text, Applied),
    Field("hooks.createContainer[].env", List, Applied),
    Field("hooks.createContainer[].env[]", Text, Applied),
    Field("hooks.createContainer[].timeout", I64, Applied),
    Field("hooks.startContainer", List, Applied),
    Field("hooks.startContainer[]", Object, Applied),
    Field("hooks.startContainer[].path", Text, Applied),
    Field("hooks.startContainer[].args", List, Applied),
    Field("hooks.startContainer[].args[]", Text, Applied),
    Field("hooks.startContainer[].env", List, Applied),
    Field("hooks.startContainer[].env[]", Text, Applied),
    Field("hooks.startContainer[].timeout", I64, Applied),
    Field("hooks.poststart", List, Applied),
    Field("hooks.poststart[]", Object, Applied),
    Field("hooks.poststart[].path", Text, Applied),
    Field("hooks.poststart[].args", List, Applied),
    Field("hooks.poststart[].args[]", Text, Applied),
    Field("hooks.poststart[].env", List, Applied),
    Field("hooks.poststart[].env[]", Text, Applied),
    Field("hooks.poststart[].timeout", I64, Applied),
    Field("hooks.poststop", List, Applied),
    Field("hooks.poststop[]", Object, Applied),
    Field("hooks.poststop[].path", Text, Applied),
    Field("hooks.poststop[].args", List, Applied),
    Field("hooks.poststop[].args[]", Text, Applied),
    Field("hooks.poststop[].env", List, Applied),
    Field("hooks.poststop[].env[]", Text, Applied),
    Field("hooks.poststop[].timeout", I64, Applied),
    Field("linux", Object, Applied),
    Field("linux.uidMappings", List, Applied),
    Field("linux.uidMappings[]", Object, Applied),
    Field("linux.uidMappings[].containerID", U32, Applied),
    Field("linux.uidMappings[].hostID", U32, Applied),
    Field("linux.uidMappings[].size", U32, Applied),
    Field("linux.gidMappings", List, Applied),
    Field("linux.gidMappings[]", Object, Applied),
    Field("linux.gidMappings[].containerID", U32, Applied),
    Field("linux.gidMappings[].hostID", U32, Applied),
    Field("linux.gidMappings[].size", U32, Applied),
    Field("linux.sysctl", Map, Applied),
    Field("linux.sysctl.*", Text, Applied),
    Field("linux.cgroupsPath", Text, Applied),
    Field("linux.namespaces", List, Applied),
    Field("linux.namespaces[]", Object, Applied),
    Field("linux.namespaces[].type", Text, Applied),
    Field("linux.namespaces[].path", Text, Applied),
    Field("linux.devices", List, Applied),
    Field("linux.devices[]", Object, Applied),
    Field("linux.devices[].path", Text, Applied),
    Field("linux.devices[].type", Text, Applied),
    Field("linux.devices[].major", I64, Applied),
    Field("linux.devices[].minor", I64, Applied),
    Field("linux.devices[].fileMode", U32, Applied),
    Field("linux.devices[].uid", U32, Applied),
    Field("linux.devices[].gid", U32, Applied),
    Field("linux.netDevices", Map, Refused("network devices are not supported yet")),
    Field("linux.seccomp", Object, SECCOMP),
    Field("linux.rootfsPropagation", Text, Applied),
    Field("linux.maskedPaths", List, Applied),
    Field("linux.maskedPaths[]", Text, Applied),
    Field("linux.readonlyPaths", List, Applied),
    Field("linux.readonlyPaths[]", Text, Applied),
    Field("linux.mountLabel", Text, Ignored("SELinux does not see files of a sandbox")),
    Field("linux.intelRdt", Object, Ignored("cache allocation is not supported")),
    Field("linux.memoryPolicy", Object, Ignored("memory of a sandbox follows the policy of the caller")),
    Field("linux.personality", Object, Applied),
    Field("linux.personality.domain", Text, Applied),
    Field("linux.personality.flags", List, Refused("the OCI specification defines no flags")),
    Field("linux.timeOffsets", Map, Refused("time namespaces are not supported")),
    Field("linux.resources", Object, Applied),
    Field("linux.resources.devices", List, Applied),
    Field("linux.resources.devices[]", Object, Applied),
    Field("linux.resources.devices[].allow", Bool, Applied),
    Field("linux.resources.devices[].type", Text, Applied),
    Field("linux.resources.devices[].major", I64, Applied),
    Field("linux.resources.devices[].minor", I64, Applied),
    Field("linux.resources.devices[].access", Text, Applied),
    Field("linux.resources.memory", Object, Applied),
    Field("linux.resources.memory.limit", I64, Applied),
    Field("linux.resources.memory.reservation", I64, Applied),
    Field("linux.resources.memory.swap", I64, Applied),
    Field("linux.resources.memory.kernel", I64, Ignored("the kernel no longer limits kernel memory alone")),
    Field("linux.resources.memory.kernelTCP", I64, Applied),
    Field("linux.resources.memory.swappiness", U64, Applied),
    Field("linux.resources.memory.disableOOMKiller", Bool, Applied),
    Field("linux.resources.memory.useHierarchy", Bool, Ignored("groups are always hierarchical")),
    Field("linux.resources.memory.checkBeforeUpdate", Bool, Applied),
    Field("linux.resources.cpu", Object, Applied),
    Field("linux.resources.cpu.quota", I64, Applied),
    Field("linux.resources.cpu.period", U64, Applied),
    Field("linux.resources.cpu.shares", U64, Applied),
    Field("linux.resources.cpu.idle", I64, Applied),
    Field("linux.resources.cpu.burst", U64, Applied),
    Field("linux.resources.cpu.realtimeRuntime", I64, Applied),
    Field("linux.resources.cpu.realtimePeriod", U64, Applied),
    Field("linux.resources.cpu.cpus", Text, Applied),
    Field("linux.resources.cpu.mems", Text, Applied),
    Field("linux.resources.pids", Object, Applied),
    Field("linux.resources.pids.limit", I64, Applied),
    Field("linux.resources.blockIO", Object, Applied),
    Field("linux.resources.blockIO.weight", U16, Applied),
    Field("linux.resources.blockIO.leafWeight", U16, Ignored("the kernel no longer has it")),
    Field("linux.resources.blockIO.weightDevice", List, Applied),
    Field("linux.resources.blockIO.weightDevice[]", Object, Applied),
    Field("linux.resources.blockIO.weightDevice[].major", I64, Applied),
    Field("linux.resources.blockIO.weightDevice[].minor", I64, Applied),
    Field("linux.resources.blockIO.weightDevice[].weight", U16, Applied),
    Field("linux.resources.blockIO.weightDevice[].leafWeight", U16, Ignored("the kernel no longer has it")),
    Field("linux.resources.blockIO.throttleReadBpsDevice", List, Applied),
    Field("linux.resources.blockIO.throttleReadBpsDevice[]", Object, Applied),
    Field("linux.resources.blockIO.throttleReadBpsDevice[].major", I64, Applied),
    Field("linux.resources.blockIO.throttleReadBpsDevice[].minor", I64, Applied),
    Field("linux.resources.blockIO.throttleReadBpsDevice[].rate", U64, Applied),
    Field("linux.resources.blockIO.throttleWriteBpsDevice", List, Applied),
    Field("linux.resources.blockIO.throttleWriteBpsDevice[]", Object, Applied),
    Field("linux.resources.blockIO.throttleWriteBpsDevice[].major", I64, Applied),
    Field("linux.resources.blockIO.throttleWriteBpsDevice[].minor", I64, Applied),
    Field("linux.resources.blockIO.throttleWriteBpsDevice[].rate", U64, Applied),
    Field("linux.resources.blockIO.throttleReadIOPSDevice", List, Applied),
    Field("linux.resources.blockIO.throttleReadIOPSDevice[]", Object, Applied),
    Field("linux.resources.blockIO.throttleReadIOPSDevice[].major", I64, Applied),
    Field("linux.resources.blockIO.throttleReadIOPSDevice[].minor", I64, Applied),
    Field("linux.resources.blockIO.throttleReadIOPSDevice[].rate", U64, Applied),
    Field("linux.resources.blockIO.throttleWriteIOPSDevice", List, Applied),
    Field("linux.resources.blockIO.throttleWriteIOPSDevice[]", Object, Applied),
    Field("linux.resources.blockIO.throttleWriteIOPSDevice[].major", I64, Applied),
    Field("linux.resources.blockIO.throttleWriteIOPSDevice[].minor", I64, Applied),
    Field("linux.resources.blockIO.throttleWriteIOPSDevice[].rate", U64, Applied),
    Field("linux.resources.hugepageLimits", List, Applied),
    Field("linux.resources.hugepageLimits[]", Object, Applied),
    Field("linux.resources.hugepageLimits[].pageSize", Text, Applied),
    Field("linux.resources.hugepageLimits[].limit", I64, Applied),
    Field("linux.resources.network", Object, Applied),
    Field("linux.resources.network.classID", U32, Applied),
    Field("linux.resources.network.priorities", List, Applied),
    Field("linux.resources.network.priorities[]", Object, Applied),
    Field("linux.resources.network.priorities[].name", Text, Applied),
    Field("linux.resources.network.priorities[].priority", U32, Applied),
    Field("linux.resources.rdma", Map, Applied),
    Field("linux.resources.rdma.*", Object, Applied),
    Field("linux.resources.rdma.*.hcaHandles", U32, Applied),
    Field("linux.resources.rdma.*.hcaObjects", U32, Applied),
    Field("linux.resources.unified", Map, Applied),
    Field("linux.resources.unified.*", Text, Applied),
    Field("solaris", Object, OTHER),
    Field("windows", Object, OTHER),
    Field("vm", Object, OTHER),
    Field("zos", Object, OTHER),
];

/// Elements of a list and keys of an object.
const MAX_ELEMENTS: usize = 65_536;

/// Whether the field has an effect.
pub fn is_applied(field: &str) -> bool {
    FIELDS.iter().any(|f| f.0 == field && f.2 == Applied)
}

/// Checks types and effects; returns warnings.
pub fn check(config: &Value) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    if !config.is_object() {
        bail!("it is {}, not an object", type_name(config));
    }
    walk("", "", Object, config, &mut warnings)?;
    Ok(warnings)
}

/// `rule` is the place in the table, `path` the place in the file.
fn walk(rule: &str, path: &str, kind: Kind, value: &Value, warnings: &mut Vec<String>) -> Result<()> {
    match value {
        Value::Object(fields) => {
            if fields.len() > MAX_ELEMENTS {
                bail!("{path}: more than {MAX_ELEMENTS} fields");
            }
            for (name, value) in fields {
                let step = if kind == Map { "*" } else { name };
                let dot = if rule.is_empty() { "" } else { "." };
                visit(&format!("{rule}{dot}{step}"), &format!("{path}{dot}{name}"), value, warnings)?;
            }
        }
        Value::Array(items) => {
            if items.len() > MAX_ELEMENTS {
                bail!("{path}: more than {MAX_ELEMENTS} elements");
            }
            let rule = format!("{rule}[]");
            for (i, item) in items.iter().enumerate() {
                visit(&rule, &format!("{path}[{i}]"), item, warnings)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn visit(rule: &str, path: &str, value: &Value, warnings: &mut Vec<String>) -> Result<()> {
    let Some(Field(_, kind, effect)) = FIELDS.iter().find(|f| f.0 == rule) else {
        // OCI: runtimes must accept fields they do not know.
        warnings.push(format!("{path}: unknown field, ignored"));
        return Ok(());
    };
    if value.is_null() {
        return Ok(());
    }
    if let Some(wanted) = mismatch(*kind, value) {
        bail!("{path}: expected {wanted}, found {}", type_name(value));
    }
    if let Value::String(text) = value
        && text.contains('\0')
    {
        bail!("{path}: the text contains a NUL character");
    }
    match effect {
        Applied => walk(rule, path, *kind, value, warnings),
        _ if is_empty(value) => Ok(()),
        Ignored(why) => {
            warnings.push(format!("{path}: ignored: {why}"));
            Ok(())
        }
        Refused(why) => bail!("{path}: {why}"),
    }
}

/// What the kind wants when the value is something else.
fn mismatch(kind: Kind, value: &Value) -> Option<&'static str> {
    let (fits, wanted) = match kind {
        Text => (value.is_string(), "a string"),
        Bool => (value.is_boolean(), "true or false"),
        I32 => (value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()), "a 32-bit number"),
        U16 => (value.as_u64().is_some_and(|n| u16::try_from(n).is_ok()), "a number from 0 to 65535"),
        U32 => (value.as_u64().is_some_and(|n| u32::try_from(n).is_ok()), "a number from 0 to 4294967295"),
        I64 => (value.is_i64(), "a 64-bit number"),
        U64 => (value.is_u64(), "a 64-bit number that is not negative"),
        Object | Map => (value.is_object(), "an object"),
        List => (value.is_array(), "a list"),
    };
    (!fits).then_some(wanted)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Number(_) | Value::Bool(true) => false,
    }
}

fn type_name(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "a boolean".into(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_name_the_field() {
        for (config, path) in [
            (json!([]), "a list"),
            (json!({"process": 3}), "process: expected an object, found the number 3"),
            (json!({"process": {"args": ["a", 3]}}), "process.args[1]: expected a string"),
            (json!({"process": {"user": {"uid": -1}}}), "process.user.uid"),
            (json!({"process": {"user": {"uid": 4294967296u64}}}), "process.user.uid"),
            (json!({"process": {"rlimits": [{"soft": 1.5}]}}), "process.rlimits[0].soft"),
            (json!({"mounts": [{"destination": "/x\u{0}"}]}), "mounts[0].destination"),
            (json!({"hooks": {"prestart": [{"path": 1}]}}), "hooks.prestart[0].path"),
            (json!({"linux": {"resources": {"blockIO": {"weight": 70000}}}}), "linux.resources.blockIO.weight"),
            (json!({"annotations": {"a.b": 1}}), "annotations.a.b"),
            (json!({"linux": {"timeOffsets": {"boottime": {"secs": 1}}}}), "linux.timeOffsets"),
        ] {
            let error = check(&config).expect_err(path).to_string();
            assert!(error.contains(path), "{error} does not name {path}");
        }
    }

    #[test]
    fn what_has_no_effect_is_told() {
        let warnings = check(&json!({
            "surprise": 1,
            "process": {"apparmorProfile": "x", "selinuxLabel": ""},
            "linux": {"intelRdt": {"closID": "x"}},
        }))
        .expect("a valid file");
        assert_eq!(warnings.len(), 3, "{warnings:?}");
    }

    /// Every field with values of every wrong type, and numbers out of range: the error names it.
    #[test]
    fn wrong_types_are_told_with_the_name() {
        let values = [json!("text"), json!(true), json!(-1), json!(1.5), json!(u64::MAX), json!([]), json!({})];
        for Field(rule, kind, _) in FIELDS {
            let mut refused = 0;
            for value in &values {
                if mismatch(*kind, value).is_none() {
                    continue;
                }
                refused += 1;
                // The place of the value, built from the inside.
                let mut config = value.clone();
                let mut path = String::new();
                for step in rule.split('.').rev() {
                    let name = step.strip_suffix("[]").unwrap_or(step);
                    if step.ends_with("[]") {
                        config = json!([config]);
                    }
                    let key = if name == "*" { "some" } else { name };
                    config = json!({ key: config });
                    let shown = step.replace('*', "some").replace("[]", "[0]");
                    path = if path.is_empty() { shown } else { format!("{shown}.{path}") };
                }
                let parents_apply = FIELDS.iter().all(|f| {
                    f.2 == Applied
                        || f.0 == *rule
                        || !(rule.starts_with(&format!("{}.", f.0)) || rule.starts_with(&format!("{}[]", f.0)))
                });
                assert!(parents_apply, "{rule} lies below a field that is not applied");
                let error = check(&config).expect_err(rule).to_string();
                assert!(error.starts_with(&format!("{path}: expected")), "{error} does not name {path}");
            }
            assert!(refused >= 4, "{rule}");
        }
    }

    #[test]
    fn no_field_twice() {
        for (i, f) in FIELDS.iter().enumerate() {
            assert!(FIELDS[i + 1..].iter().all(|g| g.0 != f.0), "{} twice", f.0);
        }
    }
}
