// Uses a mapped file in every way while somebody else shrinks and grows it: reads it, writes it, executes it, hands it to
// system calls. SIGBUS and EFAULT are right answers; then it says "alive". Usage: mapped FILE SECONDS
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static sigjmp_buf back;
static volatile long faults;
static void on_bus(int s) {
    (void)s;
    faults++;
    siglongjmp(back, 1);
}
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int fd = open(argv[1], O_RDWR), q[2], null = open("/dev/zero", O_RDONLY);
    if (fd < 0 || pipe2(q, O_NONBLOCK) < 0 || null < 0) return perror("open"), 2;
    enum { SIZE = 16 * 4096 };
    volatile char *data = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *code = mmap(NULL, SIZE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED || code == MAP_FAILED) return perror("mmap"), 2;
    struct sigaction a = {.sa_handler = on_bus, .sa_flags = SA_NODEFER};
    sigaction(SIGBUS, &a, NULL);
    sigaction(SIGSEGV, &a, NULL); // pages that lost their code hold zeros, which are an instruction that faults
    sigaction(SIGILL, &a, NULL);
    volatile long reads = 0, calls = 0, given = 0, refused = 0;
    double end = now() + atof(argv[2]);
    for (volatile int i = 0; now() < end; i = (i + 1) % 16) {
        volatile char *p = data + i * 4096;
        if (!sigsetjmp(back, 1)) { (void)p[5]; reads++; }
        if (!sigsetjmp(back, 1)) p[9] = 1;
        if (!sigsetjmp(back, 1) && *(volatile unsigned char *)(code + i * 4096) == 0xc3) { ((void (*)(void))(code + i * 4096))(); calls++; }
        char sink[64];
        if (write(q[1], (void *)(p + 64), 64) == 64) { given++; if (read(q[0], sink, 64) < 0) return 3; }
        else if (errno == EFAULT) refused++;
        else return perror("write"), 3;
        if (read(null, (void *)(p + 128), 64) < 0 && errno != EFAULT) return perror("read"), 3;
        // A read that meets the file while it shrinks may fail as well.
        if (pread(fd, sink, 64, i * 4096) < 0 && errno != EFAULT) return perror("pread"), 3;
    }
    fprintf(stderr, "%ld reads, %ld calls, %ld faults, %ld given, %ld refused\n", reads, calls, faults, given, refused);
    puts(reads > 0 ? "alive" : "nothing was read");
    return 0;
}
