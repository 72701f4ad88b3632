//! Where messages go. Errors and warnings of a command go to `--log` for the caller; everything goes to the debug log;
//! stderr belongs to the application and gets messages only with `--alsologtostderr`, or when a command fails.

mod record;
mod time;

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use anyhow::{Context, Result};
use log::{Level, LevelFilter, Metadata, Record};

use crate::flags::{Settings, settings::Format};

pub use time::{clock, rfc3339_now};

/// Longest message that is written; what the sandbox sends is no longer than this.
const MAX_MESSAGE: usize = 64 << 10;

struct Sink {
    file: File,
    format: Format,
    level: LevelFilter,
}

#[derive(Default)]
struct Sinks {
    caller: Option<Sink>,
    debug: Option<Sink>,
    /// A copy of the command's stderr, which in its children leads nowhere.
    stderr: Option<Sink>,
    panic: Option<File>,
}

struct Logger(Mutex<Sinks>);

static LOGGER: OnceLock<Logger> = OnceLock::new();

impl log::Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut message = record.args().to_string();
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
            message.truncate(end);
        }
        let Ok(mut sinks) = self.0.lock() else { return };
        let sinks = &mut *sinks;
        for sink in [&mut sinks.caller, &mut sinks.debug, &mut sinks.stderr].into_iter().flatten() {
            if record.level() <= sink.level {
                // One write a line, so that lines of several processes do not mix. A log that cannot be written must
                // not stop the container.
                let _ = sink.file.write_all(&record::format(sink.format, record.level(), record.target(), &message));
            }
        }
    }

    fn flush(&self) {}
}

fn open_append(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o644)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)
        .with_context(|| format!("open log file {}", path.display()))
}

fn duplicate(fd: i32, what: &str) -> Result<File> {
    // SAFETY: the descriptor is only borrowed for fcntl, which reports a closed one.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let owned: OwnedFd = rustix::io::fcntl_dupfd_cloexec(borrowed, 3).with_context(|| format!("{what}={fd}"))?;
    Ok(File::from(owned))
}

/// The debug log's path: a pattern, or a directory when it ends in a slash.
fn expand(pattern: &str, command: &str, id: &str) -> PathBuf {
    let mut text = pattern.to_owned();
    if text.ends_with('/') {
        text.push_str("runsc.log.%TIMESTAMP%.%COMMAND%.txt");
    }
    // An id that is about to be refused must not name a file somewhere else.
    let id = id.replace('/', "_");
    PathBuf::from(
        text.replace("%TIMESTAMP%", &time::file_timestamp()).replace("%COMMAND%", command).replace("%ID%", &id),
    )
}

fn sinks(settings: &Settings, command: &str, id: &str) -> Result<Sinks> {
    let caller = match (settings.log_fd, &settings.log) {
        (Some(fd), _) => Some(duplicate(fd, "--log-fd")?),
        (None, Some(path)) => Some(open_append(path)?),
        (None, None) => None,
    };
    let panic = match (settings.panic_log_fd, &settings.panic_log) {
        (Some(fd), _) => Some(duplicate(fd, "--panic-log-fd")?),
        (None, Some(pattern)) => Some(open_append(&expand(pattern, command, id))?),
        (None, None) => None,
    };
    let level = if settings.debug { LevelFilter::Debug } else { LevelFilter::Info };
    let debug = match (settings.debug_log_fd, &settings.debug_log) {
        (Some(fd), _) => Some(duplicate(fd, "--debug-log-fd")?),
        (None, Some(pattern)) => {
            let path = expand(pattern, command, id);
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).with_context(|| format!("make log directory {}", dir.display()))?;
            }
            Some(open_append(&path)?)
        }
        (None, None) => None,
    };
    let stderr = settings.also_stderr.then(|| duplicate(2, "--alsologtostderr")).transpose()?;
    Ok(Sinks {
        caller: caller.map(|file| Sink { file, format: settings.log_format, level: LevelFilter::Warn }),
        debug: debug.map(|file| Sink { file, format: settings.debug_log_format, level }),
        stderr: stderr.map(|file| Sink { file, format: Format::Text, level }),
        panic,
    })
}

/// Opens the logs of a command. Also called in the processes made by it, which get debug logs of their own names.
pub fn init(settings: &Settings, command: &str, id: &str) -> Result<()> {
    let sinks = sinks(settings, command, id)?;
    let level = if sinks.debug.is_some() || sinks.stderr.is_some() {
        if settings.debug { LevelFilter::Debug } else { LevelFilter::Info }
    } else {
        LevelFilter::Warn
    };
    match LOGGER.get() {
        Some(logger) => {
            if let Ok(mut old) = logger.0.lock() {
                // In a child descriptor 2 may lead nowhere by now.
                let stderr = old.stderr.take();
                *old = Sinks { stderr: stderr.or(sinks.stderr), ..sinks };
            }
        }
        None => {
            let logger = LOGGER.get_or_init(|| Logger(Mutex::new(sinks)));
            let _ = log::set_logger(logger);
            std::panic::set_hook(Box::new(|info| panicked(&info.to_string())));
        }
    }
    log::set_max_level(level);
    log::info!(
        "runsc {} {}: pid {}, uid {}, gid {}",
        env!("CARGO_PKG_VERSION"),
        command,
        std::process::id(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw()
    );
    log::info!("arguments: {:?}", std::env::args_os().collect::<Vec<_>>());
    for (name, value) in &settings.given {
        log::info!("flag --{name}={value}");
    }
    for warning in &settings.warnings {
        log::warn!("{warning}");
    }
    Ok(())
}

/// Descriptors the logs use: those a process must keep that closes everything else.
pub fn descriptors() -> Vec<i32> {
    use std::os::fd::AsRawFd;
    let Some(logger) = LOGGER.get() else { return Vec::new() };
    let Ok(sinks) = logger.0.lock() else { return Vec::new() };
    let files = [&sinks.caller, &sinks.debug, &sinks.stderr].into_iter().flatten().map(|s| s.file.as_raw_fd());
    files.chain(sinks.panic.as_ref().map(|f| f.as_raw_fd())).collect()
}

/// The failure of a command: to the caller's log, and to stderr, which at that time nobody else uses.
pub fn fatal(message: &str) {
    let on_stderr = LOGGER.get().and_then(|l| l.0.lock().ok().map(|s| s.stderr.is_some())).unwrap_or(false);
    log::error!("{message}");
    if !on_stderr {
        let _ = writeln!(std::io::stderr(), "runsc: {message}");
    }
}

/// A bug of ours: to the panic log and wherever messages go.
fn panicked(text: &str) {
    let backtrace = std::backtrace::Backtrace::force_capture();
    let report = format!("panic in process {}: {text}\n{backtrace}\n", std::process::id());
    if let Some(logger) = LOGGER.get()
        && let Ok(mut sinks) = logger.0.try_lock()
        && let Some(file) = &mut sinks.panic
    {
        let _ = file.write_all(report.as_bytes());
    }
    log::error!("{report}");
    let _ = writeln!(std::io::stderr(), "runsc: {text}");
}

/// Writes a report of the sentry's end where panics go.
pub fn last_words(text: &str) {
    if let Some(logger) = LOGGER.get()
        && let Ok(mut sinks) = logger.0.lock()
        && let Some(file) = &mut sinks.panic
    {
        let _ = writeln!(file, "{text}");
    }
    log::log!(Level::Error, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_log_names() {
        assert_eq!(expand("/d/%ID%.%COMMAND%", "run", "a/b"), PathBuf::from("/d/a_b.run"));
        let path = expand("/d/", "boot", "x").display().to_string();
        assert!(path.starts_with("/d/runsc.log.2") && path.ends_with(".boot.txt"), "{path}");
    }
}
