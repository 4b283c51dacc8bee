// Quantised weights, int8 with a scale for each row or bfloat16: how they are packed, and their products.
//
// bfloat16 weights are widened in registers: sums are those of the float kernels on the same numbers, bit for bit.
//
// int8 weights meet operands of 16 bits in products of pairs, whose sums are exact integers. An operand is a row of x
// or the state, divided by its unit:
//
//     unit of x        largest |x| of the row and step / most(I)
//     unit of a state  max(1, largest |h0| of the segment) / most(H): every later state is between its candidate, in
//                      [-1, 1], and the one before, and so within it
//     most(K)          what K products of a weight, in [-128, 127], with it cannot overflow 32 bits by; 15 bits to K =
//                      512, 12 to 4,096, and 8 to 65,536
//
// A NaN or an infinity in x, or in h0, makes the unit NaN, and so the row.
#pragma once
#include "gru.h"
#include "products.h"
#include "sequence.h"

namespace {

constexpr int W = LANES<float>, PANEL = 3 * W;
using Floats = Vector<float>;
using Ints = Vector<int32_t>;

// A tile's vectors for each row, as `over_tiles` counts: three sums, and with AVX2, where widened weights and a product
// leave registers for three rows but not four, one more.
constexpr int REGISTERS = BYTES == 32 ? 4 : 3;

constexpr float SMALLEST = 1e-30f;  // a largest |x| below counts as this

inline float most(int64_t K) {
  return float(std::min<int64_t>(32767, (int64_t{1} << 31) / 128 / std::max<int64_t>(1, K) - 1));
}

// 2 W weights of int8 as 16-bit integers, and the W sums of their products, a pair at a time, with a pair of operands.
ALWAYS_INLINE Ints widened(const int8_t* w) {
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
#elif defined(__aarch64__)
  return (Ints)vmovl_s8(vld1_s8(w));
#else
  int16_t wide[2 * W];
  for (int i = 0; i < 2 * W; i++) wide[i] = w[i];
  Ints all;
  std::memcpy(&all, wide, sizeof all);
  return all;
#endif
}
ALWAYS_INLINE Ints products_of_pairs(Ints weights, Ints operands) {
#if defined(__AVX512F__)
  return (Ints)_mm512_madd_epi16((__m512i)weights, (__m512i)operands);
#elif defined(__AVX2__)
  return (Ints)_mm256_madd_epi16((__m256i)weights, (__m256i)operands);
#elif defined(__aarch64__)
  const int16x8_t w = (int16x8_t)weights, o = (int16x8_t)operands;
  return (Ints)vpaddq_s32(vmull_s16(vget_low_s16(w), vget_low_s16(o)), vmull_high_s16(w, o));
#else
  int16_t w[2 * W], o[2 * W];
  std::memcpy(w, &weights, sizeof w), std::memcpy(o, &operands, sizeof o);
  Ints sums;
  for (int i = 0; i < W; i++) sums[i] = w[2 * i] * o[2 * i] + w[2 * i + 1] * o[2 * i + 1];
  return sums;
#endif
}

// Rounds to 16 bits.
ALWAYS_INLINE void store_rounded(int16_t* to, Floats a) {
#if defined(__AVX512F__)
  const __m512i whole = _mm512_maskz_cvtps_epi32(__mmask16(-1), (__m512)a);  // g++ 12 warns of those without a mask
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtsepi32_epi16(__mmask16(-1), whole));
#elif defined(__AVX2__)
  const __m256i whole = _mm256_cvtps_epi32((__m256)a), halves = _mm256_packs_epi32(whole, whole);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 8)));
#elif defined(__aarch64__)
  vst1_s16(to, vqmovn_s32(vcvtnq_s32_f32((float32x4_t)a)));
#else
  for (int i = 0; i < W; i++) to[i] = int16_t(__builtin_lrintf(a[i]));
#endif
}

// The largest |a[i]|, NaN where one is not finite.
inline float largest(const float* a, int64_t n) {
  Floats top{}, wrong{};
  for (int64_t i = 0; i < n; i += W) {
    const Floats some = load_first(a + i, n - i), size = magnitude<float>(some);
    top = size > top ? size : top;
    wrong += some - some;
  }
  float all = 0, nan = 0;
  for (int i = 0; i < W; i++) all = std::max(all, top[i]), nan += wrong[i];
  return all + nan;
}

// a / unit for the numbers from `begin` to `end`, which are whole vectors but for the last.
inline void divide(const float* a, int64_t begin, int64_t end, float unit, int16_t* to) {
  for (int64_t i = begin; i < end; i += W) store_rounded(to + i, load_first(a + i, end - i) * (1 / unit));
}

// How weights are stored, and what their products are made of. Weights of two k lie side by side:
// [pair][gate][lane][2].
struct Int8 {
  typedef int8_t Weight;
  typedef int16_t Operand;  // of its own memory, to an even number
  typedef Ints Sum;
  static constexpr bool ROUNDS = true;

  // A sum begins with this, and ends as a pre-activation: what it adds to, and the scale of its row and operand.
  static Sum begun(Floats) { return Sum{}; }
  static Floats ended(Sum sum, Floats addend, const float* scale, float unit) {
    return fma<float>(__builtin_convertvector(sum, Floats), load(scale) * unit, addend);
  }

  template <int FIRST, int ROWS, int PANELS, int USED>
  static ALWAYS_INLINE void add_product(const Operand* const (&a)[ROWS], int64_t K, const Weight* w, int64_t panel_size,
                                        Sum (&sums)[ROWS][PANELS][USED]) {
    for (int64_t k = 0; k < K; k += 2, w += 2 * PANEL) {
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; p++) {
        Sum weights[USED];
#pragma GCC unroll 3
        for (int v = 0; v < USED; v++) weights[v] = widened(w + p * panel_size + (FIRST + v) * 2 * W);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
          int32_t pair;
          std::memcpy(&pair, a[i] + k, sizeof pair);
          const Sum operands = broadcast(pair);
#pragma GCC unroll 3
          for (int v = 0; v < USED; v++) sums[i][p][v] += products_of_pairs(weights[v], operands);
        }
      }
    }
  }
};

struct Bf16 {
  typedef uint16_t Weight;
  typedef float Operand;
  typedef Floats Sum;
  static constexpr bool ROUNDS = false;

  static Sum begun(Floats addend) { return addend; }
  static Floats ended(Sum sum, Floats, const float*, float) { return sum; }

  template <int FIRST, int ROWS, int PANELS, int USED>
  static ALWAYS_INLINE void add_product(const Operand* const (&a)[ROWS], int64_t K, const Weight* w, int64_t panel_size,
                                        Sum (&sums)[ROWS][PANELS][USED]) {
    const auto add = [&](int64_t k, const auto& half) {
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; p++) {
        Floats weights[USED];
#pragma GCC unroll 3
        for (int v = 0; v < USED; v++)
          weights[v] = half(load(reinterpret_cast<const int32_t*>(w + p * panel_size + (FIRST + v) * 2 * W)));
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
          const Floats value = broadcast(a[i][k]);
#pragma GCC unroll 3
          for (int v = 0; v < USED; v++) sums[i][p][v] = fma<float>(value, weights[v], sums[i][p][v]);
        }
      }
    };
    const auto first = [](Ints pair) { return (Floats)(pair << 16); };
    const auto second = [](Ints pair) { return (Floats)(pair & ~0xffff); };
    for (int64_t k = 0; k + 1 < K; k += 2, w += 2 * PANEL) add(k, first), add(k + 1, second);
    if (K % 2) add(K - 1, first);
  }
};

// One direction's weights, packed: a panel is the three gates of as many units as a vector has lanes.
template <typename Kind>
struct Packed {
  using Weight = typename Kind::Weight;

  int64_t I, H, panels, size_ih, size_hh;
  Weight *w_ih, *w_hh;
  float *bias, *b_hn;          // as in cell.h
  float *scale_ih, *scale_hh;  // [panel][gate][lane]

  Packed(int64_t features, int64_t units, Arena& arena)
      : I(features),
        H(units),
        panels((units + W - 1) / W),
        size_ih((features + 1) / 2 * 2 * PANEL),
        size_hh((units + 1) / 2 * 2 * PANEL) {
    w_ih = arena.take<Weight>(panels * size_ih), w_hh = arena.take<Weight>(panels * size_hh);
    bias = arena.take<float>(panels * PANEL), b_hn = arena.take<float>(panels * W);
    scale_ih = arena.take<float>(Kind::ROUNDS ? panels * PANEL : 0);
    scale_hh = arena.take<float>(Kind::ROUNDS ? panels * PANEL : 0);
  }

  void pack(const GruQuantised& q) const {
    pack(static_cast<const Weight*>(q.w_ih), I, size_ih, w_ih);
    pack(static_cast<const Weight*>(q.w_hh), H, size_hh, w_hh);
    for (int64_t panel = 0; panel < panels; panel++)
      for (int gate = 0; gate < 3; gate++) {
        const int64_t unit = panel * W, row = gate * H + unit, at = panel * PANEL + gate * W;
        const auto of = [&](const float* all) { return all ? load_first(all + row, H - unit) : Floats{}; };
        const bool apart = gate == 2 && q.reset_after;
        store(bias + at, apart ? of(q.b_ih) : of(q.b_ih) + of(q.b_hh));
        if (gate == 2) store(b_hn + unit, apart ? of(q.b_hh) : Floats{});
        if (Kind::ROUNDS) store(scale_ih + at, of(q.scale_ih)), store(scale_hh + at, of(q.scale_hh));
      }
  }

 private:
  void pack(const Weight* w, int64_t K, int64_t size, Weight* out) const {
    for (int64_t panel = 0; panel < panels; panel++)
      for (int64_t at = 0; at < size; at++, out++) {
        const int64_t k = at / (2 * PANEL) * 2 + at % 2, gate = at / (2 * W) % 3, unit = panel * W + at / 2 % W;
        *out = unit < H && k < K ? w[(gate * H + unit) * K + k] : Weight(0);
      }
  }
};

}  // namespace
