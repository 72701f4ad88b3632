//! Versions that callers see.

/// Of the OCI runtime specification that this follows.
pub const OCI: &str = "1.1.0";

pub fn print() -> String {
    format!("runsc version {}\nspec: {OCI}\n", env!("CARGO_PKG_VERSION"))
}
