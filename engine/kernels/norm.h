// RMS norm, x / sqrt(mean(x^2) + eps) * weight: normalised in float, rounded, weighted and rounded, like Hugging
// Face's.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

namespace blora {

// y may be x.
template <class T>
void rms_norm(const T* x, const T* weight, int width, float eps, T* y) {
    VecF squares = {};
    for (int i = 0; i < width; i += LANES) {
        VecF v = load_first(x + i, std::min(LANES, width - i));
        squares = fma(v, v, squares);
    }
    const VecF scale = splat(1.0f / std::sqrt(sum(squares) / (float)width + eps));
    for (int i = 0; i < width; i += LANES) {
        const int count = std::min(LANES, width - i);
        VecF normed = rounded<T>(load_first(x + i, count) * scale);
        store_first(y + i, load_first(weight + i, count) * normed, count);
    }
}

}  // namespace blora
