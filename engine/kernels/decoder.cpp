// All decoder layers of a step in one call: the order of the other kernels, which engine/kernels/decoder.py's class names.

#include <omp.h>

#include "types.h"

extern "C" {
void blora_rms_norm(const void*, const void*, int32_t, int32_t, float, int32_t, void*);
void blora_silu_mul(const void*, int32_t, int32_t, int32_t, void*);
void blora_linear(const Linear*, const void*, void*, int32_t, int32_t, int32_t, const LoraPlan*);
void blora_attention(const AttentionLayer*, const AttentionPlan*, const void*, void*);
}

namespace blora {
namespace {

// Adds the time since it was last asked to one of `seconds`; null is not interested.
class Clock {
public:
    explicit Clock(double* seconds) : seconds_(seconds), last_(seconds ? omp_get_wtime() : 0) {}
    void count(int part) {
        if (!seconds_) return;
        const double now = omp_get_wtime();
        seconds_[part] += now - last_;
        last_ = now;
    }

private:
    double* seconds_;
    double last_;
};

enum Part { LINEAR = 0, ATTENTION = 1, NORM = 2 };

void run_layer(const DecoderLayer& layer, const Activations& at, const AttentionPlan* rows, const LoraPlan* lora, Clock& clock) {
    const int32_t tokens = at.num_tokens, hidden = layer.qkv.in, dtype = layer.qkv.dtype;
    blora_rms_norm(at.hidden, layer.input_norm, tokens, hidden, layer.eps, dtype, at.normed);
    clock.count(NORM);
    blora_linear(&layer.qkv, at.normed, at.qkv, tokens, layer.qkv.out, STORE, lora);
    clock.count(LINEAR);
    blora_attention(&layer.attention, rows, at.qkv, at.attended);
    clock.count(ATTENTION);
    blora_linear(&layer.out, at.attended, at.hidden, tokens, hidden, ADD, lora);
    clock.count(LINEAR);
    blora_rms_norm(at.hidden, layer.post_attention_norm, tokens, hidden, layer.eps, dtype, at.normed);
    clock.count(NORM);
    if (at.gate_up) {
        blora_linear(&layer.gate_up, at.normed, at.gate_up, tokens, layer.gate_up.out, STORE, lora);
        blora_silu_mul(at.gate_up, tokens, layer.down.in, dtype, at.gated);
    } else {
        blora_linear(&layer.gate_up, at.normed, at.gated, tokens, layer.down.in, SILU_MUL, lora);
    }
    blora_linear(&layer.down, at.gated, at.hidden, tokens, hidden, ADD, lora);
    clock.count(LINEAR);
}

}  // namespace
}  // namespace blora

extern "C" {

// Changes at.hidden. lora: null where no token has an adapter. seconds: [linear, attention, norm] to add to, or null.
BLORA_API void blora_decoder(
    const DecoderLayer* layers, int32_t num_layers, const Activations* at, const AttentionPlan* rows,
    const LoraPlan* lora, double* seconds) {
    blora::Clock clock(seconds);
    for (int32_t layer = 0; layer < num_layers; ++layer) blora::run_layer(layers[layer], *at, rows, lora, clock);
}
}
