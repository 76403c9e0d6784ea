// Packed matrices, as the multiplication reads them.
//
// A weight [out, in] is cut into panels of 16 outputs. A panel of float is [in][16]. A panel of bfloat16 keeps two
// inputs of an output together, [in / 2][16][2], the operand of a pairwise dot product. The last panel is padded with
// zero rows. A panel is as large as the 16 rows it is made of, so packing is done in place.
#pragma once

#include "simd.h"

namespace blora {

constexpr int PANEL = 16;              // outputs
constexpr int VECS = PANEL / LANES;    // SIMD vectors in a row of a panel

inline int num_panels(int out) { return (out + PANEL - 1) / PANEL; }

// Inputs of an output that a panel keeps together.
template <class T>
constexpr int PACK = sizeof(T) == 2 ? 2 : 1;

// Index of (input, output) in a panel of `width` outputs.
template <class T>
inline int64_t place(int64_t input, int output, int width) {
    return input / PACK<T> * width * PACK<T> + output * PACK<T> + input % PACK<T>;
}

}  // namespace blora
