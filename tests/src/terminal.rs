//! A program whose descriptors 0-2 are a terminal that the test types at and reads.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::process::CommandExt,
    process::{Child, Command},
    time::{Duration, Instant},
};

use crate::host;

pub struct Terminal {
    master: File,
    child: Child,
    /// Everything the terminal showed.
    shown: String,
}

impl Terminal {
    /// Starts it as a session's leader whose terminal has 33 rows and 101 columns.
    pub fn start(mut command: Command) -> Terminal {
        let (mut master, mut slave) = (0, 0);
        let size = libc::winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: openpty writes two descriptors and reads the size; the name and settings are left out.
        let result = unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), &size) };
        assert_eq!(result, 0, "openpty");
        // SAFETY: openpty has made both descriptors, and nobody else owns them.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let copy = || slave.try_clone().expect("dup");
        command.stdin(copy()).stdout(copy()).stderr(copy());
        // SAFETY: setsid and the ioctl are async-signal-safe and touch no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("start the program");
        Terminal { master, child, shown: String::new() }
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the ioctl reads the size.
        let result = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    pub fn type_(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("type");
    }

    /// Reads until `text` is shown.
    pub fn expect(&mut self, text: &str) {
        let shown = self.shows(text, Duration::from_secs(20));
        assert!(shown, "{text:?} is not shown in: {:?}", self.shown);
    }

    /// Changes the size until a shell with busybox sees it: programs in between may not listen yet.
    pub fn expect_resize(&mut self) {
        for rows in 40..60 {
            self.resize(rows, 77);
            std::thread::sleep(Duration::from_millis(100) * host::time_scale());
            self.type_("busybox stty size\n");
            if self.shows(&format!("\n{rows} 77"), Duration::from_secs(1)) {
                return;
            }
        }
        panic!("a change of size is not seen: {:?}", self.shown);
    }

    /// Reads until `text` is shown, for at most `limit`.
    fn shows(&mut self, text: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit * host::time_scale();
        while !self.shown.contains(text) {
            if Instant::now() >= end {
                return false;
            }
            let mut poll = libc::pollfd { fd: self.master.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: poll writes the one structure it is given.
            if unsafe { libc::poll(&mut poll, 1, 100) } > 0 {
                let mut buffer = [0; 4096];
                match self.master.read(&mut buffer) {
                    Ok(n) if n > 0 => self.shown.push_str(&String::from_utf8_lossy(&buffer[..n])),
                    _ => panic!("the terminal closed before {text:?}: {:?}", self.shown),
                }
            }
        }
        let (_, rest) = self.shown.split_once(text).expect("just seen");
        self.shown = rest.to_owned();
        true
    }

    /// Waits for the end; the exit code.
    pub fn end(mut self) -> i32 {
        let end = Instant::now() + Duration::from_secs(20) * host::time_scale();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < end, "it does not end; shown: {:?}", self.shown);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
