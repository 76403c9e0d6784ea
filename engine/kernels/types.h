// The structures that Python fills (library.py has the same fields in the same order), and nothing else.
#pragma once

#include <cstdint>

extern "C" {

enum Dtype : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

// Pieces that stand one after another in a page: 8 lines of A, a panel of B or of a vector each (see changes.h).
struct LoraChunk {
    const char* at;
    int32_t first, count;  // pieces of the group of ranks
};

// One module of one adapter, as it stands in the arena.
struct LoraSlice {
    const LoraChunk* a;    // of each group of ranks, one group after another
    const LoraChunk* b;
    const LoraChunk* shift;  // [out] float in panels, or null; see vectors.h
    const LoraChunk* gain;   // [out] float in panels, or null
    const LoraChunk* rows;   // rows of tokens in an embedding or a head, or null; see tables.cpp
    const int64_t* row_ids;  // [num_rows] ascending; null is 0, 1, ...
    int32_t column;        // first output in the site
    int32_t out;
    int32_t rank;
    float scaling;         // alpha / rank, or what stands for it
    int32_t in;
    int32_t num_rows;
};

// Tokens [start, end) use one adapter. Uses of the same tokens stand together, in order of addition.
struct LoraUse {
    int32_t start, end;
    float scale;  // of the request
    int32_t unused;
    const LoraSlice* slices;
    const int32_t* sites;  // [num_sites + 1] first slice of each site
};

struct LoraPlan {
    int32_t num_uses;
    int32_t has_gain_shift;     // whether any slice has a shift or a gain
    const LoraUse* uses;
};

// y = x W^T + bias. The weight is packed: see pack.h.
struct Linear {
    const void* weight;
    const void* bias;  // [out] of the dtype, or null
    int32_t out, in;
    int32_t site;      // -1 where no adapter can land
    int32_t dtype;
};

enum Epilogue : int32_t {
    STORE = 0,         // y: [tokens, out] of the dtype
    ADD = 1,           // y: [tokens, out] of the dtype, added to
    SILU_MUL = 2,      // y: [tokens, out / 2] = silu(first half) * second half
    STORE_FLOAT = 3,   // y: [tokens, out] float
};

// Heads of one layer and where their KV is.
struct AttentionLayer {
    void* pages;             // the arena
    int64_t page_bytes;
    int64_t offset;          // bytes, of this layer in a page
    const float* cos;        // [positions, head_dim / 2]
    const float* sin;
    const void* qk_norm;     // [num_heads + num_kv_heads, head_dim] of the dtype, or null
    float eps;               // of qk_norm
    float scale;             // of the scores
    float softcap;           // 0 is none
    int32_t window;          // 0 is none
    int32_t num_heads, num_kv_heads, head_dim, block_size;
    int32_t dtype;
    int32_t unused;
};

// Row i computes tokens [starts[i], starts[i + 1]) of the batch, the last ones of its seq_lens[i] tokens.
struct AttentionPlan {
    int32_t num_rows, num_tokens;
    const int32_t* starts;    // [num_rows + 1]
    const int32_t* seq_lens;  // [num_rows]
    const int32_t* tables;    // all block tables, one after another
    const int32_t* table_at;  // [num_rows] first entry of each row's
};

struct DecoderLayer {
    Linear qkv, out, gate_up, down;
    AttentionLayer attention;
    const void* input_norm;           // [hidden] of the dtype
    const void* post_attention_norm;  // [hidden]
    float eps;
    int32_t unused;
};

// What a step's tokens are on their way through the layers, all [num_tokens, ...] of the dtype.
struct Activations {
    void* hidden;    // the residual stream
    void* normed;
    void* qkv;
    void* attended;
    void* gate_up;   // null where gate and up are whole panels: then SILU_MUL makes `gated` at once
    void* gated;
    int32_t num_tokens;
    int32_t unused;
};
}
