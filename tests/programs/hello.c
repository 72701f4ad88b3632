// The smallest useful program: one line on each output, and an exit status.
#include <stdio.h>

int main(int argc, char **argv) {
    printf("hello from %d argument(s)\n", argc - 1);
    fprintf(stderr, "and this is stderr\n");
    return argc > 1 ? argv[1][0] - '0' : 0;
}
