// The functions that Python calls, each declared here and nowhere else. A source that defines one includes this header,
// so that the compiler checks the definition; library.py binds the same names, with the same arguments.
#pragma once

#include "types.h"

// A definition without a declaration here stays hidden, and library.py does not find it.
#define BLORA_API __attribute__((visibility("default")))

// The version of everything that Python and the kernels agree on: structures, functions, layouts of weights and pages.
// library.py has the same number, and does not load a library with another one.
#define BLORA_INTERFACE 8

extern "C" {

// Returns BLORA_INTERFACE.
BLORA_API int32_t blora_interface();

// Whether the operating system lets this process use the instructions of this build. Python calls it before any kernel.
BLORA_API int32_t blora_may_run();

// Sets the number of threads that compute each later call, at first 1.
BLORA_API void blora_set_num_threads(int32_t number);

// Sets the number of threads of OpenMP, which are torch's, for regions that this thread begins. Returns the one before.
BLORA_API int32_t blora_set_openmp_threads(int32_t number);

// x: [tokens, in] of the layer's dtype. y: see Epilogue; its rows begin y_stride values apart. plan: null where no
// token has an adapter.
BLORA_API void blora_linear(
    const Linear* layer, const void* x, void* y, int32_t tokens, int32_t y_stride, int32_t epilogue,
    const LoraPlan* plan);

// Packs a weight in place. weight: [out, in], in memory for out rounded up to 16. in is even for bfloat16.
BLORA_API void blora_pack(void* weight, int32_t out, int32_t in, int32_t dtype);

// y[i] = row ids[i] of a packed matrix.
BLORA_API void blora_unpack_rows(
    const void* packed, int32_t in, int32_t dtype, const int64_t* ids, int32_t count, void* y);

// x, y: [rows, width], weight: [width]. y may be x.
BLORA_API void blora_rms_norm(
    const void* x, const void* weight, int32_t rows, int32_t width, float eps, int32_t dtype, void* y);

// y = silu(first half) * second half. x: [rows, 2 * width], y: [rows, width].
BLORA_API void blora_silu_mul(const void* x, int32_t rows, int32_t width, int32_t dtype, void* y);

// qkv: [tokens, (num_heads + 2 * num_kv_heads) * head_dim]. y: [tokens, num_heads * head_dim].
// The arena has 64 readable bytes behind its last page, for panels of fewer than 16 tokens.
BLORA_API void blora_attention(const AttentionLayer* layer, const AttentionPlan* plan, const void* qkv, void* y);

// Runs all layers and changes at->hidden. lora: null where no token has an adapter. seconds: [linear, attention, norm],
// which the time that each took is added to, or null.
BLORA_API void blora_decoder(
    const DecoderLayer* layers, int32_t num_layers, const Activations* at, const AttentionPlan* rows,
    const LoraPlan* lora, double* seconds);

// y: [tokens, width] of the dtype, embeddings of the base model; changed for the tokens of the plan.
BLORA_API void blora_embed(
    const LoraPlan* plan, int32_t site, const int64_t* ids, int32_t width, int32_t dtype, void* y);

// x: [tokens, in] of the dtype. y: [tokens, y_stride] float, logits; where an adapter has a token's row, the logit
// becomes x times that row.
BLORA_API void blora_replace_logits(
    const LoraPlan* plan, int32_t site, const void* x, int32_t in, int32_t y_stride, int32_t dtype, float* y);

// logits: [rows, stride], of which row i has the first vocabs[i]; null: all of them. ids: [rows], the first of the
// largest logits of each row. is_finite: [rows], whether all logits of the row are finite.
BLORA_API void blora_scan(
    const float* logits, int32_t rows, int32_t stride, const int32_t* vocabs, int64_t* ids, uint8_t* is_finite);

// logits: [rows, stride]; of a row with a mask, those whose bit is 0 become -infinity. masks: [rows] of
// [ceil(vocab / 32)], the lowest bit first; null: the row stays as it is. ids: [rows], changed for rows with masks: the
// first of the largest logits that are left, or the size of the row's vocabulary if none is.
BLORA_API void blora_mask(
    float* logits, int32_t rows, int32_t stride, const int32_t* vocabs, const uint32_t* const* masks, int64_t* ids);

// Returns a token drawn from softmax(logits / temperature). logits: [vocab], without NaN. key: of (seed, sample,
// position).
BLORA_API int32_t blora_draw(const float* logits, int32_t vocab, double temperature, uint64_t key);
}
