//! Terminals that a container gets over `--console-socket`.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use anyhow::{Context, Result};
use rustix::{
    fs::{Mode, OFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

/// A new terminal of (rows, columns): its master goes over the socket, its slave is for the container.
pub fn make(socket: &Path, size: Option<(u16, u16)>) -> Result<OwnedFd> {
    let what = || format!("--console-socket {}", socket.display());
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context("make a terminal")?;
    grantpt(&master).context("grant the terminal")?;
    unlockpt(&master).context("unlock the terminal")?;
    let name = ptsname(&master, Vec::new()).context("name of the terminal")?;
    let slave = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .context("open the terminal")?;
    if let Some((rows, columns)) = size {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size).context("size of the terminal")?;
    }
    let stream = UnixStream::connect(socket).with_context(what)?;
    let fds = [master.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&stream, &[IoSlice::new(name.to_bytes())], &mut control, SendFlags::NOSIGNAL).with_context(what)?;
    Ok(slave)
}

/// Makes it the controlling terminal of this process, a session leader: then the keys that make signals, and changes of its
/// size, are told to this process.
pub fn take(tty: BorrowedFd<'_>) -> Result<()> {
    rustix::process::ioctl_tiocsctty(tty).context("take the terminal")
}
