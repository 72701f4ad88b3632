//! `cargo bench`: see the library's documentation for options.

fn main() -> anyhow::Result<()> {
    runsc_benches::main()
}
