// How adapters change embeddings and logits: by LoRA on an embedding, and by token rows of their own, which replace
// rows of the model's matrix or belong to tokens beyond its end.
//
// Every token is computed by itself and in one order.

#include "entry.h"
#include "gain_shift.h"
#include "lora.h"
#include "scratch.h"
#include "team.h"

namespace blora {
namespace {

constexpr int64_t PARALLEL_WORK = 1 << 17;  // with fewer multiplications, one thread is as fast

// The index of a token's own row, or -1.
int64_t row_of(const LoraSlice& slice, int64_t token) {
    if (!slice.row_ids) return token < slice.num_rows ? token : -1;
    const int64_t *end = slice.row_ids + slice.num_rows, *at = std::lower_bound(slice.row_ids, end, token);
    return at < end && *at == token ? at - slice.row_ids : -1;
}

template <class T>
const T* row_at(const LoraChunk*& chunk, int64_t row, int width) {
    return (const T*)(const void*)piece_at(chunk, (int)row, width * (int)sizeof(T));
}

// sums: [width] float, of one token. Each group of an embedding's A is stored as rows, one for each token, of the
// ranks.
template <class T>
void add_product(const LoraSlice& slice, float scale, int64_t token, float* sums) {
    const LoraChunk *a = slice.a, *b = slice.b;
    for (int rank = 0; rank < slice.rank;) {
        const int width = group_width(slice.rank - rank);
        const LoraChunk* chunk = a;
        const T* ranks = row_at<T>(chunk, token, width);
        Input<T> h[PANEL];
        for (int i = 0; i < width; ++i) h[i] = as_stored<T>(scale * slice.scaling * to_float(ranks[i]));
        chunk = b;
        for (int panel = 0; panel < num_panels(slice.out); ++panel) {
            float delta[PANEL];
            const T* panels[1] = {(const T*)(const void*)piece_at(chunk, panel, width * PANEL * (int)sizeof(T))};
            multiply_patch<T, 1, 1, false>(h, width, panels, PANEL, width, {}, {}, delta, PANEL);
            for (int i = 0; i < std::min(PANEL, slice.out - panel * PANEL); ++i) sums[panel * PANEL + i] += delta[i];
        }
        rank += width;
        if (rank < slice.rank) a = behind(a, slice.in), b = behind(b, num_panels(slice.out));
    }
}

template <class T>
void embed_use(const LoraUse& use, const LoraSlice& slice, int64_t token, int width, float* sums) {
    if (slice.rows) {
        const int64_t row = row_of(slice, token);
        if (row >= 0) {
            const LoraChunk* chunk = slice.rows;
            const T* values = row_at<T>(chunk, row, width);
            for (int i = 0; i < width; ++i) sums[i] = to_float(values[i]);
            return;
        }
    }
    if (token >= slice.in) return;
    add_product<T>(slice, use.scale, token, sums);
    if (!slice.gain) return;
    const LoraChunk* chunk = slice.gain;
    for (int i = 0; i < width; ++i) sums[i] *= gain_shift_panel(chunk, i / PANEL)[i % PANEL];
}

template <class T>
void embed(const LoraPlan& plan, int site, const int64_t* ids, int width, T* y) {
    static Scratch memory;
    float* sums = memory.get<float>(width);
    for (int first = 0, last; first < plan.num_uses; first = last) {  // [first, last): the uses of the same tokens
        for (last = first + 1; last < plan.num_uses && plan.uses[last].start == plan.uses[first].start;) ++last;
        for (int token = plan.uses[first].start; token < plan.uses[first].end; ++token) {
            T* row = y + (int64_t)token * width;
            for (int i = 0; i < width; ++i) sums[i] = to_float(row[i]);
            for (int i = first; i < last; ++i) {
                const LoraUse& use = plan.uses[i];
                for (int slice = use.sites[site]; slice < use.sites[site + 1]; ++slice)
                    embed_use<T>(use, use.slices[slice], ids[token], width, sums);
            }
            for (int i = 0; i < width; ++i) row[i] = from_float<T>(sums[i]);
        }
    }
}

template <class T>
float dot_row(const T* x, const T* row, int width) {
    VecF total = {};
    for (int i = 0; i < width; i += LANES) {
        const int count = std::min(LANES, width - i);
        total = fma(load_first(x + i, count), load_first(row + i, count), total);
    }
    return sum(total);
}

template <class T>
void replace_logits(const LoraUse& use, const LoraSlice& slice, const T* x, int in, int64_t y_stride, float* y) {
    const bool is_large = (int64_t)slice.num_rows * in * (use.end - use.start) >= PARALLEL_WORK;
    share_ranges(slice.num_rows, is_large, [&](int first, int last) {
        const LoraChunk* chunk = slice.rows;
        for (int k = first; k < last; ++k) {
            const T* row = row_at<T>(chunk, k, in);
            const int64_t id = slice.row_ids ? slice.row_ids[k] : k;
            for (int token = use.start; token < use.end; ++token)
                y[token * y_stride + id] = dot_row(x + (int64_t)token * in, row, in);
        }
    });
}

template <class T>
void replace_all(const LoraPlan& plan, int site, const T* x, int in, int64_t y_stride, float* y) {
    for (int i = 0; i < plan.num_uses; ++i) {
        const LoraUse& use = plan.uses[i];
        for (int slice = use.sites[site]; slice < use.sites[site + 1]; ++slice)
            if (use.slices[slice].rows) replace_logits<T>(use, use.slices[slice], x, in, y_stride, y);
    }
}

}  // namespace
}  // namespace blora

extern "C" {

void blora_embed(
    const LoraPlan* plan, int32_t site, const int64_t* ids, int32_t width, int32_t dtype, void* y) {
    if (dtype == FLOAT32) blora::embed(*plan, site, ids, width, (float*)y);
    else blora::embed(*plan, site, ids, width, (blora::bf16*)y);
}

void blora_replace_logits(
    const LoraPlan* plan, int32_t site, const void* x, int32_t in, int32_t y_stride, int32_t dtype, float* y) {
    if (dtype == FLOAT32) blora::replace_all(*plan, site, (const float*)x, in, y_stride, y);
    else blora::replace_all(*plan, site, (const blora::bf16*)x, in, y_stride, y);
}
}
