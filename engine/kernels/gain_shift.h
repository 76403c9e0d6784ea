// Gain and shift: how adapters change the outputs of a slice after all products, y = gain * (y + bias) + scale * shift.
//
// DoRA has a gain, trained biases give a shift. Both are vectors over the outputs of a slice, float, in panels of 16.
#pragma once

#include "lora.h"

namespace blora {

// The gain and the shift of one slice of one use.
struct GainShift {
    const LoraChunk* shift;  // or null
    const LoraChunk* gain;   // or null
    int start, end;          // tokens [start, end)
    int column, out;         // first output of the slice in the site, and number of outputs
    float scale;             // the request's, for the shift
};

inline void collect_gain_shifts(const LoraPlan& plan, int site, std::vector<GainShift>& gain_shifts) {
    gain_shifts.clear();
    for (int i = 0; i < plan.num_uses; ++i) {
        const LoraUse& use = plan.uses[i];
        for (const LoraSlice* slice = use.slices + use.sites[site]; slice < use.slices + use.sites[site + 1]; ++slice)
            if (slice->shift || slice->gain)
                gain_shifts.push_back(
                    {slice->shift, slice->gain, use.start, use.end, slice->column, slice->out, use.scale});
    }
}

inline const float* gain_shift_panel(const LoraChunk*& chunk, int panel) {
    return (const float*)(const void*)piece_at(chunk, panel, PANEL * (int)sizeof(float));
}

// Changes `count` neighbouring outputs. Every pointer is to the first of them.
template <class T>
void change_outputs(
    const float* shift, const float* gain, float scale, const T* bias, int rows, int count, float* patch,
    int patch_stride) {
    for (int row = 0; row < rows; ++row, patch += patch_stride)
        for (int i = 0; i < count; ++i) {
            // The bias itself, without the gain, is added when the patch is stored.
            if (gain) patch[i] = gain[i] * patch[i] + (bias ? (gain[i] - 1) * to_float(bias[i]) : 0);
            if (shift) patch[i] += scale * shift[i];
        }
}

// Applies gains and shifts to a patch that holds the base product and the changes: tokens [token, token + rows),
// outputs [column, column + columns) of the site. bias: the layer's, or null.
template <class T>
void apply_gain_shifts(
    const std::vector<GainShift>& gain_shifts, const T* bias, int token, int rows, int column, int columns,
    float* patch, int patch_stride) {
    for (const GainShift& own : gain_shifts) {
        const int start = std::max(own.start, token), end = std::min(own.end, token + rows);
        const int from = std::max(own.column, column), to = std::min(own.column + own.out, column + columns);
        const LoraChunk *shift = own.shift, *gain = own.gain;
        if (start >= end) continue;
        for (int at = from, next; at < to; at = next) {
            const int panel = (at - own.column) / PANEL, begin = own.column + panel * PANEL;
            next = std::min(begin + PANEL, to);
            change_outputs<T>(
                shift ? gain_shift_panel(shift, panel) + (at - begin) : nullptr,
                gain ? gain_shift_panel(gain, panel) + (at - begin) : nullptr, own.scale, bias ? bias + at : nullptr,
                end - start, next - at, patch + (int64_t)(start - token) * patch_stride + (at - column), patch_stride);
        }
    }
}

}  // namespace blora
