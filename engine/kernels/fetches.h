// Memory that is read soon, fetched into a cache during a multiplication. A multiplication waits for its own sums more
// than for memory, so fetching one line in each of its steps costs nothing, and the later read finds the lines in a
// cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace blora {

constexpr int LINE = 64;  // bytes

// Consecutive lines of memory.
struct Run {
    const char* at = nullptr;
    int lines = 0;
};

// A queue of runs. `take` cuts from the first run at most as many lines as a multiplication has steps.
class Fetches {
public:
    void clear() { runs_.clear(), next_ = 0; }
    void add(const char* at, int64_t bytes) { runs_.push_back({at, (int)((bytes + LINE - 1) / LINE)}); }
    Run take(int steps) {
        if (next_ == runs_.size()) return {};
        Run& run = runs_[next_];
        const Run taken = {run.at, std::min(run.lines, steps)};
        run.at += (int64_t)taken.lines * LINE;
        run.lines -= taken.lines;
        if (!run.lines) ++next_;
        return taken;
    }

private:
    std::vector<Run> runs_;
    size_t next_ = 0;
};

}  // namespace blora
