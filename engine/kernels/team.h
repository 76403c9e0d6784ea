// The threads that share the work of a call: the thread that calls, which leads, and workers that are kept between
// calls.
//
// A call is a row of jobs. The leader cuts a job into pieces and publishes it. Each thread takes the pieces of its own
// share, then those of other shares that nobody has begun; the job is over when all pieces are done. So a thread that
// the system has taken off its core holds up the others only in the middle of a piece, and one that comes late finds
// nothing to do. Which thread computes a piece does not change its result.
//
// Most waits are short. A thread that waits spins, after a while it yields its core again and again, and at last it
// sleeps: beside a busy neighbour, or between two calls, it takes no core from anyone for longer.
#pragma once

#include <algorithm>
#include <cstdint>

namespace blora {

// The number of threads that share a job, the leader included.
int num_threads();

// Runs run(work, piece) for each piece, on several threads.
void share_pieces(int num_pieces, void (*run)(const void* work, int piece), const void* work);

// Calls work(piece) once for each piece, on several threads, in any order. Call it from the thread that leads, never
// from a piece.
template <class Work>
void share(int num_pieces, const Work& work) {
    if (num_pieces <= 1 || num_threads() == 1)
        for (int piece = 0; piece < num_pieces; ++piece) work(piece);
    else
        share_pieces(num_pieces, [](const void* at, int piece) { (*(const Work*)at)(piece); }, &work);
}

// Calls work(first, last) for ranges that together are [0, count), one for each thread if is_large, else one. Long ranges
// are read faster than short ones.
template <class Work>
void share_ranges(int count, bool is_large, const Work& work) {
    const int num_pieces = is_large ? std::min(count, num_threads()) : 1;
    share(num_pieces, [&](int piece) {
        work((int)((int64_t)count * piece / num_pieces), (int)((int64_t)count * (piece + 1) / num_pieces));
    });
}

}  // namespace blora
