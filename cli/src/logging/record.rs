//! The formats of a log line.

use log::Level;
use serde::Serialize;

use super::time;
use crate::flags::settings::Format;

#[derive(Serialize)]
struct Json<'a> {
    msg: &'a str,
    level: &'a str,
    time: String,
}

/// What Kubernetes' log collectors expect.
#[derive(Serialize)]
struct JsonK8s<'a> {
    log: &'a str,
    level: &'a str,
    time: String,
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

/// One line with its newline.
pub fn format(format: Format, level: Level, target: &str, message: &str) -> Vec<u8> {
    let message = message.trim_end_matches('\n');
    let mut line = match format {
        Format::Text => {
            let letter = name(level).as_bytes()[0].to_ascii_uppercase() as char;
            let source = if target.starts_with("runsc") { "" } else { target };
            let colon = if source.is_empty() { "" } else { ": " };
            format!("{letter}{} {:7} {source}{colon}{message}", time::log_timestamp(), std::process::id()).into_bytes()
        }
        Format::Json => json(&Json { msg: message, level: name(level), time: time::rfc3339_now() }),
        Format::JsonK8s => json(&JsonK8s { log: message, level: name(level), time: time::rfc3339_now() }),
    };
    line.push(b'\n');
    line
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_one_line() {
        let line = format(Format::Json, Level::Error, "runsc", "a \"b\"\nc\n");
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&line).expect("valid JSON");
        assert_eq!(value["msg"], "a \"b\"\nc");
        assert_eq!(value["level"], "error");
    }
}
