//! Reading a bundle: its config.json, bounded, checked and decoded.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;

use super::fields;

/// A config.json of an engine has some tens of kilobytes.
const MAX_SIZE: u64 = 32 << 20;

pub struct Bundle {
    /// Absolute.
    pub dir: PathBuf,
    pub spec: Spec,
    pub warnings: Vec<String>,
}

pub fn load(dir: &Path) -> Result<Bundle> {
    let dir = std::fs::canonicalize(dir).with_context(|| format!("bundle {}", dir.display()))?;
    if !dir.is_dir() {
        bail!("bundle {}: not a directory", dir.display());
    }
    let path = dir.join("config.json");
    let text = read_bounded(&path)?;
    let (spec, warnings) = parse(&text).with_context(|| path.display().to_string())?;
    Ok(Bundle { dir, spec, warnings })
}

pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let meta = file.metadata().with_context(|| format!("stat {}", path.display()))?;
    if !meta.is_file() {
        bail!("{}: not a regular file", path.display());
    }
    let mut text = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut text).with_context(|| format!("read {}", path.display()))?;
    if text.len() as u64 > MAX_SIZE {
        bail!("{}: larger than {} MB", path.display(), MAX_SIZE >> 20);
    }
    Ok(text)
}

/// Decodes a config.json; returns warnings with it.
pub fn parse(text: &[u8]) -> Result<(Spec, Vec<String>)> {
    let value: serde_json::Value = serde_json::from_slice(text).context("not valid JSON")?;
    let mut warnings = fields::check(&value)?;
    let spec: Spec = serde_json::from_value(value)?;
    match spec.version().split('.').next().map(str::parse::<u32>) {
        Some(Ok(1)) => {}
        _ if spec.version().is_empty() => warnings.push("ociVersion is missing; 1.0.0 is assumed".into()),
        _ => bail!("ociVersion: {:?} is not supported; this runtime follows 1.x", spec.version()),
    }
    Ok((spec, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_files() {
        for (text, part) in [
            ("", "not valid JSON"),
            ("{", "not valid JSON"),
            ("null", "not an object"),
            (r#"{"ociVersion":"2.0.0"}"#, "ociVersion"),
            (r#"{"ociVersion":"1.0.0","process":{"cwd":"/","user":{"uid":"x","gid":0}}}"#, "process.user.uid"),
            (r#"{"ociVersion":"1.0.0","linux":{"namespaces":[{"type":"moon"}]}}"#, "moon"),
        ] {
            let error = format!("{:#}", parse(text.as_bytes()).map(|_| ()).expect_err(part));
            assert!(error.contains(part), "{error}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn no_bundle() {
        let error = format!("{:#}", load(Path::new("/no/such/dir")).map(|_| ()).expect_err("no directory"));
        assert!(error.contains("/no/such/dir"), "{error}");
    }
}
