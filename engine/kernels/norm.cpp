// Norms and activations over rows; each row is computed by one thread.

#include "norm.h"

#include "entry.h"
#include "team.h"

namespace blora {
namespace {

constexpr int64_t PARALLEL_VALUES = 1 << 15;  // with fewer values, one thread is as fast

template <class T>
void norm_rows(const T* x, const T* weight, int rows, int width, float eps, T* y) {
    share_ranges(rows, (int64_t)rows * width >= PARALLEL_VALUES, [&](int first, int last) {
        for (int row = first; row < last; ++row)
            rms_norm(x + (int64_t)row * width, weight, width, eps, y + (int64_t)row * width);
    });
}

template <class T>
void gate_rows(const T* x, int rows, int width, T* y) {
    share_ranges(rows, (int64_t)rows * width >= PARALLEL_VALUES, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            const T* gate = x + (int64_t)row * 2 * width;
            for (int i = 0; i < width; i += LANES) {
                const int count = std::min(LANES, width - i);
                VecF value = silu(load_first(gate + i, count)) * load_first(gate + width + i, count);
                store_first(y + (int64_t)row * width + i, value, count);
            }
        }
    });
}

}  // namespace
}  // namespace blora

extern "C" {

int32_t blora_interface() { return BLORA_INTERFACE; }

void blora_rms_norm(
    const void* x, const void* weight, int32_t rows, int32_t width, float eps, int32_t dtype, void* y) {
    using namespace blora;
    if (dtype == FLOAT32) norm_rows((const float*)x, (const float*)weight, rows, width, eps, (float*)y);
    else norm_rows((const bf16*)x, (const bf16*)weight, rows, width, eps, (bf16*)y);
}

void blora_silu_mul(const void* x, int32_t rows, int32_t width, int32_t dtype, void* y) {
    using namespace blora;
    if (dtype == FLOAT32) gate_rows((const float*)x, rows, width, (float*)y);
    else gate_rows((const bf16*)x, rows, width, (bf16*)y);
}
}
