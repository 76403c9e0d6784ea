// Paged causal attention of a mixed batch: norm and rotation of q and k, the KV write, and the attention, in one call.
//
// In a layer's slab of a page, K is stored as [kv head][panel of 16 tokens][head_dim / 2][tokens][2] (bfloat16;
// [head_dim][tokens] in float), which the multiplication reads like a weight, and V as [kv head][token][head_dim].
//
// A span is 4 panels of tokens; a query's scores of one span are computed together. A query reads its sequence span by
// span at fixed positions, in order, with a running softmax. Spans are gathered in splits at fixed positions, and the
// results of the splits are folded in order. So a query's bits depend on its own sequence only: not on the batch, the
// cuts of the prompt, or the threads that computed the splits. Tokens beyond a query's position are masked, never
// multiplied; V beyond the written length is never read.

#include <limits>
#include <type_traits>
#include <vector>

#include "entry.h"
#include "multiply.h"
#include "norm.h"
#include "scratch.h"
#include "team.h"

namespace blora {
namespace {

constexpr int SPAN_PANELS = 4;
constexpr int SPAN = SPAN_PANELS * PANEL;  // scores of a query in one span, at most
constexpr int QUERIES = 24;                // query heads of an item, unless a single group has more
constexpr int MAX_QUERIES = 128;           // the largest group
constexpr int SPLIT_SPANS = 16;            // spans of a split: 1,024 tokens if panels are full
constexpr int MAX_HEAD_DIM = 512;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

struct Shape {
    const AttentionLayer& layer;
    const AttentionPlan& plan;
    int group;        // query heads that share a KV head
    int width;        // tokens of a panel
    int span_tokens;
    int split_tokens;

    Shape(const AttentionLayer& layer, const AttentionPlan& plan)
        : layer(layer), plan(plan), group(layer.num_heads / layer.num_kv_heads),
          width(std::min(layer.block_size, PANEL)), span_tokens(SPAN_PANELS * width),
          split_tokens(SPLIT_SPANS * span_tokens) {}

    template <class T>
    T* block(int row, int position) const {
        const int64_t page = plan.tables[plan.table_at[row] + position / layer.block_size];
        return (T*)((char*)layer.pages + page * layer.page_bytes + layer.offset);
    }
    // The panel of K that holds a token.
    template <class T>
    T* keys(int row, int position, int head) const {
        const int64_t slab = (int64_t)head * layer.block_size * layer.head_dim;
        return block<T>(row, position) + slab + position % layer.block_size / width * width * layer.head_dim;
    }
    template <class T>
    T* values(int row, int position, int head) const {
        const int64_t slab = (int64_t)(layer.num_kv_heads + head) * layer.block_size * layer.head_dim;
        return block<T>(row, position) + slab + (int64_t)(position % layer.block_size) * layer.head_dim;
    }
    int query_len(int row) const { return plan.starts[row + 1] - plan.starts[row]; }
    int first_position(int row) const { return plan.seq_lens[row] - query_len(row); }
};

// Norms a head, if the model does, and rotates (x[i], x[i + head_dim / 2]) by the angle of the position.
template <class T>
void rotate_head(const Shape& shape, const T* x, int head, int position, T* y) {
    const AttentionLayer& layer = shape.layer;
    const int half = layer.head_dim / 2;
    T normed[MAX_HEAD_DIM];
    if (layer.qk_norm) {
        rms_norm(x, (const T*)layer.qk_norm + (int64_t)head * layer.head_dim, layer.head_dim, layer.eps, normed);
        x = normed;
    }
    const float* cos = layer.cos + (int64_t)position * half;
    const float* sin = layer.sin + (int64_t)position * half;
    for (int i = 0; i < half; i += LANES) {
        const int count = std::min(LANES, half - i);
        const VecF a = load_first(x + i, count), b = load_first(x + half + i, count);
        const VecF c = load_first(cos + i, count), s = load_first(sin + i, count);
        store_first(y + i, a * c - b * s, count);
        store_first(y + half + i, b * c + a * s, count);
    }
}

// Rotates the queries of a token, and writes its keys and values into their block. queries: [kv head][token][query head
// of the group][head_dim], so that queries that share keys are neighbours.
template <class T>
void prepare_token(const Shape& shape, int row, int token, const T* qkv, Input<T>* queries) {
    const AttentionLayer& layer = shape.layer;
    const int dim = layer.head_dim, position = shape.first_position(row) + token - shape.plan.starts[row];
    const T* heads = qkv + (int64_t)token * (layer.num_heads + 2 * layer.num_kv_heads) * dim;
    T rotated[MAX_HEAD_DIM];
    for (int head = 0; head < layer.num_heads; ++head, heads += dim) {
        rotate_head(shape, heads, head, position, rotated);
        const int64_t at = (int64_t)head / shape.group * shape.plan.num_tokens + token;
        Input<T>* query = queries + (at * shape.group + head % shape.group) * dim;
        for (int i = 0; i < dim; ++i) {
            if constexpr (sizeof(Input<T>) == sizeof(T)) query[i] = rotated[i];
            else query[i] = to_float(rotated[i]);
        }
    }
    const int lane = position % layer.block_size % shape.width;
    for (int head = 0; head < layer.num_kv_heads; ++head, heads += dim) {
        rotate_head(shape, heads, layer.num_heads + head, position, rotated);
        T* keys = shape.keys<T>(row, position, head);
        for (int i = 0; i < dim; ++i) keys[place<T>(i, lane, shape.width)] = rotated[i];
    }
    for (int head = 0; head < layer.num_kv_heads; ++head, heads += dim)
        std::memcpy((void*)shape.values<T>(row, position, head), heads, dim * sizeof(T));
}

// A unit of work: neighbouring queries of one row with one KV head, over splits [first_split, last_split).
struct Item {
    int row, first, count;  // queries, counted in the row
    int head;
    int first_split, last_split;
    int64_t partial;        // index of its result among the partials; -1 if the result is the whole
};

// Running softmax of some query heads: the largest score, the sum of exponentials, the weighted sum of values.
struct Sums {
    float max[MAX_QUERIES];
    float total[MAX_QUERIES];
    float* values;  // [query][head_dim]

    void clear(int queries, int dim) {
        std::fill(max, max + queries, NOTHING);
        std::fill(total, total + queries, 0.0f);
        std::fill(values, values + (int64_t)queries * dim, 0.0f);
    }
};

inline float exp_one(float x) { return exp(splat(x))[0]; }

// Folds the result of the next split into the results before it.
inline void fold(
    float& max, float& total, float* values, float next_max, float next_total, const float* next, int dim) {
    if (next_max == NOTHING) return;
    if (max == NOTHING) {
        max = next_max, total = next_total;
        std::copy(next, next + dim, values);
        return;
    }
    const float both = max > next_max ? max : next_max;
    const float old_scale = exp_one(max - both), new_scale = exp_one(next_max - both);
    total = total * old_scale + next_total * new_scale;
    for (int i = 0; i < dim; ++i) values[i] = values[i] * old_scale + next[i] * new_scale;
    max = both;
}

// The values of a span, panel by panel; the tokens of a panel are neighbours in memory.
template <class T>
struct Values {
    const T* panels[SPAN_PANELS];  // each [counts[i], head_dim]
    int counts[SPAN_PANELS];
    int count = 0;
};

// The tokens [from, to) of a span, counted from its first, that every query of a group sees.
struct Common {
    int from, to;
};

// values[query][..] += sum over tokens of p[query][token] * rows[token][..], tokens in order. A token that a query does
// not see is left out, not multiplied by 0: its value may not be finite.
template <class T, int COUNT, int VECTORS>
void add_values(const float* p, const Values<T>& span, Common common, int column, int dim, float* values) {
    const int last = std::min(LANES, dim - column - (VECTORS - 1) * LANES);
    VecF acc[COUNT][VECTORS];
    for (int q = 0; q < COUNT; ++q)
        for (int v = 0; v < VECTORS; ++v)
            acc[q][v] = load_first(values + q * dim + column + v * LANES, v + 1 < VECTORS ? LANES : last);
    int token = 0;
    for (int panel = 0; panel < span.count; ++panel) {
        const T* source = span.panels[panel] + column;
        const float* weights = p + panel * PANEL;
        for (int t = 0; t < span.counts[panel]; ++t, ++token, source += dim, ++weights) {
            const bool is_common = token >= common.from && token < common.to;
            VecF row[VECTORS];
            for (int v = 0; v < VECTORS; ++v) row[v] = load_first(source + v * LANES, v + 1 < VECTORS ? LANES : last);
            for (int q = 0; q < COUNT; ++q) {
                if (!is_common && weights[q * SPAN] == 0.0f) continue;
                const VecF weight = splat(weights[q * SPAN]);
                for (int v = 0; v < VECTORS; ++v) acc[q][v] = fma(weight, row[v], acc[q][v]);
            }
        }
    }
    for (int q = 0; q < COUNT; ++q)
        for (int v = 0; v < VECTORS; ++v)
            store_first(values + q * dim + column + v * LANES, acc[q][v], v + 1 < VECTORS ? LANES : last);
}

template <class T, int COUNT>
void add_values_of(const float* p, const Values<T>& span, Common common, int dim, float* values) {
    int column = 0;
    for (; column + 4 * LANES <= dim; column += 4 * LANES)
        add_values<T, COUNT, 4>(p, span, common, column, dim, values);
    for (; column < dim; column += LANES) add_values<T, COUNT, 1>(p, span, common, column, dim, values);
}

// Turns one query's scores into softmax weights. Returns false when the query sees no token of the span.
inline bool weigh(const Shape& shape, float* scores, int panels, int start, int from, int to, float& max, float& total,
                  float* values) {
    const AttentionLayer& layer = shape.layer;
    VecF masked[SPAN / LANES], top = splat(NOTHING);
    VecI seen[SPAN / LANES];
    for (int v = 0; v < panels * VECS; ++v) {
        const VecI lane = lane_ids() + splat_int(v % VECS * LANES);
        const VecI position = lane + splat_int(start + v / VECS * shape.width);
        seen[v] = (lane < splat_int(shape.width)) & (position >= splat_int(from)) & (position < splat_int(to));
        VecF score = load(scores + v * LANES) * splat(layer.scale);
        if (layer.softcap != 0.0f) {  // cap * tanh(score / cap)
            const VecF e = exp(score * splat(2.0f / layer.softcap));
            score = splat(layer.softcap) * (splat(1.0f) - splat(2.0f) / (e + splat(1.0f)));
        }
        masked[v] = select(seen[v], score, splat(NOTHING));
        top = blora::max(top, masked[v]);
    }
    const float span_max = largest(top);
    const float new_max = max > span_max ? max : span_max;
    if (new_max == NOTHING) return false;
    VecF added = {};
    for (int v = 0; v < panels * VECS; ++v) {
        const VecF weight = select(seen[v], exp(masked[v] - splat(new_max)), VecF{});
        store(scores + v * LANES, weight);
        added += weight;
    }
    if (new_max != max) {
        const float scale = exp_one(max - new_max);
        total *= scale;
        for (int i = 0; i < layer.head_dim; ++i) values[i] *= scale;
        max = new_max;
    }
    total += sum(added);
    return true;
}

// Blocks lie anywhere in memory: the first access to each waits for the translation of its address as long as for its
// bytes. Here the accesses of a whole span wait together, and V is fetched while K is multiplied.
template <class T>
void fetch(const T* const* keys, const Values<T>& values, int dim) {
    char touched = 0;
    for (int panel = 0; panel < values.count; ++panel)
        touched += *(const char*)keys[panel] + *(const char*)values.panels[panel];
    asm volatile("" : : "r"(touched));  // else the compiler leaves the loads out
    for (int panel = 0; panel < values.count; ++panel)
        for (int64_t byte = 0; byte < (int64_t)values.counts[panel] * dim * (int64_t)sizeof(T); byte += 64)
            __builtin_prefetch((const char*)values.panels[panel] + byte);
}

template <class T>
void attend_span(const Shape& shape, const Item& item, const Input<T>* queries, int start, int end, Sums& sums) {
    const int dim = shape.layer.head_dim, group = shape.group, num_queries = item.count * group;
    const int window = shape.layer.window;
    const T* keys[SPAN_PANELS];
    Values<T> span;
    for (int position = start; position < end; position += shape.width) {
        keys[span.count] = shape.keys<T>(item.row, position, item.head);
        span.panels[span.count] = shape.values<T>(item.row, position, item.head);
        span.counts[span.count++] = std::min(shape.width, end - position);
    }
    fetch(keys, span, dim);
    alignas(64) float scores[MAX_QUERIES * SPAN];
    multiply<T>(num_queries, queries, dim, keys, span.count, shape.width, dim, 0, nullptr, scores, SPAN);
    const int first_position = shape.first_position(item.row) + item.first;
    for (int q = 0; q < num_queries; ++q) {
        const int to = first_position + q / group + 1, from = window ? std::max(to - window, 0) : 0;
        float* weights = scores + q * SPAN;
        if (!weigh(shape, weights, span.count, start, from, to, sums.max[q], sums.total[q], sums.values + q * dim))
            std::fill(weights, weights + SPAN, 0.0f);
    }
    auto seen_by_all = [&](int first, int count) {  // queries [first, first + count)
        const int first_to = first_position + first / group + 1;
        const int last_to = first_position + (first + count - 1) / group + 1;
        return Common{(window ? std::max(last_to - window, 0) : 0) - start, first_to - start};
    };
    auto add = [&](auto number, int q) {
        constexpr int COUNT = decltype(number)::value;
        add_values_of<T, COUNT>(scores + q * SPAN, span, seen_by_all(q, COUNT), dim, sums.values + q * dim);
    };
    constexpr int TOGETHER = LANES == 16 ? 6 : 3;
    int q = 0;
    for (; q + TOGETHER <= num_queries; q += TOGETHER) add(std::integral_constant<int, TOGETHER>(), q);
    for (; q + 3 <= num_queries; q += 3) add(std::integral_constant<int, 3>(), q);
    for (; q < num_queries; ++q) add(std::integral_constant<int, 1>(), q);
}

template <class T>
void attend_split(const Shape& shape, const Item& item, int split, const Input<T>* queries, Sums& sums) {
    sums.clear(item.count * shape.group, shape.layer.head_dim);
    const int first_position = shape.first_position(item.row) + item.first;
    const int seen = first_position + item.count;  // one past the last token that the last query sees
    const int begin = split * shape.split_tokens, end = std::min(begin + shape.split_tokens, seen);
    const int nearest = shape.layer.window ? std::max(first_position + 1 - shape.layer.window, 0) : 0;
    for (int start = begin; start < end; start += shape.span_tokens)
        if (start + shape.span_tokens > nearest)
            attend_span<T>(shape, item, queries, start, std::min(start + shape.span_tokens, end), sums);
}

template <class T>
void write_output(const Shape& shape, const Item& item, const Sums& sums, T* y) {
    const int dim = shape.layer.head_dim;
    for (int q = 0; q < item.count * shape.group; ++q) {
        const int64_t token = shape.plan.starts[item.row] + item.first + q / shape.group;
        T* out = y + (token * shape.layer.num_heads + item.head * shape.group + q % shape.group) * dim;
        const VecF total = splat(sums.total[q]);
        for (int i = 0; i < dim; i += LANES) {
            const int count = std::min(LANES, dim - i);
            store_first(out + i, load_first(sums.values + q * dim + i, count) / total, count);
        }
    }
}

// Keeps the result of a split for folding: [query][max, total, values].
void keep_partial(const Shape& shape, const Item& item, const Sums& sums, float* partials) {
    const int dim = shape.layer.head_dim;
    for (int q = 0; q < item.count * shape.group; ++q) {
        float* target = partials + item.partial + (int64_t)q * (dim + 2);
        target[0] = sums.max[q], target[1] = sums.total[q];
        std::copy(sums.values + q * dim, sums.values + (q + 1) * dim, target + 2);
    }
}

template <class T>
void run_item(const Shape& shape, const Item& item, const Input<T>* all_queries, float* partials, T* y) {
    const int dim = shape.layer.head_dim;
    static thread_local Scratch memory;
    float* values = memory.get<float>((size_t)2 * MAX_QUERIES * dim);
    Sums next = {{}, {}, values}, sums = {{}, {}, values + (size_t)MAX_QUERIES * dim};
    const int64_t token = shape.plan.starts[item.row] + item.first;
    const Input<T>* queries =
        all_queries + ((int64_t)item.head * shape.plan.num_tokens + token) * shape.group * dim;
    const int num_queries = item.count * shape.group;
    sums.clear(num_queries, dim);
    for (int split = item.first_split; split < item.last_split; ++split) {
        attend_split<T>(shape, item, split, queries, next);
        for (int q = 0; q < num_queries; ++q)
            fold(sums.max[q], sums.total[q], sums.values + q * dim, next.max[q], next.total[q], next.values + q * dim,
                 dim);
    }
    if (item.partial >= 0) keep_partial(shape, item, sums, partials);
    else write_output<T>(shape, item, sums, y);
}

template <class T>
void fold_partials(const Shape& shape, const Item* items, int count, const float* partials, T* y) {
    const int dim = shape.layer.head_dim;
    static thread_local Scratch memory;
    Sums sums = {{}, {}, memory.get<float>((size_t)MAX_QUERIES * dim)};
    sums.clear(items->count * shape.group, dim);
    for (int i = 0; i < count; ++i)
        for (int q = 0; q < items->count * shape.group; ++q) {
            const float* next = partials + items[i].partial + (int64_t)q * (dim + 2);
            fold(sums.max[q], sums.total[q], sums.values + q * dim, next[0], next[1], next + 2, dim);
        }
    write_output<T>(shape, *items, sums, y);
}

// The items of a step: one for each few neighbouring queries and each KV head; if that would leave threads idle, one
// for each split.
struct Work {
    std::vector<Item> items;
    std::vector<std::pair<int, int>> folds;  // first item, and number of items
    int64_t num_partials = 0;                // floats

    void build(const Shape& shape, int num_threads) {
        items.clear(), folds.clear(), num_partials = 0;
        const int most = std::max(QUERIES / shape.group, 1);  // queries of an item
        int64_t num_whole = 0;
        for (int row = 0; row < shape.plan.num_rows; ++row)
            num_whole += (int64_t)(shape.query_len(row) + most - 1) / most * shape.layer.num_kv_heads;
        const bool is_split = num_whole < 8 * num_threads;
        for (int row = 0; row < shape.plan.num_rows; ++row)
            for (int first = 0; first < shape.query_len(row); first += most)
                for (int head = 0; head < shape.layer.num_kv_heads; ++head)
                    add(shape, row, first, std::min(most, shape.query_len(row) - first), head, is_split);
    }

    void add(const Shape& shape, int row, int first, int count, int head, bool is_split) {
        const int seen = shape.first_position(row) + first + count;
        const int splits = (seen + shape.split_tokens - 1) / shape.split_tokens;
        if (!is_split || splits == 1) {
            items.push_back({row, first, count, head, 0, splits, -1});
            return;
        }
        folds.push_back({(int)items.size(), splits});
        for (int split = 0; split < splits; ++split) {
            items.push_back({row, first, count, head, split, split + 1, num_partials});
            num_partials += (int64_t)count * shape.group * (shape.layer.head_dim + 2);
        }
    }
};

template <class T>
void run(const AttentionLayer& layer, const AttentionPlan& plan, const T* qkv, T* y) {
    static Work work;  // static: only one thread calls the kernels
    static Scratch query_memory, partial_memory;
    const Shape shape(layer, plan);
    work.build(shape, num_threads());
    Input<T>* queries = query_memory.get<Input<T>>((size_t)plan.num_tokens * layer.num_heads * layer.head_dim);
    float* partials = partial_memory.get<float>(work.num_partials + 1);
    const int num_items = (int)work.items.size(), num_folds = (int)work.folds.size();
    int64_t num_scores = 0;
    for (int row = 0; row < plan.num_rows; ++row) num_scores += (int64_t)shape.query_len(row) * plan.seq_lens[row];
    const bool is_large = num_scores * layer.num_heads * layer.head_dim >= 1 << 17;
    share_ranges(plan.num_tokens, is_large, [&](int first, int last) {
        for (int token = first; token < last; ++token) {
            const int32_t* next = std::upper_bound(plan.starts, plan.starts + plan.num_rows + 1, token);
            const int row = (int)(next - plan.starts) - 1;
            prepare_token<T>(shape, row, token, qkv, queries);
        }
    });
    // Later queries see more tokens. Their items go first, so that no long item is left when the other threads are done.
    const auto run_items = [&](int i) { run_item<T>(shape, work.items[num_items - 1 - i], queries, partials, y); };
    const auto fold_items = [&](int i) {
        fold_partials<T>(shape, &work.items[work.folds[i].first], work.folds[i].second, partials, y);
    };
    if (is_large) {
        share(num_items, run_items);
        share(num_folds, fold_items);
    } else {
        for (int i = 0; i < num_items; ++i) run_items(i);
        for (int i = 0; i < num_folds; ++i) fold_items(i);
    }
}

}  // namespace
}  // namespace blora

extern "C" {

void blora_attention(const AttentionLayer* layer, const AttentionPlan* plan, const void* qkv, void* y) {
    if (layer->dtype == FLOAT32) blora::run<float>(*layer, *plan, (const float*)qkv, (float*)y);
    else blora::run<blora::bf16>(*layer, *plan, (const blora::bf16*)qkv, (blora::bf16*)y);
}
}
