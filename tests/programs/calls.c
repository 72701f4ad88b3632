// Makes as many getpid calls as its argument says.
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long pid = getpid();
    for (long i = argc > 1 ? atol(argv[1]) : 1; i > 0; i--)
        if (syscall(SYS_getpid) != pid) return 1;
    return 0;
}
