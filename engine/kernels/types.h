// The structures that Python fills. library.py and adapters/cpu.py have the same fields in the same order.
#pragma once

#include <cstdint>

extern "C" {

enum Dtype : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

// Consecutive pieces in a page. A piece is 8 lines of A (see changes.h), a row of an embedding's A, a panel of B, of a
// shift or of a gain, or a token row.
struct LoraChunk {
    const char* at;
    int32_t first, count;  // index of its first piece in the group of ranks, and number of pieces
};

// One module of one adapter, as it is stored in the arena.
struct LoraSlice {
    const LoraChunk* a;      // of all groups of ranks, one group after another
    const LoraChunk* b;      // likewise
    const LoraChunk* shift;  // [out] float in panels, or null; see gain_shift.h
    const LoraChunk* gain;   // [out] float in panels, or null
    const LoraChunk* rows;   // token rows of an embedding or a head, or null; see token_rows.cpp
    const int64_t* row_ids;  // [num_rows] token ids, ascending; null: 0, 1, ...
    int32_t column;          // first output in the site
    int32_t out;
    int32_t rank;
    float scaling;           // alpha / rank, or alpha / sqrt(rank)
    int32_t in;
    int32_t num_rows;
};

// One adapter that tokens [start, end) use. Uses of the same tokens are neighbours, in their order of addition.
struct LoraUse {
    int32_t start, end;
    float scale;  // the request's
    int32_t unused;
    const LoraSlice* slices;
    const int32_t* sites;  // [num_sites + 1] index of the first slice of each site
};

struct LoraPlan {
    int32_t num_uses;
    int32_t has_gain_shift;  // whether any slice has a gain or a shift
    const LoraUse* uses;
};

// y = x W^T + bias. The weight is packed (see pack.h).
struct Linear {
    const void* weight;
    const void* bias;  // [out] of the dtype, or null
    int32_t out, in;
    int32_t site;      // -1 if no adapter can change the layer
    int32_t dtype;
};

enum Epilogue : int32_t {
    STORE = 0,         // y: [tokens, out] of the dtype
    ADD = 1,           // y: [tokens, out] of the dtype; the result is added to it
    SILU_MUL = 2,      // y: [tokens, out / 2] = silu(first half) * second half
    STORE_FLOAT = 3,   // y: [tokens, out] float
};

// The heads of one layer, and the place of their KV.
struct AttentionLayer {
    void* pages;             // the arena
    int64_t page_bytes;
    int64_t offset;          // bytes from the start of a page to this layer's slab
    const float* cos;        // [positions, head_dim / 2]
    const float* sin;
    const void* qk_norm;     // [num_heads + num_kv_heads, head_dim] of the dtype, or null
    float eps;               // of qk_norm
    float scale;             // factor of the scores
    float softcap;           // 0: none
    int32_t window;          // tokens; 0: none
    int32_t num_heads, num_kv_heads, head_dim, block_size;
    int32_t dtype;
    int32_t unused;
};

// Row i computes tokens [starts[i], starts[i + 1]) of the batch, which are the last of its seq_lens[i] tokens.
struct AttentionPlan {
    int32_t num_rows, num_tokens;
    const int32_t* starts;    // [num_rows + 1]
    const int32_t* seq_lens;  // [num_rows]
    const int32_t* tables;    // all block tables, one after another
    const int32_t* table_at;  // [num_rows] first entry of each row's table
};

struct DecoderLayer {
    Linear qkv, out, gate_up, down;
    AttentionLayer attention;
    const void* input_norm;           // [hidden] of the dtype
    const void* post_attention_norm;  // [hidden]
    float eps;
    int32_t unused;
};

// The activations of a step's tokens, all [num_tokens, ...] of the dtype. The layers share them.
struct Activations {
    void* hidden;    // the residual stream
    void* normed;
    void* qkv;
    void* attended;
    void* gate_up;   // null if gate and up are whole panels: SILU_MUL then computes `gated` at once
    void* gated;
    int32_t num_tokens;
    int32_t unused;
};
}
