//! Builds the sentry image with a cargo of its own and hands it to `image.rs`; compiles the seccomp filters for `seccomp.rs`.
//!
//! The inner cargo has its own target folder (sharing one would wait for the outer cargo's lock for ever), its own profile
//! (panic and lto may not stand in a package's profile) and none of the outer one's environment.

use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use seccompiler::sock_filter;
use sha2::{Digest, Sha256};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A static PIE that relocates itself: no start files, no libc, no interpreter. Frame pointers for backtraces; no red zone
/// because under KVM exceptions come in on the same privilege level.
const RUSTFLAGS: &[&str] = &[
    "--cfg=sentry_image",
    "-Crelocation-model=pie",
    "-Cforce-frame-pointers=yes",
    "-Cno-redzone=yes",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static-pie",
    "-Clink-arg=-Wl,--no-dynamic-linker,-z,noexecstack,-z,norelro,-e,_start",
];

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    compile_filters(&out);
    build_image(&out);
}

/// Filters as arrays of BPF instructions, named as in the data.
fn compile_filters(out: &Path) {
    println!("cargo::rerun-if-changed=seccomp.json");
    let data = fs::File::open("seccomp.json").expect("seccomp.json is there");
    let filters = seccompiler::compile_from_json(data, seccompiler::TargetArch::x86_64).expect("seccomp.json is valid");
    let mut text = String::new();
    for (name, program) in filters {
        writeln!(text, "static {}: &[sock_filter] = &[", name.to_uppercase()).expect("strings take text");
        for sock_filter { code, jt, jf, k } in program {
            writeln!(text, "    sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},")
                .expect("strings take text");
        }
        text.push_str("];\n");
    }
    fs::write(out.join("seccomp.rs"), text).expect("OUT_DIR is writable");
}

fn build_image(out: &Path) {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")).parent().expect("vmm/ lies in the workspace").to_owned();
    let profile = if variable("PROFILE") == "release" { "sentry" } else { "sentry-dev" };
    let target_dir = outer_target_dir(out).join("sentry");

    let mut cargo = Command::new(variable("CARGO"));
    cargo.current_dir(&workspace).args(["build", "--locked", "-p", "guest-kernel", "--bin", "sentry"]).args([
        "--profile",
        profile,
        "--target",
        TARGET,
        "--target-dir",
    ]);
    cargo.arg(&target_dir);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_outer_cargos) {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    let status = cargo.status().expect("cargo can be run");
    assert!(status.success(), "building the sentry image failed: {status}");

    let built = target_dir.join(TARGET).join(profile);
    let image = fs::read(built.join("sentry")).expect("the sentry image was built");
    fs::write(out.join("sentry"), &image).expect("OUT_DIR is writable");
    let hash: String = Sha256::digest(&image).iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=SENTRY_SHA256={hash}");

    for file in ["Cargo.toml", "Cargo.lock", "guest-kernel/Cargo.toml", "guest-kernel/abi/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(file).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let dep_info = fs::read_to_string(built.join("sentry.d")).expect("the inner cargo wrote dep-info");
    for file in dep_info_files(&dep_info) {
        println!("cargo::rerun-if-changed={file}");
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// `OUT_DIR` is `<target>[/<triple>]/<profile>/build/<package>/out`.
fn outer_target_dir(out: &Path) -> PathBuf {
    let above_profile = out.ancestors().nth(4).expect("OUT_DIR is deep enough");
    match above_profile.file_name() {
        Some(name) if name.to_str() == Some(&variable("TARGET")) => {
            above_profile.parent().expect("has a parent").to_owned()
        }
        _ => above_profile.to_owned(),
    }
}

fn is_outer_cargos(name: &str) -> bool {
    const KEEP: &[&str] = &["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR"];
    const DROP: &[&str] = &["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "DEP_", "CLIPPY_"];
    const DROP_EXACT: &[&str] = &["TARGET", "PROFILE", "OUT_DIR", "HOST", "OPT_LEVEL", "DEBUG", "NUM_JOBS"];
    !KEEP.contains(&name) && (DROP.iter().any(|prefix| name.starts_with(prefix)) || DROP_EXACT.contains(&name))
}

/// Prerequisites of a make rule: separated by spaces, spaces in names escaped by a backslash.
fn dep_info_files(dep_info: &str) -> Vec<String> {
    let Some((_, files)) = dep_info.lines().next().and_then(|line| line.split_once(": ")) else { return Vec::new() };
    files.replace("\\ ", "\0").split_whitespace().map(|file| file.replace('\0', " ")).collect()
}
