// The masks of noise.py: functions of a seed and of where they apply, computed whenever they are needed.
#pragma once
#include "gru.h"
#include "vector.h"

namespace {

// lowbias32 (Chris Wellons, 2018, https://nullprogram.com/blog/2018/07/31/), of a number or of a vector of them.
template <typename N>
ALWAYS_INLINE N mixed(N x) {
  x ^= x >> 16;
  x *= 0x7FEB352D;
  x ^= x >> 15;
  x *= 0x846CA68B;
  return x ^ (x >> 16);
}

// What masks of a step and row begin from.
inline uint32_t zone_of(const GruCall& c, int64_t position) {
  return mixed(mixed(uint32_t(c.zone_seed) + uint32_t(position / c.B)) + uint32_t(position % c.B));
}

template <typename T>
struct NumbersOf {
  typedef uint32_t type __attribute__((vector_size(4 * LANES<T>)));
};

// 1 for each of the units from `unit` on that takes its new state, 0 for one that keeps its old.
template <typename T>
ALWAYS_INLINE Vector<T> takes_new(uint32_t zone, int64_t unit, uint32_t threshold) {
  using Numbers = typename NumbersOf<T>::type;
  static const uint32_t COUNT[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Numbers units;
  std::memcpy(&units, COUNT, sizeof units);
  return -__builtin_convertvector(mixed<Numbers>(units + (zone + uint32_t(unit))) >= threshold, Vector<T>);
}

}  // namespace
