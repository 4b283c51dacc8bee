// Registers as numbers. Every register has 64 bits here; a type says how many of them count, and as what.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i32 = int32_t;
using i64 = int64_t;

enum Type { B8, B16, B32, B64, U8, U16, U32, U64, S16, S32, S64, F16, BF16, TF32, F32, PRED };

inline int bytes_of(Type type) {
  switch (type) {
    case B8:
    case U8:
      return 1;
    case B16:
    case U16:
    case S16:
    case F16:
    case BF16:
      return 2;
    case B64:
    case U64:
    case S64:
      return 8;
    default:
      return 4;
  }
}

inline bool is_signed(Type type) { return type == S16 || type == S32 || type == S64; }

// The bits of a type, all set.
inline u64 ones(Type type) { return type == PRED ? 1 : ~0ull >> (64 - 8 * bytes_of(type)); }

// An integer with its sign, or zeros, in the bits above those of its type.
inline i64 extended(u64 x, Type type) {
  const int shift = 64 - 8 * bytes_of(type);
  return is_signed(type) ? i64(x << shift) >> shift : i64(x);
}

inline bool is_less(u64 a, u64 b, Type type) { return is_signed(type) ? extended(a, type) < extended(b, type) : a < b; }

constexpr u32 CANONICAL_NAN = 0x7fffffff;  // what arithmetic makes, whatever NaN went in

inline float as_float(u64 x) { return std::bit_cast<float>(u32(x)); }
inline u64 as_bits(float x) { return std::isnan(x) ? CANONICAL_NAN : std::bit_cast<u32>(x); }

inline float from_half(u64 x, Type type) {
  return type == F16 ? float(std::bit_cast<_Float16>(u16(x))) : std::bit_cast<float>(u32(u16(x)) << 16);
}

inline u64 to_half(float x, Type type) {  // to the nearest, ties to even
  if (std::isnan(x)) return 0x7fff;
  if (type == F16) return std::bit_cast<u16>(_Float16(x));
  const u32 word = std::bit_cast<u32>(x);
  return (word + 0x7fff + ((word >> 16) & 1)) >> 16;
}

// a * b + c in 16 bits, rounded once: the product is exact in double, and the sum goes through a float rounded to odd,
// which the second rounding does no harm.
inline u64 half_fma(u64 a, u64 b, u64 c, Type type) {
  const double sum = double(from_half(a, type)) * double(from_half(b, type)) + double(from_half(c, type));
  float x = float(sum);
  if (double(x) != sum && std::isfinite(x)) {
    u32 word = std::bit_cast<u32>(x);
    if (std::fabs(double(x)) > std::fabs(sum)) word--;
    x = std::bit_cast<float>(word | 1);
  }
  return to_half(x, type);
}

// How tensor cores round sums, as far as is known.
inline float toward_zero(double x) {
  const float y = float(x);
  return std::isfinite(y) && std::fabs(double(y)) > std::fabs(x) ? std::nextafterf(y, 0.f) : y;
}

inline u64 mixed(u64 x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

struct Random {
  u64 state;

  u64 next() { return mixed(state++); }
  u32 below(u32 n) { return u32((next() >> 32) * n >> 32); }
  double unit() { return double(next() >> 11) * 0x1p-53; }
};

inline std::string text(u64 x) { return std::to_string(x); }
