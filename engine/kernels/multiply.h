// The one multiplication of weights and of keys: rows of x times panels.
//
// A patch is a rectangle of outputs: some rows by some panels. It may be as small as the accumulators in the registers
// (multiply_patch) or as large as the memory that a thread works on (linear.cpp). Every output is summed over the
// inputs in their order, in an accumulator of its own, whichever patch it belongs to: its bits depend on its row and
// its column only, not on the number of rows, columns or threads.
#pragma once

#include <algorithm>
#include <array>

#include "fetches.h"
#include "pack.h"

namespace blora {

// The type in which x is given: its own where the instruction set multiplies pairs of bfloat16, else float, converted
// once.
template <class T>
struct InputOf {
    typedef float type;
};
#if defined(BLORA_PAIRWISE)
template <>
struct InputOf<bf16> {
    typedef bf16 type;
};
#endif
template <class T>
using Input = typename InputOf<T>::type;

// A sum as an input of a multiplication by weights of type T: rounded to T.
template <class T>
inline Input<T> as_stored(float value) {
    if constexpr (sizeof(Input<T>) == sizeof(T)) return from_float<T>(value);
    else return to_float(from_float<T>(value));
}

// One step of the sum: acc[row][v] += x[row][input..] * the same inputs of the panels. w: where those inputs are.
template <int ROWS, int VECTORS>
inline void step(VecF (&acc)[ROWS][VECTORS], const float* x, int64_t x_stride, const float* const (&w)[VECTORS]) {
    VecF weights[VECTORS];
    for (int v = 0; v < VECTORS; ++v) weights[v] = load(w[v]);
    for (int row = 0; row < ROWS; ++row) {
        VecF value = splat(x[row * x_stride]);
        for (int v = 0; v < VECTORS; ++v) acc[row][v] = fma(weights[v], value, acc[row][v]);
    }
}

#if defined(BLORA_PAIRWISE)
template <int ROWS, int VECTORS>
inline void step(VecF (&acc)[ROWS][VECTORS], const bf16* x, int64_t x_stride, const bf16* const (&w)[VECTORS]) {
    VecU weights[VECTORS];
    for (int v = 0; v < VECTORS; ++v) weights[v] = load_as<VecU>(w[v]);
    for (int row = 0; row < ROWS; ++row) {
        VecU pair = splat_bits(load_as<uint32_t>(x + row * x_stride));
        for (int v = 0; v < VECTORS; ++v) acc[row][v] = pairwise(acc[row][v], weights[v], pair);
    }
}
#else
template <int ROWS, int VECTORS>
inline void step(VecF (&acc)[ROWS][VECTORS], const float* x, int64_t x_stride, const bf16* const (&w)[VECTORS]) {
    VecU pairs[VECTORS];
    for (int v = 0; v < VECTORS; ++v) pairs[v] = load_as<VecU>(w[v]);
    for (int half = 0; half < 2; ++half) {
        VecF weights[VECTORS];
        for (int v = 0; v < VECTORS; ++v) weights[v] = (VecF)(half ? pairs[v] & 0xffff0000u : pairs[v] << 16);
        for (int row = 0; row < ROWS; ++row) {
            VecF value = splat(x[row * x_stride + half]);
            for (int v = 0; v < VECTORS; ++v) acc[row][v] = fma(weights[v], value, acc[row][v]);
        }
    }
}
#endif

using Ahead = std::array<int64_t, 2>;

// patch[row][panel * 16 + i] = sum over inputs of x[row][input] * panels[panel][input][i], added to the patch if ADDS.
// width: outputs of a panel; the lanes beyond it are read, and their results have no meaning. ahead: bytes from a panel
// to one that is multiplied later and fetched meanwhile, for panels of even and of odd number; 0: none. Memory is so
// slow that the later panel has to be one of the next patch. run: other memory to fetch, a line a step.
template <class T, int ROWS, int PANELS, bool ADDS>
void multiply_patch(
    const Input<T>* x, int64_t x_stride, const T* const* panels, int width, int in, Ahead ahead, Run run, float* patch,
    int patch_stride) {
    constexpr int VECTORS = PANELS * VECS;
    VecF acc[ROWS][VECTORS] = {};
    if constexpr (ADDS)
        for (int row = 0; row < ROWS; ++row)
            for (int v = 0; v < VECTORS; ++v) acc[row][v] = load(patch + (int64_t)row * patch_stride + v * LANES);
    const T* w[VECTORS];
    for (int v = 0; v < VECTORS; ++v) w[v] = panels[v / VECS] + v % VECS * LANES * PACK<T>;
    const int64_t advance = (int64_t)width * PACK<T>;
    auto advance_to = [&](int& input) {
        step<ROWS, VECTORS>(acc, x + input, x_stride, w);
        for (int v = 0; v < VECTORS; ++v) {
            if (v % VECS == 0) __builtin_prefetch((const char*)w[v] + ahead[v / VECS % 2], 0, 2);
            w[v] += advance;
        }
        input += PACK<T>;
    };
    int input = 0;
    for (; run.lines > 0 && input < in; --run.lines, run.at += LINE) {
        __builtin_prefetch(run.at, 0, 2);
        advance_to(input);
    }
    while (input < in) advance_to(input);
    for (int row = 0; row < ROWS; ++row)
        for (int v = 0; v < VECTORS; ++v) store(patch + (int64_t)row * patch_stride + v * LANES, acc[row][v]);
}

// The largest patch in registers: all its accumulators fit into them. Few rows take wide patches, so that enough sums
// are under way; many rows take tall ones, so that a weight is loaded once for many rows.
#if defined(__AVX512F__) || defined(BLORA_EMULATE)
constexpr int MAX_ROWS = 12;
constexpr int panels_for(int rows) { return rows < 4 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int MAX_ROWS = 6;
constexpr int panels_for(int rows) { return rows == 1 ? 4 : rows < 4 ? 2 : 1; }
#else
constexpr int MAX_ROWS = 3;
constexpr int panels_for(int rows) { return rows == 1 ? 2 : 1; }
#endif

template <class T, int ROWS, bool ADDS>
void multiply_rows(
    const Input<T>* x, int64_t x_stride, const T* const* panels, int count, int width, int in, Ahead ahead,
    Fetches* fetches, float* patch, int patch_stride) {
    constexpr int WIDE = panels_for(ROWS);
    auto run = [&] { return fetches ? fetches->take(in / PACK<T>) : Run(); };
    int panel = 0;
    for (; panel + WIDE <= count; panel += WIDE)
        multiply_patch<T, ROWS, WIDE, ADDS>(
            x, x_stride, panels + panel, width, in, ahead, run(), patch + panel * PANEL, patch_stride);
    for (; panel < count; ++panel)
        multiply_patch<T, ROWS, 1, ADDS>(
            x, x_stride, panels + panel, width, in, ahead, run(), patch + panel * PANEL, patch_stride);
}

template <class T, int ROWS, bool ADDS>
struct Dispatch {
    static void run(
        int rows, const Input<T>* x, int64_t x_stride, const T* const* panels, int count, int width, int in,
        Ahead ahead, Fetches* fetches, float* patch, int patch_stride) {
        if (rows == ROWS)
            multiply_rows<T, ROWS, ADDS>(x, x_stride, panels, count, width, in, ahead, fetches, patch, patch_stride);
        else
            Dispatch<T, ROWS - 1, ADDS>::run(
                rows, x, x_stride, panels, count, width, in, ahead, fetches, patch, patch_stride);
    }
};
template <class T, bool ADDS>
struct Dispatch<T, 0, ADDS> {
    static void run(int, const Input<T>*, int64_t, const T* const*, int, int, int, Ahead, Fetches*, float*, int) {}
};

// Multiplies any number of rows, cut into patches of nearly equal height. ahead: as in multiply_patch, for all panels.
// fetches: other memory that is read soon, or null.
template <class T, bool ADDS = false>
void multiply(
    int rows, const Input<T>* x, int64_t x_stride, const T* const* panels, int count, int width, int in,
    int64_t ahead, Fetches* fetches, float* patch, int patch_stride) {
    const int patches = (rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int i = 0, done = 0; i < patches; ++i) {
        const int height = (rows - done + patches - i - 1) / (patches - i);
        // Each panel is fetched once. Two patches share the fetches: a burst of them would have to be waited for.
        const Ahead own = {i == 0 ? ahead : 0, i == std::min(patches - 1, 1) ? ahead : 0};
        Dispatch<T, MAX_ROWS, ADDS>::run(
            height, x + done * x_stride, x_stride, panels, count, width, in, own, fetches,
            patch + (int64_t)done * patch_stride, patch_stride);
        done += height;
    }
}

}  // namespace blora
