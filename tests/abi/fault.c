// Exceptions as signals: number, code and address of each, and control transfers to places no program may go.
#include "abi.h"
#include <setjmp.h>
#include <sys/time.h>
#include <ucontext.h>

static volatile int got_signal, got_code;
static volatile uintptr_t got_address;
static volatile unsigned long got_error, got_trap;
static sigjmp_buf back;
static void note(int s, siginfo_t *i, void *context) {
    ucontext_t *u = context;
    got_signal = s;
    got_code = i->si_code;
    got_address = (uintptr_t)i->si_addr;
    got_error = u->uc_mcontext.gregs[REG_ERR];
    got_trap = u->uc_mcontext.gregs[REG_TRAPNO];
    siglongjmp(back, 1);
}
static void watch(void) {
    static char area[65536];
    stack_t st = {.ss_sp = area, .ss_size = sizeof area};
    OK(sigaltstack(&st, NULL));
    struct sigaction a = {0};
    a.sa_sigaction = note;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK;
    int all[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (size_t n = 0; n < sizeof all / sizeof *all; n++) OK(sigaction(all[n], &a, NULL));
}
#define FAULTS(statement, signal_, code_, address_)                                                                     \
    do {                                                                                                                \
        got_signal = got_code = 0;                                                                                      \
        got_address = 0;                                                                                                \
        if (!sigsetjmp(back, 1)) { statement; FAIL("no signal from %s", #statement); }                                  \
        if (got_signal != (signal_) || got_code != (code_) || got_address != (uintptr_t)(address_))                     \
            FAIL("%s: got signal %d code %d address %#lx, want %d %d %#lx", #statement, got_signal, got_code,           \
                 (unsigned long)got_address, signal_, code_, (unsigned long)(address_));                                \
    } while (0)

static void unmapped(void) {
    watch();
    char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    OK(munmap(p, 8192));
    FAULTS(*(volatile char *)(p + 5), SIGSEGV, SEGV_MAPERR, p + 5);
    EQ(got_trap, 14);
    EQ(got_error, 4);
    FAULTS(*(volatile char *)(p + 4100) = 1, SIGSEGV, SEGV_MAPERR, p + 4100);
    EQ(got_error, 6);
    FAULTS(*(volatile char *)NULL, SIGSEGV, SEGV_MAPERR, NULL);
    FAULTS(*(volatile int *)0x123, SIGSEGV, SEGV_MAPERR, 0x123);
}

static void protection(void) {
    watch();
    char *p = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAULTS(*(volatile char *)(p + 9) = 1, SIGSEGV, SEGV_ACCERR, p + 9);
    EQ(*(volatile char *)(p + 9), 0);
    FAULTS(*(volatile char *)(p + 9) = 1, SIGSEGV, SEGV_ACCERR, p + 9);
    EQ(got_error, 7);
    OK(mprotect(p, 4096, PROT_NONE));
    FAULTS(*(volatile char *)(p + 1), SIGSEGV, SEGV_ACCERR, p + 1);
    OK(mprotect(p, 4096, PROT_READ | PROT_WRITE));
    p[0] = 7;
    OK(mprotect(p, 4096, PROT_READ));
    FAULTS(p[0] = 8, SIGSEGV, SEGV_ACCERR, p);
    EQ(p[0], 7);
}

static void no_execute(void) {
    watch();
    unsigned char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    p[16] = 0xc3;
    FAULTS(((void (*)(void))(p + 16))(), SIGSEGV, SEGV_ACCERR, p + 16);
    TRUE(got_error & 16); // an instruction fetch
    OK(mprotect(p, 4096, PROT_READ | PROT_EXEC));
    ((void (*)(void))(p + 16))();
    OK(munmap(p, 4096));
    FAULTS(((void (*)(void))(p + 16))(), SIGSEGV, SEGV_MAPERR, p + 16);
}

static void noncanonical_and_kernel(void) {
    watch();
    volatile uintptr_t hole = 0x8000000000000000ul, kernel = 0xffff888000001000ul, image = 0xffffffff81000000ul;
    FAULTS(*(volatile char *)hole, SIGSEGV, SI_KERNEL, 0);
    EQ(got_trap, 13);
    FAULTS(*(volatile char *)hole = 1, SIGSEGV, SI_KERNEL, 0);
    FAULTS(((void (*)(void))hole)(), SIGSEGV, SI_KERNEL, 0);
    FAULTS(*(volatile char *)kernel, SIGSEGV, SEGV_MAPERR, kernel);
    FAULTS(*(volatile char *)kernel = 1, SIGSEGV, SEGV_MAPERR, kernel);
    FAULTS(((void (*)(void))kernel)(), SIGSEGV, SEGV_MAPERR, kernel);
    FAULTS(*(volatile char *)image, SIGSEGV, SEGV_MAPERR, image);
    FAULTS(((void (*)(void))image)(), SIGSEGV, SEGV_MAPERR, image);
    // the last page below the hole belongs to nobody
    volatile uintptr_t top = 0x7ffffffff000ul;
    FAULTS(*(volatile char *)top, SIGSEGV, SEGV_MAPERR, top);
}

static void arithmetic(void) {
    watch();
    volatile int zero = 0, one = 1;
    volatile int r;
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { r = one / zero; FAIL("no signal, %d", r); }
    EQ(got_signal, SIGFPE); EQ(got_code, FPE_INTDIV); EQ(got_trap, 0);
    if (emulated_cpu()) return;
    // unmasked floating point exceptions
    unsigned control = 0x1f80 & ~0x200u; // divide by zero unmasked
    volatile float f = 1, g = 0;
    if (!sigsetjmp(back, 1)) {
        __asm__ volatile("ldmxcsr %0" ::"m"(control));
        volatile float h = f / g;
        (void)h;
        FAIL("no SIMD exception");
    }
    EQ(got_signal, SIGFPE); EQ(got_code, FPE_FLTDIV); EQ(got_trap, 19);
    control = 0x1f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(control));
}

static void illegal(void) {
    watch();
    void *where;
    got_signal = 0;
    __asm__ volatile("lea 1f(%%rip), %0\n1:" : "=r"(where));
    if (!sigsetjmp(back, 1)) { __asm__ volatile("ud2"); }
    EQ(got_signal, SIGILL); EQ(got_code, ILL_ILLOPN); EQ(got_trap, 6);
    TRUE(got_address != 0);
    // privileged instructions
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { __asm__ volatile("hlt"); }
    EQ(got_signal, SIGSEGV); EQ(got_code, SI_KERNEL); EQ(got_trap, 13);
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { __asm__ volatile("cli"); }
    EQ(got_signal, SIGSEGV);
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { __asm__ volatile("mov %%cr3, %%rax" ::: "rax"); }
    EQ(got_signal, SIGSEGV);
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { __asm__ volatile("wrmsr" :: "a"(0), "d"(0), "c"(0xc0000082)); }
    EQ(got_signal, SIGSEGV);
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { __asm__ volatile("outb %%al, $0x80" ::: "memory"); }
    EQ(got_signal, SIGSEGV);
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { __asm__ volatile("swapgs"); }
    EQ(got_signal, got_signal == SIGILL ? SIGILL : SIGSEGV);
}

static void breakpoint_and_single_step(void) {
    watch();
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { __asm__ volatile("int3"); }
    EQ(got_signal, SIGTRAP); EQ(got_code, SI_KERNEL); EQ(got_trap, 3);
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { __asm__ volatile("pushf\n\torl $0x100, (%%rsp)\n\tpopf\n\tnop\n\tnop" ::: "memory", "cc"); }
    EQ(got_signal, SIGTRAP); EQ(got_code, TRAP_TRACE); EQ(got_trap, 1);
    __asm__ volatile("pushf\n\tandl $0xfffffeff, (%%rsp)\n\tpopf" ::: "memory", "cc");
}

static void file_past_its_end(void) {
    watch();
    enter_scratch();
    int fd = open("f", O_CREAT | O_RDWR, 0644);
    OK(ftruncate(fd, 5000));
    char *p = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    TRUE(p != MAP_FAILED);
    EQ(p[4999], 0);
    EQ(p[8191], 0);
    FAULTS(*(volatile char *)(p + 8192), SIGBUS, BUS_ADRERR, p + 8192);
    FAULTS(*(volatile char *)(p + 12345) = 1, SIGBUS, BUS_ADRERR, p + 12345);
    // it shrinks while it is mapped
    OK(ftruncate(fd, 0));
    FAULTS(*(volatile char *)p, SIGBUS, BUS_ADRERR, p);
    // and as the buffer of a call
    ERR(write(1, p, 1), EFAULT);
}

static void default_action_of_faults(void) {
    for (int n = 0; n < 4; n++) {
        CHILD_PID(pid) {
            if (n == 0) *(volatile char *)8 = 1;
            if (n == 1) __asm__ volatile("ud2");
            if (n == 2) { volatile int z = 0, x = 10; x = x / z; }
            if (n == 3) ((void (*)(void))0x8000000000000000ul)();
            _exit(0);
        }
        int status = reap(pid);
        TRUE(WIFSIGNALED(status));
        static const int want[] = {SIGSEGV, SIGILL, SIGFPE, SIGSEGV};
        EQ(WTERMSIG(status), want[n]);
    }
}

static void blocked_fault_kills(void) {
    CHILD_PID(pid) {
        watch();
        sigset_t set;
        sigfillset(&set);
        sigprocmask(SIG_SETMASK, &set, NULL);
        *(volatile char *)8 = 1;
        _exit(0);
    }
    EQ(WTERMSIG(reap(pid)), SIGSEGV);
    CHILD_PID(ignored) {
        signal(SIGSEGV, SIG_IGN);
        *(volatile char *)8 = 1;
        _exit(0);
    }
    EQ(WTERMSIG(reap(ignored)), SIGSEGV);
}

static void bad_stack(void) {
    // a handler whose frame cannot be written: the process dies of SIGSEGV
    CHILD_PID(pid) {
        struct sigaction a = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
        sigaction(SIGUSR1, &a, NULL);
        long me = getpid();
        __asm__ volatile("mov $0x1000, %%rsp\n\tsyscall\n\tud2" ::"a"(SYS_kill), "D"(me), "S"((long)SIGUSR1) : "memory");
        __builtin_unreachable();
    }
    EQ(WTERMSIG(reap(pid)), SIGSEGV);
    CHILD_PID(hole) {
        long me = getpid();
        struct sigaction a = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
        sigaction(SIGUSR1, &a, NULL);
        __asm__ volatile("movabs $0x8000000000000000, %%rsp\n\tsyscall\n\tud2" ::"a"(SYS_kill), "D"(me), "S"((long)SIGUSR1) : "memory");
        __builtin_unreachable();
    }
    EQ(WTERMSIG(reap(hole)), SIGSEGV);
}

// Frames a program edited: rt_sigreturn must not crash anything but the program.
static int edit_kind;
static void edit(int s, siginfo_t *i, void *context) {
    (void)s; (void)i;
    ucontext_t *u = context;
    struct _libc_fpstate *fp = u->uc_mcontext.fpregs;
    switch (edit_kind) {
    case 0: u->uc_mcontext.gregs[REG_RIP] = (long long)0x8000000000000000ull; break;
    case 1: u->uc_mcontext.gregs[REG_RIP] = (long long)0xffff888000000000ull; break;
    case 2: u->uc_mcontext.gregs[REG_RSP] = (long long)0x8000000000000000ull; u->uc_mcontext.gregs[REG_RIP] = 0; break;
    case 3: u->uc_mcontext.gregs[REG_CSGSFS] = 0; break;               // null code selector
    case 4: u->uc_mcontext.gregs[REG_CSGSFS] = 0x10; break;            // a kernel selector
    case 5: u->uc_mcontext.gregs[REG_EFL] |= 0x3000 | 0x4000 | 0x20000; u->uc_mcontext.gregs[REG_RIP] = 0; break;
    case 6: if (fp) fp->mxcsr = 0xffffffff; u->uc_mcontext.gregs[REG_RIP] = 0; break;
    case 7: u->uc_mcontext.fpregs = (void *)0x8000000000000000ul; break;
    case 8: u->uc_mcontext.fpregs = (void *)0xffff888000000000ul; break;
    case 9: if (fp) memset((char *)fp + 464, 0xff, 48); u->uc_mcontext.gregs[REG_RIP] = 0; break; // software-reserved bytes
    case 10: if (fp) memset((char *)fp + 512, 0xff, 64); u->uc_mcontext.gregs[REG_RIP] = 0; break; // XSAVE header
    case 11: u->uc_mcontext.fpregs = (void *)((char *)u->uc_mcontext.fpregs + 1); u->uc_mcontext.gregs[REG_RIP] = 0; break;
    }
}
static void edited_frames(void) {
    for (edit_kind = 0; edit_kind < 12; edit_kind++) {
        CHILD_PID(pid) {
            struct sigaction a = {.sa_sigaction = edit, .sa_flags = SA_SIGINFO};
            sigaction(SIGUSR1, &a, NULL);
            raise(SIGUSR1);
            _exit(0);
        }
        int status = reap(pid);
        if (!WIFSIGNALED(status) || (WTERMSIG(status) != SIGSEGV && WTERMSIG(status) != SIGBUS)) FAIL("edited frame %d: wait status %#x", edit_kind, status);
    }
}

static void sigreturn_without_a_frame(void) {
    CHILD_PID(pid) {
        __asm__ volatile("mov $0x1000, %%rsp\n\tsyscall\n\tud2" ::"a"(SYS_rt_sigreturn) : "memory");
        __builtin_unreachable();
    }
    EQ(WTERMSIG(reap(pid)), SIGSEGV);
}

// The vsyscall page is emulated or absent; it never answers for the host.
static void vsyscall_page(void) {
    watch();
    struct timeval t = {0, 0};
    got_signal = 0;
    if (!sigsetjmp(back, 1)) {
        long r = ((long (*)(struct timeval *, void *))0xffffffffff600000ul)(&t, NULL);
        EQ(r, 0);
        struct timeval real;
        gettimeofday(&real, NULL);
        TRUE(t.tv_sec >= real.tv_sec - 2 && t.tv_sec <= real.tv_sec + 2);
    } else {
        EQ(got_signal, SIGSEGV);
    }
    got_signal = 0;
    if (!sigsetjmp(back, 1)) ((void (*)(void))0xffffffffff600005ul)(); // not an entry
    EQ(got_signal, SIGSEGV);
}

// The 32-bit entry serves this process (or nobody), never the host's kernel with this process's host identity.
static void int80(void) {
    watch();
    long r = 0;
    got_signal = 0;
    if (!sigsetjmp(back, 1)) {
        __asm__ volatile("int $0x80" : "=a"(r) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
        if (r != getpid() && r != -ENOSYS && (int)r != -ENOSYS) FAIL("int 0x80 getpid: %ld, getpid %d", r, getpid());
    } else {
        EQ(got_signal, SIGSEGV);
    }
    // sysenter and a far call through odd selectors do nothing useful
    got_signal = 0;
    CHILD_PID(pid) {
        signal(SIGSEGV, SIG_DFL); signal(SIGILL, SIG_DFL);
        alarm(5);
        __asm__ volatile("int $0x81");
        _exit(0);
    }
    EQ(WTERMSIG(reap(pid)), SIGSEGV);
}

static void selectors(void) {
    // loading data selectors a program may not have faults; null ones are fine
    watch();
    unsigned short null = 0, bad = 0xfff8;
    __asm__ volatile("mov %0, %%ds\n\tmov %0, %%es" ::"r"(null));
    got_signal = 0;
    if (!sigsetjmp(back, 1)) { __asm__ volatile("mov %0, %%ds" ::"r"(bad)); }
    EQ(got_signal, SIGSEGV); EQ(got_code, SI_KERNEL);
    // A platform that sees faults through signals cannot tell which selector it was.
    if (got_error != 0) EQ(got_error, 0xfff8);
}

static void direction_and_alignment_flags(void) {
    // a system call with DF and AC set works, and both are still set afterwards
    unsigned long flags;
    long r;
    long pid = getpid();
    __asm__ volatile("pushf\n\torq $0x400, (%%rsp)\n\tpopf\n\tsyscall\n\tpushf\n\tpop %1\n\tcld" : "=a"(r), "=r"(flags) : "a"(SYS_getpid) : "rcx", "r11", "memory", "cc");
    EQ(r, pid);
    TRUE(flags & 0x400);
}

TESTS(T(unmapped), T(protection), T(no_execute), T(noncanonical_and_kernel), T(arithmetic), T(illegal), T(breakpoint_and_single_step),
      T(file_past_its_end), T(default_action_of_faults), T(blocked_fault_kills), T(bad_stack), T(edited_frames),
      T(sigreturn_without_a_frame), T(vsyscall_page), T(int80), T(selectors), T(direction_and_alignment_flags))
