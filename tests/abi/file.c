// Files and directories: open flags, offsets, attributes, names, links, directories, descriptors, permissions, errnos.
// TEST_DIR chooses the file system under test.
#include "abi.h"
#include <dirent.h>
#include <limits.h>
#include <sys/file.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <linux/openat2.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <utime.h>

static int create(const char *name) {
    int fd = open(name, O_CREAT | O_RDWR | O_TRUNC, 0644);
    if (fd < 0) FAIL("create %s: %s", name, strerror(errno));
    return fd;
}

static void open_flags(void) {
    enter_scratch();
    ERR(open("f", O_RDONLY), ENOENT);
    int fd = open("f", O_CREAT | O_EXCL | O_WRONLY, 0640);
    OK(fd);
    ERR(open("f", O_CREAT | O_EXCL | O_WRONLY, 0640), EEXIST);
    EQ(write(fd, "hello", 5), 5);
    char c;
    ERR(read(fd, &c, 1), EBADF);
    close(fd);
    fd = open("f", O_RDONLY);
    ERR(write(fd, "x", 1), EBADF);
    EQ(read(fd, &c, 1), 1);
    EQ(c, 'h');
    close(fd);
    fd = open("f", O_WRONLY | O_TRUNC);
    struct stat st;
    OK(fstat(fd, &st));
    EQ(st.st_size, 0);
    close(fd);
    ERR(open("f", O_RDONLY | O_DIRECTORY), ENOTDIR);
    ERR(open("f/x", O_RDONLY), ENOTDIR);
    ERR(open(".", O_WRONLY), EISDIR);
    ERR(open("newdir/", O_CREAT | O_WRONLY, 0644), EISDIR);
    ERR(open((char *)8, O_RDONLY), EFAULT);
    ERR(open("", O_RDONLY), ENOENT);
    OK(symlink("f", "l"));
    ERR(open("l", O_RDONLY | O_NOFOLLOW), ELOOP);
    OK(symlink("dangling-target", "d"));
    ERR(open("d", O_RDONLY), ENOENT);
    ERR(open("d", O_CREAT | O_EXCL | O_WRONLY, 0644), EEXIST);
    fd = open("d", O_CREAT | O_WRONLY, 0644); // creates the target
    OK(fd);
    OK(stat("dangling-target", &st));
    fd = open("f", O_PATH);
    OK(fd);
    ERR(read(fd, &c, 1), EBADF);
    OK(fstat(fd, &st));
    char name[300];
    memset(name, 'n', 299);
    name[299] = 0;
    ERR(open(name, O_CREAT | O_WRONLY, 0644), ENAMETOOLONG);
    name[255] = 0;
    fd = open(name, O_CREAT | O_WRONLY, 0644);
    OK(fd);
    static char path[5000];
    for (int i = 0; i < 4990; i += 2) memcpy(path + i, "./", 2);
    ERR(open(path, O_RDONLY), ENAMETOOLONG);
}

static void modes_and_umask(void) {
    enter_scratch();
    umask(027);
    close(open("f", O_CREAT | O_WRONLY, 0666));
    struct stat st;
    OK(stat("f", &st));
    EQ(st.st_mode, S_IFREG | 0640);
    EQ(st.st_uid, geteuid());
    OK(mkdir("d", 0777));
    OK(stat("d", &st));
    EQ(st.st_mode, S_IFDIR | 0750);
    EQ(umask(022), 027);
    OK(chmod("f", 0604));
    OK(stat("f", &st));
    EQ(st.st_mode & 07777, 0604);
    int fd = open("f", O_RDONLY);
    OK(fchmod(fd, 04711));
    OK(fstat(fd, &st));
    EQ(st.st_mode & 07777, 04711);
    ERR(chmod("missing", 0644), ENOENT);
    ERR(fchmod(999, 0644), EBADF);
    OK(fchmodat(AT_FDCWD, "f", 0600, 0));
}

static void offsets(void) {
    enter_scratch();
    int fd = create("f");
    EQ(write(fd, "0123456789", 10), 10);
    EQ(lseek(fd, 0, SEEK_CUR), 10);
    EQ(lseek(fd, -3, SEEK_END), 7);
    char b[16];
    EQ(read(fd, b, 16), 3);
    EQ(read(fd, b, 16), 0);
    EQ(pread(fd, b, 4, 2), 4);
    TRUE(!memcmp(b, "2345", 4));
    EQ(lseek(fd, 0, SEEK_CUR), 10); // pread does not move it
    EQ(pwrite(fd, "ab", 2, 20), 2); // a hole
    EQ(lseek(fd, 0, SEEK_END), 22);
    EQ(pread(fd, b, 12, 10), 12);
    for (int i = 0; i < 10; i++) EQ(b[i], 0);
    ERR(lseek(fd, -1, SEEK_SET), EINVAL);
    ERR(lseek(fd, 0, 99), EINVAL);
    EQ(lseek(fd, 1000000, SEEK_SET), 1000000);
    EQ(read(fd, b, 1), 0);
    ERR(pread(fd, b, 1, -1), EINVAL);
    ERR(lseek(999, 0, SEEK_SET), EBADF);
    lseek(fd, 0, SEEK_SET);
    ERR(read(fd, (void *)8, 5), EFAULT);
    struct iovec v[2] = {{b, 3}, {b + 8, 4}};
    EQ(preadv(fd, v, 2, 1), 7);
    TRUE(!memcmp(b, "123", 3) && !memcmp(b + 8, "4567", 4));
    EQ(pwritev(fd, v, 2, 0), 7);
    EQ(read(fd, b, 0), 0);
}

static void append(void) {
    enter_scratch();
    int fd = open("f", O_CREAT | O_RDWR | O_APPEND, 0644);
    EQ(write(fd, "abc", 3), 3);
    lseek(fd, 0, SEEK_SET);
    EQ(write(fd, "def", 3), 3);
    STREQ(slurp("f", NULL), "abcdef");
    int other = open("f", O_WRONLY | O_APPEND);
    EQ(write(other, "1", 1), 1);
    EQ(write(fd, "2", 1), 1);
    STREQ(slurp("f", NULL), "abcdef12");
    OK(fcntl(fd, F_SETFL, 0));
    lseek(fd, 0, SEEK_SET);
    EQ(write(fd, "X", 1), 1);
    STREQ(slurp("f", NULL), "Xbcdef12");
}

static void attributes(void) {
    enter_scratch();
    write_file("f", "12345", 0644);
    struct stat a, b;
    OK(stat("f", &a));
    EQ(a.st_size, 5); EQ(a.st_nlink, 1);
    TRUE(S_ISREG(a.st_mode));
    TRUE(a.st_ino != 0 && a.st_blksize > 0);
    int fd = open("f", O_RDONLY);
    OK(fstat(fd, &b));
    EQ(a.st_ino, b.st_ino); EQ(a.st_dev, b.st_dev); EQ(a.st_mtim.tv_nsec, b.st_mtim.tv_nsec);
    OK(symlink("f", "l"));
    OK(lstat("l", &b));
    TRUE(S_ISLNK(b.st_mode));
    EQ(b.st_size, 1);
    OK(stat("l", &b));
    EQ(a.st_ino, b.st_ino);
    OK(fstatat(AT_FDCWD, "l", &b, AT_SYMLINK_NOFOLLOW));
    TRUE(S_ISLNK(b.st_mode));
    OK(fstatat(fd, "", &b, AT_EMPTY_PATH));
    EQ(a.st_ino, b.st_ino);
    ERR(fstatat(AT_FDCWD, "", &b, 0), ENOENT);
    ERR(fstatat(AT_FDCWD, "f", &b, 0x40000000), EINVAL);
    ERR(stat("missing", &b), ENOENT);
    ERR(stat("f/", &b), ENOTDIR);
    ERR(syscall(SYS_newfstatat, AT_FDCWD, "f", 8, 0), EFAULT);
    ERR(fstat(999, &b), EBADF);
    struct statx x;
    OK(statx(AT_FDCWD, "f", 0, STATX_BASIC_STATS, &x));
    EQ(x.stx_size, 5); EQ(x.stx_ino, a.st_ino); EQ(x.stx_mode, a.st_mode);
    EQ(makedev(x.stx_dev_major, x.stx_dev_minor), a.st_dev);
    struct statfs fs;
    OK(statfs(".", &fs));
    TRUE(fs.f_bsize > 0 && fs.f_namelen >= 255);
    OK(fstatfs(fd, &fs));
    ERR(statfs("missing", &fs), ENOENT);
}

static void times(void) {
    enter_scratch();
    write_file("f", "x", 0644);
    struct timespec t[2] = {{1000, 500}, {2000, 700}};
    OK(utimensat(AT_FDCWD, "f", t, 0));
    struct stat st;
    OK(stat("f", &st));
    EQ(st.st_atim.tv_sec, 1000); EQ(st.st_atim.tv_nsec, 500); EQ(st.st_mtim.tv_sec, 2000); EQ(st.st_mtim.tv_nsec, 700);
    t[0].tv_nsec = UTIME_OMIT;
    t[1].tv_nsec = UTIME_NOW;
    OK(utimensat(AT_FDCWD, "f", t, 0));
    OK(stat("f", &st));
    EQ(st.st_atim.tv_sec, 1000);
    struct timespec clock;
    clock_gettime(CLOCK_REALTIME, &clock);
    TRUE(st.st_mtim.tv_sec >= clock.tv_sec - 60 && st.st_mtim.tv_sec <= clock.tv_sec + 60);
    int fd = open("f", O_WRONLY);
    struct timespec u[2] = {{1, 0}, {2, 0}};
    OK(futimens(fd, u));
    OK(fstat(fd, &st));
    EQ(st.st_mtim.tv_sec, 2);
    EQ(write(fd, "yy", 2), 2); // a write moves mtime
    OK(fstat(fd, &st));
    TRUE(st.st_mtim.tv_sec > 1000000);
    ERR(utimensat(AT_FDCWD, "missing", NULL, 0), ENOENT);
    t[0].tv_nsec = 1000000000;
    ERR(utimensat(AT_FDCWD, "f", t, 0), EINVAL);
    struct utimbuf old = {77, 88};
    OK(utime("f", &old));
    OK(stat("f", &st));
    EQ(st.st_mtim.tv_sec, 88);
    OK(symlink("f", "l"));
    struct timespec w[2] = {{5, 0}, {6, 0}};
    OK(utimensat(AT_FDCWD, "l", w, AT_SYMLINK_NOFOLLOW));
    OK(stat("f", &st));
    EQ(st.st_mtim.tv_sec, 88);
}

static void truncation(void) {
    enter_scratch();
    int fd = create("f");
    EQ(write(fd, "0123456789", 10), 10);
    OK(ftruncate(fd, 4));
    STREQ(slurp("f", NULL), "0123");
    OK(truncate("f", 8));
    ssize_t n;
    char *text = slurp("f", &n);
    EQ(n, 8); EQ(text[4], 0); EQ(text[7], 0);
    ERR(truncate("f", -1), EINVAL);
    ERR(ftruncate(fd, -1), EINVAL);
    ERR(truncate(".", 0), EISDIR);
    ERR(truncate("missing", 0), ENOENT);
    int ro = open("f", O_RDONLY);
    ERR(ftruncate(ro, 0), EINVAL);
    OK(fallocate(fd, 0, 0, 100));
    struct stat st;
    OK(fstat(fd, &st));
    EQ(st.st_size, 100);
    OK(fsync(fd));
    OK(fdatasync(fd));
    ERR(fsync(999), EBADF);
}

static void directories(void) {
    enter_scratch();
    OK(mkdir("d", 0755));
    ERR(mkdir("d", 0755), EEXIST);
    ERR(mkdir("missing/d", 0755), ENOENT);
    OK(mkdir("d/e", 0755));
    ERR(rmdir("d"), ENOTEMPTY);
    ERR(unlink("d"), EISDIR);
    write_file("f", "x", 0644);
    ERR(rmdir("f"), ENOTDIR);
    ERR(mkdir("f/x", 0755), ENOTDIR);
    ERR(rmdir("missing"), ENOENT);
    ERR(rmdir("d/e/."), EINVAL);
    OK(rmdir("d/e"));
    OK(rmdir("d"));
    OK(mkdirat(AT_FDCWD, "g/", 0755));
    int g = open("g", O_RDONLY | O_DIRECTORY);
    OK(mkdirat(g, "h", 0755));
    struct stat st;
    OK(stat("g/h", &st));
    OK(unlinkat(g, "h", AT_REMOVEDIR));
    ERR(stat("g/h", &st), ENOENT);
    ERR(mkdirat(999, "h", 0755), EBADF);
    int f = open("f", O_RDONLY);
    ERR(mkdirat(f, "h", 0755), ENOTDIR);
    char c;
    ERR(read(g, &c, 1), EISDIR);
}

static int compare(const void *a, const void *b) { return strcmp(a, b); }
static void reading_directories(void) {
    enter_scratch();
    OK(mkdir("d", 0755));
    char name[64];
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "d/entry-%03d", i);
        write_file(name, "", 0644);
    }
    OK(mkdir("d/sub", 0755));
    OK(symlink("x", "d/link"));
    static char names[600][32];
    int count = 0;
    DIR *dir = opendir("d");
    struct dirent *e;
    while ((e = readdir(dir))) {
        snprintf(names[count++], 32, "%s", e->d_name);
        struct stat st;
        snprintf(name, sizeof name, "d/%.40s", e->d_name);
        OK(lstat(name, &st));
        if (strcmp(e->d_name, "..") && strcmp(e->d_name, ".")) EQ(e->d_ino, st.st_ino);
        if (e->d_type != DT_UNKNOWN) EQ(e->d_type, IFTODT(st.st_mode));
    }
    EQ(count, 504);
    qsort(names, count, 32, compare);
    STREQ(names[0], "."); STREQ(names[1], ".."); STREQ(names[2], "entry-000"); STREQ(names[501], "entry-499"); STREQ(names[502], "link");
    rewinddir(dir);
    int again = 0;
    while ((e = readdir(dir))) again++;
    EQ(again, 504);
    // seekdir returns to where telldir was
    rewinddir(dir);
    for (int i = 0; i < 100; i++) readdir(dir);
    long position = telldir(dir);
    char after[64];
    snprintf(after, sizeof after, "%s", readdir(dir)->d_name);
    readdir(dir);
    seekdir(dir, position);
    STREQ(readdir(dir)->d_name, after);
    closedir(dir);
    int fd = open("d", O_RDONLY);
    char tiny[8];
    ERR(syscall(SYS_getdents64, fd, tiny, sizeof tiny), EINVAL);
    ERR(syscall(SYS_getdents64, fd, 8, 4096), EFAULT);
    int f = open("d/entry-000", O_RDONLY);
    char b[4096];
    ERR(syscall(SYS_getdents64, f, b, sizeof b), ENOTDIR);
    // entries removed while the directory is read do not stop it
    dir = opendir("d");
    count = 0;
    while ((e = readdir(dir)))
        if (!strncmp(e->d_name, "entry", 5)) {
            OK(unlinkat(dirfd(dir), e->d_name, 0));
            count++;
        }
    EQ(count, 500);
}

static void links(void) {
    enter_scratch();
    write_file("a", "data", 0644);
    OK(link("a", "b"));
    struct stat x, y;
    OK(stat("a", &x));
    OK(stat("b", &y));
    EQ(x.st_ino, y.st_ino); EQ(x.st_nlink, 2);
    ERR(link("a", "b"), EEXIST);
    ERR(link("missing", "c"), ENOENT);
    ERR(link(".", "c"), EPERM);
    OK(unlink("a"));
    STREQ(slurp("b", NULL), "data");
    OK(stat("b", &y));
    EQ(y.st_nlink, 1);
    ERR(unlink("a"), ENOENT);
    OK(symlink("b", "s"));
    char target[64];
    EQ(readlink("s", target, sizeof target), 1);
    EQ(target[0], 'b');
    ERR(symlink("b", "s"), EEXIST);
    ERR(readlink("b", target, sizeof target), EINVAL);
    ERR(readlink("missing", target, sizeof target), ENOENT);
    ERR(readlink("s", target, 0), EINVAL);
    ERR(symlink("", "e"), ENOENT);
    OK(symlink("0123456789", "long"));
    EQ(readlink("long", target, 4), 4); // cut short
    OK(symlink("loop2", "loop1"));
    OK(symlink("loop1", "loop2"));
    ERR(stat("loop1", &x), ELOOP);
    OK(mkdir("d", 0755));
    OK(symlink("d", "ds"));
    write_file("ds/in", "i", 0644);
    OK(stat("d/in", &x));
    OK(stat("ds/../ds/./in", &x));
    // an unlinked open file lives on
    int fd = open("b", O_RDWR);
    OK(unlink("b"));
    OK(fstat(fd, &x));
    EQ(x.st_nlink, 0);
    char c;
    EQ(pread(fd, &c, 1, 0), 1);
    EQ(c, 'd');
    EQ(pwrite(fd, "D", 1, 0), 1);
    EQ(pread(fd, &c, 1, 0), 1);
    EQ(c, 'D');
}

static void renames(void) {
    enter_scratch();
    write_file("a", "A", 0644);
    write_file("b", "B", 0644);
    OK(rename("a", "c"));
    struct stat st;
    ERR(stat("a", &st), ENOENT);
    STREQ(slurp("c", NULL), "A");
    OK(rename("c", "b")); // replaces
    STREQ(slurp("b", NULL), "A");
    ERR(rename("missing", "x"), ENOENT);
    OK(mkdir("d", 0755));
    OK(mkdir("e", 0755));
    write_file("e/f", "", 0644);
    ERR(rename("b", "d"), EISDIR);
    ERR(rename("d", "b"), ENOTDIR);
    ERR(rename("d", "e"), ENOTEMPTY);
    ERR(rename("e", "e/inside"), EINVAL);
    OK(rename("e", "d")); // over an empty directory
    OK(stat("d/f", &st));
    OK(rename("b", "d/b"));
    STREQ(slurp("d/b", NULL), "A");
    OK(rename("d/b", "d/b"));
    OK(link("d/b", "d/same"));
    OK(rename("d/b", "d/same")); // the same file: nothing happens
    OK(stat("d/b", &st));
    write_file("x", "X", 0644);
    write_file("y", "Y", 0644);
    ERR(syscall(SYS_renameat2, AT_FDCWD, "x", AT_FDCWD, "y", 1 /* NOREPLACE */), EEXIST);
    long r = syscall(SYS_renameat2, AT_FDCWD, "x", AT_FDCWD, "y", 2 /* EXCHANGE */);
    if (r == 0) STREQ(slurp("x", NULL), "Y");
    ERR(syscall(SYS_renameat2, AT_FDCWD, "x", AT_FDCWD, "y", 3), EINVAL);
    // an open file follows its new name
    int fd = open("y", O_RDWR);
    OK(rename("y", "z"));
    EQ(pwrite(fd, "!", 1, 0), 1);
    TRUE(slurp("z", NULL)[0] == '!');
}

static void descriptors(void) {
    enter_scratch();
    int fd = create("f");
    int lowest = dup(fd);
    TRUE(lowest > fd);
    close(lowest);
    EQ(dup(fd), lowest);
    EQ(dup2(fd, 60), 60);
    EQ(dup2(fd, fd), fd);
    ERR(dup2(999, 5), EBADF);
    ERR(dup2(fd, -1), EBADF);
    ERR(dup2(fd, 1 << 30), EBADF);
    EQ(dup3(fd, 61, O_CLOEXEC), 61);
    EQ(fcntl(61, F_GETFD), FD_CLOEXEC); EQ(fcntl(60, F_GETFD), 0);
    ERR(dup3(fd, fd, 0), EINVAL);
    ERR(dup3(fd, 62, 1), EINVAL);
    EQ(fcntl(fd, F_DUPFD, 100), 100);
    EQ(fcntl(fd, F_DUPFD_CLOEXEC, 100), 101);
    ERR(fcntl(fd, F_DUPFD, -1), EINVAL);
    EQ(write(60, "abc", 3), 3);
    EQ(lseek(fd, 0, SEEK_CUR), 3); // duplicates share the offset
    OK(fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK));
    TRUE((fcntl(60, F_GETFL) & (O_APPEND | O_NONBLOCK | O_ACCMODE)) == (O_APPEND | O_NONBLOCK | O_RDWR));
    int own = open("f", O_RDONLY);
    EQ(lseek(own, 0, SEEK_CUR), 0); // a second open does not
    OK(close(60));
    ERR(close(60), EBADF);
    ERR(close(-1), EBADF);
    ERR(fcntl(fd, 9999), EINVAL);
    ERR(fcntl(999, F_GETFD), EBADF);
    OK(syscall(SYS_close_range, 100, 101, 0));
    ERR(fcntl(100, F_GETFD), EBADF);
    ERR(syscall(SYS_close_range, 101, 100, 0), EINVAL);
}

static void working_directory(void) {
    enter_scratch();
    char start[PATH_MAX], here[PATH_MAX], want[PATH_MAX + 8];
    OK(getcwd(start, sizeof start));
    OK(mkdir("d", 0755));
    OK(chdir("d"));
    OK(getcwd(here, sizeof here));
    snprintf(want, sizeof want, "%s/d", start);
    STREQ(here, want);
    int fd = open("..", O_RDONLY | O_DIRECTORY);
    OK(fchdir(fd));
    OK(getcwd(here, sizeof here));
    STREQ(here, start);
    ERR(chdir("missing"), ENOENT);
    write_file("f", "", 0644);
    ERR(chdir("f"), ENOTDIR);
    int f = open("f", O_RDONLY);
    ERR(fchdir(f), ENOTDIR);
    ERR(syscall(SYS_getcwd, here, 2), ERANGE);
    OK(chdir("d"));
    OK(rename("../d", "../renamed"));
    OK(getcwd(here, sizeof here));
    snprintf(want, sizeof want, "%s/renamed", start);
    STREQ(here, want);
    OK(rmdir("../renamed"));
    ERR(syscall(SYS_getcwd, here, sizeof here), ENOENT);
    ERR(open("x", O_CREAT | O_WRONLY, 0644), ENOENT);
    OK(chdir("/.."));
    OK(getcwd(here, sizeof here));
    STREQ(here, "/");
}

static void access_checks(void) {
    enter_scratch();
    write_file("f", "x", 0644);
    OK(access("f", F_OK));
    OK(access("f", R_OK | W_OK));
    ERR(access("f", X_OK), EACCES); // nobody may execute it, not even root
    ERR(access("missing", F_OK), ENOENT);
    ERR(access("f", 0x70), EINVAL);
    if (geteuid() != 0) return;
    OK(chmod(".", 0755));
    write_file("secret", "s", 0600);
    OK(mkdir("closed", 0700));
    write_file("closed/f", "", 0644);
    CHILD_PID(pid) {
        OK(setgid(1234));
        OK(setuid(1234));
        ERR(open("secret", O_RDONLY), EACCES);
        ERR(open("f", O_WRONLY), EACCES);
        OK(open("f", O_RDONLY));
        ERR(open("new", O_CREAT | O_WRONLY, 0644), EACCES);
        ERR(unlink("f"), EACCES);
        ERR(rename("f", "g"), EACCES);
        ERR(mkdir("h", 0755), EACCES);
        ERR(chmod("f", 0777), EPERM);
        ERR(chown("f", 1234, 1234), EPERM);
        ERR(access("closed/f", F_OK), EACCES);
        ERR(chdir("closed"), EACCES);
        ERR(open("closed/f", O_RDONLY), EACCES);
        _exit(0);
    }
    reap_ok(pid);
}

static void ownership(void) {
    enter_scratch();
    write_file("f", "x", 0644);
    struct stat st;
    if (geteuid() != 0) return;
    OK(chown("f", 1000, 1001));
    OK(stat("f", &st));
    EQ(st.st_uid, 1000); EQ(st.st_gid, 1001);
    OK(chown("f", -1, 7));
    OK(stat("f", &st));
    EQ(st.st_uid, 1000); EQ(st.st_gid, 7);
    OK(chmod("f", 06755));
    OK(chown("f", 3, 3)); // clears set-uid and set-gid
    OK(stat("f", &st));
    EQ(st.st_mode & 07777, 0755);
    OK(symlink("f", "l"));
    OK(lchown("l", 5, 6));
    OK(lstat("l", &st));
    EQ(st.st_uid, 5);
    OK(stat("l", &st));
    EQ(st.st_uid, 3);
    ERR(chown("missing", 0, 0), ENOENT);
}

static void big_transfers(void) {
    enter_scratch();
    size_t size = 9 << 20;
    char *a = malloc(size), *b = malloc(size);
    for (size_t i = 0; i < size; i++) a[i] = (char)(i * 31 + (i >> 12));
    int fd = create("f");
    EQ(write(fd, a, size), size);
    lseek(fd, 0, SEEK_SET);
    EQ(read(fd, b, size), size);
    TRUE(!memcmp(a, b, size));
    // in odd pieces
    lseek(fd, 0, SEEK_SET);
    memset(b, 0, size);
    size_t at = 0;
    ssize_t n;
    while ((n = read(fd, b + at, 12345)) > 0) at += n;
    EQ(at, size);
    TRUE(!memcmp(a, b, size));
    int out = create("g");
    off_t offset = 100;
    size_t sent = 0;
    while (sent < 1000000) {
        n = syscall(SYS_sendfile, out, fd, &offset, 1000000 - sent);
        if (n <= 0) FAIL("sendfile: %s", strerror(errno));
        sent += n;
    }
    EQ(offset, 1000100);
    EQ(pread(out, b, 1000000, 0), 1000000);
    TRUE(!memcmp(a + 100, b, 1000000));
}

static void partial_fault(void) {
    enter_scratch();
    int fd = create("f");
    char page[8192];
    memset(page, 'p', sizeof page);
    EQ(write(fd, page, sizeof page), sizeof page);
    char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    OK(munmap(p + 4096, 4096));
    lseek(fd, 0, SEEK_SET);
    long n = read(fd, p + 4000, 500); // 96 bytes fit; Linux may say EFAULT or the part that was done
    if (n != 96 && !(n == -1 && errno == EFAULT)) FAIL("read across a hole: %ld", n);
    ERR(read(fd, p + 4096, 500), EFAULT);
    p[4095] = 'a';
    ERR(open(p + 4095, O_RDONLY), EFAULT); // a path that runs into the hole
}

static void locks(void) {
    enter_scratch();
    int a = create("f"), b = open("f", O_RDWR);
    OK(flock(a, LOCK_EX));
    ERR(flock(b, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    OK(flock(a, LOCK_UN));
    OK(flock(b, LOCK_SH | LOCK_NB));
    OK(flock(a, LOCK_SH | LOCK_NB));
    OK(flock(a, LOCK_UN));
    OK(flock(b, LOCK_UN));
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
    OK(fcntl(a, F_SETLK, &l));
    CHILD_PID(pid) {
        struct flock m = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 1};
        ERR(fcntl(b, F_SETLK, &m), EAGAIN);
        OK(fcntl(b, F_GETLK, &m));
        EQ(m.l_pid, getppid()); EQ(m.l_type, F_WRLCK); EQ(m.l_start, 0); EQ(m.l_len, 10);
        m.l_type = F_WRLCK; m.l_start = 10; m.l_len = 5; m.l_whence = SEEK_SET;
        OK(fcntl(b, F_SETLK, &m));
        _exit(0);
    }
    reap_ok(pid);
}

static void device_and_special_nodes(void) {
    enter_scratch();
    struct stat st;
    OK(mknod("fifo", S_IFIFO | 0644, 0));
    OK(stat("fifo", &st));
    TRUE(S_ISFIFO(st.st_mode));
    OK(mknod("plain", S_IFREG | 0600, 0));
    OK(stat("plain", &st));
    TRUE(S_ISREG(st.st_mode));
    ERR(mknod("plain", S_IFREG | 0600, 0), EEXIST);
    ERR(mknod("bad", S_IFDIR | 0600, 0), EPERM);
}

static void concurrent_creation(void) {
    enter_scratch();
    for (int round = 0; round < 30; round++) {
        char name[32];
        snprintf(name, sizeof name, "f%d", round);
        pid_t pids[3];
        int winners = 0;
        for (int i = 0; i < 3; i++) {
            pids[i] = fork_or_fail();
            if (pids[i] == 0) _exit(open(name, O_CREAT | O_EXCL | O_WRONLY, 0644) >= 0);
        }
        for (int i = 0; i < 3; i++) winners += WEXITSTATUS(reap(pids[i]));
        EQ(winners, 1);
    }
}

static void other_ways_to_open(void) {
    enter_scratch();
    int fd = creat("f", 0644);
    OK(fd);
    EQ(write(fd, "abc", 3), 3);
    OK(mkdir("d", 0755));
    write_file("d/in", "in", 0644);
    OK(symlink("../f", "d/up"));
    int d = open("d", O_RDONLY | O_DIRECTORY);
    struct open_how how = {.flags = O_RDONLY};
    long r = syscall(SYS_openat2, d, "in", &how, sizeof how);
    OK(r);
    how.resolve = RESOLVE_BENEATH;
    ERR(syscall(SYS_openat2, d, "../f", &how, sizeof how), EXDEV);
    ERR(syscall(SYS_openat2, d, "up", &how, sizeof how), EXDEV);
    how.resolve = RESOLVE_NO_SYMLINKS;
    ERR(syscall(SYS_openat2, d, "up", &how, sizeof how), ELOOP);
    how.resolve = 1ull << 40;
    ERR(syscall(SYS_openat2, d, "in", &how, sizeof how), EINVAL);
    ERR(syscall(SYS_openat2, d, "in", &how, 4), EINVAL);
    int m = memfd_create("name", MFD_CLOEXEC);
    OK(m);
    EQ(write(m, "hello", 5), 5);
    char b[8] = "";
    EQ(pread(m, b, 8, 0), 5);
    STREQ(b, "hello");
    EQ(fcntl(m, F_GETFD), FD_CLOEXEC);
    OK(ftruncate(m, 8192));
    char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, m, 0);
    EQ(p[0], 'h');
    p[5000] = 'z';
    EQ(pread(m, b, 1, 5000), 1);
    EQ(b[0], 'z');
}

static void relative_to_a_directory(void) {
    enter_scratch();
    OK(mkdir("d", 0755));
    int d = open("d", O_RDONLY | O_DIRECTORY);
    OK(symlinkat("target", d, "s"));
    char b[16];
    EQ(readlinkat(d, "s", b, sizeof b), 6);
    OK(mknodat(d, "n", S_IFREG | 0600, 0));
    OK(linkat(d, "n", d, "l", 0));
    OK(renameat(d, "l", AT_FDCWD, "moved"));
    struct stat st;
    OK(fstatat(d, "n", &st, 0));
    EQ(st.st_nlink, 2);
    OK(faccessat(d, "n", R_OK, 0));
    OK(fchmodat(d, "n", 0640, 0));
    OK(unlinkat(d, "s", 0));
    ERR(readlinkat(d, "s", b, sizeof b), ENOENT);
    // an absolute path ignores the descriptor
    OK(fstatat(12345, "/", &st, 0));
    ERR(fstatat(12345, "x", &st, 0), EBADF);
    if (geteuid() == 0) {
        OK(fchownat(d, "n", 3, 4, 0));
        int fd = openat(d, "n", O_RDONLY);
        OK(fchown(fd, 5, -1));
        OK(fstat(fd, &st));
        EQ(st.st_uid, 5); EQ(st.st_gid, 4);
    }
    struct timeval tv[2] = {{11, 0}, {22, 0}};
    OK(utimes("moved", tv));
    OK(stat("moved", &st));
    EQ(st.st_mtim.tv_sec, 22);
    tv[1].tv_sec = 33;
    OK(futimesat(d, "n", tv));
    OK(fstatat(d, "n", &st, 0));
    EQ(st.st_mtim.tv_sec, 33);
}

// A file system without extended attributes says so; one with them keeps them.
static void extended_attributes(void) {
    enter_scratch();
    write_file("f", "x", 0644);
    int fd = open("f", O_RDWR);
    char b[64];
    if (setxattr("f", "user.one", "value", 5, 0) < 0) {
        EQ(errno, EOPNOTSUPP);
        // An overlay may read those of the layers below it.
        TRUE(getxattr("f", "user.one", b, sizeof b) == -1 && (errno == EOPNOTSUPP || errno == ENODATA));
        ERR(fsetxattr(fd, "user.one", "v", 1, 0), EOPNOTSUPP);
        TRUE(listxattr("f", b, sizeof b) == 0 || errno == EOPNOTSUPP);
        TRUE(llistxattr("f", b, sizeof b) == 0 || errno == EOPNOTSUPP);
        TRUE(flistxattr(fd, b, sizeof b) == 0 || errno == EOPNOTSUPP);
        ERR(lsetxattr("f", "user.one", "v", 1, 0), EOPNOTSUPP);
        TRUE(lgetxattr("f", "user.one", b, sizeof b) == -1 && (errno == EOPNOTSUPP || errno == ENODATA));
        TRUE(fgetxattr(fd, "user.one", b, sizeof b) == -1 && (errno == EOPNOTSUPP || errno == ENODATA));
        TRUE(removexattr("f", "user.one") == -1 && (errno == EOPNOTSUPP || errno == ENODATA));
        TRUE(lremovexattr("f", "user.one") == -1 && (errno == EOPNOTSUPP || errno == ENODATA));
        TRUE(fremovexattr(fd, "user.one") == -1 && (errno == EOPNOTSUPP || errno == ENODATA));
        ERR(getxattr("missing", "user.one", b, sizeof b), ENOENT);
        return;
    }
    EQ(getxattr("f", "user.one", b, sizeof b), 5);
    TRUE(!memcmp(b, "value", 5));
    EQ(fgetxattr(fd, "user.one", NULL, 0), 5);
    ERR(lgetxattr("f", "user.none", b, sizeof b), ENODATA);
    ERR(getxattr("f", "user.one", b, 2), ERANGE);
    ERR(setxattr("f", "user.one", "v", 1, XATTR_CREATE), EEXIST);
    OK(fsetxattr(fd, "user.two", "v", 1, 0));
    TRUE(listxattr("f", b, sizeof b) >= 18);
    TRUE(llistxattr("f", b, sizeof b) >= 18);
    TRUE(flistxattr(fd, NULL, 0) >= 18);
    OK(lsetxattr("f", "user.two", "w", 1, XATTR_REPLACE));
    OK(removexattr("f", "user.one"));
    ERR(lremovexattr("f", "user.one"), ENODATA);
    OK(fremovexattr(fd, "user.two"));
    ERR(getxattr("missing", "user.one", b, sizeof b), ENOENT);
}

static void moving_data(void) {
    enter_scratch();
    write_file("f", "0123456789", 0644);
    int in = open("f", O_RDONLY), out = create("g");
    off_t at = 2;
    EQ(sendfile(out, in, &at, 5), 5);
    EQ(at, 7);
    EQ(lseek(in, 0, SEEK_CUR), 0);
    loff_t from = 1, to = 8;
    long n = copy_file_range(in, &from, out, &to, 4, 0);
    if (n != 4 && !(n < 0 && (errno == EXDEV || errno == EOPNOTSUPP))) FAIL("copy_file_range: %ld %s", n, strerror(errno));
    if (n == 4) {
        char b[16];
        EQ(pread(out, b, 16, 8), 4);
        TRUE(!memcmp(b, "1234", 4));
    }
    ERR(syscall(SYS_copy_file_range, in, NULL, out, NULL, 4, 77), EINVAL);
    OK(posix_fadvise(in, 0, 0, POSIX_FADV_SEQUENTIAL));
    EQ(posix_fadvise(in, 0, 0, 99), EINVAL);
    OK(syscall(SYS_fadvise64, in, 0, 0, POSIX_FADV_RANDOM));
    OK(readahead(in, 0, 4096));
    OK(sync_file_range(out, 0, 4, SYNC_FILE_RANGE_WRITE));
    OK(syncfs(out));
    ERR(syncfs(999), EBADF);
    struct iovec v[2] = {{"ab", 2}, {"cd", 2}};
    EQ(pwritev2(out, v, 2, 0, 0), 4);
    char b[4];
    struct iovec w = {b, 4};
    EQ(preadv2(out, &w, 1, 0, 0), 4);
    TRUE(!memcmp(b, "abcd", 4));
}

static void changing_the_root(void) {
    enter_scratch();
    if (geteuid() != 0) return;
    OK(mkdir("r", 0755));
    write_file("r/f", "inside", 0644);
    OK(symlink("/f", "r/absolute"));
    CHILD_PID(pid) {
        OK(chroot("r"));
        OK(chdir("/"));
        STREQ(slurp("/absolute", NULL), "inside");
        STREQ(slurp("../../../f", NULL), "inside");
        char cwd[64];
        OK(getcwd(cwd, sizeof cwd));
        STREQ(cwd, "/");
        ERR(open("/etc/passwd", O_RDONLY), ENOENT);
        ERR(chroot("/f"), ENOTDIR);
        _exit(0);
    }
    reap_ok(pid);
}

TESTS(T(open_flags), T(modes_and_umask), T(offsets), T(append), T(attributes), T(times), T(truncation), T(directories),
      T(reading_directories), T(links), T(renames), T(descriptors), T(working_directory), T(access_checks), T(ownership),
      T(big_transfers), T(partial_fault), T(locks), T(device_and_special_nodes), T(concurrent_creation), T(other_ways_to_open),
      T(relative_to_a_directory), T(extended_attributes), T(moving_data), T(changing_the_root))
