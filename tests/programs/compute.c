// Eight threads computing: prints a sum that only right arithmetic in every thread gives. Usage: compute [SECONDS]: with a
// time it computes for that long and prints only that it ended.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static volatile int stop;
static uint64_t result[8];

static void *work(void *arg) {
    long me = (long)arg;
    uint64_t x = 88172645463325252ull + me, sum = 0;
    double f = me + 1;
    for (long i = 0; stop >= 0 ? !stop : i < 2000000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum += x;
        f = f * 1.0000001 + 0.5;
    }
    result[me] = sum ^ (uint64_t)(f * 1000);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t t[8];
    stop = argc > 1 ? 0 : -1;
    for (long i = 0; i < 8; i++)
        if (pthread_create(&t[i], NULL, work, (void *)i)) return 1;
    if (argc > 1) {
        struct timespec s = {atoi(argv[1]), 0};
        nanosleep(&s, NULL);
        stop = 1;
    }
    uint64_t total = 0;
    for (int i = 0; i < 8; i++) {
        pthread_join(t[i], NULL);
        total = total * 31 + result[i];
    }
    if (argc > 1) puts("done");
    else printf("%016llx\n", (unsigned long long)total);
    return 0;
}
