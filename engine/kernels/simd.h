// SIMD vectors of floats, as wide as the instruction set that this file is compiled for, and the few operations on
// them.
//
// GCC's vector types do the arithmetic; intrinsics are used only where there is no operator. Results are the same for
// every width unless a comment says otherwise. The sources are compiled with -ffp-contract=off: a multiply and an add
// are fused only by fma().
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace blora {

// BLORA_EMULATE gives the widest vectors, the pairwise product and tile registers without the instructions for them. It
// is slow; it lets machines without these instructions test the code for machines with them.
#if defined(BLORA_EMULATE)
constexpr int LANES = 16;
#define BLORA_PAIRWISE 1
#elif defined(__AVX512F__)
constexpr int LANES = 16;
#if defined(__AVX512BF16__)
#define BLORA_PAIRWISE 1
#endif
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float VecF __attribute__((vector_size(LANES * 4)));
typedef int32_t VecI __attribute__((vector_size(LANES * 4)));
typedef uint32_t VecU __attribute__((vector_size(LANES * 4)));
typedef uint16_t VecH __attribute__((vector_size(LANES * 2)));
typedef uint16_t bf16;

template <class V, class T>
inline V load_as(const T* source) {
    V value;
    std::memcpy(&value, source, sizeof value);
    return value;
}

inline VecF splat(float value) {
#if defined(__AVX512F__)
    return (VecF)_mm512_set1_ps(value);
#elif defined(__AVX2__)
    return (VecF)_mm256_set1_ps(value);
#else
    VecF result;
    for (int i = 0; i < LANES; ++i) result[i] = value;
    return result;
#endif
}

// a * b + c, rounded once where the instruction set has that.
inline VecF fma(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
    return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__) && !defined(BLORA_EMULATE)
    return (VecF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

#if defined(BLORA_PAIRWISE)
// acc + a.even * b.even + a.odd * b.odd, where each lane of a and b holds two bfloat16. The instruction decides on
// order and rounding, and does the same at every use.
inline VecF pairwise(VecF acc, VecU a, VecU b) {
#if defined(__AVX512BF16__)
    return (VecF)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    acc += (VecF)(a << 16) * (VecF)(b << 16);
    return acc + (VecF)(a & 0xffff0000u) * (VecF)(b & 0xffff0000u);
#endif
}
#endif

inline VecU splat_bits(uint32_t value) { return VecU{} + value; }

// A vector filled with 4 * UNITS bytes, again and again.
template <int UNITS>
inline VecU repeat(const void* source) {
    if constexpr (UNITS == 1) return splat_bits(load_as<uint32_t>(source));
#if defined(__AVX512F__)
    if constexpr (UNITS == 2) return (VecU)_mm512_set1_epi64(load_as<int64_t>(source));
    if constexpr (UNITS == 4) return (VecU)_mm512_maskz_broadcast_i32x4(0xffff, load_as<__m128i>(source));
#endif
    uint32_t units[UNITS];
    std::memcpy(units, source, sizeof units);
    VecU result;
    for (int i = 0; i < LANES; ++i) result[i] = units[i % UNITS];
    return result;
}

inline VecF select(VecI mask, VecF yes, VecF no) { return (VecF)((mask & (VecI)yes) | (~mask & (VecI)no)); }

inline VecF max(VecF a, VecF b) { return select(a > b, a, b); }

// 0, 1, 2, ...
inline VecI lane_ids() {
    VecI ids;
    for (int i = 0; i < LANES; ++i) ids[i] = i;
    return ids;
}

inline VecI splat_int(int32_t value) { return VecI{} + value; }

// Lane i of the result is lane i + `by` of v, counted around the end.
inline VecF rotate(VecF v, int by) {
    VecI from;
    for (int i = 0; i < LANES; ++i) from[i] = (i + by) % LANES;
    return __builtin_shuffle(v, from);
}

// The sum of all lanes, always in one order: halves, then halves of the sum.
inline float sum(VecF v) {
    for (int width = LANES / 2; width; width /= 2) v += rotate(v, width);
    return v[0];
}

inline float largest(VecF v) {
    for (int width = LANES / 2; width; width /= 2) v = max(v, rotate(v, width));
    return v[0];
}

// bfloat16 is the upper half of a float.

inline float to_float(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}
inline float to_float(float value) { return value; }

// Rounds to bfloat16: to nearest, ties to even; NaN stays NaN.
inline VecU bf16_bits(VecF v) {
    VecU bits = (VecU)v;
    VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    VecU quiet = (bits >> 16) | 0x40u;
    return (VecU)select(v != v, (VecF)quiet, (VecF)rounded);
}

inline VecF load(const float* source) { return load_as<VecF>(source); }
inline VecF load(const bf16* source) {
#if defined(__AVX512F__)
    return (VecF)((VecU)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)load_as<VecH>(source)) << 16);
#elif defined(__AVX2__)
    return (VecF)(VecU)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)load_as<VecH>(source)), 16);
#else
    return (VecF)(__builtin_convertvector(load_as<VecH>(source), VecU) << 16);
#endif
}
inline void store(float* target, VecF v) { std::memcpy(target, &v, sizeof v); }
inline void store(bf16* target, VecF v) {
#if defined(__AVX512F__)
    VecH halves = (VecH)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)bf16_bits(v));
#else
    VecH halves = __builtin_convertvector(bf16_bits(v), VecH);
#endif
    std::memcpy(target, &halves, sizeof halves);
}

// The first `count` elements. Nothing beyond them is read or written; the other lanes of a load are zero.
template <class T>
inline VecF load_first(const T* source, int count) {
    if (count >= LANES) return load(source);
    T lanes[LANES] = {};
    std::memcpy(lanes, source, count * sizeof(T));
    return load(lanes);
}
template <class T>
inline void store_first(T* target, VecF v, int count) {
    if (count >= LANES) return store(target, v);
    T lanes[LANES];
    store(lanes, v);
    std::memcpy(target, lanes, count * sizeof(T));
}

// A value rounded as if it were stored as T and read again.
template <class T>
inline VecF rounded(VecF v);
template <>
inline VecF rounded<float>(VecF v) { return v; }
template <>
inline VecF rounded<bf16>(VecF v) { return (VecF)(bf16_bits(v) << 16); }

template <class T>
inline T from_float(float value) {
    T lanes[LANES];
    store(lanes, splat(value));
    return lanes[0];
}

// e^x, off by about one unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2; the polynomial is Cephes' expf. x is
// clamped to [-87, 88]. exp(0) is exactly 1.
inline VecF exp(VecF x) {
    x = select(x < splat(-87.0f), splat(-87.0f), x);
    x = select(x > splat(88.0f), splat(88.0f), x);
    const VecF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    VecF n = fma(x, splat(1.44269504088896341f), magic);
    VecI exponent = (VecI)n - splat_int(0x4b400000);
    n = n - magic;
    VecF r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    VecF p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p * r, r, r) + splat(1.0f);
    return (VecF)((VecI)p + (exponent << 23));
}

// x / (1 + e^-x). Below -88, where exp() is clamped, e^-x is taken for infinite; else a large negative x would not give
// a small number.
inline VecF silu(VecF x) {
    const VecF e = select(x < splat(-88.0f), splat(std::numeric_limits<float>::infinity()), exp(-x));
    return x / (splat(1.0f) + e);
}

}  // namespace blora
