// Mounting. Natively in a mount name space of the test's own, where there may be one.
#include "abi.h"
#include <sched.h>
#include <sys/mount.h>
#include <sys/statfs.h>

static void may_mount(void) {
    if (in_sandbox()) {
        if (geteuid() != 0) exit(0);
    } else if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
        exit(0);
    }
}

static void temporary_file_system(void) {
    may_mount();
    enter_scratch();
    OK(mkdir("m", 0755));
    write_file("m/below", "hidden", 0644);
    OK(mount("source", "m", "tmpfs", MS_NOEXEC | MS_NODEV, "size=64k,mode=700"));
    ERR(access("m/below", F_OK), ENOENT);
    struct stat st;
    OK(stat("m", &st));
    EQ(st.st_mode & 07777, 0700);
    write_file("m/above", "x", 0755);
    struct statfs fs;
    OK(statfs("m", &fs));
    EQ(fs.f_type, 0x01021994);
    EQ(fs.f_blocks * fs.f_bsize, 65536);
    int fd = open("m/big", O_CREAT | O_WRONLY, 0600);
    static char block[65536];
    TRUE(write(fd, block, sizeof block) < (ssize_t)sizeof block);
    ERR(write(fd, block, sizeof block), ENOSPC);
    ERR(umount("m"), EBUSY);
    OK(close(fd));
    TRUE(strstr(slurp("/proc/self/mounts", NULL), "/m tmpfs rw,nodev,noexec"));
    char *args[] = {"above", NULL};
    ERR(execv("m/above", args), EACCES);
    OK(umount2("m", 0));
    STREQ(slurp("m/below", NULL), "hidden");
    ERR(umount("m"), EINVAL);
}

static void bind_and_read_only(void) {
    may_mount();
    enter_scratch();
    OK(mkdir("a", 0755));
    OK(mkdir("b", 0755));
    write_file("a/f", "1", 0644);
    OK(mount("a", "b", NULL, MS_BIND, NULL));
    STREQ(slurp("b/f", NULL), "1");
    write_file("b/g", "2", 0644);
    STREQ(slurp("a/g", NULL), "2");
    ERR(rename("a/f", "b/h"), EXDEV);
    OK(mount(NULL, "b", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
    ERR(open("b/f", O_WRONLY), EROFS);
    ERR(unlink("b/f"), EROFS);
    ERR(mkdir("b/d", 0755), EROFS);
    write_file("a/f", "3", 0644);
    STREQ(slurp("b/f", NULL), "3");
    ERR(rmdir("b"), EBUSY);
    OK(umount2("b", MNT_DETACH));
    ERR(access("b/f", F_OK), ENOENT);
}

static void refusals(void) {
    may_mount();
    enter_scratch();
    OK(mkdir("m", 0755));
    ERR(mount("x", "m", "no-such-type", 0, NULL), ENODEV);
    ERR(mount("x", "none", "tmpfs", 0, NULL), ENOENT);
    ERR(umount2("m", 0x100), EINVAL);
    ERR(umount("none"), ENOENT);
    CHILD_PID(pid) {
        OK(setuid(12345));
        ERR(mount("x", "/tmp", "tmpfs", 0, NULL), EPERM);
        ERR(umount("/tmp"), EPERM);
        _exit(0);
    }
    reap_ok(pid);
}

TESTS(T(temporary_file_system), T(bind_and_read_only), T(refusals))
