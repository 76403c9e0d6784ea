// The changes that adapters make at one site: one for each (use, slice, group of ranks), and where its pieces are
// stored.
//
// Ranks are stored in groups of 16, 8 and 4; the last group is padded with zeros. A unit is 4 bytes of inputs: two
// bfloat16 or one float. A line is 64 bytes: one unit of each of 16 ranks, two of each of 8, or four of each of 4. The
// units of a rank are neighbours, so that a lane sums for one rank. A group of A is stored in pieces of 8 lines, a
// group of B in panels like any other weight (adapters/image.py packs both).
#pragma once

#include <algorithm>
#include <vector>

#include "fetches.h"
#include "pack.h"
#include "types.h"

namespace blora {

constexpr int LINES = 8;       // in a piece
constexpr int LINE_BYTES = 64;

// The width of the next group, which takes as many of the ranks left as it holds.
inline int group_width(int ranks_left) { return ranks_left > 12 ? 16 : ranks_left > 4 ? 8 : 4; }

// One group of ranks of one slice of one use.
struct Change {
    const LoraChunk* a;
    const LoraChunk* b;
    int num_pieces;        // pieces of A
    int width;             // ranks of the group
    int start, end;        // tokens [start, end)
    int column, out;       // first output of the slice in the site, and number of outputs
    float scale;           // request scale * adapter scaling
    int64_t h;             // index of the first of its [end - start, width] inputs of B
};

// The address of a piece. chunk: the piece's chunk or an earlier one; it is moved on to the piece's own.
inline const char* piece_at(const LoraChunk*& chunk, int piece, int piece_bytes) {
    while (piece >= chunk->first + chunk->count) ++chunk;
    return chunk->at + (int64_t)(piece - chunk->first) * piece_bytes;
}

// The first chunk of the next group.
inline const LoraChunk* behind(const LoraChunk* chunk, int num_pieces) {
    while (chunk->first + chunk->count < num_pieces) ++chunk;
    return chunk + 1;
}

template <class T>
int num_pieces(int in, int width) {
    const int per_piece = PANEL / width * PACK<T> * LINES;  // inputs of a piece
    return (in + per_piece - 1) / per_piece;
}

// Fills `changes` with those of one site. Returns the number of elements of h.
template <class T>
int64_t collect_changes(const LoraPlan& plan, int site, int in, std::vector<Change>& changes) {
    changes.clear();
    int64_t size = 0;
    for (int i = 0; i < plan.num_uses; ++i) {
        const LoraUse& use = plan.uses[i];
        for (const LoraSlice* slice = use.slices + use.sites[site]; slice < use.slices + use.sites[site + 1]; ++slice) {
            const LoraChunk* a = slice->a;
            const LoraChunk* b = slice->b;
            for (int rank = 0; rank < slice->rank;) {
                const int width = group_width(slice->rank - rank), pieces = num_pieces<T>(in, width);
                changes.push_back({a, b, pieces, width, use.start, use.end, slice->column, slice->out,
                                   use.scale * slice->scaling, size});
                size += (int64_t)(use.end - use.start) * width;
                rank += width;
                if (rank < slice->rank) a = behind(a, pieces), b = behind(b, num_panels(slice->out));
            }
        }
    }
    return size;
}

}  // namespace blora
