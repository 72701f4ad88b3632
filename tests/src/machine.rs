//! KVM tests on a host without hardware KVM: tests/svm/machine boots once and runs this very test program with the filter
//! `kvm::`; each test then looks up its own result. Test processes share the results through a file.

use std::{
    collections::HashMap,
    env, fs,
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    binary::{BINARY, runsc, work_dir, workspace},
    host::FileLock,
    platform::INSIDE_MACHINE,
    programs,
};

/// How long one boot of the machine may take.
const LIMIT: Duration = Duration::from_secs(900);
/// A loaded host upsets what depends on time. What has not passed is run again in a fresh machine; what fails in each of them
/// fails.
const BOOTS: usize = 12;

#[derive(Clone, Debug)]
pub enum Outcome {
    Passed,
    Failed(String),
    /// There is no emulated machine here; why.
    CannotRun(String),
}

/// What the machine said: its exit status and the test program's output.
struct Report {
    status: i32,
    output: String,
    results: HashMap<String, bool>,
}

/// The result of the test `name`, from one run of all KVM tests of this test program.
pub fn result_of(name: &str) -> Outcome {
    static REPORT: OnceLock<Report> = OnceLock::new();
    let report = REPORT.get_or_init(report);
    match report.results.get(name) {
        Some(true) => Outcome::Passed,
        Some(false) => Outcome::Failed(excerpt(&report.output, name)),
        None if report.status == 125 => Outcome::CannotRun(crate::command::tail(&report.output).to_owned()),
        None => Outcome::Failed(format!(
            "no result of {name}; the machine ended with status {}\n{}",
            report.status,
            crate::command::tail(&report.output)
        )),
    }
}

/// The part of libtest's output that is about one test.
fn excerpt(output: &str, name: &str) -> String {
    let start = format!("---- {name} stdout ----");
    let Some((_, rest)) = output.rsplit_once(&start) else { return crate::command::tail(output).to_owned() };
    let end = rest.find("\n---- ").or_else(|| rest.find("\nfailures:\n")).unwrap_or(rest.len());
    rest[..end].to_owned()
}

fn stamp(path: &std::path::Path) -> u128 {
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    modified.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos())
}

fn report() -> Report {
    let exe = env::current_exe().expect("path of the test");
    let name = exe.file_name().expect("name of the test").to_string_lossy().into_owned();
    let base: PathBuf = work_dir().join(format!("machine-{name}"));
    let (log, key_file) = (base.with_extension("log"), base.with_extension("key"));
    programs::build_all();
    let _lock = FileLock::new(&base.with_extension("lock"));
    // One run serves all processes of one `cargo test`: nothing has changed, and it is not from yesterday.
    let key = format!("{} {}", stamp(&exe), stamp(runsc()));
    let fresh = fs::metadata(&log)
        .and_then(|meta| meta.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < Duration::from_secs(600)));
    let stored = fs::read_to_string(&key_file).unwrap_or_default();
    if fresh
        && let Some(status) = stored.strip_prefix(&key).and_then(|rest| rest.trim().parse().ok())
        && let Ok(output) = fs::read_to_string(&log)
    {
        return parse(status, output);
    }
    let mut filter = vec!["kvm::".to_owned()];
    let mut text = String::new();
    let mut status = 125;
    for boot in 1..=BOOTS {
        let started = Instant::now();
        let output = Command::new(workspace().join("tests/svm/machine"))
            .args(["-t", &LIMIT.as_secs().to_string(), "env"])
            .arg(format!("{BINARY}={}", runsc().display()))
            .arg(format!("{INSIDE_MACHINE}=1"))
            .args(["RUNSC_TEST_SCALE=8", "ABI_EMULATED_CPU=1", "RUST_BACKTRACE=0"])
            .arg(&exe)
            .args(&filter)
            .arg("--test-threads=1")
            .output()
            .expect("start the emulated machine");
        // Results of a later boot replace those of an earlier one.
        text.push_str(&String::from_utf8_lossy(&output.stdout));
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        text.push('\n');
        status = output.status.code().unwrap_or(125);
        eprintln!("emulated machine, boot {boot}: status {status} after {:.0?}; {}", started.elapsed(), log.display());
        let left = not_passed(&exe, &parse(status, text.clone()).results);
        if left.is_empty() || (status == 125 && !text.contains("\ntest ")) {
            break;
        }
        filter = vec!["--exact".to_owned()];
        filter.extend(left);
    }
    fs::write(&log, &text).expect("write the machine's log");
    fs::write(&key_file, format!("{key} {status}")).expect("write the machine's key");
    parse(status, text)
}

/// KVM tests of the test program that have not passed yet.
fn not_passed(exe: &std::path::Path, results: &HashMap<String, bool>) -> Vec<String> {
    let list = |more: &[&str]| {
        let output = Command::new(exe).args(["--list", "kvm::"]).args(more).output().expect("list the tests");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.strip_suffix(": test").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let ignored = list(&["--ignored"]);
    list(&[]).into_iter().filter(|name| !ignored.contains(name) && results.get(name) != Some(&true)).collect()
}

fn parse(status: i32, output: String) -> Report {
    let mut results = HashMap::new();
    for line in output.lines() {
        let Some(rest) = line.strip_prefix("test ") else { continue };
        if let Some((name, outcome)) = rest.split_once(" ... ") {
            match outcome.trim() {
                "ok" => results.insert(name.to_owned(), true),
                "FAILED" => results.insert(name.to_owned(), false),
                _ => None,
            };
        }
    }
    Report { status, output, results }
}
