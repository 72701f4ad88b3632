// inotify: events of a directory and of files, in the order and with the flags of Linux.
#include "abi.h"
#include <poll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>

static char events[65536];
static ssize_t got;
static size_t at;

static void more(int fd) {
    got = read(fd, events, sizeof events);
    if (got < 0 && errno == EAGAIN) got = 0;
    OK(got);
    at = 0;
}

// The next event is this one; gives its cookie.
static uint32_t expect(int fd, int wd, uint32_t mask, const char *name) {
    if (at >= (size_t)got) more(fd);
    if (got == 0) FAIL("no event: want wd %d mask %#x %s", wd, mask, name);
    struct inotify_event *e = (void *)(events + at);
    at += sizeof *e + e->len;
    const char *have = e->len ? e->name : "";
    if (e->wd != wd || e->mask != mask || strcmp(have, name))
        FAIL("event wd %d mask %#x \"%s\", want wd %d mask %#x \"%s\"", e->wd, e->mask, have, wd, mask, name);
    EQ(e->len % 16, 0);
    return e->cookie;
}

static void nothing(int fd) {
    if (at >= (size_t)got) more(fd);
    EQ(got, 0);
}

static void names_in_a_directory(void) {
    enter_scratch();
    OK(mkdir("d", 0755));
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    OK(fd);
    EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    ERR(inotify_add_watch(fd, "d", 0), EINVAL);
    ERR(inotify_add_watch(fd, "none", IN_CREATE), ENOENT);
    ERR(inotify_add_watch(0, "d", IN_CREATE), EINVAL);
    write_file("plain", "", 0644);
    ERR(inotify_add_watch(fd, "plain", IN_CREATE | IN_ONLYDIR), ENOTDIR);
    int wd = inotify_add_watch(fd, "d", IN_CREATE | IN_DELETE | IN_MOVE | IN_DELETE_SELF | IN_MOVE_SELF);
    OK(wd);
    write_file("d/a", "x", 0644);
    OK(mkdir("d/sub", 0755));
    OK(symlink("a", "d/link"));
    OK(link("d/a", "d/hard"));
    OK(rename("d/a", "d/b"));
    OK(rename("d/b", "out"));
    OK(rename("out", "d/c"));
    OK(unlink("d/c"));
    OK(rmdir("d/sub"));
    expect(fd, wd, IN_CREATE, "a");
    expect(fd, wd, IN_CREATE | IN_ISDIR, "sub");
    expect(fd, wd, IN_CREATE, "link");
    expect(fd, wd, IN_CREATE, "hard");
    uint32_t from = expect(fd, wd, IN_MOVED_FROM, "a"), to = expect(fd, wd, IN_MOVED_TO, "b");
    TRUE(from != 0 && from == to);
    expect(fd, wd, IN_MOVED_FROM, "b");
    expect(fd, wd, IN_MOVED_TO, "c");
    expect(fd, wd, IN_DELETE, "c");
    expect(fd, wd, IN_DELETE | IN_ISDIR, "sub");
    nothing(fd);
    OK(rename("d", "e"));
    expect(fd, wd, IN_MOVE_SELF, "");
    OK(unlink("e/link"));
    OK(unlink("e/hard"));
    OK(rmdir("e"));
    expect(fd, wd, IN_DELETE, "link");
    expect(fd, wd, IN_DELETE, "hard");
    expect(fd, wd, IN_DELETE_SELF, "");
    expect(fd, wd, IN_IGNORED, "");
    nothing(fd);
    ERR(inotify_rm_watch(fd, wd), EINVAL);
}

static void a_file_and_its_directory(void) {
    enter_scratch();
    write_file("f", "hello", 0644);
    int fd = inotify_init1(IN_NONBLOCK);
    int dir = inotify_add_watch(fd, ".", IN_ALL_EVENTS), file = inotify_add_watch(fd, "f", IN_ALL_EVENTS);
    OK(dir);
    OK(file);
    TRUE(dir != file);
    int f = open("f", O_RDWR);
    char c[8];
    EQ(read(f, c, 5), 5);
    EQ(read(f, c, 5), 0);
    EQ(write(f, "x", 1), 1);
    EQ(pwrite(f, "x", 1, 0), 1);
    OK(ftruncate(f, 2));
    OK(fchmod(f, 0600));
    OK(close(f));
    // Equal events that follow each other would be one; both watches see each, so they do not.
    uint32_t seen[] = {IN_OPEN, IN_ACCESS, IN_MODIFY, IN_MODIFY, IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE};
    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++) {
        expect(fd, dir, seen[i], "f");
        expect(fd, file, seen[i], "");
    }
    nothing(fd);
    f = open("f", O_RDONLY | O_TRUNC | O_WRONLY);
    close(f);
    f = open("f", O_PATH);
    close(f);
    at = got = 0;
    more(fd);
    int modified = 0;
    for (at = 0; at < (size_t)got;) {
        struct inotify_event *e = (void *)(events + at);
        modified += !!(e->mask & IN_MODIFY);
        at += sizeof *e + e->len;
    }
    EQ(modified, 2);
    OK(inotify_rm_watch(fd, dir));
    expect(fd, dir, IN_IGNORED, "");
    OK(unlink("f"));
    expect(fd, file, IN_ATTRIB, "");
    expect(fd, file, IN_DELETE_SELF, "");
    expect(fd, file, IN_IGNORED, "");
    nothing(fd);
}

static void masks_change(void) {
    enter_scratch();
    write_file("f", "", 0644);
    int fd = inotify_init();
    OK(fd);
    int wd = inotify_add_watch(fd, "f", IN_OPEN);
    EQ(inotify_add_watch(fd, "f", IN_MODIFY | IN_MASK_ADD), wd);
    ERR(inotify_add_watch(fd, "f", IN_MODIFY | IN_MASK_CREATE), EEXIST);
    ERR(inotify_add_watch(fd, "f", IN_MODIFY | IN_MASK_CREATE | IN_MASK_ADD), EINVAL);
    int f = open("f", O_WRONLY);
    EQ(write(f, "x", 1), 1);
    int n;
    OK(ioctl(fd, FIONREAD, &n));
    EQ(n, 32);
    char small[16];
    ERR(read(fd, small, 15), EINVAL);
    EQ(read(fd, small, 16), 16);
    EQ(inotify_add_watch(fd, "f", IN_CLOSE_WRITE | IN_ONESHOT), wd);
    close(f);
    expect(fd, wd, IN_MODIFY, "");
    expect(fd, wd, IN_CLOSE_WRITE, "");
    expect(fd, wd, IN_IGNORED, "");
    int next = inotify_add_watch(fd, "f", IN_OPEN);
    TRUE(next > wd);
}

static void a_reader_waits(void) {
    enter_scratch();
    int fd = inotify_init();
    int wd = inotify_add_watch(fd, ".", IN_CREATE);
    struct pollfd p = {fd, POLLIN, 0};
    EQ(poll(&p, 1, 0), 0);
    CHILD_PID(pid) {
        sleep_ms(40);
        write_file("new", "", 0644);
        _exit(0);
    }
    EQ(poll(&p, 1, 10000), 1);
    EQ(p.revents, POLLIN);
    expect(fd, wd, IN_CREATE, "new");
    reap_ok(pid);
    CHILD_PID(other) {
        sleep_ms(40);
        write_file("newer", "", 0644);
        _exit(0);
    }
    expect(fd, wd, IN_CREATE, "newer");
    reap_ok(other);
}

TESTS(T(names_in_a_directory), T(a_file_and_its_directory), T(masks_change), T(a_reader_waits))
