// h = s A x in tiles (amx.h); for few rows in SIMD vectors, to the same bits. bfloat16 only.
//
// A group of A is a panel of 16 lanes. In a group of 16 ranks a lane sums for one rank. In a narrower group UNITS
// neighbouring lanes sum for one rank, each over every UNITS-th pair of x. For tiles, the pairs of each of these lanes
// are copied side by side and multiplied with all lanes; a lane keeps the product with its own pairs.
#pragma once

#include "amx.h"
#include "changes.h"
#include "scratch.h"

#if defined(BLORA_AMX)

namespace blora {

// The tokens of one change that a thread computes: [first, last).
struct TokenRange {
    const Change* change;
    int first, last;
};

class AmxShrink {
public:
    AmxShrink(const bf16* x, int in, bf16* h) : x_(x), in_(in), h_(h) {}

    // Multiplies neighbouring ranges of the same tokens and width together, and fetches the next ones meanwhile.
    void run(const std::vector<TokenRange>& ranges) {
        const TokenRange *range = ranges.data(), *end = range + ranges.size();
        for (const TokenRange* next = together(range, end); range < end; range = next, next = together(range, end)) {
            fetch(next, together(next, end));
            switch (range->change->width) {
                case 16: shrink<1>(range, next); break;
                case 8: shrink<2>(range, next); break;
                default: shrink<4>(range, next);
            }
        }
    }

private:
    static constexpr int MAX_TOGETHER = 4;
    static constexpr int ROWS = 96;  // multiplied at once, few enough to stay in a near cache
    static constexpr int STRIDE = MAX_TOGETHER * PANEL;

    // The memory of a thread.
    struct Memory {
        Scratch a, x, sums;
        Fetches fetches;
    };

    // Sums of each row and lane. Of plane i, the lanes whose number is i modulo UNITS are valid.
    // plane: floats from one plane to the next; 0 where one plane holds all.
    struct Sums {
        float* at;
        int64_t plane;
    };

    // The end of the ranges that are multiplied together with the first.
    static const TokenRange* together(const TokenRange* range, const TokenRange* end) {
        const TokenRange* next = range;
        while (next < std::min(range + MAX_TOGETHER, end) && next->first == range->first && next->last == range->last &&
               next->change->width == range->change->width)
            ++next;
        return next;
    }

    void fetch(const TokenRange* range, const TokenRange* end) {
        memory_.fetches.clear();
        for (; range < end; ++range) {
            const LoraChunk* chunk = range->change->a;
            for (int piece = 0; piece < range->change->num_pieces; piece += chunk++->count)
                memory_.fetches.add(chunk->at, (int64_t)chunk->count * LINES * LINE_BYTES);
        }
    }

    // A in one piece: where it is stored, or gathered in `copy` if it is stored in several chunks.
    static const bf16* whole_a(const Change& change, char* copy) {
        const LoraChunk* chunk = change.a;
        if (chunk->count >= change.num_pieces) return (const bf16*)(const void*)chunk->at;
        char* target = copy;
        for (int piece = 0; piece < change.num_pieces; piece += chunk++->count) {
            std::memcpy(target, chunk->at, (size_t)chunk->count * LINES * LINE_BYTES);
            target += (int64_t)chunk->count * LINES * LINE_BYTES;
        }
        return (const bf16*)(const void*)copy;
    }

    template <int UNITS>
    void shrink(const TokenRange* ranges, const TokenRange* end) {
        const int count = (int)(end - ranges);
        const int64_t a_bytes = (int64_t)ranges->change->num_pieces * LINES * LINE_BYTES;
        char* copies = memory_.a.get<char>(count * a_bytes);
        const bf16* panels[MAX_TOGETHER];
        for (int i = 0; i < count; ++i) panels[i] = whole_a(*ranges[i].change, copies + i * a_bytes);
        for (int token = ranges->first; token < ranges->last; token += ROWS) {
            const int rows = std::min(ROWS, ranges->last - token);
            // In tiles, narrow groups read A once for each unit.
            const Sums sums = rows < 2 * UNITS ? multiply_by_vectors<UNITS>(token, rows, panels, count)
                                               : multiply_by_tiles<UNITS>(token, rows, panels, count);
            for (int i = 0; i < count; ++i) store_sums<UNITS>(*ranges[i].change, token, rows, sums, i * PANEL);
        }
    }

    // Inputs of a lane, the padding of the last line included.
    template <int UNITS>
    int lane_inputs() const {
        return (in_ / 2 + UNITS - 1) / UNITS * 2;
    }

    template <int UNITS>
    Sums multiply_by_vectors(int token, int rows, const bf16* const* panels, int count) {
        const NoDenormals guard;
        const int units = in_ / 2, lines = lane_inputs<UNITS>() / 2, filled = lines * UNITS;
        float* sums = memory_.sums.get<float>((size_t)rows * STRIDE);
        uint32_t* even = memory_.x.get<uint32_t>(2 * (size_t)filled);
        uint32_t* odd = even + filled;
        for (int row = 0; row < rows; ++row) {
            const bf16* x = x_ + (int64_t)(token + row) * in_;
            for (int i = 0; i < units; ++i) even[i] = (uint32_t)x[2 * i] << 16, odd[i] = (uint32_t)x[2 * i + 1] << 16;
            for (int i = units; i < filled; ++i) even[i] = odd[i] = 0;
            for (int i = 0; i < count; ++i)
                multiply_row<UNITS>(
                    even, odd, panels[i], lines, memory_.fetches.take(lines), sums + (int64_t)row * STRIDE + i * PANEL);
        }
        return {sums, 0};
    }

    // One row in SIMD vectors, to the bits of tiles (see multiply_row in amx.h). even_x, odd_x: the even and the odd
    // inputs of x as floats, UNITS of each for a line.
    template <int UNITS>
    static void multiply_row(
        const uint32_t* even_x, const uint32_t* odd_x, const bf16* weights, int lines, Run run, float* result) {
        constexpr int STEP = TILE_INPUTS / 2;  // lines
        VecF sum = {};
        for (int line = 0; line < lines; line += STEP) {
            const int count = std::min(lines - line, STEP);
            VecF even = {}, odd = {};
            for (int i = 0; i < count; ++i, weights += 2 * PANEL, even_x += UNITS, odd_x += UNITS) {
                const VecU both = load_as<VecU>(weights);
                even = fma((VecF)repeat<UNITS>(even_x), (VecF)(both << 16), even);
                odd = fma((VecF)repeat<UNITS>(odd_x), (VecF)(both & 0xffff0000u), odd);
                if (run.lines > 0) {
                    __builtin_prefetch(run.at, 0, 2);
                    --run.lines, run.at += LINE;
                }
            }
            if (count < STEP) even += VecF{}, odd += VecF{};
            sum += even + odd;
        }
        store(result, sum);
    }

    template <int UNITS>
    Sums multiply_by_tiles(int token, int rows, const bf16* const* panels, int count) {
        const TileRegisters registers(rows);
        const bf16* x = x_ + (int64_t)token * in_;
        const int in = lane_inputs<UNITS>();
        const int64_t plane = (int64_t)rows * STRIDE;
        float* sums = memory_.sums.get<float>(UNITS * plane);
        if constexpr (UNITS > 1) x = spread<UNITS>(x, rows);
        for (int unit = 0; unit < UNITS; ++unit)
            blora::multiply_by_tiles(
                rows, x + (int64_t)unit * rows * in, in, panels, count, in, 0, &memory_.fetches, sums + unit * plane,
                STRIDE);
        return {sums, plane};
    }

    // Copies the pairs of each lane side by side. Returns [UNITS, rows, lane_inputs].
    template <int UNITS>
    const bf16* spread(const bf16* x, int rows) {
        const int units = in_ / 2, lines = lane_inputs<UNITS>() / 2;
        uint32_t* result = memory_.x.get<uint32_t>((size_t)UNITS * rows * lines);
        for (int row = 0; row < rows; ++row, x += in_)
            for (int unit = 0; unit < UNITS; ++unit) {
                uint32_t* target = result + ((int64_t)unit * rows + row) * lines;
                const int whole = (units - unit + UNITS - 1) / UNITS;  // lines in which the row has this unit
                for (int line = 0; line < whole; ++line)
                    target[line] = load_as<uint32_t>(x + 2 * (line * UNITS + unit));
                if (whole < lines) target[whole] = 0;
            }
        return (const bf16*)(const void*)result;
    }

    template <int UNITS>
    void store_sums(const Change& change, int token, int rows, const Sums& sums, int lane) const {
        constexpr int WIDTH = PANEL / UNITS;
        bf16* target = h_ + change.h + (int64_t)(token - change.start) * WIDTH;
        for (int row = 0; row < rows; ++row, target += WIDTH) {
            const float* own = sums.at + (int64_t)row * STRIDE + lane;
            float totals[PANEL] = {};
            for (int rank = 0; rank < WIDTH; ++rank) {
                totals[rank] = own[rank * UNITS];
                for (int i = 1; i < UNITS; ++i) totals[rank] += own[i * sums.plane + rank * UNITS + i];
            }
            bf16 stored[PANEL];
            store(stored, splat(change.scale) * load(totals));
            std::memcpy(target, stored, WIDTH * sizeof(bf16));
        }
    }

    static inline thread_local Memory memory_;
    const bf16* x_;  // [tokens, in]
    int in_;
    bf16* h_;
};

}  // namespace blora

#endif
