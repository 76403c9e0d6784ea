// LoRA's change at one site: h = s A x for each change (changes.h), then y += B h in the patches of the base product.
//
// All sums are float. An element of h is summed over the inputs in one order; as an input of B it is rounded like any
// other input. Every result depends on its own row only.
#pragma once

#include "changes.h"
#include "lora_amx.h"
#include "multiply.h"

namespace blora {

constexpr int PATCH_PANELS = 32;  // panels of a patch of linear.cpp; many, so that B is read in long runs

// acc += line * x, unit by unit.
inline VecF dot(VecF acc, VecU line, VecU x, float) { return fma((VecF)line, (VecF)x, acc); }
inline VecF dot(VecF acc, VecU line, VecU x, bf16) {
#if defined(BLORA_PAIRWISE)
    return pairwise(acc, line, x);
#else
    acc = fma((VecF)(line << 16), (VecF)(x << 16), acc);
    return fma((VecF)(line & 0xffff0000u), (VecF)(x & 0xffff0000u), acc);
#endif
}

// Sums of ROWS rows with a group of ranks. Even and odd lines are summed apart, so that more sums are under way.
template <class T, int UNITS, int ROWS>
struct Shrink {
    VecF acc[2][ROWS][VECS] = {};

    template <int PARITY>
    inline void add(const char* line, const uint32_t* x, int64_t x_stride) {
        VecU weights[VECS];
        for (int v = 0; v < VECS; ++v) weights[v] = load_as<VecU>(line + v * LANES * 4);
        for (int row = 0; row < ROWS; ++row) {
            const VecU units = repeat<UNITS>(x + row * x_stride);
            for (int v = 0; v < VECS; ++v) acc[PARITY][row][v] = dot(acc[PARITY][row][v], weights[v], units, T());
        }
    }

    // next: a change whose A is read later and fetched meanwhile, or null.
    void run(const Change& change, const Change* next, const uint32_t* x, int64_t x_stride) {
        const int num_units = (int)x_stride, num_lines = num_units / UNITS;
        const LoraChunk *own = change.a, *other = next ? next->a : nullptr;
        for (int piece = 0; piece < change.num_pieces; ++piece) {
            const char* lines = piece_at(own, piece, LINES * LINE_BYTES);
            const char* ahead = next && piece < next->num_pieces ? piece_at(other, piece, LINES * LINE_BYTES) : lines;
            const uint32_t* units = x + piece * LINES * UNITS;
            const int count = std::min(LINES, num_lines - piece * LINES);
            if (count < LINES) return add_rest(lines, count, num_units % UNITS, units, x_stride);
            for (int line = 0; line < LINES; line += 2) {
                __builtin_prefetch(ahead + line * LINE_BYTES);
                __builtin_prefetch(ahead + (line + 1) * LINE_BYTES);
                add<0>(lines + line * LINE_BYTES, units + line * UNITS, x_stride);
                add<1>(lines + (line + 1) * LINE_BYTES, units + (line + 1) * UNITS, x_stride);
            }
        }
    }

    // The lines of the last piece: `count` whole ones, and one with `rest` units if `rest` is not 0.
    void add_rest(const char* lines, int count, int rest, const uint32_t* x, int64_t x_stride) {
        for (int line = 0; line < count + (rest > 0); ++line, lines += LINE_BYTES, x += UNITS) {
            uint32_t units[ROWS][UNITS] = {};
            for (int row = 0; row < ROWS; ++row)
                std::memcpy(units[row], x + row * x_stride, (line < count ? UNITS : rest) * sizeof(uint32_t));
            if (line & 1) add<1>(lines, units[0], UNITS);
            else add<0>(lines, units[0], UNITS);
        }
    }

    void store_to(const Change& change, int token, Input<T>* h) {
        for (int row = 0; row < ROWS; ++row) {
            float sums[PANEL];
            for (int v = 0; v < VECS; ++v) store(sums + v * LANES, acc[0][row][v] + acc[1][row][v]);
            Input<T>* target = h + change.h + (int64_t)(token + row - change.start) * change.width;
            for (int rank = 0; rank < change.width; ++rank) {
                float total = sums[rank * UNITS];
                for (int i = 1; i < UNITS; ++i) total += sums[rank * UNITS + i];
                target[rank] = as_stored<T>(change.scale * total);
            }
        }
    }
};

template <class T, int UNITS, int ROWS>
void shrink_rows(const Change& change, const Change* next, int& token, int end, const T* x, int in, Input<T>* h) {
    for (; token + ROWS <= end; token += ROWS) {
        Shrink<T, UNITS, ROWS> shrink;
        shrink.run(change, next, (const uint32_t*)(const void*)(x + (int64_t)token * in), in / PACK<T>);
        shrink.store_to(change, token, h);
        next = nullptr;  // it is fetched once
    }
}

// Computes h of tokens [token, end) for one change.
template <class T, int UNITS>
void shrink_units(const Change& change, const Change* next, int token, int end, const T* x, int in, Input<T>* h) {
    if constexpr (LANES == 16) shrink_rows<T, UNITS, 8>(change, next, token, end, x, in, h);
    if constexpr (LANES == 16) shrink_rows<T, UNITS, 4>(change, next, token, end, x, in, h);
    if constexpr (LANES >= 8) shrink_rows<T, UNITS, 2>(change, next, token, end, x, in, h);
    shrink_rows<T, UNITS, 1>(change, next, token, end, x, in, h);
}

// Calls work(index of a change, first, last) for each change that a thread works on: tokens [first, last). The threads
// get equal shares of the cost; where two shares meet inside a change, it is cut between tokens.
template <class Work>
void for_ranges(const std::vector<Change>& changes, int thread, int num_threads, Work work) {
    constexpr int READ = 6;  // reading a line costs about as much as computing with it for 6 tokens
    constexpr int TOGETHER = 8;
    int64_t total = 0;
    for (const Change& change : changes) total += (int64_t)change.num_pieces * (change.end - change.start + READ);
    const int64_t from = total * thread / num_threads, to = total * (thread + 1) / num_threads;
    int64_t at = 0;
    for (size_t i = 0; i < changes.size(); ++i) {
        const Change& change = changes[i];
        const int num_tokens = change.end - change.start;
        const int64_t cost = (int64_t)change.num_pieces * (num_tokens + READ);
        auto cut = [&](int64_t share) {
            if (share <= at) return change.start;
            if (share >= at + cost) return change.end;
            const int64_t tokens = (share - at) * num_tokens / cost;
            return change.start + (int)((tokens + TOGETHER / 2) / TOGETHER * TOGETHER);
        };
        const int first = std::min(cut(from), change.end), last = std::min(cut(to), change.end);
        if (first < last) work(i, first, last);
        at += cost;
    }
}

// This thread's share of h = s A x.
template <class T>
void shrink(const std::vector<Change>& changes, const T* x, int in, Input<T>* h, int thread, int num_threads) {
    for_ranges(changes, thread, num_threads, [&](size_t i, int first, int last) {
        const Change& change = changes[i];
        const Change* next = i + 1 < changes.size() ? &changes[i + 1] : nullptr;
        switch (change.width) {
            case 16: shrink_units<T, 1>(change, next, first, last, x, in, h); break;
            case 8: shrink_units<T, 2>(change, next, first, last, x, in, h); break;
            default: shrink_units<T, 4>(change, next, first, last, x, in, h);
        }
    });
}
#if defined(BLORA_AMX)
template <>
inline void shrink<bf16>(
    const std::vector<Change>& changes, const bf16* x, int in, bf16* h, int thread, int num_threads) {
    static thread_local std::vector<TokenRange> ranges;
    ranges.clear();
    for_ranges(changes, thread, num_threads, [&](size_t i, int first, int last) {
        ranges.push_back({&changes[i], first, last});
    });
    AmxShrink(x, in, h).run(ranges);
}
#endif

// The intersection of a change with a patch: tokens [token, token + rows), outputs [column, column + columns) of the
// site.
struct Overlap {
    int start, end;  // tokens [start, end)
    int from, to;    // outputs [from, to) of the site

    Overlap(const Change& change, int token, int rows, int column, int columns)
        : start(std::max(change.start, token)), end(std::min(change.end, token + rows)),
          from(std::max(change.column, column)), to(std::min(change.column + change.out, column + columns)) {}
    bool is_empty() const { return start >= end || from >= to; }
};

template <class T>
int panel_bytes(const Change& change) {
    return change.width * PANEL * (int)sizeof(T);
}

// Expands a slice that does not begin and end with panels of the site: panel after panel, each output by itself.
template <class T>
void expand_unaligned(
    const Change& change, const Overlap& both, int column, const Input<T>* h, float* patch, int patch_stride) {
    const int first = (both.from - change.column) / PANEL, last = (both.to - change.column + PANEL - 1) / PANEL;
    for (int row = 0; row < both.end - both.start; ++row)
        for (int panel = first; panel < last; ++panel) {
            float delta[PANEL];
            const LoraChunk* chunk = change.b;
            const T* panels[1] = {(const T*)piece_at(chunk, panel, panel_bytes<T>(change))};
            multiply_patch<T, 1, 1, false>(
                h + (int64_t)row * change.width, change.width, panels, PANEL, change.width, {}, {}, delta, PANEL);
            const int at = change.column + panel * PANEL;  // output of the site
            for (int i = std::max(both.from - at, 0); i < std::min(both.to - at, PANEL); ++i)
                patch[(int64_t)row * patch_stride + at + i - column] += delta[i];
        }
}

// Queues the panels of B that `expand` reads for a patch.
template <class T>
void fetch_b(const std::vector<Change>& changes, int token, int rows, int column, int panels, Fetches& fetches) {
    for (const Change& change : changes) {
        const Overlap both(change, token, rows, column, panels * PANEL);
        if (both.is_empty()) continue;
        const int end = (both.to - change.column + PANEL - 1) / PANEL, bytes = panel_bytes<T>(change);
        const LoraChunk* chunk = change.b;
        for (int panel = (both.from - change.column) / PANEL; panel < end;) {
            const char* at = piece_at(chunk, panel, bytes);
            const int next = std::min(end, chunk->first + chunk->count);
            fetches.add(at, (int64_t)(next - panel) * bytes);
            panel = next;
        }
    }
}

// patch += h * panels. h: [rows, width].
template <class T>
void add_panels(
    int rows, const Input<T>* h, int width, const T* const* panels, int count, float* patch, int patch_stride) {
#if defined(BLORA_AMX)
    if constexpr (std::is_same_v<T, bf16>) return add_by_tiles(rows, h, width, panels, count, patch, patch_stride);
#endif
    multiply<T, true>(rows, h, width, panels, count, PANEL, width, 0, nullptr, patch, patch_stride);
}

// Adds all changes to a patch: tokens [token, token + rows), outputs [column, column + panels * 16) of the site.
template <class T>
void expand(
    const std::vector<Change>& changes, const Input<T>* h, int token, int rows, int column, int panels, float* patch,
    int patch_stride) {
    for (const Change& change : changes) {
        const Overlap both(change, token, rows, column, panels * PANEL);
        if (both.is_empty()) continue;
        const Input<T>* inputs = h + change.h + (int64_t)(both.start - change.start) * change.width;
        float* target = patch + (int64_t)(both.start - token) * patch_stride;
        if (change.column % PANEL != 0 || change.out % PANEL != 0) {
            expand_unaligned<T>(change, both, column, inputs, target, patch_stride);
            continue;
        }
        const T* weights[PATCH_PANELS];
        const int first = (both.from - change.column) / PANEL, count = (both.to - both.from) / PANEL;
        const LoraChunk* chunk = change.b;
        for (int p = 0; p < count; ++p) weights[p] = (const T*)piece_at(chunk, first + p, panel_bytes<T>(change));
        add_panels<T>(
            both.end - both.start, inputs, change.width, weights, count, target + (both.from - column), patch_stride);
    }
}

}  // namespace blora
