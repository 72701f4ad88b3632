//! Times in logs and state files: UTC, as RFC 3339 writes them.

use std::time::{SystemTime, UNIX_EPOCH};

struct Civil {
    year: i64,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    micros: u32,
}

/// Days to a date by Howard Hinnant's `civil_from_days`.
fn civil(time: SystemTime) -> Civil {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() as i64;
    let days = seconds.div_euclid(86400);
    let rest = seconds.rem_euclid(86400) as u32;
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    Civil {
        year: year_of_era + era * 400 + i64::from(month <= 2),
        month: month as u32,
        day: (day_of_year - (153 * month_index + 2) / 5 + 1) as u32,
        hour: rest / 3600,
        minute: rest / 60 % 60,
        second: rest % 60,
        micros: since.subsec_micros(),
    }
}

fn rfc3339(time: SystemTime) -> String {
    let c = civil(time);
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", c.year, c.month, c.day, c.hour, c.minute, c.second, c.micros)
}

pub fn rfc3339_now() -> String {
    rfc3339(SystemTime::now())
}

/// Hour and minute of a time in ns since the epoch.
pub fn clock(nanoseconds: u64) -> String {
    let c = civil(UNIX_EPOCH + std::time::Duration::from_nanos(nanoseconds));
    format!("{:02}:{:02}", c.hour, c.minute)
}

/// As in names of log files: 20060102-150405.000000.
pub fn file_timestamp() -> String {
    let c = civil(SystemTime::now());
    format!("{:04}{:02}{:02}-{:02}{:02}{:02}.{:06}", c.year, c.month, c.day, c.hour, c.minute, c.second, c.micros)
}

/// As the lines of a text log begin: month, day and time.
pub fn log_timestamp() -> String {
    let c = civil(SystemTime::now());
    format!("{:02}{:02} {:02}:{:02}:{:02}.{:06}", c.month, c.day, c.hour, c.minute, c.second, c.micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
