// What adapters add at one site: h = s A x for every (use, slice), then y += B h inside the multiplication's tiles.
//
// h and all sums are float. An element of h is summed over the inputs, and one of B h over the ranks, in one order that
// depends on its own row only. Ranks are taken as they are; B stands in groups of 16 ranks, by panels of 16 outputs.
#pragma once

#include <algorithm>
#include <vector>

#include "multiply.h"
#include "types.h"

namespace blora {

constexpr int RANK_GROUP = 16;

// One slice of one use at the site of a call.
struct Change {
    const LoraSlice* slice;
    int start, end;  // tokens
    float scale;
    int64_t h;       // where its [end - start, rank] floats begin
};

inline int64_t collect_changes(const LoraPlan* plan, int site, std::vector<Change>& changes) {
    changes.clear();
    int64_t size = 0;
    for (int i = 0; i < plan->num_uses; ++i) {
        const LoraUse& use = plan->uses[i];
        for (int s = use.sites[site]; s < use.sites[site + 1]; ++s) {
            const LoraSlice* slice = use.slices + s;
            changes.push_back({slice, use.start, use.end, use.scale * slice->scaling, size});
            size += (int64_t)(use.end - use.start) * slice->rank;
        }
    }
    return size;
}

// acc += the products of one vector's worth of inputs.
inline VecF dot_step(VecF acc, const float* a, const float* x) { return fma(load(a), load(x), acc); }
inline VecF dot_step(VecF acc, const bf16* a, const bf16* x) {
#if defined(BLORA_PAIRWISE)
    return pairwise(acc, load_as<VecU>(a), load_as<VecU>(x));
#else
    VecU pa = load_as<VecU>(a), px = load_as<VecU>(x);
    acc = fma((VecF)(pa << 16), (VecF)(px << 16), acc);
    return fma((VecF)(pa & 0xffff0000u), (VecF)(px & 0xffff0000u), acc);
#endif
}

// h[row][rank] = scale * sum over inputs of a[rank][input] * x[row][input].
template <class T, int RANKS, int ROWS>
void shrink_tile(const void* const* a_rows, const T* x, int in, float scale, float* h, int64_t h_stride) {
    constexpr int WIDTH = LANES * PACK<T>;
    VecF acc[RANKS][ROWS] = {};
    int k = 0;
    for (; k + WIDTH <= in; k += WIDTH)
        for (int rank = 0; rank < RANKS; ++rank)
            for (int row = 0; row < ROWS; ++row)
                acc[rank][row] = dot_step(acc[rank][row], (const T*)a_rows[rank] + k, x + (int64_t)row * in + k);
    if (k < in)
        for (int rank = 0; rank < RANKS; ++rank)
            for (int row = 0; row < ROWS; ++row) {
                T a[WIDTH] = {}, values[WIDTH] = {};
                std::memcpy(a, (const T*)a_rows[rank] + k, (in - k) * sizeof(T));
                std::memcpy(values, x + (int64_t)row * in + k, (in - k) * sizeof(T));
                acc[rank][row] = dot_step(acc[rank][row], a, values);
            }
    for (int rank = 0; rank < RANKS; ++rank)
        for (int row = 0; row < ROWS; ++row) h[row * h_stride + rank] = scale * sum(acc[rank][row]);
}

// Ranks [first, last) of one change, for all its tokens.
template <class T>
void shrink_ranks(const Change& change, int first, int last, const T* x, int in, float* h) {
    constexpr int RANKS = 4, ROWS = LANES == 16 ? 4 : 2;
    const int rank = change.slice->rank;
    for (int r = first; r < last;) {
        const void* const* a = change.slice->a + r;
        int ranks = last - r >= RANKS ? RANKS : 1;
        for (int t = change.start; t < change.end;) {
            const T* rows = x + (int64_t)t * in;
            float* target = h + change.h + (int64_t)(t - change.start) * rank + r;
            if (change.end - t >= ROWS) {
                if (ranks == RANKS) shrink_tile<T, RANKS, ROWS>(a, rows, in, change.scale, target, rank);
                else shrink_tile<T, 1, ROWS>(a, rows, in, change.scale, target, rank);
                t += ROWS;
            } else {
                if (ranks == RANKS) shrink_tile<T, RANKS, 1>(a, rows, in, change.scale, target, rank);
                else shrink_tile<T, 1, 1>(a, rows, in, change.scale, target, rank);
                ++t;
            }
        }
        r += ranks;
    }
}

// This thread's part of the shrink. Work is cut where the threads' shares of its cost meet, between ranks.
template <class T>
void shrink(const std::vector<Change>& changes, const T* x, int in, float* h, int thread, int num_threads) {
    constexpr int READ = 2;  // reading a row of A costs about as much as computing with it for two tokens
    int64_t total = 0;
    for (const Change& change : changes) total += (int64_t)change.slice->rank * (change.end - change.start + READ);
    const int64_t from = total * thread / num_threads, to = total * (thread + 1) / num_threads;
    int64_t at = 0;
    for (const Change& change : changes) {
        const int64_t cost = change.end - change.start + READ;
        const int rank = change.slice->rank;
        auto cut = [&](int64_t share) {  // ranks below the share, in whole tiles of four
            int64_t ranks = share <= at ? 0 : (share - at) / cost / 4 * 4;
            return (int)std::min<int64_t>(share >= at + cost * rank ? rank : ranks, rank);
        };
        int first = cut(from), last = cut(to);
        if (first < last) shrink_ranks<T>(change, first, last, x, in, h);
        at += cost * rank;
    }
}

// tile[row][panel * 16 + i] += sum over ranks of B[first_panel * 16 + ..][rank] * h[row][rank]
template <class T, int ROWS, int PANELS>
void expand_tile(
    const LoraSlice* slice, int first_panel, const float* h, float* tile, int tile_stride) {
    constexpr int VECTORS = PANELS * VECS;
    const int panels = num_panels(slice->out);
    VecF acc[ROWS][VECTORS] = {};
    const void* const* b = slice->b + first_panel;
    for (int first = 0; first < slice->rank; first += RANK_GROUP, b += panels) {
        const int ranks = std::min(RANK_GROUP, slice->rank - first);
        for (int r = 0; r < ranks; ++r) {
            VecF weights[VECTORS];
            for (int v = 0; v < VECTORS; ++v)
                weights[v] = load((const T*)b[v / VECS] + r * PANEL + v % VECS * LANES);
            for (int row = 0; row < ROWS; ++row) {
                VecF value = splat(h[(int64_t)row * slice->rank + first + r]);
                for (int v = 0; v < VECTORS; ++v) acc[row][v] = fma(weights[v], value, acc[row][v]);
            }
        }
    }
    for (int row = 0; row < ROWS; ++row)
        for (int v = 0; v < VECTORS; ++v) {
            float* target = tile + (int64_t)row * tile_stride + v * LANES;
            store(target, load(target) + acc[row][v]);
        }
}

// Whole panels of a slice, for `rows` rows.
template <class T>
void expand_panels(
    const LoraSlice* slice, int first_panel, int panels, int rows, const float* h, float* tile, int tile_stride) {
    constexpr int ROWS = 4, FEW = LANES == 16 ? 2 : 1;  // panels of a tall tile
    int row = 0;
    for (; row + ROWS <= rows; row += ROWS) {
        const float* values = h + (int64_t)row * slice->rank;
        float* target = tile + (int64_t)row * tile_stride;
        int p = 0;
        for (; p + FEW <= panels; p += FEW)
            expand_tile<T, ROWS, FEW>(slice, first_panel + p, values, target + p * PANEL, tile_stride);
        for (; p < panels; ++p)
            expand_tile<T, ROWS, 1>(slice, first_panel + p, values, target + p * PANEL, tile_stride);
    }
    for (; row < rows; ++row) {
        const float* values = h + (int64_t)row * slice->rank;
        float* target = tile + (int64_t)row * tile_stride;
        int p = 0;
        for (; p + 4 <= panels; p += 4)
            expand_tile<T, 1, 4>(slice, first_panel + p, values, target + p * PANEL, tile_stride);
        for (; p < panels; ++p)
            expand_tile<T, 1, 1>(slice, first_panel + p, values, target + p * PANEL, tile_stride);
    }
}

// A slice that does not begin or end with a panel of the site: one panel of it after another, by single outputs.
template <class T>
void expand_unaligned(
    const LoraSlice* slice, int column, int columns, int rows, const float* h, float* tile, int tile_stride) {
    int first = std::max(column - slice->column, 0) / PANEL;
    int last = std::min(column + columns - slice->column + PANEL - 1, num_panels(slice->out) * PANEL) / PANEL;
    for (int row = 0; row < rows; ++row)
        for (int panel = first; panel < last; ++panel) {
            float delta[PANEL] = {};
            expand_tile<T, 1, 1>(slice, panel, h + (int64_t)row * slice->rank, delta, PANEL);
            for (int i = 0; i < PANEL && panel * PANEL + i < slice->out; ++i) {
                int at = slice->column + panel * PANEL + i - column;
                if (at >= 0 && at < columns) tile[(int64_t)row * tile_stride + at] += delta[i];
            }
        }
}

// Adds the changes to a tile: tokens [token, token + rows), outputs [column, column + panels * 16) of the site.
template <class T>
void expand(
    const std::vector<Change>& changes, const float* h, int token, int rows, int column, int panels, float* tile,
    int tile_stride) {
    for (const Change& change : changes) {
        const LoraSlice* slice = change.slice;
        const int start = std::max(change.start, token), end = std::min(change.end, token + rows);
        const int from = std::max(slice->column, column);
        const int to = std::min(slice->column + slice->out, column + panels * PANEL);
        if (start >= end || from >= to) continue;
        const float* values = h + change.h + (int64_t)(start - change.start) * slice->rank;
        float* target = tile + (int64_t)(start - token) * tile_stride;
        if (slice->column % PANEL == 0 && slice->out % PANEL == 0)
            expand_panels<T>(
                slice, (from - slice->column) / PANEL, (to - from) / PANEL, end - start, values,
                target + (from - column), tile_stride);
        else
            expand_unaligned<T>(slice, column, panels * PANEL, end - start, values, target, tile_stride);
    }
}

}  // namespace blora
