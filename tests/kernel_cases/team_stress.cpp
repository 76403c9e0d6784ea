// Thousands of short jobs on a team of changing size. Each job reads what other threads wrote in the one before.

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../engine/kernels/entry.h"
#include "../../engine/kernels/team.h"

static bool run(int jobs, unsigned seed) {
    std::vector<int> first(3000), second(3000);
    for (int job = 0; job < jobs; ++job) {
        const int pieces = job % 50 ? rand_r(&seed) % 40 : 3000;
        blora::share(pieces, [&](int i) { first[i] = 7 * job + i; });
        blora::share(pieces, [&](int i) { second[i] = first[pieces - 1 - i] + 1; });
        int covered = 0;
        blora::share_ranges(pieces, false, [&](int from, int to) { covered += to - from; });
        blora::share_ranges(pieces, true, [&](int from, int to) {
            for (int i = from; i < to; ++i) first[i] = 0;
        });
        if (covered != pieces) return false;
        for (int i = 0; i < pieces; ++i)
            if (first[i] || second[i] != 7 * job + pieces - i) return false;
        if (job % 1000 == 0) usleep(3000);  // until the workers sleep
        if (job % 700 == 0) blora_set_num_threads(1 + rand_r(&seed) % 5);
    }
    return true;
}

int main(int, char** argv) {
    const int jobs = std::atoi(argv[1]);
    blora_set_num_threads(3);
    if (!run(jobs, 1)) return std::puts("wrong"), 1;
    const pid_t child = fork();
    if (!child) _exit(run(jobs, 2) ? 0 : 1);
    int status = 1;
    if (waitpid(child, &status, 0) != child || status) return std::puts("wrong after a fork"), 1;
    if (!run(jobs, 3)) return std::puts("wrong beside a fork"), 1;
}
