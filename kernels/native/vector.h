// Vectors of the widest registers that the file is compiled for, and the functions of the gates on them.
//
// Everything is in an anonymous namespace: an inline function shared between files that are compiled for different
// instruction sets would be one symbol, and a machine could run the copy of another.
#pragma once
#include <cstdint>
#include <cstring>

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
constexpr int ACCUMULATORS = 24;  // of 32 registers
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

// The first n lanes; the others are 0.
template <typename T>
ALWAYS_INLINE Vector<T> load_first(const T* p, int64_t n) {
  if (n >= LANES<T>) return load(p);
  Vector<T> a{};
  std::memcpy(&a, p, n * sizeof(T));
  return a;
}

template <typename T>
ALWAYS_INLINE void store_first(T* p, Vector<T> a, int64_t n) {
  if (n >= LANES<T>) {
    store(p, a);
  } else {
    std::memcpy(p, &a, n * sizeof(T));
  }
}

// The sum of all lanes, by halves: always in one order.
template <typename T>
ALWAYS_INLINE T sum_of_lanes(Vector<T> a) {
  T lanes[LANES<T>];
  std::memcpy(lanes, &a, sizeof lanes);
  for (int half = LANES<T> / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

// The smaller and the larger; a NaN in a comes through.
template <typename V>
ALWAYS_INLINE V smaller(V a, V b) {
  return a > b ? b : a;
}
template <typename V>
ALWAYS_INLINE V larger(V a, V b) {
  return a < b ? b : a;
}

// expm1(r) and 2^n of x = n ln 2 + r, so that exp(x) = 2^n (1 + expm1(r)). Polynomial of Cephes' expf, |r| <= ln 2 / 2.
ALWAYS_INLINE Vector<float> expm1_reduced(Vector<float> x, Vector<float>& power) {
  typedef int32_t Int __attribute__((vector_size(BYTES)));
  constexpr float ROUNDER = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  const Vector<float> shifted = x * 1.44269504088896341f + ROUNDER, n = shifted - ROUNDER;
  const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  power = reinterpret_cast<Vector<float>>((reinterpret_cast<Int>(shifted) << 23) + (127 << 23));
  return p * (r * r) + r;
}

// sigmoid(x) and 1 - sigmoid(x), both accurate to the last bits.
ALWAYS_INLINE Vector<float> sigmoid(Vector<float> x, Vector<float>& rest) {
  x = smaller(larger(x, broadcast(-87.f)), broadcast(87.f));
  Vector<float> power;
  const Vector<float> p = expm1_reduced(-x, power);
  const Vector<float> exp = p * power + power, value = 1.f / (1.f + exp);
  rest = exp * value;
  return value;
}

// expm1(-2|x|) / (2 + expm1(-2|x|)) with the sign of x: accurate to the last bits near 0 too.
ALWAYS_INLINE Vector<float> tanh(Vector<float> x) {
  typedef int32_t Int __attribute__((vector_size(BYTES)));
  const Int sign = reinterpret_cast<Int>(broadcast(-0.f));
  const Vector<float> size = smaller(reinterpret_cast<Vector<float>>(reinterpret_cast<Int>(x) & ~sign), broadcast(20.f));
  Vector<float> power;
  const Vector<float> p = expm1_reduced(size * -2.f, power);
  const Vector<float> expm1 = p * power + (power - 1.f);
  const Vector<float> value = -expm1 / (2.f + expm1);
  return reinterpret_cast<Vector<float>>(reinterpret_cast<Int>(value) | (reinterpret_cast<Int>(x) & sign));
}

}  // namespace
