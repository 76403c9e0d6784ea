// Matrices as the multiplication reads them.
//
// A weight [out, in] is cut into panels of 16 outputs. In a panel of bfloat16 two inputs of one output stand together,
// [in / 2][16][2], the operand of a pairwise dot product; in one of float they stand alone, [in][16]. The last panel is
// filled up with zero rows. A panel is as large as the 16 rows it is made of, so that packing is done in place.
#pragma once

#include "simd.h"

namespace blora {

constexpr int PANEL = 16;              // outputs
constexpr int VECS = PANEL / LANES;    // vectors in a row of a panel

inline int num_panels(int out) { return (out + PANEL - 1) / PANEL; }

// Inputs that stand together in a panel.
template <class T>
constexpr int PACK = sizeof(T) == 2 ? 2 : 1;

// Place of (input, output) in a panel of `width` outputs.
template <class T>
inline int64_t place(int64_t input, int output, int width) {
    return input / PACK<T> * width * PACK<T> + output * PACK<T> + input % PACK<T>;
}

}  // namespace blora
