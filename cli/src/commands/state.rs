//! `runsc state`: a container as the OCI specification and runc show it.

use anyhow::Result;
use clap::ArgMatches;

use super::list::View;
use crate::{flags::Settings, store::Store};

pub fn run(settings: &Settings, matches: &ArgMatches) -> Result<i32> {
    let record = Store::new(&settings.root).read(&super::id(matches)?)?;
    let mut text = serde_json::to_string_pretty(&View::of(&record))?;
    text.push('\n');
    super::print(&text)
}
