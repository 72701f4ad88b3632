//! Flags with one dash. Callers write `-root X` as well as `--root X` (the Go flag syntax); clap knows the second. This
//! turns the first into the second for names that the command defines, and stops where the Go syntax stops: at the first
//! word that is no flag, or at `--`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{ArgAction, Command};

/// `args` without the program name, each level of flags in clap's spelling.
pub fn normalize(command: &Command, args: &[OsString]) -> Vec<OsString> {
    let mut out = Vec::with_capacity(args.len());
    let rest = flags_of(command, args, &mut out);
    let Some((name, rest)) = rest.split_first() else { return out };
    out.push(name.clone());
    let sub = name.to_str().and_then(|n| command.find_subcommand(n));
    match sub {
        Some(sub) => {
            let rest = flags_of(sub, rest, &mut out);
            // What follows belongs to the container, even when it looks like one of our flags; commands without such a
            // tail take flags behind their operands too.
            if sub.get_positionals().any(|a| a.is_trailing_var_arg_set()) {
                if rest.first().is_some_and(|a| a != "--") {
                    out.push("--".into());
                }
                out.extend_from_slice(rest);
            } else {
                let mut rest = rest;
                while let Some((word, tail)) = rest.split_first() {
                    out.push(word.clone());
                    rest = flags_of(sub, tail, &mut out);
                }
            }
        }
        None => out.extend_from_slice(rest),
    }
    out
}

/// Copies leading flags with their values; returns what follows.
fn flags_of<'a>(command: &Command, mut args: &'a [OsString], out: &mut Vec<OsString>) -> &'a [OsString] {
    while let Some((first, rest)) = args.split_first() {
        let bytes = first.as_bytes();
        if bytes.len() < 2 || bytes[0] != b'-' {
            break;
        }
        if bytes == b"--" {
            break;
        }
        let body = if bytes.starts_with(b"--") { &bytes[2..] } else { &bytes[1..] };
        let (name, value) = match body.iter().position(|&b| b == b'=') {
            Some(at) => (&body[..at], true),
            None => (body, false),
        };
        let known = known(command, name);
        match known {
            Some(takes_word) => {
                let mut long = b"--".to_vec();
                long.extend_from_slice(body);
                out.push(OsString::from_vec(long));
                args = rest;
                if takes_word
                    && !value
                    && let Some((value, rest)) = args.split_first()
                {
                    out.push(value.clone());
                    args = rest;
                }
            }
            None => {
                // So that clap's message names the whole of it.
                let long = bytes.len() > 2 && bytes[1].is_ascii_alphabetic();
                out.push(if long { OsString::from_vec([b"-", bytes].concat()) } else { first.clone() });
                args = rest;
                // A short flag that takes a word, such as `-b bundle`.
                if let [b'-', short] = bytes
                    && short_takes_word(command, *short as char)
                    && let Some((value, rest)) = args.split_first()
                {
                    out.push(value.clone());
                    args = rest;
                }
            }
        }
    }
    args
}

/// Whether the command has this long flag; if so, whether a value may follow as a word of its own.
fn known(command: &Command, name: &[u8]) -> Option<bool> {
    let name = OsStr::from_bytes(name).to_str()?;
    if name == "help" {
        return Some(false);
    }
    command
        .get_arguments()
        .find(|a| a.get_long() == Some(name) || a.get_all_aliases().is_some_and(|l| l.contains(&name)))
        .map(takes_word)
}

fn short_takes_word(command: &Command, short: char) -> bool {
    command.get_arguments().any(|a| a.get_short() == Some(short) && takes_word(a))
}

fn takes_word(arg: &clap::Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !arg.is_require_equals_set()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Vec<String> {
        let command = crate::args::command();
        let args: Vec<OsString> = words.iter().map(OsString::from).collect();
        normalize(&command, &args).into_iter().map(|s| s.into_string().expect("test words are UTF-8")).collect()
    }

    #[test]
    fn one_dash_becomes_two() {
        assert_eq!(
            run(&["-root", "/x", "-debug", "-log=y", "run", "-bundle", "/b", "-detach", "id"]),
            ["--root", "/x", "--debug", "--log=y", "run", "--bundle", "/b", "--detach", "id"]
        );
        assert_eq!(run(&["--debug=false", "list", "-q"]), ["--debug=false", "list", "-q"]);
    }

    #[test]
    fn the_words_of_the_application_stay() {
        assert_eq!(run(&["do", "-quiet", "sh", "-root", "-c", "x"]), ["do", "--quiet", "--", "sh", "-root", "-c", "x"]);
        assert_eq!(run(&["do", "--", "-root"]), ["do", "--", "-root"]);
    }

    #[test]
    fn flags_behind_operands() {
        assert_eq!(run(&["delete", "id", "-force"]), ["delete", "id", "--force"]);
        assert_eq!(run(&["kill", "-all", "id", "9"]), ["kill", "--all", "id", "9"]);
    }
}
