// All decoder layers of a step in one call: it runs the other kernels in the order of engine/model/decoder.py.

#include <chrono>

#include "entry.h"

namespace blora {
namespace {

enum Timer { LINEAR = 0, ATTENTION = 1, NORM = 2 };

// Adds the time since the last count to one of `seconds`; counts nothing where `seconds` is null.
class Clock {
public:
    explicit Clock(double* seconds) : seconds_(seconds) {
        if (seconds_) last_ = std::chrono::steady_clock::now();
    }
    void count(Timer timer) {
        if (!seconds_) return;
        const auto now = std::chrono::steady_clock::now();
        seconds_[timer] += std::chrono::duration<double>(now - last_).count();
        last_ = now;
    }

private:
    double* seconds_;
    std::chrono::steady_clock::time_point last_;
};

void run_layer(
    const DecoderLayer& layer, const Activations& at, const AttentionPlan* rows, const LoraPlan* lora, Clock& clock) {
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

void blora_decoder(
    const DecoderLayer* layers, int32_t num_layers, const Activations* at, const AttentionPlan* rows,
    const LoraPlan* lora, double* seconds) {
    blora::Clock clock(seconds);
    for (int32_t layer = 0; layer < num_layers; ++layer) blora::run_layer(layers[layer], *at, rows, lora, clock);
}
}
