//! Names of containers.

use anyhow::{Result, bail};

/// NAME_MAX: the name is that of a directory.
const MAX: usize = 255;

/// Letters, digits, `_`, `+`, `-` and `.`, as other runtimes have it.
pub fn check(id: &str) -> Result<()> {
    if id.is_empty() {
        bail!("container id is empty");
    }
    if id.len() > MAX {
        bail!("container id is longer than {MAX} characters: {:?}...", &id.chars().take(20).collect::<String>());
    }
    if id == "." || id == ".." || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-.".contains(&b)) {
        bail!("container id {id:?} is not valid: it may hold letters, digits, _, +, - and .");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn ids() {
        for good in ["a", "A.b-c_d+1", &"x".repeat(255)] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/", "a b", "ä", "a\n", &"x".repeat(256)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
