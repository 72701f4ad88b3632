//! `runsc list`: what runc prints.

use std::{fmt::Write, path::Path};

use anyhow::Result;
use clap::ArgMatches;
use serde::Serialize;

use crate::{args, flags::Settings, store::Record, store::Store, version};

/// A container as `list --format json` and `state` show it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View<'a> {
    oci_version: &'static str,
    id: &'a str,
    pid: i32,
    status: &'static str,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
    owner: &'a str,
}

impl<'a> View<'a> {
    pub fn of(record: &'a Record) -> View<'a> {
        View {
            oci_version: version::OCI,
            id: &record.id,
            pid: record.pid(),
            status: record.status().name(),
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations: &record.annotations,
            owner: &record.owner,
        }
    }
}

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let records = Store::new(&settings.root).list()?;
    let views: Vec<View<'_>> = records.iter().map(View::of).collect();
    let mut out = String::new();
    if args::is_set(matches, "quiet") {
        for view in &views {
            writeln!(out, "{}", view.id)?;
        }
    } else if matches.get_one::<String>("format").is_some_and(|f| f == "json") {
        // runc prints null where there is none.
        out = if views.is_empty() { "null".into() } else { serde_json::to_string(&views)? };
    } else {
        out = table(&views)?;
    }
    super::print(&out)
}

/// Columns as wide as their widest cell and three blanks, at least twelve characters, the way of runc's tab writer.
fn table(views: &[View<'_>]) -> Result<String> {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    for view in views {
        rows.push([
            view.id.to_owned(),
            view.pid.to_string(),
            view.status.to_owned(),
            view.bundle.display().to_string(),
            view.created.to_owned(),
            view.owner.to_owned(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            write!(out, "{cell:width$}")?;
        }
        writeln!(out, "{}", row[5])?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let record = Record::new("a-rather-long-name", Path::new("/b"), Path::new("/b/rootfs"));
        let text = table(&[View::of(&record)]).expect("table");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ID                   PID         STATUS"), "{}", lines[0]);
        assert!(lines[1].starts_with("a-rather-long-name   0           creating"), "{}", lines[1]);
        assert_eq!(table(&[]).expect("table"), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }
}
