//! Samples by row and environment, and what is said about them.

/// All samples of one row, one list an environment.
pub struct Row {
    pub name: String,
    pub unit: String,
    pub samples: Vec<Vec<f64>>,
}

pub struct Table {
    pub environments: Vec<&'static str>,
    pub rows: Vec<Row>,
}

#[derive(Clone, Copy)]
pub struct Summary {
    pub best: f64,
    pub median: f64,
}

impl Table {
    pub fn new(environments: Vec<&'static str>) -> Table {
        Table { environments, rows: Vec::new() }
    }

    pub fn add(&mut self, name: &str, unit: &str, column: usize, sample: f64) {
        let index = match self.rows.iter().position(|row| row.name == name) {
            Some(index) => index,
            None => {
                let samples = vec![Vec::new(); self.environments.len()];
                self.rows.push(Row { name: name.to_owned(), unit: unit.to_owned(), samples });
                self.rows.len() - 1
            }
        };
        let row = &mut self.rows[index];
        if row.unit == "failed" {
            unit.clone_into(&mut row.unit);
        }
        row.samples[column].push(sample);
    }

    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.environments.iter().position(|environment| *environment == name)
    }

    /// Ratios of the design's budget that need two rows or two environments, as text.
    pub fn budget(&self) -> Vec<String> {
        let get = |row: &str, environment: &str| self.row(row)?.summary(self.column(environment)?);
        let mut lines = Vec::new();
        let mut ratio = |what: &str, a: Option<Summary>, b: Option<Summary>| {
            if let (Some(a), Some(b)) = (a, b) {
                lines.push(format!("{what}: {:.2} (medians), {:.2} (bests)", a.median / b.median, a.best / b.best));
            }
        };
        ratio(
            "getpid under ptrace to a bare ptrace ping-pong",
            get("getpid", "ptrace"),
            get("ptrace_pingpong", "native"),
        );
        ratio("getpid under KVM to native", get("getpid", "kvm"), get("getpid", "native"));
        for environment in ["ptrace", "kvm"] {
            let (ours, crun) = (get("start_to_exit", environment), get("start_to_exit", "crun"));
            if let (Some(ours), Some(crun)) = (ours, crun) {
                lines.push(format!(
                    "start to exit under {environment} less crun's: {:+.1} ms",
                    ours.median - crun.median
                ));
            }
            let (ours, native) = (get("memory_of_ten", environment), get("memory_of_ten", "native"));
            if let (Some(ours), Some(native)) = (ours, native) {
                lines.push(format!(
                    "memory of a sandbox under {environment} less native's: {:.1} MB",
                    ours.median - native.median
                ));
            }
        }
        lines
    }

    pub fn print(&self) {
        print!("\n{:<24}", "row");
        for environment in &self.environments {
            print!("{environment:>26}");
        }
        println!("\n{:<24}median (best), times native", "");
        for row in &self.rows {
            print!("{:<24}", row.name);
            for column in 0..self.environments.len() {
                let cell = match (row.summary(column), row.ratio(column)) {
                    (Some(summary), Some(ratio)) if column > 0 => {
                        format!("{} ({}) {ratio:.2}x", number(summary.median), number(summary.best))
                    }
                    (Some(summary), _) => format!("{} ({})", number(summary.median), number(summary.best)),
                    _ => "-".to_owned(),
                };
                print!("{cell:>26}");
            }
            println!("  {}", row.unit);
        }
        println!();
        for line in self.budget() {
            println!("{line}");
        }
    }
}

impl Row {
    /// Whether a larger number is better.
    pub fn is_rate(&self) -> bool {
        self.unit == "MB/s"
    }

    pub fn summary(&self, column: usize) -> Option<Summary> {
        let mut sorted = self.samples.get(column)?.clone();
        sorted.sort_by(f64::total_cmp);
        let (first, last) = (*sorted.first()?, *sorted.last()?);
        let best = if self.is_rate() { last } else { first };
        Some(Summary { best, median: sorted[sorted.len() / 2] })
    }

    /// How many times native's cost the median is, where native (the first column) was measured.
    pub fn ratio(&self, column: usize) -> Option<f64> {
        let (native, this) = (self.summary(0)?.median, self.summary(column)?.median);
        let ratio = if self.is_rate() { native / this } else { this / native };
        ratio.is_finite().then_some(ratio)
    }
}

/// A number with three or four significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.2}M", value / 1e6),
        v if v >= 1e4 => format!("{:.1}k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_bests_and_ratios() {
        let mut table = Table::new(vec!["native", "ptrace"]);
        for (native, ptrace) in [(3.0, 30.0), (1.0, 10.0), (2.0, 40.0)] {
            table.add("row", "ns", 0, native);
            table.add("row", "ns", 1, ptrace);
            table.add("rate", "MB/s", 0, native);
            table.add("rate", "MB/s", 1, ptrace);
        }
        let summary = table.rows[0].summary(1).expect("samples");
        assert_eq!((summary.best, summary.median), (10.0, 30.0));
        assert_eq!(table.rows[0].ratio(1), Some(15.0));
        assert_eq!(table.rows[1].summary(0).map(|summary| summary.best), Some(3.0));
        assert_eq!(table.rows[1].ratio(1), Some(2.0 / 30.0));
    }
}
