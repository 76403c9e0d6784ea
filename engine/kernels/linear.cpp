// Linear layers with the adapters' changes and an epilogue: y = epilogue(x W^T + sum of s B A x + bias), with the
// adapters' gains and shifts (gain_shift.h) before the epilogue.
//
// Base, change and bias are summed in float and rounded once, at the same place for rows with and without adapters.
// A call is two jobs of the team (team.h): h = s A x, then columns for all rows, patch by patch: base product, changes,
// gains and shifts, epilogue.

#include <optional>

#include "amx.h"
#include "entry.h"
#include "gain_shift.h"
#include "lora.h"
#include "scratch.h"
#include "team.h"

namespace blora {
namespace {

// A thread's patch: up to MAX_PATCH_ROWS rows of up to PATCH_PANELS panels, in memory, in float.
constexpr int PATCH_STRIDE = (PATCH_PANELS + 1) * PANEL;  // no power of two: rows must not fall on the same cache lines
constexpr int MULTIPLIED = 4;                       // panels multiplied at once, few enough to stay in a near cache
constexpr int MAX_PATCH_ROWS = 96;
constexpr int64_t INPUT_BYTES = 256 << 10;          // converted rows of a patch: half of a common second-level cache
constexpr int64_t PARALLEL_WORK = 1 << 17;          // with fewer multiplications, one thread is as fast

struct Call {
    const Linear* layer;
    const void* x;
    void* y;
    int tokens;
    int64_t y_stride;
    int epilogue;
    const std::vector<Change>* changes;
    void* h;  // Input<T> of the dtype, at Change::h of each change
    const std::vector<GainShift>* gain_shifts;
};

// The columns of one patch: the indices of its panels in the site.
struct Columns {
    int panels[PATCH_PANELS];
    int count;
};

template <class T>
VecF bias_at(const Linear& layer, int column, int count) {
    return layer.bias ? load_first((const T*)layer.bias + column, count) : VecF{};
}

template <class T, class Y>
void store_rows(const Call& call, int token, int rows, int column, const float* patch, bool is_added) {
    const int out = call.layer->out;
    for (int v = 0; v < VECS; ++v) {
        const int at = column + v * LANES, count = std::min(LANES, out - at);
        if (count <= 0) return;
        const VecF bias = bias_at<T>(*call.layer, at, count);
        for (int row = 0; row < rows; ++row) {
            Y* y = (Y*)call.y + (token + row) * call.y_stride + at;
            VecF value = load(patch + row * PATCH_STRIDE + v * LANES) + bias;
            if (is_added) value = load_first(y, count) + value;
            store_first(y, value, count);
        }
    }
}

// gate, up: the same panel of both halves of the site.
template <class T>
void store_gated(const Call& call, int token, int rows, int column, const float* gate, const float* up) {
    const int out = call.layer->out / 2;
    for (int v = 0; v < VECS; ++v) {
        const int at = column + v * LANES, count = std::min(LANES, out - at);
        const VecF gate_bias = bias_at<T>(*call.layer, at, count), up_bias = bias_at<T>(*call.layer, out + at, count);
        for (int row = 0; row < rows; ++row) {
            const int64_t i = (int64_t)row * PATCH_STRIDE + v * LANES;
            VecF value = silu(load(gate + i) + gate_bias) * (load(up + i) + up_bias);
            store_first((T*)call.y + (token + row) * call.y_stride + at, value, count);
        }
    }
}

// Calls work(first panel, number of panels) for each run of the patch's panels that are neighbours in the site.
template <class Work>
void for_neighbours(const Columns& columns, Work work) {
    for (int p = 0; p < columns.count;) {
        int next = p + 1;
        while (next < columns.count && columns.panels[next] == columns.panels[next - 1] + 1) ++next;
        work(p, next - p);
        p = next;
    }
}

// The registers that a thread configures while it multiplies base weights of type T: tiles, or none.
template <class T>
class Registers {
public:
    explicit Registers(int) {}
};
#if defined(BLORA_AMX)
template <>
class Registers<bf16> {
public:
    explicit Registers(int rows) {
        if (rows > 1) registers_.emplace(rows);
    }

private:
    std::optional<TileRegisters> registers_;
};
#endif

template <class T>
void multiply_base(
    int rows, const Input<T>* x, int64_t x_stride, const T* const* panels, int count, int in, int64_t ahead,
    Fetches* fetches, float* patch) {
#if defined(BLORA_AMX)
    if constexpr (std::is_same_v<T, bf16>)
        return multiply_by_tiles(rows, x, x_stride, panels, count, in, ahead, fetches, patch, PATCH_STRIDE);
#endif
    multiply<T>(rows, x, x_stride, panels, count, PANEL, in, ahead, fetches, patch, PATCH_STRIDE);
}

template <class T>
void compute_patch(
    const Call& call, int token, int rows, const Input<T>* x, const Columns& columns, Fetches& fetches, float* patch) {
    const Linear& layer = *call.layer;
    const T* panels[PATCH_PANELS];
    for (int p = 0; p < columns.count; ++p)
        panels[p] = (const T*)layer.weight + (int64_t)columns.panels[p] * PANEL * layer.in;
    fetches.clear();
    if (call.changes)
        for_neighbours(columns, [&](int p, int count) {
            fetch_b<T>(*call.changes, token, rows, columns.panels[p] * PANEL, count, fetches);
        });
    const int64_t ahead = (int64_t)MULTIPLIED * PANEL * layer.in * (int64_t)sizeof(T);
    {
        [[maybe_unused]] const Registers<T> registers(rows);
        for (int p = 0; p < columns.count; p += MULTIPLIED)
            multiply_base<T>(
                rows, x, layer.in, panels + p, std::min(MULTIPLIED, columns.count - p), layer.in, ahead, &fetches,
                patch + p * PANEL);
    }
    if (call.changes)
        for_neighbours(columns, [&](int p, int count) {
            expand<T>(
                *call.changes, (const Input<T>*)call.h, token, rows, columns.panels[p] * PANEL, count,
                patch + p * PANEL, PATCH_STRIDE);
        });
    if (call.gain_shifts)
        for_neighbours(columns, [&](int p, int count) {
            apply_gain_shifts<T>(
                *call.gain_shifts, (const T*)layer.bias, token, rows, columns.panels[p] * PANEL, count * PANEL,
                patch + p * PANEL, PATCH_STRIDE);
        });
    if (call.epilogue == SILU_MUL) {
        for (int p = 0; p < columns.count / 2; ++p)
            store_gated<T>(
                call, token, rows, columns.panels[p] * PANEL, patch + p * PANEL,
                patch + (p + columns.count / 2) * PANEL);
        return;
    }
    for (int p = 0; p < columns.count; ++p) {
        const int column = columns.panels[p] * PANEL;
        if (call.epilogue == STORE_FLOAT) store_rows<T, float>(call, token, rows, column, patch + p * PANEL, false);
        else store_rows<T, T>(call, token, rows, column, patch + p * PANEL, call.epilogue == ADD);
    }
}

// Rows of x in the type that the multiplication takes.
inline const float* as_input(const float* x, int64_t, Scratch&) { return x; }
inline const Input<bf16>* as_input(const bf16* x, [[maybe_unused]] int64_t count, [[maybe_unused]] Scratch& scratch) {
#if defined(BLORA_PAIRWISE)
    return x;
#else
    float* converted = scratch.get<float>(count);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(converted + i, load(x + i));
    for (; i < count; ++i) converted[i] = to_float(x[i]);
    return converted;
#endif
}

// Rows of a thread's patch.
template <class T>
int patch_rows(int in) {
    if (sizeof(Input<T>) == sizeof(T)) return MAX_PATCH_ROWS;
    const int64_t fitting = INPUT_BYTES / ((int64_t)in * sizeof(float)) / MAX_ROWS * MAX_ROWS;
    return (int)std::min<int64_t>(std::max<int64_t>(fitting, MAX_ROWS), MAX_PATCH_ROWS);
}

// Panels of outputs; where gate and up are multiplied, those of each half.
int patch_columns(const Call& call) {
    return num_panels(call.epilogue == SILU_MUL ? call.layer->out / 2 : call.layer->out);
}

// Computes panels [from, to).
template <class T>
void compute_columns(const Call& call, int from, int to) {
    static thread_local Scratch converted;
    static thread_local Scratch patch_memory;
    static thread_local Fetches fetches;
    float* patch = patch_memory.get<float>(MAX_PATCH_ROWS * PATCH_STRIDE);
    const Linear& layer = *call.layer;
    const bool is_gated = call.epilogue == SILU_MUL;
    const int panels = patch_columns(call);
    const int width = is_gated ? PATCH_PANELS / 2 : PATCH_PANELS;
    const int height = patch_rows<T>(layer.in);
    for (int token = 0; token < call.tokens; token += height) {
        const int rows = std::min(height, call.tokens - token);
        const Input<T>* x = as_input((const T*)call.x + (int64_t)token * layer.in, (int64_t)rows * layer.in, converted);
        for (int first = from; first < to; first += width) {
            const int count = std::min(width, to - first);
            Columns columns = {{}, 0};
            for (int half = 0; half <= (int)is_gated; ++half)
                for (int p = 0; p < count; ++p) columns.panels[columns.count++] = half * panels + first + p;
            compute_patch<T>(call, token, rows, x, columns, fetches, patch);
        }
    }
}

template <class T>
void run(Call call, const LoraPlan* plan) {
    static std::vector<Change> changes;  // static: only one thread calls the kernels
    static std::vector<GainShift> gain_shifts;
    static Scratch h;
    changes.clear();
    gain_shifts.clear();
    if (plan && call.layer->site >= 0) {
        if (plan->has_gain_shift) collect_gain_shifts(*plan, call.layer->site, gain_shifts);
        const int64_t size = collect_changes<T>(*plan, call.layer->site, call.layer->in, changes);
        call.h = h.get<Input<T>>(size);
    }
    call.changes = changes.empty() ? nullptr : &changes;
    call.gain_shifts = gain_shifts.empty() ? nullptr : &gain_shifts;
    const bool is_large = (int64_t)call.tokens * call.layer->in * call.layer->out >= PARALLEL_WORK;
    if (call.changes) {
        const int num_pieces = is_large ? num_threads() : 1;
        share(num_pieces, [&](int piece) {
            shrink<T>(*call.changes, (const T*)call.x, call.layer->in, (Input<T>*)call.h, piece, num_pieces);
        });
    }
    share_ranges(patch_columns(call), is_large, [&](int from, int to) { compute_columns<T>(call, from, to); });
}

template <class T>
void pack_panels(T* weight, int out, int in) {
    Scratch scratch;
    T* panel = scratch.get<T>((size_t)PANEL * in);
    for (int p = 0; p < num_panels(out); ++p) {
        T* rows = weight + (int64_t)p * PANEL * in;
        std::memset((void*)panel, 0, sizeof(T) * PANEL * in);
        for (int i = 0; i < std::min(PANEL, out - p * PANEL); ++i)
            for (int k = 0; k < in; ++k) panel[place<T>(k, i, PANEL)] = rows[(int64_t)i * in + k];
        std::memcpy((void*)rows, panel, sizeof(T) * PANEL * in);
    }
}

template <class T>
void unpack_rows(const T* packed, int in, const int64_t* ids, int count, T* y) {
    share_ranges(count, (int64_t)count * in >= PARALLEL_WORK, [&](int first, int last) {
        for (int i = first; i < last; ++i) {
            const T* panel = packed + ids[i] / PANEL * PANEL * in;
            for (int k = 0; k < in; k += PACK<T>)
                std::memcpy(
                    (void*)(y + (int64_t)i * in + k), panel + place<T>(k, (int)(ids[i] % PANEL), PANEL),
                    PACK<T> * sizeof(T));
        }
    });
}

}  // namespace
}  // namespace blora

extern "C" {

int32_t blora_may_run() { return blora::may_run(); }

void blora_linear(
    const Linear* layer, const void* x, void* y, int32_t tokens, int32_t y_stride, int32_t epilogue,
    const LoraPlan* plan) {
    blora::Call call = {layer, x, y, tokens, y_stride, epilogue, nullptr, nullptr, nullptr};
    if (layer->dtype == FLOAT32) blora::run<float>(call, plan);
    else blora::run<blora::bf16>(call, plan);
}

void blora_pack(void* weight, int32_t out, int32_t in, int32_t dtype) {
    if (dtype == FLOAT32) blora::pack_panels((float*)weight, out, in);
    else blora::pack_panels((blora::bf16*)weight, out, in);
}

void blora_unpack_rows(const void* packed, int32_t in, int32_t dtype, const int64_t* ids, int32_t count, void* y) {
    if (dtype == FLOAT32) blora::unpack_rows((const float*)packed, in, ids, count, (float*)y);
    else blora::unpack_rows((const blora::bf16*)packed, in, ids, count, (blora::bf16*)y);
}
}
