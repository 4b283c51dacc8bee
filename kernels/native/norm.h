// Layer normalisation of a row of products over all three gates, [panel][gate][lane], forward and backward:
//
//     v^ = (v - mean(v)) s,  s = 1 / sqrt(mean((v - mean(v))^2) + 1e-5),  y = v^ gain + bias
//     dv = s (g - mean(g) - v^ mean(g v^))  with  g = gain dy
//
// Sums run over the panels in one order, so that a row has the same bits with any number of threads.
#pragma once
#include "vector.h"

namespace {

template <typename T>
ALWAYS_INLINE T sum_of_lanes(Vector<T> a) {
  T lanes[LANES<T>];
  store(lanes, a);
  for (int n = LANES<T> / 2; n; n /= 2)
    for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
  return lanes[0];
}

// The first n lanes, 0 in the others.
template <typename T>
ALWAYS_INLINE Vector<T> first_lanes(Vector<T> a, int64_t n) {
  if (n >= LANES<T>) return a;
  T lanes[LANES<T>];
  store(lanes, a);
  return load_first(lanes, n);
}

// Mean and scale of the products v of a row, which are 0 beyond H.
template <typename T>
struct Moments {
  static constexpr int W = LANES<T>;
  static constexpr T EPSILON = T(1e-5);
  T mean, scale;

  Moments(const T* v, int64_t panels, int64_t H) : mean(0) {
    mean = average(v, panels, H, [](Vector<T> a, Vector<T> sum) { return sum + a; });
    const T variance = average(v, panels, H, [](Vector<T> a, Vector<T> sum) { return fma<T>(a, a, sum); });
    scale =
        T(1) / (sizeof(T) == 4 ? T(__builtin_sqrtf(float(variance + EPSILON))) : T(__builtin_sqrt(variance + EPSILON)));
  }

  // v^ of the vector at v, of which `units` lanes are there.
  ALWAYS_INLINE Vector<T> normalised(const T* v, int64_t units) const {
    return first_lanes<T>(load(v) - mean, units) * scale;
  }

 private:
  template <typename Add>
  ALWAYS_INLINE T average(const T* v, int64_t panels, int64_t H, const Add& add) const {
    Vector<T> sums[3] = {};
    for (int64_t units = H; panels > 0; panels--, units -= W, v += 3 * W)
#pragma GCC unroll 3
      for (int g = 0; g < 3; g++) sums[g] = add(first_lanes<T>(load(v + g * W) - mean, units), sums[g]);
    return sum_of_lanes<T>(sums[0] + sums[1] + sums[2]) / T(3 * H);
  }
};

}  // namespace
