//! The benchmark: `micro.c` natively, under runc and crun where they are, and under runsc on each usable platform, interleaved
//! in one run, so that a busy machine disturbs all alike. It prints each row's best and median and its ratio to native, and
//! leaves an HTML report with plots in `target/bench/report.html`.
//!
//! `cargo bench -- [--quick] [--rounds N] [--rows a,b] [--only native,ptrace] [--machine]`. `--quick` (or `RUNSC_BENCH_QUICK=1`)
//! takes a minute; `--machine` runs it in the emulated machine of tests/svm, where KVM works: only ratios mean something there.

mod environment;
mod memory;
mod options;
mod report;
mod table;

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::{environment::Environment, options::Options, table::Table};

pub fn main() -> Result<()> {
    let options = Options::parse()?;
    if options.machine {
        return environment::run_in_machine();
    }
    let environments = Environment::usable(&options)?;
    ensure!(!environments.is_empty(), "--only leaves nothing to measure");
    let mut table = Table::new(environments.iter().map(|environment| environment.name).collect());
    println!("measuring {} in {} rounds", table.environments.join(", "), options.rounds);
    let started = Instant::now();
    for round in 0..options.rounds {
        for (column, environment) in environments.iter().enumerate() {
            // The first start fills caches that no later one needs to.
            let starts = if options.quick { 3 } else { 8 };
            if options.wants("start_to_exit") {
                if round == 0 {
                    environment.start_to_exit()?;
                }
                for _ in 0..starts {
                    table.add("start_to_exit", "ms", column, environment.start_to_exit()?);
                }
            }
            for row in environment.micro(&options)? {
                for sample in row.samples {
                    table.add(&row.name, &row.unit, column, sample);
                }
                if let Some(reason) = row.failure {
                    eprintln!("{}: {}: {reason}", environment.name, row.name);
                }
            }
        }
        println!("round {} of {} after {:.0?}", round + 1, options.rounds, started.elapsed());
    }
    if options.wants("memory_of_ten") {
        for (column, environment) in environments.iter().enumerate() {
            match memory::of_ten(environment) {
                Ok(megabytes) => table.add("memory_of_ten", "MB each", column, megabytes),
                Err(error) => eprintln!("{}: memory_of_ten: {error:#}", environment.name),
            }
        }
    }
    table.print();
    let path = report::write(&table)?;
    println!("report: {}", path.display());
    Ok(())
}
