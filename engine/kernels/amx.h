// AMX: the tile registers, and the multiplication of rows of x by panels of bfloat16 in them. A tile is such a
// register.
//
// A panel is stored as the instruction reads it: 16 rows of 64 bytes are 32 inputs of 16 outputs. An output is summed
// over groups of 32 inputs in their order, the last group padded with zeros. Within a group, even and odd inputs are
// summed apart, then both sums are added to the total; denormals are taken for zero. So the bits of an output depend on
// its row and its column only, but they differ from those of pairwise(): a build multiplies a weight in tiles for every
// number of rows, or for none.
//
// The number of registers and their heights are state of a thread: TileRegisters owns it.
#pragma once

#include <type_traits>
#include <utility>

#include "multiply.h"

#if defined(__AMX_BF16__) && !defined(BLORA_EMULATE)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__AMX_BF16__) || defined(BLORA_EMULATE)
#define BLORA_AMX 1
#endif

namespace blora {

// Whether the operating system lets this process use the registers of the build. The request has to come before the
// first use; the answer holds for all threads.
inline bool may_run() {
#if defined(__AMX_BF16__) && !defined(BLORA_EMULATE)
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arguments of arch_prctl
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return true;
#endif
}

#if defined(BLORA_AMX)

constexpr int TILE_ROWS = 16;
constexpr int TILE_INPUTS = 32;  // inputs of a step; in a panel they are TILE_INPUTS * PANEL neighbouring values
constexpr int TILE_BYTES = 64;   // bytes of a row of a tile

// Registers 0 to 3 hold sums, the next ROW_TILES of them x, the others weights.
constexpr int NUM_SUMS = 4;
constexpr int NUM_REGISTERS = 8;

// While a guard lives, denormals are read and written as zero, as in tiles. A computation under the guard has to read
// its operands from memory and store its results to memory, or the compiler may move it out of the guard.
class NoDenormals {
public:
    NoDenormals() {
#if defined(__x86_64__)
        _mm_setcsr(before_ | 0x8040);
        asm volatile("" : : : "memory");
#endif
    }
    ~NoDenormals() {
#if defined(__x86_64__)
        asm volatile("" : : : "memory");
        _mm_setcsr(before_);
#endif
    }
    NoDenormals(const NoDenormals&) = delete;
    NoDenormals& operator=(const NoDenormals&) = delete;

private:
#if defined(__x86_64__)
    unsigned before_ = _mm_getcsr();
#endif
};

#if defined(BLORA_EMULATE)

// Emulation. Its bits are those of tiles, unless a product is denormal or infinite: the emulation rounds it before
// adding.
struct EmulatedTiles {
    char bytes[NUM_REGISTERS][TILE_ROWS][TILE_BYTES];
    int rows[NUM_REGISTERS], row_bytes[NUM_REGISTERS];
};
inline thread_local EmulatedTiles emulated_tiles;

template <int TILE>
inline void tile_zero() {
    std::memset(emulated_tiles.bytes[TILE], 0, sizeof emulated_tiles.bytes[TILE]);
}
template <int TILE>
inline void tile_load(const void* source, int64_t stride) {
    for (int row = 0; row < emulated_tiles.rows[TILE]; ++row)
        std::memcpy(
            emulated_tiles.bytes[TILE][row], (const char*)source + row * stride, emulated_tiles.row_bytes[TILE]);
}
template <int TILE>
inline void tile_store(void* target, int64_t stride) {
    for (int row = 0; row < emulated_tiles.rows[TILE]; ++row)
        std::memcpy(
            (char*)target + row * stride, emulated_tiles.bytes[TILE][row], emulated_tiles.row_bytes[TILE]);
}
template <int SUM, int X, int WEIGHT>
inline void tile_multiply() {
    const NoDenormals guard;
    for (int row = 0; row < emulated_tiles.rows[SUM]; ++row) {
        VecF even = {}, odd = {};
        for (int pair = 0; pair < emulated_tiles.row_bytes[X] / 4; ++pair) {
            const VecU x = splat_bits(load_as<uint32_t>(emulated_tiles.bytes[X][row] + 4 * pair));
            const VecU weights = load_as<VecU>(emulated_tiles.bytes[WEIGHT][pair]);
            even = fma((VecF)(x << 16), (VecF)(weights << 16), even);
            odd = fma((VecF)(x & 0xffff0000u), (VecF)(weights & 0xffff0000u), odd);
        }
        char* sum = emulated_tiles.bytes[SUM][row];
        store((float*)(void*)sum, load_as<VecF>(sum) + (even + odd));
    }
}

#else

template <int TILE>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}
template <int TILE>
inline void tile_load(const void* source, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(source), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
inline void tile_store(void* target, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(target), "r"(stride), "i"(TILE) : "memory");
}
template <int SUM, int X, int WEIGHT>
inline void tile_multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(X), "i"(WEIGHT));
}

#endif

// Configures the tile registers of a thread for up to `rows` rows at once and `inputs` inputs of a step. The destructor
// releases them, so that other code of the thread, and the system at a change of threads, finds them unused.
class TileRegisters {
public:
    explicit TileRegisters(int rows, int inputs = TILE_INPUTS) {
        Shape shape = {1, 0, {}, {}, {}};
        for (int tile = 0; tile < NUM_REGISTERS; ++tile) {
            const bool is_x = tile == NUM_SUMS || tile == NUM_SUMS + 1;
            shape.row_bytes[tile] = (uint16_t)(is_x ? inputs * sizeof(bf16) : TILE_BYTES);
            // A second register for x is used only with 16 rows or more.
            shape.rows[tile] = (uint8_t)(tile <= NUM_SUMS ? std::min(rows, TILE_ROWS) : is_x ? TILE_ROWS : inputs / 2);
        }
        load(shape);
    }
    ~TileRegisters() { release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;

private:
    struct alignas(64) Shape {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
#if defined(BLORA_EMULATE)
    static void load(const Shape& shape) {
        std::copy(shape.rows, shape.rows + NUM_REGISTERS, emulated_tiles.rows);
        std::copy(shape.row_bytes, shape.row_bytes + NUM_REGISTERS, emulated_tiles.row_bytes);
    }
    static void release() { std::fill_n(emulated_tiles.rows, NUM_REGISTERS, 0); }
#else
    static void load(const Shape& shape) { asm volatile("ldtilecfg %0" : : "m"(shape)); }
    static void release() { asm volatile("tilerelease" : :); }
#endif
};

template <class Work, int... I>
inline void unrolled(std::integer_sequence<int, I...>, Work work) {
    (work(std::integral_constant<int, I>()), ...);
}
template <int COUNT, class Work>
inline void unrolled(Work work) {
    unrolled(std::make_integer_sequence<int, COUNT>(), work);
}

// The share of a later multiplication's panels that one pass fetches: of each 16 lines of a panel, `lines` from line
// `from` on, `bytes` behind the lines that are multiplied.
struct Share {
    int64_t bytes;
    int from, lines;
};

// The operands of a patch in tiles: ROW_TILES times PANELS sums at once.
template <int ROW_TILES, int PANELS>
struct TilePatch {
    const bf16* x[ROW_TILES];  // first row of each tile
    const bf16* weights[PANELS];
    int64_t x_stride;  // bytes

    // ahead: fetched between the loads; else many loads would wait for room together.
    void step(const Share& ahead) const {
        unrolled<ROW_TILES>([&](auto i) {
            constexpr int ROW = decltype(i)::value;
            tile_load<NUM_SUMS + ROW>(x[ROW], x_stride);
        });
        unrolled<PANELS>([&](auto j) {
            constexpr int PANEL_ = decltype(j)::value, FIRST = NUM_SUMS + ROW_TILES;
            constexpr int WEIGHT = FIRST + PANEL_ % (NUM_REGISTERS - FIRST);
            tile_load<WEIGHT>(weights[PANEL_], TILE_BYTES);
            const char* line = (const char*)weights[PANEL_] + ahead.bytes + ahead.from * LINE;
            for (int i = 0; i < ahead.lines; ++i, line += LINE) __builtin_prefetch(line, 0, 2);
            unrolled<ROW_TILES>([&](auto i) {
                constexpr int ROW = decltype(i)::value;
                tile_multiply<ROW * PANELS + PANEL_, NUM_SUMS + ROW, WEIGHT>();
            });
        });
    }

    void advance(Run& run) {
        for (int i = 0; i < TILE_INPUTS / 2 && run.lines > 0; ++i, --run.lines, run.at += LINE)
            __builtin_prefetch(run.at, 0, 2);
        for (int tile = 0; tile < ROW_TILES; ++tile) x[tile] += TILE_INPUTS;
        for (int panel = 0; panel < PANELS; ++panel) weights[panel] += TILE_INPUTS * PANEL;
    }

    // The last inputs, fewer than a whole step. Neither x nor a weight is read beyond them.
    void last_step(int rows, int inputs) const {
        alignas(64) bf16 x_rest[ROW_TILES][TILE_ROWS][TILE_INPUTS] = {}, weight_rest[PANELS][TILE_INPUTS * PANEL] = {};
        TilePatch rest;
        for (int tile = 0; tile < ROW_TILES; ++tile) {
            for (int row = 0; row < rows; ++row)
                std::memcpy(x_rest[tile][row], (const char*)x[tile] + row * x_stride, inputs * sizeof(bf16));
            rest.x[tile] = x_rest[tile][0];
        }
        for (int panel = 0; panel < PANELS; ++panel) {
            std::memcpy(weight_rest[panel], weights[panel], inputs * PANEL * sizeof(bf16));
            rest.weights[panel] = weight_rest[panel];
        }
        rest.x_stride = TILE_BYTES;
        rest.step({});
    }
};

// Computes patch[row][panel * 16 + i] for PANELS panels and the rows of ROW_TILES tiles, which begin at first_rows.
template <int ROW_TILES, int PANELS>
void multiply_tile_patch(
    const int (&first_rows)[ROW_TILES], int rows, const bf16* x, int64_t x_stride, const bf16* const* panels, int in,
    const Share& ahead, Run run, float* patch, int patch_stride) {
    TilePatch<ROW_TILES, PANELS> block;
    for (int i = 0; i < ROW_TILES; ++i) block.x[i] = x + first_rows[i] * x_stride;
    for (int panel = 0; panel < PANELS; ++panel) block.weights[panel] = panels[panel];
    block.x_stride = x_stride * (int64_t)sizeof(bf16);
    unrolled<ROW_TILES * PANELS>([](auto sum) { tile_zero<decltype(sum)::value>(); });
    for (int input = 0; input + TILE_INPUTS <= in; input += TILE_INPUTS) {
        block.step(ahead);
        block.advance(run);
    }
    if (in % TILE_INPUTS) block.last_step(rows, in % TILE_INPUTS);
    unrolled<ROW_TILES * PANELS>([&](auto sum) {
        constexpr int SUM = decltype(sum)::value;
        float* target = patch + (int64_t)first_rows[SUM / PANELS] * patch_stride + SUM % PANELS * PANEL;
        tile_store<SUM>(target, patch_stride * (int64_t)sizeof(float));
    });
}

// One row in SIMD vectors, to the bits of tiles: vectors keep more reads of memory under way than tiles do.
template <int PANELS>
void multiply_row(const bf16* x, const bf16* const* panels, int in, int64_t ahead, Run run, float* patch) {
    static_assert(VECS == 1);
    const NoDenormals guard;
    const bf16* weights[PANELS];
    for (int panel = 0; panel < PANELS; ++panel) weights[panel] = panels[panel];
    VecF sums[PANELS] = {};
    for (int input = 0; input < in; input += TILE_INPUTS) {
        const int inputs = std::min(in - input, TILE_INPUTS);
        VecF even[PANELS] = {}, odd[PANELS] = {};
        for (int i = 0; i < inputs; i += 2) {
            const VecU pair = splat_bits(load_as<uint32_t>(x + input + i));
            for (int panel = 0; panel < PANELS; ++panel) {
                const VecU both = load_as<VecU>(weights[panel]);
                __builtin_prefetch((const char*)weights[panel] + ahead, 0, 2);
                weights[panel] += 2 * PANEL;
                even[panel] = fma((VecF)(pair << 16), (VecF)(both << 16), even[panel]);
                odd[panel] = fma((VecF)(pair & 0xffff0000u), (VecF)(both & 0xffff0000u), odd[panel]);
            }
            if (run.lines > 0) {
                __builtin_prefetch(run.at, 0, 2);
                --run.lines, run.at += LINE;
            }
        }
        for (int panel = 0; panel < PANELS; ++panel) {
            // A tile is padded with zeros, which turn -0 into 0.
            if (inputs < TILE_INPUTS) even[panel] += VecF{}, odd[panel] += VecF{};
            sums[panel] += even[panel] + odd[panel];
        }
    }
    for (int panel = 0; panel < PANELS; ++panel) store(patch + panel * PANEL, sums[panel]);
}

// Like multiply(), in tiles configured for `rows` rows. If the number of rows is no multiple of 16, the last tile
// begins earlier, and some rows are computed twice, with the same result.
inline void multiply_by_tiles(
    int rows, const bf16* x, int64_t x_stride, const bf16* const* panels, int count, int in, int64_t ahead,
    Fetches* fetches, float* patch, int patch_stride) {
    const int height = std::min(rows, TILE_ROWS), tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, passes = (tiles + 1) / 2;
    auto first_row = [&](int i) { return std::min(i * TILE_ROWS, rows - height); };
    auto run = [&] { return fetches ? fetches->take(in / 2) : Run(); };
    if (rows == 1) {
        int panel = 0;
        for (; panel + 4 <= count; panel += 4)
            multiply_row<4>(x, panels + panel, in, ahead, run(), patch + panel * PANEL);
        for (; panel < count; ++panel) multiply_row<1>(x, panels + panel, in, ahead, run(), patch + panel * PANEL);
        return;
    }
    for (int pass = 0; pass < passes; ++pass) {
        // Each pass fetches its share: a burst of fetches would have to be waited for.
        const int from = TILE_ROWS * pass / passes, to = TILE_ROWS * (pass + 1) / passes;
        const Share share = {ahead, from, ahead ? to - from : 0};
        auto multiply_at = [&](const auto& first_rows, auto number, int panel) {
            constexpr int ROW_TILES = std::extent_v<std::remove_reference_t<decltype(first_rows)>>;
            multiply_tile_patch<ROW_TILES, decltype(number)::value>(
                first_rows, height, x, x_stride, panels + panel, in, share, run(), patch + panel * PANEL, patch_stride);
        };
        auto all = [&](const auto& first_rows, auto wide) {
            int panel = 0;
            for (; panel + wide <= count; panel += wide) multiply_at(first_rows, wide, panel);
            for (; panel < count; ++panel) multiply_at(first_rows, std::integral_constant<int, 1>(), panel);
        };
        const int first = 2 * pass;
        if (first + 1 < tiles) {
            const int first_rows[2] = {first_row(first), first_row(first + 1)};
            all(first_rows, std::integral_constant<int, 2>());
        } else {
            const int first_rows[1] = {first_row(first)};
            all(first_rows, std::integral_constant<int, 4>());
        }
    }
}

// The functions below add the product of one step, of up to 32 inputs, to a patch.

// Adds to ROW_TILES times PANELS sums at once. x is in its registers already.
template <int ROW_TILES, int PANELS>
void add_tile_patch(const bf16* const* panels, float* const (&rows)[ROW_TILES], int column, int64_t stride) {
    unrolled<PANELS>([&](auto j) {
        constexpr int PANEL_ = decltype(j)::value, WEIGHT = NUM_SUMS + 2 + PANEL_ % 2;
        tile_load<WEIGHT>(panels[PANEL_], TILE_BYTES);
        unrolled<ROW_TILES>([&](auto i) {
            constexpr int ROW = decltype(i)::value, SUM = ROW * PANELS + PANEL_;
            tile_load<SUM>(rows[ROW] + column + PANEL_ * PANEL, stride);
            tile_multiply<SUM, NUM_SUMS + ROW, WEIGHT>();
        });
    });
    unrolled<ROW_TILES * PANELS>([&](auto sum) {
        constexpr int SUM = decltype(sum)::value;
        tile_store<SUM>(rows[SUM / PANELS] + column + SUM % PANELS * PANEL, stride);
    });
}

template <int ROW_TILES>
void add_rows(
    const int (&first_rows)[ROW_TILES], const bf16* x, int inputs, const bf16* const* panels, int count, float* patch,
    int patch_stride) {
    constexpr int WIDE = NUM_SUMS / ROW_TILES;
    const int64_t stride = patch_stride * (int64_t)sizeof(float);
    float* rows[ROW_TILES];
    for (int i = 0; i < ROW_TILES; ++i) rows[i] = patch + (int64_t)first_rows[i] * patch_stride;
    unrolled<ROW_TILES>([&](auto i) {
        constexpr int ROW = decltype(i)::value;
        tile_load<NUM_SUMS + ROW>(x + (int64_t)first_rows[ROW] * inputs, inputs * (int64_t)sizeof(bf16));
    });
    int panel = 0;
    for (; panel + WIDE <= count; panel += WIDE)
        add_tile_patch<ROW_TILES, WIDE>(panels + panel, rows, panel * PANEL, stride);
    for (; panel < count; ++panel) add_tile_patch<ROW_TILES, 1>(panels + panel, rows, panel * PANEL, stride);
}

template <int PANELS>
void add_row(const bf16* x, int inputs, const bf16* const* panels, float* patch) {
    VecF even[PANELS] = {}, odd[PANELS] = {};
    for (int i = 0; i < inputs; i += 2) {
        const VecU pair = splat_bits(load_as<uint32_t>(x + i));
        for (int panel = 0; panel < PANELS; ++panel) {
            const VecU both = load_as<VecU>(panels[panel] + i * PANEL);
            even[panel] = fma((VecF)(pair << 16), (VecF)(both << 16), even[panel]);
            odd[panel] = fma((VecF)(pair & 0xffff0000u), (VecF)(both & 0xffff0000u), odd[panel]);
        }
    }
    for (int panel = 0; panel < PANELS; ++panel)
        store(patch + panel * PANEL, load(patch + panel * PANEL) + (even[panel] + odd[panel]));
}

// patch[row][panel * 16 + i] += sum over inputs of x[row][input] * panels[panel][input][i]. x: [rows, inputs].
inline void add_by_tiles(
    int rows, const bf16* x, int inputs, const bf16* const* panels, int count, float* patch, int patch_stride) {
    if (rows < 4) {  // configuring the registers would take longer than the product
        const NoDenormals guard;
        for (int row = 0; row < rows; ++row, x += inputs, patch += patch_stride) {
            int panel = 0;
            for (; panel + 4 <= count; panel += 4) add_row<4>(x, inputs, panels + panel, patch + panel * PANEL);
            for (; panel < count; ++panel) add_row<1>(x, inputs, panels + panel, patch + panel * PANEL);
        }
        return;
    }
    const TileRegisters registers(rows, inputs);
    const int height = std::min(rows, TILE_ROWS), tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    // If the last tile begins earlier, it shares rows with the tile before it: both are loaded before either is stored.
    int row_tile = tiles % 2;
    if (row_tile) add_rows<1>({0}, x, inputs, panels, count, patch, patch_stride);
    for (; row_tile < tiles; row_tile += 2)
        add_rows<2>(
            {row_tile * TILE_ROWS, std::min((row_tile + 1) * TILE_ROWS, rows - height)}, x, inputs, panels, count,
            patch, patch_stride);
}

#endif

}  // namespace blora
