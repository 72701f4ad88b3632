/* frequency - prints the TSC's frequency in kHz, measured against CLOCK_MONOTONIC over 0.2 s. */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

/* Both at one moment: the closest of many readings, whatever else the host does. */
static void read_pair(uint64_t *tsc, uint64_t *ns)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < 1000; i++) {
		struct timespec now;
		uint64_t before = __rdtsc(), width;

		clock_gettime(CLOCK_MONOTONIC, &now);
		width = __rdtsc() - before;
		if (width < best) {
			best = width;
			*tsc = before + width / 2;
			*ns = now.tv_sec * 1000000000ull + now.tv_nsec;
		}
	}
}

int main(void)
{
	uint64_t tsc[2], ns[2];

	read_pair(&tsc[0], &ns[0]);
	do
		read_pair(&tsc[1], &ns[1]);
	while (ns[1] - ns[0] < 200000000);
	printf("%llu\n", (unsigned long long)((tsc[1] - tsc[0]) * 1000000 / (ns[1] - ns[0])));
}
