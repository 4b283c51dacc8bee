// Vectors of the widest registers that the file is compiled for, and the functions of the gates on them.
//
// Everything is in an anonymous namespace: an inline function shared between files that are compiled for different
// instruction sets would be one symbol, and a machine could run the copy of another.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <cstdint>
#include <cstring>
#include <utility>

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
constexpr int ACCUMULATORS = 24;  // of 32 registers
#elif defined(__aarch64__)
constexpr int BYTES = 16;
constexpr int ACCUMULATORS = 20;  // of 32 registers; those of broadcast numbers come on top here
#else
constexpr int BYTES = 32;
constexpr int ACCUMULATORS = 12;  // of 16 registers
#endif

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(BYTES)));
  typedef T unaligned __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
constexpr int LANES = BYTES / sizeof(T);

// The integer as wide as T.
template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <typename T>
ALWAYS_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}

template <typename T>
ALWAYS_INLINE void store(T* p, Vector<T> a) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = a;
}

template <typename T>
ALWAYS_INLINE Vector<T> broadcast(T a) {
  return a - Vector<T>{};
}

// Keeps the compiler from loading a vector from memory again at each use.
template <typename T>
ALWAYS_INLINE Vector<T> in_register(Vector<T> a) {
#if defined(__AVX2__)
  __asm__("" : "+v"(a));
#elif defined(__aarch64__)
  __asm__("" : "+w"(a));
#endif
  return a;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// All bits in the first n lanes, none in the others.
template <typename T>
ALWAYS_INLINE __m256i mask_of_first(int64_t n) {
  alignas(32) static const int64_t ONES_THEN_ZEROS[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
  const char* const zeros = reinterpret_cast<const char*>(ONES_THEN_ZEROS + 4);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(zeros - n * int64_t{sizeof(T)}));
}
#endif

// The first n > 0 lanes, from memory that may end behind them; the others are 0.
template <typename T>
ALWAYS_INLINE Vector<T> load_first(const T* p, int64_t n) {
  if (n >= LANES<T>) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  } else {
    return (Vector<T>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm256_maskload_ps(p, mask_of_first<T>(n));
  } else {
    return (Vector<T>)_mm256_maskload_pd(p, mask_of_first<T>(n));
  }
#else
  Vector<T> a{};
  std::memcpy(&a, p, n * sizeof(T));
  return a;
#endif
}

template <typename T>
ALWAYS_INLINE void store_first(T* p, Vector<T> a, int64_t n) {
  if (n >= LANES<T>) return store(p, a);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)a);
  } else {
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)a);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    _mm256_maskstore_ps(p, mask_of_first<T>(n), (__m256)a);
  } else {
    _mm256_maskstore_pd(p, mask_of_first<T>(n), (__m256d)a);
  }
#else
  std::memcpy(p, &a, n * sizeof(T));
#endif
}

// Lane i of both results comes from lanes i and i ^ D: the lower of each pair from a and b, or the higher.
template <typename T, int D, size_t... I>
ALWAYS_INLINE Vector<T> lower_lanes(Vector<T> a, Vector<T> b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (I & D ? LANES<T> + I - D : I)...);
#else
  return __builtin_shuffle(a, b, (Vector<Bits<T>>){(I & D ? LANES<T> + I - D : I)...});
#endif
}
template <typename T, int D, size_t... I>
ALWAYS_INLINE Vector<T> higher_lanes(Vector<T> a, Vector<T> b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (I & D ? LANES<T> + I : I + D)...);
#else
  return __builtin_shuffle(a, b, (Vector<Bits<T>>){(I & D ? LANES<T> + I : I + D)...});
#endif
}

// LANES vectors of LANES lanes: lane j of vector i becomes lane i of vector j.
template <typename T, int D = 1>
ALWAYS_INLINE void transpose(Vector<T> (&rows)[LANES<T>]) {
  constexpr auto ALL = std::make_index_sequence<LANES<T>>{};
#pragma GCC unroll 16
  for (int i = 0; i < LANES<T>; i++)
    if (!(i & D)) {
      const Vector<T> a = rows[i], b = rows[i + D];
      rows[i] = lower_lanes<T, D>(a, b, ALL);
      rows[i + D] = higher_lanes<T, D>(a, b, ALL);
    }
  if constexpr (2 * D < LANES<T>) transpose<T, 2 * D>(rows);
}

// Lane i of the result is the sum of vector i's lanes, always in one order.
template <typename T, int D = 1>
ALWAYS_INLINE Vector<T> sums_of_lanes(Vector<T> (&rows)[LANES<T>]) {
  constexpr auto ALL = std::make_index_sequence<LANES<T>>{};
#pragma GCC unroll 16
  for (int i = 0; i < LANES<T>; i += 2 * D) {
    const Vector<T> a = rows[i], b = rows[i + D];
    rows[i] = lower_lanes<T, D>(a, b, ALL) + higher_lanes<T, D>(a, b, ALL);
  }
  if constexpr (2 * D < LANES<T>) return sums_of_lanes<T, 2 * D>(rows);
  return rows[0];
}

// a b + c, rounded once. Written out, and never left to the compiler (-ffp-contract=off), whose choice could differ
// from tile to tile: a row must have the same bits in each.
template <typename T>
ALWAYS_INLINE Vector<T> fma(Vector<T> a, Vector<T> b, Vector<T> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  } else {
    return (Vector<T>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  }
#elif defined(__FMA__)
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  } else {
    return (Vector<T>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  }
#elif defined(__aarch64__)
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  } else {
    return (Vector<T>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
  }
#else
  for (int i = 0; i < LANES<T>; i++)
    c[i] = sizeof(T) == 4 ? __builtin_fmaf(a[i], b[i], c[i]) : __builtin_fma(a[i], b[i], c[i]);
  return c;
#endif
}
template <typename T>
ALWAYS_INLINE Vector<T> fma(Vector<T> a, T b, Vector<T> c) {
  return fma<T>(a, broadcast(b), c);
}
template <typename T>
ALWAYS_INLINE Vector<T> fma(Vector<T> a, T b, T c) {
  return fma<T>(a, broadcast(b), broadcast(c));
}

// The smaller of both; a NaN in a comes through.
template <typename V>
ALWAYS_INLINE V smaller(V a, V b) {
  return a > b ? b : a;
}

// exp(x) of x <= 0 as power * small * (1 + expm1), so that exp(x) and exp(x) - 1 both keep their last bits. `small` is
// 1 but where exp(x) is denormal.
template <typename T>
struct Exp {
  Vector<T> expm1, power, small;

  ALWAYS_INLINE Vector<T> value() const { return fma<T>(expm1, power, power) * small; }
  ALWAYS_INLINE Vector<T> minus_one() const { return fma<T>(expm1, power, power - T(1)); }  // where small is 1
};

// 2^n for an integer n, by its exponent; adding ROUNDER rounds to an integer, in the low bits.
template <typename T>
constexpr T ROUNDER = sizeof(T) == 4 ? T(12582912) : T(6755399441055744);  // 1.5 * 2^23, 1.5 * 2^52
template <typename T>
ALWAYS_INLINE Vector<T> power_of_two(Vector<T> n) {
  constexpr int FRACTION = sizeof(T) == 4 ? 23 : 52;
  constexpr Bits<T> BIAS = sizeof(T) == 4 ? 127 : 1023;
  return (Vector<T>)(((Vector<Bits<T>>)(n + ROUNDER<T>) << FRACTION) + (BIAS << FRACTION));
}

// x = n ln 2 + r with |r| <= ln 2 / 2; DENORMAL says whether the result may be below the normal numbers. For float the
// polynomial of Cephes' expf, for double the series.
template <bool DENORMAL>
ALWAYS_INLINE Exp<float> exp(Vector<float> x) {
  const Vector<float> n = fma<float>(x, 1.44269504088896341f, ROUNDER<float>) - ROUNDER<float>;
  const Vector<float> r = fma<float>(n, broadcast(2.12194440e-4f), fma<float>(n, -0.693359375f, x));
  Vector<float> p = fma<float>(r, 1.9875691500e-4f, 1.3981999507e-3f);
  for (const float term : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = fma<float>(p, r, broadcast(term));
  p = fma<float>(p, r * r, r);
  if constexpr (!DENORMAL) return {p, power_of_two<float>(n), broadcast(1.f)};
  const Vector<float> half = fma<float>(n, 0.5f, ROUNDER<float>) - ROUNDER<float>;
  return {p, power_of_two<float>(half), power_of_two<float>(n - half)};
}
template <bool DENORMAL>
ALWAYS_INLINE Exp<double> exp(Vector<double> x) {
  const Vector<double> n = fma<double>(x, 1.4426950408889634074, ROUNDER<double>) - ROUNDER<double>;
  const Vector<double> r = fma<double>(n, -1.42860682030941723212e-6, fma<double>(n, -0.693145751953125, x));
  Vector<double> p = fma<double>(r, 1. / 6227020800., 1. / 479001600.);
  for (const double term : {39916800., 3628800., 362880., 40320., 5040., 720., 120., 24., 6., 2.})
    p = fma<double>(p, r, broadcast(1. / term));
  p = fma<double>(p, r * r, r);
  if constexpr (!DENORMAL) return {p, power_of_two<double>(n), broadcast(1.)};
  const Vector<double> half = fma<double>(n, 0.5, ROUNDER<double>) - ROUNDER<double>;
  return {p, power_of_two<double>(half), power_of_two<double>(n - half)};
}

template <typename T>
ALWAYS_INLINE Vector<T> magnitude(Vector<T> x) {
  return (Vector<T>)((Vector<Bits<T>>)x & ~(Vector<Bits<T>>)broadcast(T(-0.)));
}

// sigmoid(x) and 1 - sigmoid(x), both accurate to the last bits.
template <typename T>
ALWAYS_INLINE Vector<T> sigmoid(Vector<T> x, Vector<T>& rest) {
  constexpr T SMALLEST = sizeof(T) == 4 ? T(104) : T(746);  // exp of its negative is 0
  const Vector<T> e = exp<true>(-smaller(magnitude<T>(x), broadcast(SMALLEST))).value();
  const Vector<T> near_1 = T(1) / (T(1) + e), near_0 = e * near_1;
  rest = x < T(0) ? near_1 : near_0;
  return x < T(0) ? near_0 : near_1;
}

// tanh(x) and its derivative, both accurate to the last bits, near 0 and where |tanh(x)| is nearly 1: by e =
// exp(-2|x|), tanh(x) = (1 - e) / (1 + e) with the sign of x, and 1 - tanh(x)^2 = 4 e / (1 + e)^2.
template <typename T>
struct Tanh {
  Vector<T> value, e, one_plus_e;

  ALWAYS_INLINE Vector<T> slope() const { return T(4) * e / (one_plus_e * one_plus_e); }
};
template <typename T>
ALWAYS_INLINE Tanh<T> tanh(Vector<T> x) {
  constexpr T LARGEST = sizeof(T) == 4 ? T(43) : T(354);  // exp(-2 LARGEST) is a normal number
  const Exp<T> e = exp<false>(smaller(magnitude<T>(x), broadcast(LARGEST)) * T(-2));
  const Vector<T> expm1 = e.minus_one(), one_plus_e = T(2) + expm1;
  const Vector<Bits<T>> sign = (Vector<Bits<T>>)x & (Vector<Bits<T>>)broadcast(T(-0.));
  return {(Vector<T>)((Vector<Bits<T>>)(-expm1 / one_plus_e) | sign), e.value(), one_plus_e};
}

}  // namespace
