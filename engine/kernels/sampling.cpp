// Tokens from logits: the best of each row, and a seeded draw by the Gumbel-max trick (engine/step/sampler.py has the
// source).

#include <algorithm>
#include <cmath>
#include <limits>

#include "entry.h"
#include "simd.h"
#include "team.h"

namespace blora {
namespace {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull, MIX1 = 0xBF58476D1CE4E5B9ull, MIX2 = 0x94D049BB133111EBull;
constexpr int64_t PARALLEL_VALUES = 1 << 15;  // with fewer values, one thread is as fast
constexpr float MARGIN = 1.001f;  // larger than the error of exp() and the roundings around it

// The first of the largest logits, and whether all are finite.
void scan_row(const float* logits, int vocab, int64_t* id, uint8_t* is_finite) {
    VecF top = splat(-std::numeric_limits<float>::infinity()), zeros = {};
    for (int i = 0; i < vocab; i += LANES) {
        const VecF v = load_first(logits + i, std::min(LANES, vocab - i));
        zeros += v * splat(0.0f);  // NaN where v is not finite
        if (i + LANES <= vocab) top = max(v, top);
    }
    float best = largest(top);
    for (int i = vocab / LANES * LANES; i < vocab; ++i) best = std::max(best, logits[i]);
    *is_finite = sum(zeros) == 0.0f;
    int at = 0;
    while (at < vocab - 1 && logits[at] != best) ++at;
    *id = at;
}

// Gives -infinity to the logits whose bit is 0. Most words of a mask are all zeros or all ones.
void mask_row(float* logits, int vocab, const uint32_t* mask) {
    for (int first = 0; first < vocab; first += 32) {
        const uint32_t bits = mask[first / 32];
        if (bits == ~0u) continue;
        for (int i = 0, count = std::min(32, vocab - first); i < count; ++i)
            if (!(bits >> i & 1)) logits[first + i] = -std::numeric_limits<float>::infinity();
    }
}

// A number in (0, 1) made from (key, token), and its distance from 1.
struct Uniform {
    double value;
    float rest;

    Uniform(uint64_t key, uint64_t token) {
        uint64_t bits = token * GOLDEN + key;
        bits = (bits ^ (bits >> 30)) * MIX1;
        bits = (bits ^ (bits >> 27)) * MIX2;
        bits ^= bits >> 31;
        value = ((double)(bits >> 12) + 0.5) * 0x1p-52;
        rest = (float)(1.0 - value);
    }
    double gumbel() const { return -std::log(-std::log(value)); }
};

struct Draw {
    const float* logits;
    int vocab;
    double temperature;
    uint64_t key;
    double top = 0;                                          // the largest logit
    double best = -std::numeric_limits<double>::infinity();  // perturbed score
    int id = 0;

    double score(int token) const { return ((double)logits[token] - top) / temperature; }

    void consider(int token) {
        const double perturbed = score(token) + Uniform(key, token).gumbel();
        if (perturbed > best || (perturbed == best && token < id)) best = perturbed, id = token;
    }

    // A token beats the best only if its number u > exp(-exp(score - best)), hence 1 - u < exp(score - best). The check
    // needs no logarithm, so logarithms are taken for few tokens of the vocabulary.
    int run(int likeliest) {
        top = logits[likeliest];
        id = likeliest;
        consider(likeliest);
        for (int first = 0; first < vocab; first += LANES) {
            const int count = std::min(LANES, vocab - first);
            VecF distance, rest;
            for (int i = 0; i < LANES; ++i) {
                distance[i] = i < count ? (float)(score(first + i) - best) : -std::numeric_limits<float>::infinity();
                rest[i] = Uniform(key, first + i).rest;
            }
            const VecI can_win = rest < exp(distance) * splat(MARGIN);
            for (int i = 0; i < count; ++i)
                if (can_win[i] && first + i != likeliest && logits[first + i] > -std::numeric_limits<float>::infinity())
                    consider(first + i);
        }
        return id;
    }
};

}  // namespace
}  // namespace blora

extern "C" {

void blora_scan(
    const float* logits, int32_t rows, int32_t stride, const int32_t* vocabs, int64_t* ids, uint8_t* is_finite) {
    blora::share_ranges(rows, (int64_t)rows * stride >= blora::PARALLEL_VALUES, [&](int first, int last) {
        for (int row = first; row < last; ++row)
            blora::scan_row(logits + (int64_t)row * stride, vocabs ? vocabs[row] : stride, ids + row, is_finite + row);
    });
}

void blora_mask(
    float* logits, int32_t rows, int32_t stride, const int32_t* vocabs, const uint32_t* const* masks, int64_t* ids) {
    blora::share_ranges(rows, (int64_t)rows * stride >= blora::PARALLEL_VALUES, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            if (!masks[row]) continue;
            float* own = logits + (int64_t)row * stride;
            const int vocab = vocabs ? vocabs[row] : stride;
            uint8_t is_finite;
            blora::mask_row(own, vocab, masks[row]);
            blora::scan_row(own, vocab, ids + row, &is_finite);
            if (own[ids[row]] == -std::numeric_limits<float>::infinity()) ids[row] = vocab;
        }
    });
}

int32_t blora_draw(const float* logits, int32_t vocab, double temperature, uint64_t key) {
    int64_t likeliest;
    uint8_t is_finite;
    blora::scan_row(logits, vocab, &likeliest, &is_finite);
    return blora::Draw{logits, vocab, temperature, key}.run((int)likeliest);
}
}
