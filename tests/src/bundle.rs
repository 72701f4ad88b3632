//! OCI bundles: a root file system with busybox and test programs, and a config.json.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::host::{TempDir, find_program};

pub struct Bundle {
    dir: TempDir,
    pub config: Value,
}

impl Bundle {
    /// A root with busybox (and its applets as links) and the usual directories; the process is `args`.
    pub fn new(args: &[&str]) -> Bundle {
        let bundle = Bundle { dir: TempDir::new("bundle"), config: config(args) };
        let root = bundle.root();
        for name in ["bin", "etc", "proc", "dev", "sys", "tmp", "root", "data"] {
            fs::create_dir_all(root.join(name)).expect("directory of the root");
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("mode of /tmp");
        let busybox = find_program("busybox").expect("busybox (package busybox-static)");
        bundle.add(&busybox, "bin/busybox");
        for applet in [
            "sh", "cat", "echo", "ls", "ln", "true", "false", "sleep", "rm", "mkdir", "mount", "ps", "id", "env",
            "hostname", "touch", "kill", "seq", "wc", "test", "stat", "pwd", "uname", "head", "tr", "cp", "mv", "dd",
            "readlink",
        ] {
            symlink("busybox", root.join("bin").join(applet)).expect("link of an applet");
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n").expect("passwd");
        bundle
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// Copies a program into the root.
    pub fn add(&self, program: &Path, to: &str) {
        fs::copy(program, self.root().join(to)).unwrap_or_else(|error| panic!("copy {}: {error}", program.display()));
    }

    /// Writes config.json; the argument for `--bundle`.
    pub fn write(&self) -> String {
        fs::write(self.path().join("config.json"), self.config.to_string()).expect("config.json");
        self.path().display().to_string()
    }
}

/// A plain config.json.
pub fn config(args: &[&str]) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_MKNOD",
        "CAP_SYS_CHROOT",
    ];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin:/usr/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "sandbox",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts" },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"] }
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }]
        }
    })
}
