//! The command line of the benchmark.

use anyhow::{Context, Result, bail};

pub struct Options {
    pub quick: bool,
    pub machine: bool,
    pub rounds: u32,
    /// Only these rows; empty: all.
    pub rows: Vec<String>,
    /// Only these environments; empty: all that are usable.
    pub only: Vec<String>,
}

impl Options {
    pub fn parse() -> Result<Options> {
        let quick = std::env::var("RUNSC_BENCH_QUICK").is_ok_and(|value| value == "1");
        let mut options = Options { quick, machine: false, rounds: 0, rows: Vec::new(), only: Vec::new() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            let list = |text: String| text.split(',').map(str::to_owned).collect();
            match &*arg {
                // What cargo itself passes.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--machine" => options.machine = true,
                "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
                "--rows" => options.rows = list(value()?),
                "--only" => options.only = list(value()?),
                _ => bail!("unknown option {arg}"),
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 1 } else { 5 };
        }
        Ok(options)
    }

    pub fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| wanted == row)
    }

    pub fn wants_environment(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == name)
    }

    pub fn sample_milliseconds(&self) -> u32 {
        if self.quick { 20 } else { 100 }
    }
}
