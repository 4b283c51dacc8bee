// Inference on quantised weights: int8 with a scale for each row, or bfloat16. The equations and the walk through a
// call are those of cell.h and forward.cpp.
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
//                      511, 12 to 4,096, and 8 to 65,536
//
// A NaN or an infinity in x, or in h0, makes the unit NaN, and so the row.
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

// The rows of one step, or of several whose inputs are all known.
template <typename Operand>
struct Rows {
  int64_t count;
  const Operand* const* operands;       // x, or the state before the step
  const float* unit;                    // of each row's; null: none
  float* gx;                            // (count, panels) panels of [gate][lane]
  const float* const* state = nullptr;  // before the step
  float* const* y = nullptr;            // after it
  Operand* const* next = nullptr;       // where the state after it goes as an operand, null: nowhere
  Operand* const* rh = nullptr;         // r * h, of the form that has the reset gate before the product
};

template <typename Kind>
struct Cell {
  using Operand = typename Kind::Operand;
  using Sum = typename Kind::Sum;

  Packed<Kind> weights;
  int64_t panels;

  // gx of all rows, for the panels from `begin` to `end`.
  void input(const Rows<Operand>& rows, int64_t begin, int64_t end) const {
    over_tiles<REGISTERS>(rows.count, begin, end,
                          [&](int64_t i, auto M, int64_t panel, auto P) { input_tile<M, P>(rows, i, panel); });
  }

  // y of all rows, from gx. `meet` waits for the threads that have the same rows and other panels.
  template <typename Meet>
  void step(const Rows<Operand>& rows, bool reset_after, int64_t begin, int64_t end, const Meet& meet) const {
    if (reset_after) {
      over_tiles<REGISTERS>(rows.count, begin, end,
                            [&](int64_t i, auto M, int64_t panel, auto P) { step_tile<M, P>(rows, i, panel); });
    } else {
      over_tiles<REGISTERS>(rows.count, begin, end,
                            [&](int64_t i, auto M, int64_t panel, auto P) { reset_tile<M, P>(rows, i, panel); });
      meet();
      over_tiles<REGISTERS>(rows.count, begin, end,
                            [&](int64_t i, auto M, int64_t panel, auto P) { candidate_tile<M, P>(rows, i, panel); });
    }
  }

 private:
  template <int ROWS, int PANELS, int USED>
  using Sums = Sum[ROWS][PANELS][USED];

  float* gx_of(const Rows<Operand>& rows, int64_t i, int64_t panel) const {
    return rows.gx + (i * panels + panel) * PANEL;
  }
  static float unit_of(const Rows<Operand>& rows, int64_t i) { return Kind::ROUNDS ? rows.unit[i] : 0; }
  const float* scale(int64_t panel, int gate) const { return weights.scale_hh + panel * PANEL + gate * W; }
  Floats state_of(const Rows<Operand>& rows, int64_t i, int64_t panel) const {
    return load_first(rows.state[i] + panel * W, weights.H - panel * W);
  }
  void write(const Rows<Operand>& rows, int64_t i, int64_t panel, Floats h) const {
    store_first(rows.y[i] + panel * W, h, weights.H - panel * W);
    if constexpr (Kind::ROUNDS) store_rounded(rows.next[i] + panel * W, h * (1 / rows.unit[i]));
  }

  // The sums of the products of ROWS rows, gates from FIRST on, each begun with addend(row, panel, gate).
  template <int FIRST, int ROWS, int PANELS, int USED, typename Addend>
  static ALWAYS_INLINE void sum(const Operand* const* operands, int64_t K, const typename Kind::Weight* w, int64_t size,
                                const Addend& addend, Sums<ROWS, PANELS, USED>& out) {
    const Operand* a[ROWS];
    Sum sums[ROWS][PANELS][USED];
    for (int i = 0; i < ROWS; i++) {
      a[i] = operands[i];
      for (int p = 0; p < PANELS; p++)
        for (int v = 0; v < USED; v++) sums[i][p][v] = Kind::begun(addend(i, p, v));
    }
    Kind::template add_product<FIRST>(a, K, w, size, sums);
    for (int i = 0; i < ROWS; i++)
      for (int p = 0; p < PANELS; p++)
        for (int v = 0; v < USED; v++) out[i][p][v] = sums[i][p][v];
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void input_tile(const Rows<Operand>& rows, int64_t first, int64_t panel) const {
    const auto addend = [&](int, int p, int g) { return load(weights.bias + (panel + p) * PANEL + g * W); };
    Sum sums[ROWS][PANELS][3];
    sum<0, ROWS, PANELS, 3>(rows.operands + first, weights.I, weights.w_ih + panel * weights.size_ih, weights.size_ih,
                            addend, sums);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++)
        for (int g = 0; g < 3; g++)
          store(gx_of(rows, first + i, panel + p) + g * W,
                Kind::ended(sums[i][p][g], addend(i, p, g), weights.scale_ih + (panel + p) * PANEL + g * W,
                            unit_of(rows, first + i)));
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void step_tile(const Rows<Operand>& rows, int64_t first, int64_t panel) const {
    const auto addend = [&](int i, int p, int g) {
      return load(g == 2 ? weights.b_hn + (panel + p) * W : gx_of(rows, first + i, panel + p) + g * W);
    };
    Sum sums[ROWS][PANELS][3];
    sum<0, ROWS, PANELS, 3>(rows.operands + first, weights.H, weights.w_hh + panel * weights.size_hh, weights.size_hh,
                            addend, sums);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++) {
        const auto ended = [&](int g) {
          return Kind::ended(sums[i][p][g], addend(i, p, g), scale(panel + p, g), unit_of(rows, first + i));
        };
        Floats not_r, not_z;
        const Floats r = sigmoid<float>(ended(0), not_r), z = sigmoid<float>(ended(1), not_z);
        const Floats gx_n = load(gx_of(rows, first + i, panel + p) + 2 * W);
        const Floats n = tanh<float>(fma<float>(r, ended(2), gx_n)).value;
        write(rows, first + i, panel + p, fma<float>(z, state_of(rows, first + i, panel + p), not_z * n));
      }
  }

  // The first half of the other form: r * h for all units. 1 - z and z take the place of gx_r and gx_z.
  template <int ROWS, int PANELS>
  __attribute__((noinline)) void reset_tile(const Rows<Operand>& rows, int64_t first, int64_t panel) const {
    const auto addend = [&](int i, int p, int g) { return load(gx_of(rows, first + i, panel + p) + g * W); };
    Sum sums[ROWS][PANELS][2];
    sum<0, ROWS, PANELS, 2>(rows.operands + first, weights.H, weights.w_hh + panel * weights.size_hh, weights.size_hh,
                            addend, sums);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++) {
        const auto ended = [&](int g) {
          return Kind::ended(sums[i][p][g], addend(i, p, g), scale(panel + p, g), unit_of(rows, first + i));
        };
        Floats not_r, not_z;
        const Floats r = sigmoid<float>(ended(0), not_r), z = sigmoid<float>(ended(1), not_z);
        float* const gx = gx_of(rows, first + i, panel + p);
        store(gx, not_z), store(gx + W, z);
        const Floats rh = r * state_of(rows, first + i, panel + p);
        Operand* const to = rows.rh[first + i] + (panel + p) * W;
        if constexpr (Kind::ROUNDS)
          store_rounded(to, rh * (1 / rows.unit[first + i]));
        else
          store(to, rh);
      }
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void candidate_tile(const Rows<Operand>& rows, int64_t first, int64_t panel) const {
    const auto addend = [&](int i, int p, int) { return load(gx_of(rows, first + i, panel + p) + 2 * W); };
    Sum sums[ROWS][PANELS][1];
    sum<2, ROWS, PANELS, 1>(rows.rh + first, weights.H, weights.w_hh + panel * weights.size_hh, weights.size_hh, addend,
                            sums);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++) {
        const Floats n =
            tanh<float>(Kind::ended(sums[i][p][0], addend(i, p, 0), scale(panel + p, 2), unit_of(rows, first + i)))
                .value;
        const float* const gx = gx_of(rows, first + i, panel + p);
        write(rows, first + i, panel + p, fma<float>(load(gx + W), state_of(rows, first + i, panel + p), load(gx) * n));
      }
  }
};

template <typename Kind>
struct Forward {
  using Operand = typename Kind::Operand;

  const GruCall& call;
  Sequence sequence;
  Cell<Kind> cell;
  int64_t panels, chunk, x_row, h_row;
  float *zeros, *gx, *units;
  Operand *x_rounded, *h_rounded, *rh;  // the states of this step and those of the next
  const float** floats;
  const Operand** operands;

  Forward(const GruCall& c, int64_t threads, Arena& arena)
      : call(c),
        sequence{c},
        cell{packed(c), (c.H + W - 1) / W},
        panels(cell.panels),
        chunk(sequence.chunk_rows()),
        x_row((c.I + W - 1) / W * W),
        h_row(panels * W) {
    zeros = arena.take<float>(c.h0 ? 0 : c.H);
    gx = arena.take<float>(threads * chunk * panels * PANEL);
    units = arena.take<float>(Kind::ROUNDS ? threads * chunk * 2 : 0);
    x_rounded = arena.take<Operand>(Kind::ROUNDS ? threads * chunk * x_row : 0);
    h_rounded = arena.take<Operand>(Kind::ROUNDS ? 2 * c.segments * h_row : 0);
    rh = arena.take<Operand>(c.reset_after ? 0 : c.segments * h_row);
    floats = arena.take<const float*>(threads * chunk * 3);
    operands = arena.take<const Operand*>(threads * chunk * 4);
  }

  static Packed<Kind> packed(const GruCall& c) {
    Arena arena(const_cast<char*>(static_cast<const char*>(c.packed)));
    return {c.I, c.H, arena};
  }

  void run(int64_t thread, int64_t threads, Meeting& meeting) const {
    const GruCall& c = call;
    if (!c.h0 && thread == 0) std::fill_n(zeros, c.H, 0.f);
    meeting.all.wait(threads);

    const Share share(c.segments, thread, threads);
    const int64_t begin = share.begin(panels), end = share.end(panels), segments = share.count(c.segments);
    const auto meet = [&] { meeting.rows[share.first].wait(share.parts); };
    const float **const x = floats + thread * chunk * 3, **const state = x + chunk;
    float** const y = const_cast<float**>(state + chunk);
    const Operand **const xq = operands + thread * chunk * 4, **h = xq + chunk, **next = h + chunk;
    Operand** const rh_of = const_cast<Operand**>(xq + 3 * chunk);
    float *const x_unit = units + thread * chunk * 2 * Kind::ROUNDS, *const h_unit = x_unit + chunk * Kind::ROUNDS;
    float* const gx_own = gx + thread * chunk * panels * PANEL;

    const float* const h0 = c.h0 ? static_cast<const float*>(c.h0) : zeros;
    for (int64_t i = 0; i < segments; i++) {
      const int64_t segment = share.first + i * share.stride;
      state[i] = h0 + sequence.state(segment) * c.h0_r;
      if (!c.reset_after) rh_of[i] = rh + segment * h_row;
      if constexpr (Kind::ROUNDS) {
        Operand* const to = h_rounded + segment * h_row;
        const float size = largest(state[i], c.H);
        h_unit[i] = (size < 1 ? 1 : size) / most(c.H);
        divide(state[i], begin * W, std::min(c.H, end * W), h_unit[i], to);
        h[i] = to, next[i] = to + c.segments * h_row;
      }
    }
    if constexpr (Kind::ROUNDS)
      meet();
    else
      h = state;
    int64_t offset = 0;  // rows before the step
    for (int64_t k = 0; k < c.steps;) {
      int64_t rows = 0, last = k;
      for (; last < c.steps; last++) {
        const int64_t size = sequence.size(last), count = share.count(size);
        if (rows && rows + count > CHUNK_ROWS) break;
        for (int64_t i = 0; i < count; i++, rows++) {
          const int64_t row = share.first + i * share.stride;
          x[rows] = sequence.at(static_cast<const float*>(c.x), c.x_t, c.x_b, last, offset, row);
          y[rows] = sequence.at(static_cast<float*>(c.y), c.y_t, c.y_b, last, offset, row);
          if constexpr (Kind::ROUNDS) {
            Operand* const to = x_rounded + (thread * chunk + rows) * x_row;
            const float size = largest(x[rows], c.I);
            x_unit[rows] = (size < SMALLEST ? SMALLEST : size) / most(c.I);
            divide(x[rows], 0, c.I, x_unit[rows], to);
            xq[rows] = to;
          } else {
            xq[rows] = x[rows];
          }
        }
        offset += size;
      }
      cell.input({rows, xq, x_unit, gx_own}, begin, end);
      for (int64_t row = 0; k < last; k++) {
        const int64_t count = share.count(sequence.size(k));
        Operand* const* const to = const_cast<Operand* const*>(next);
        cell.step({count, h, h_unit, gx_own + row * panels * PANEL, state, y + row, to, rh_of}, c.reset_after, begin,
                  end, meet);
        std::copy_n(y + row, count, state);
        if constexpr (Kind::ROUNDS) std::swap(h, next);
        row += count;
        meet();
      }
    }
    if (c.h_n && share.part == 0)
      for (int64_t i = 0; i < segments; i++)
        std::copy_n(state[i], c.H,
                    static_cast<float*>(c.h_n) + sequence.state(share.first + i * share.stride) * c.h_n_r);
  }
};

template <typename Kind>
int64_t bytes(const GruQuantised& q) {
  Arena arena;
  Packed<Kind>(q.I, q.H, arena);
  return arena.used();
}

template <typename Kind>
void pack(const GruQuantised& q, void* to) {
  Arena arena(static_cast<char*>(to));
  Packed<Kind>(q.I, q.H, arena).pack(q);
}

}  // namespace

extern "C" int64_t EXPORTED(gru_quantised_bytes)(const GruQuantised* weights) {
  return weights->is_int8 ? bytes<Int8>(*weights) : bytes<Bf16>(*weights);
}

extern "C" void EXPORTED(gru_quantised_pack)(const GruQuantised* weights, void* packed) {
  weights->is_int8 ? pack<Int8>(*weights, packed) : pack<Bf16>(*weights, packed);
}

extern "C" int64_t EXPORTED(gru_forward_int8)(const GruCall* calls, int64_t n) {
  return run_directions<Forward<Int8>>(calls, n, 0.5);
}

extern "C" int64_t EXPORTED(gru_forward_bf16)(const GruCall* calls, int64_t n) {
  return run_directions<Forward<Bf16>>(calls, n, 1);
}
