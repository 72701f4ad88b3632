//! `runsc completion`: scripts for shells.

use anyhow::{Context, Result};
use clap::ArgMatches;
use clap_complete::{Shell, generate};

use crate::args;

pub fn run(matches: &ArgMatches) -> Result<i32> {
    let shell = *matches.get_one::<Shell>("shell").context("completion: which shell?")?;
    let mut script = Vec::new();
    generate(shell, &mut args::command(), "runsc", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
