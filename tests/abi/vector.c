// Vector and floating point state: live registers across system calls, faults, signals and preemption.
#include "abi.h"
#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>
#include <sys/time.h>
#include <ucontext.h>

static int have_avx(void) { return __builtin_cpu_supports("avx"); }

// Loads 16 registers from `in`, runs a system call (or touches a fresh page), stores them to `out`.
__attribute__((target("avx"), noinline)) static void avx_over_call(const void *in, void *out, long number, volatile char *touch) {
    __asm__ volatile(
        "vmovdqu 0(%[in]), %%ymm0\n\tvmovdqu 32(%[in]), %%ymm1\n\tvmovdqu 64(%[in]), %%ymm2\n\tvmovdqu 96(%[in]), %%ymm3\n\t"
        "vmovdqu 128(%[in]), %%ymm4\n\tvmovdqu 160(%[in]), %%ymm5\n\tvmovdqu 192(%[in]), %%ymm6\n\tvmovdqu 224(%[in]), %%ymm7\n\t"
        "vmovdqu 256(%[in]), %%ymm8\n\tvmovdqu 288(%[in]), %%ymm9\n\tvmovdqu 320(%[in]), %%ymm10\n\tvmovdqu 352(%[in]), %%ymm11\n\t"
        "vmovdqu 384(%[in]), %%ymm12\n\tvmovdqu 416(%[in]), %%ymm13\n\tvmovdqu 448(%[in]), %%ymm14\n\tvmovdqu 480(%[in]), %%ymm15\n\t"
        "mov %[number], %%rax\n\tsyscall\n\t"
        "test %[touch], %[touch]\n\tjz 1f\n\tincb (%[touch])\n1:\n\t"
        "vmovdqu %%ymm0, 0(%[out])\n\tvmovdqu %%ymm1, 32(%[out])\n\tvmovdqu %%ymm2, 64(%[out])\n\tvmovdqu %%ymm3, 96(%[out])\n\t"
        "vmovdqu %%ymm4, 128(%[out])\n\tvmovdqu %%ymm5, 160(%[out])\n\tvmovdqu %%ymm6, 192(%[out])\n\tvmovdqu %%ymm7, 224(%[out])\n\t"
        "vmovdqu %%ymm8, 256(%[out])\n\tvmovdqu %%ymm9, 288(%[out])\n\tvmovdqu %%ymm10, 320(%[out])\n\tvmovdqu %%ymm11, 352(%[out])\n\t"
        "vmovdqu %%ymm12, 384(%[out])\n\tvmovdqu %%ymm13, 416(%[out])\n\tvmovdqu %%ymm14, 448(%[out])\n\tvmovdqu %%ymm15, 480(%[out])\n\t"
        "vzeroupper"
        :
        : [in] "r"(in), [out] "r"(out), [number] "r"(number), [touch] "r"(touch)
        : "rax", "rcx", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
// The same with a busy loop of `spins` in the middle, for preemption.
__attribute__((target("avx"), noinline)) static void avx_over_loop(const void *in, void *out, long spins) {
    __asm__ volatile(
        "vmovdqu 0(%[in]), %%ymm0\n\tvmovdqu 32(%[in]), %%ymm1\n\tvmovdqu 64(%[in]), %%ymm2\n\tvmovdqu 96(%[in]), %%ymm3\n\t"
        "vmovdqu 128(%[in]), %%ymm12\n\tvmovdqu 160(%[in]), %%ymm13\n\tvmovdqu 192(%[in]), %%ymm14\n\tvmovdqu 224(%[in]), %%ymm15\n\t"
        "1: dec %[spins]\n\tjnz 1b\n\t"
        "vmovdqu %%ymm0, 0(%[out])\n\tvmovdqu %%ymm1, 32(%[out])\n\tvmovdqu %%ymm2, 64(%[out])\n\tvmovdqu %%ymm3, 96(%[out])\n\t"
        "vmovdqu %%ymm12, 128(%[out])\n\tvmovdqu %%ymm13, 160(%[out])\n\tvmovdqu %%ymm14, 192(%[out])\n\tvmovdqu %%ymm15, 224(%[out])\n\t"
        "vzeroupper"
        : [spins] "+r"(spins)
        : [in] "r"(in), [out] "r"(out)
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void fill(unsigned char *to, size_t length, unsigned seed) {
    for (size_t i = 0; i < length; i++) to[i] = (unsigned char)((seed = seed * 1664525 + 1013904223) >> 24);
}
static void same(const unsigned char *a, const unsigned char *b, size_t length, const char *what, int round) {
    for (size_t i = 0; i < length; i++)
        if (a[i] != b[i]) FAIL("%s, round %d: byte %zu of register %zu is %#x, was %#x", what, round, i % 32, i / 32, b[i], a[i]);
}

static void over_system_calls(void) {
    if (!have_avx()) { dprintf(1, "# no AVX\n"); return; }
    unsigned char in[512], out[512];
    for (int i = 0; i < 3000; i++) {
        fill(in, sizeof in, i);
        avx_over_call(in, out, i % 3 ? SYS_getpid : SYS_sched_yield, NULL);
        same(in, out, sizeof in, "system call", i);
    }
}

static void over_page_faults(void) {
    if (!have_avx()) return;
    unsigned char in[512], out[512];
    char *p = mmap(NULL, 2000 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 2000; i++) {
        fill(in, sizeof in, i + 7);
        avx_over_call(in, out, SYS_getppid, p + i * 4096);
        same(in, out, sizeof in, "page fault", i);
    }
}

static volatile int hits;
__attribute__((target("avx"))) static void dirty(int s) {
    (void)s;
    hits++;
    __asm__ volatile("vpcmpeqd %%xmm0, %%xmm0, %%xmm0\n\tvinsertf128 $1, %%xmm0, %%ymm0, %%ymm0\n\tvmovaps %%ymm0, %%ymm1\n\tvmovaps %%ymm0, %%ymm2\n\t"
                     "vmovaps %%ymm0, %%ymm3\n\tvmovaps %%ymm0, %%ymm12\n\tvmovaps %%ymm0, %%ymm15" ::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm12", "xmm15");
}
static void over_signals(void) {
    if (!have_avx()) return;
    struct sigaction a = {.sa_handler = dirty, .sa_flags = SA_RESTART};
    OK(sigaction(SIGALRM, &a, NULL));
    struct itimerval t = {{0, 1000}, {0, 1000}};
    OK(setitimer(ITIMER_REAL, &t, NULL));
    unsigned char in[256], out[256];
    double end = now() + 30;
    for (int i = 0; hits < 200 && now() < end; i++) {
        fill(in, sizeof in, i);
        avx_over_loop(in, out, 200000);
        same(in, out, sizeof in, "signal", i);
    }
    TRUE(hits > 20);
}

static void *busy(void *arg) {
    unsigned seed = (unsigned)(long)arg;
    unsigned char in[256], out[256];
    double end = now() + 1.0;
    for (int i = 0; now() < end; i++) {
        fill(in, sizeof in, seed + i);
        avx_over_loop(in, out, 300000);
        same(in, out, sizeof in, "preemption", i);
        if (i % 10 == 0) {
            unsigned char all[512], got[512];
            fill(all, sizeof all, seed ^ i);
            avx_over_call(all, got, SYS_gettid, NULL);
            same(all, got, sizeof all, "call among threads", i);
        }
    }
    return NULL;
}
static void over_preemption(void) {
    if (!have_avx()) return;
    pthread_t t[6];
    for (long i = 0; i < 6; i++) EQ(pthread_create(&t[i], NULL, busy, (void *)(i * 1000003)), 0);
    CHILD_PID(pid) {
        busy((void *)99L);
        _exit(0);
    }
    busy((void *)77L);
    for (int i = 0; i < 6; i++) pthread_join(t[i], NULL);
    reap_ok(pid);
}

static void fork_copies_and_exec_clears(void) {
    // the child sees the parent's rounding mode
    unsigned csr = 0x1f80 | 0x2000;
    __asm__ volatile("ldmxcsr %0" ::"m"(csr));
    unsigned short cw = 0x0f7f;
    __asm__ volatile("fldcw %0" ::"m"(cw));
    CHILD_PID(pid) {
        unsigned got = 0;
        unsigned short gotcw = 0;
        __asm__ volatile("stmxcsr %0" : "=m"(got));
        __asm__ volatile("fnstcw %0" : "=m"(gotcw));
        _exit((got & 0xffc0) == (csr & 0xffc0) && gotcw == cw ? 0 : 1);
    }
    reap_ok(pid);
}

static void control_words_over_calls(void) {
    unsigned csr = 0x1f80 | 0x6000, got = 0;
    unsigned short cw = 0x0e7f, gotcw = 0;
    __asm__ volatile("ldmxcsr %0" ::"m"(csr));
    __asm__ volatile("fldcw %0" ::"m"(cw));
    syscall(SYS_getppid);
    sleep_ms(5);
    __asm__ volatile("stmxcsr %0" : "=m"(got));
    __asm__ volatile("fnstcw %0" : "=m"(gotcw));
    EQ(got & 0xffc0, csr & 0xffc0);
    EQ(gotcw, cw);
}

static unsigned long long in_handler[2];
static void read_frame(int s, siginfo_t *i, void *context) {
    (void)s; (void)i;
    ucontext_t *u = context;
    memcpy(in_handler, &u->uc_mcontext.fpregs->_xmm[5], 16);
    u->uc_mcontext.fpregs->_xmm[5].element[0] = 0x11111111; // a handler's change is seen after return
}
static void frame_holds_the_registers(void) {
    struct sigaction a = {.sa_sigaction = read_frame, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGUSR1, &a, NULL));
    unsigned long long value[2] = {0x0123456789abcdefull, 0xfedcba9876543210ull}, after[2];
    long pid = getpid();
    __asm__ volatile("movdqu %1, %%xmm5\n\tsyscall\n\tmovdqu %%xmm5, %0"
                     : "=m"(after)
                     : "m"(value), "a"(SYS_kill), "D"(pid), "S"((long)SIGUSR1)
                     : "rcx", "r11", "memory", "xmm5");
    EQ(in_handler[0], value[0]); EQ(in_handler[1], value[1]);
    EQ(after[0], 0x0123456711111111ull); EQ(after[1], value[1]);
}

static void fresh_program_starts_clean(void) {
    // registers of a new program hold nothing of another's: run ourselves and look at what main got
    unsigned csr = 0;
    __asm__ volatile("stmxcsr %0" : "=m"(csr));
    EQ(csr & 0xffc0, 0x1f80);
}

static void features_are_consistent(void) {
    unsigned a, b, c, d;
    __cpuid(1, a, b, c, d);
    TRUE(d & (1 << 26)); // SSE2
    if (c & (1 << 27)) { // OSXSAVE: XGETBV works and covers AVX when AVX is shown
        unsigned low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        EQ(low & 3, 3);
        if (c & (1 << 28)) EQ(low & 7, 7);
    }
}

TESTS(T(fresh_program_starts_clean), T(over_system_calls), T(over_page_faults), T(over_signals), T(over_preemption), T(fork_copies_and_exec_clears),
      T(control_words_over_calls), T(frame_holds_the_registers), T(features_are_consistent))
