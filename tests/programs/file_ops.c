// Random file operations below a directory, and what each of them said: `file_ops DIR SEED COUNT`.
// The same seed does the same anywhere, so the output and the tree that is left can be compared.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t state;

static unsigned pick(unsigned n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % n;
}

#define CHOOSE(...) ((const long[]){__VA_ARGS__}[pick(sizeof((const long[]){__VA_ARGS__}) / sizeof(long))])

static const char *NAMES[] = {"a", "b", "c", "d", "e", "low1", "low2", "lowd"};
static char data[200000];

static void path(char *out) {
    int depth = CHOOSE(1, 1, 2, 2, 3);
    *out = 0;
    for (int i = 0; i < depth; i++) {
        strcat(out, i ? "/" : "");
        strcat(out, NAMES[pick(8)]);
    }
}

static void said(long result) {
    if (result < 0)
        printf("%s\n", strerrorname_np(errno));
    else
        printf("%ld\n", result);
}

static void said_stat(int failed, const struct stat *st) {
    if (failed)
        printf("%s\n", strerrorname_np(errno));
    else if (S_ISDIR(st->st_mode))
        printf("directory %o\n", st->st_mode);
    else
        printf("%o links %ld size %ld\n", st->st_mode, (long)st->st_nlink, (long)st->st_size);
}

static void said_data(long n) {
    uint32_t hash = 2166136261u;
    for (long i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)data[i]) * 16777619u;
    if (n < 0)
        printf("%s\n", strerrorname_np(errno));
    else
        printf("%ld bytes, %08x\n", n, hash);
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static void list(const char *dir) {
    struct dirent **names;
    int n = scandir(dir, &names, NULL, by_name);
    if (n < 0) {
        said(-1);
        return;
    }
    for (int i = 0; i < n; i++) {
        printf("%s:%d ", names[i]->d_name, names[i]->d_type);
        free(names[i]);
    }
    free(names);
    printf("\n");
}

static int fds[20];
static int open_files;

static void one(void) {
    char p[64], q[64];
    struct stat st;
    unsigned what = pick(28);
    path(p);
    path(q);
    int fd = open_files ? fds[pick(open_files)] : -1;
    switch (what) {
    case 0:
    case 1:
        if (open_files == 20)
            close(fds[--open_files]);
        fd = open(p, O_RDWR | O_CREAT | CHOOSE(0, O_EXCL, O_TRUNC, O_APPEND), 0644);
        if (fd >= 0)
            fds[open_files++] = fd;
        return said(fd < 0 ? -1 : 0);
    case 2:
        return said(mkdir(p, CHOOSE(0755, 0700)));
    case 3:
        return said(unlink(p));
    case 4:
        return said(rmdir(p));
    case 5:
    case 6:
        return said(rename(p, q));
    case 7:
        return said(link(p, q));
    case 8:
        return said(symlink(q, p));
    case 9:
        return said_data(readlink(p, data, sizeof(data)));
    case 10:
    case 11:
        return said_stat(lstat(p, &st), &st);
    case 12:
        return said_stat(stat(p, &st), &st);
    case 13:
        return list(p);
    case 14:
        return list(".");
    case 15:
        return said(chmod(p, CHOOSE(0600, 0644, 04755)));
    case 16:
        return said(truncate(p, CHOOSE(0, 10, 5000, 70000)));
    case 17: {
        struct timespec times[2] = {{pick(1000000), 5}, {pick(1000000), 6}};
        int failed = utimensat(AT_FDCWD, p, times, AT_SYMLINK_NOFOLLOW);
        if (failed || lstat(p, &st))
            return said(-1);
        return said(st.st_mtim.tv_sec == times[1].tv_sec && st.st_atim.tv_nsec == 5);
    }
    case 18:
    case 19: {
        long size = 0, n = -1;
        fd = open(p, O_RDONLY);
        if (fd < 0)
            return said(-1);
        while ((n = read(fd, data + size, sizeof(data) - size)) > 0)
            size += n;
        int failed = n < 0 ? errno : 0;
        close(fd);
        errno = failed;
        return said_data(failed ? -1 : size);
    }
    case 20: {
        fd = open(p, O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (fd < 0)
            return said(-1);
        memset(data, pick(256), 5000);
        write(fd, data, CHOOSE(1, 100, 5000));
        said(lseek(fd, 0, SEEK_CUR));
        close(fd);
        return;
    }
    case 21:
    case 22:
        memset(data, pick(256), 9000);
        return said(pwrite(fd, data, CHOOSE(3, 4096, 9000), CHOOSE(0, 5, 4090, 20000)));
    case 23:
        return said_data(pread(fd, data, CHOOSE(10, 5000, 100000), CHOOSE(0, 1, 4095, 10000)));
    case 24:
        return said_stat(fstat(fd, &st), &st);
    case 25:
        return said(ftruncate(fd, CHOOSE(0, 1, 4096, 30000)));
    case 26: {
        if (fstat(fd, &st) || st.st_size == 0)
            return said(0);
        char *map = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            return said(-1);
        map[pick(st.st_size)] = 'M';
        memcpy(data, map, st.st_size < sizeof(data) ? st.st_size : sizeof(data));
        munmap(map, st.st_size);
        return said_data(st.st_size < sizeof(data) ? st.st_size : sizeof(data));
    }
    case 27:
        if (!open_files)
            return said(0);
        unsigned which = pick(open_files);
        said(close(fds[which]));
        fds[which] = fds[--open_files];
        return;
    }
}

int main(int argc, char **argv) {
    if (argc != 4 || chdir(argv[1])) {
        perror("file_ops DIR SEED COUNT");
        return 2;
    }
    state = 0x9e3779b97f4a7c15ull ^ (strtoull(argv[2], NULL, 10) + 1) * 0xbf58476d1ce4e5b9ull;
    umask(022);
    for (int i = 0, count = atoi(argv[3]); i < count; i++) {
        printf("%d ", i);
        one();
    }
    return 0;
}
