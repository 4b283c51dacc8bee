// One direction's weights, packed, and the equations of a step, in the names and order of reference.py:
//
//     r  = sigmoid(gx_r + gh_r)
//     z  = sigmoid(gx_z + gh_z)
//     n  = tanh(gx_n + r * gh_n)              or, with the reset gate before the product, tanh(gx_n + W_hn (r * h))
//     h' = (1 - z) * n + z * h
//
// gx is the input's side, W_ih x + b_ih, and gh the state's, W_hh h + b_hh; where both are only added, the biases of
// both are in gx and the sum comes in one register. A panel is the three gates of as many units as a vector has lanes.
//
// Backward needs the derivatives of h' with respect to the pre-activations, a step's factors: FACTORS vectors a panel,
//
//     reset after    a_n r,  a_r,          a_z,  a_n,  z     with a_n = (1 - z) (1 - n^2),  a_z = (h - n) z (1 - z),
//     reset before   a_n,    h r (1 - r),  a_z,  r,    z          a_r = a_n gh_n r (1 - r)
//
// Recurrent dropout multiplies the state where it enters products, and so the h of h r (1 - r). Zoneout takes the part
// k of the new state, 1 - z becomes k (1 - z), and z what is left to 1. Other activations take the places of sigmoid
// and tanh, and their derivatives those of r (1 - r), z (1 - z) and 1 - n^2.
//
// Layer normalisation is of W_ih x and of W_hh h, each a row over all gates, before the biases (norm.h): a step's
// products are complete before its first gate. What backward needs of it are six vectors more a panel, the normalised
// products of the state's side (n, r, z) and of the input's (r, z, n), and after the last panel one whose first two
// lanes are the scales of the input's and of the state's side.
#pragma once
#include "activations.h"
#include "gru.h"
#include "noise.h"
#include "norm.h"
#include "products.h"
#include "sequence.h"

namespace {

constexpr int FACTORS = 5;
constexpr int NORMALISED = 6;  // factors of layer normalisation

// The rows of one step, or of several whose states are all known.
template <typename T>
struct Rows {
  int64_t count;
  const T* const* x;  // of each row, I features
  const T* const* h;  // the state before the step, as it enters products
  T* const* y;        // the state after it; null: not wanted
  T* const* factors;  // where a row's first vector goes, the others `factor_stride` apart; null: not wanted
  int64_t factor_stride;
  T* gx;       // (count, panels) panels of [gate][lane]
  T* between;  // what a step's second half reads: r * h, where the reset gate is before the product, or products
  int64_t between_stride = 0;
  const T* const* state = nullptr;  // the state before the step; where there is dropout it is not h
  const uint32_t* zone = nullptr;   // what the masks of zoneout begin from; null: there are none
  const T* const* keep = nullptr;   // of each row, what y is multiplied by in the next step's products; null: nothing
  T* const* dropped = nullptr;      // where that goes
};

template <typename T>
struct Cell {
  static constexpr int W = LANES<T>, PANEL = 3 * W;

  int64_t I, H, panels;
  bool reset_after, zones, is_plain;  // plain: tanh and sigmoid
  int64_t activation, recurrent_activation;
  uint32_t zone_threshold;
  T zone_keep;
  const T *gain_x, *gain_h;  // of layer normalisation, (3H,); null: there is none
  int64_t factors;           // vectors of a panel that backward needs
  int64_t between;           // elements of a row between the halves of a step
  T *w_ih, *w_hh;            // [panel][k][gate][lane]
  T* bias;                   // of the input's side, with those of the state's that are only added: [panel][gate][lane]
  T* b_hn;                   // what is left of them: [panel][lane]

  Cell(const GruCall& c, Arena& arena)
      : I(c.I),
        H(c.H),
        panels((c.H + W - 1) / W),
        reset_after(c.reset_after),
        zones(c.zoneout),
        is_plain(c.activation == TANH && c.recurrent_activation == SIGMOID),
        activation(c.activation),
        recurrent_activation(c.recurrent_activation),
        zone_threshold(uint32_t(c.zone_threshold)),
        zone_keep(T(c.zone_keep)),
        gain_x(static_cast<const T*>(c.gain_x)),
        gain_h(static_cast<const T*>(c.gain_h)),
        factors(FACTORS + (gain_h ? NORMALISED : 0)),
        between(gain_h        ? panels * PANEL
                : reset_after ? 0
                              : panels * W) {
    w_ih = arena.take<T>(panels * PANEL * I);
    w_hh = arena.take<T>(panels * PANEL * H);
    bias = arena.take<T>(panels * PANEL);
    b_hn = arena.take<T>(panels * W);
  }

  void pack(const GruCall& c, int64_t panel) const {
    pack_gates(static_cast<const T*>(c.w_ih), H, I, panel, w_ih + panel * PANEL * I);
    pack_gates(static_cast<const T*>(c.w_hh), H, H, panel, w_hh + panel * PANEL * H);
    const T *const b_ih = static_cast<const T*>(c.b_ih), *const b_hh = static_cast<const T*>(c.b_hh);
    const int64_t unit = panel * W, units = H - unit;
    for (int gate = 0; gate < 3; gate++) {
      const Vector<T> input = b_ih ? load_first(b_ih + gate * H + unit, units) : Vector<T>{};
      const Vector<T> state = b_hh ? load_first(b_hh + gate * H + unit, units) : Vector<T>{};
      const bool apart = gate == 2 && reset_after;
      store(bias + panel * PANEL + gate * W, apart ? input : input + state);
      if (gate == 2) store(b_hn + unit, apart ? state : Vector<T>{});
    }
  }

  // gx of all rows, for the panels from `begin` to `end`; with layer normalisation, only the products.
  void input(const Rows<T>& rows, int64_t begin, int64_t end) const {
    multiply(rows.x, rows.count, I, w_ih, gain_x ? nullptr : bias, rows.gx, panels * PANEL, begin, end);
  }

  // y and the factors of all rows, from gx. `meet` waits for the threads that have the same rows and other panels; with
  // layer normalisation these have the same gx and `between` too.
  template <typename Meet>
  void step(const Rows<T>& rows, int64_t begin, int64_t end, const Meet& meet) const {
    if (gain_h) {
      multiply(rows.h, rows.count, H, w_hh, nullptr, rows.between, rows.between_stride, begin, end);
      meet();
      for (int64_t i = 0; i < rows.count; i++) normalise(rows, i, begin, end);
    } else if (reset_after) {
      over_tiles<3>(rows.count, begin, end,
                    [&](int64_t i, auto M, int64_t panel, auto P) { step_tile<M, P>(rows, i, panel); });
    } else {
      over_tiles<3>(rows.count, begin, end,
                    [&](int64_t i, auto M, int64_t panel, auto P) { reset_tile<M, P>(rows, i, panel); });
      meet();
      over_tiles<3>(rows.count, begin, end,
                    [&](int64_t i, auto M, int64_t panel, auto P) { candidate_tile<M, P>(rows, i, panel); });
    }
  }

 private:
  // Where none of the new state is taken, it may be a NaN.
  static void zone_out(Vector<T> k, Vector<T>& z, Vector<T>& not_z, Vector<T>& slope_z) {
    const Vector<T> none{};
    not_z = k == none ? none : k * not_z;
    slope_z = k == none ? none : k * slope_z;
    z = k == none ? broadcast(T(1)) : fma<T>(k, z, T(1) - k);
  }
  // h' = (1 - z) n + z h; with zoneout, h itself where nothing of n is taken.
  Vector<T> blended(Vector<T> z, Vector<T> not_z, Vector<T> n, Vector<T> h) const {
    const Vector<T> y = fma<T>(z, h, not_z * n);
    return zones ? (not_z == Vector<T>{} ? h : y) : y;
  }
  // How much of the new state is taken.
  Vector<T> taken(const Rows<T>& rows, int64_t i, int64_t panel) const {
    return rows.zone ? takes_new<T>(rows.zone[i], panel * W, zone_threshold) : broadcast(zone_keep);
  }
  void write(const Rows<T>& rows, int64_t i, int64_t panel, Vector<T> y) const {
    const int64_t unit = panel * W;
    if (rows.y) store_first(rows.y[i] + unit, y, H - unit);
    if (rows.keep) store_first(rows.dropped[i] + unit, load_first(rows.keep[i] + unit, H - unit) * y, H - unit);
  }
  T* factors_of(const Rows<T>& rows, int64_t i, int64_t panel) const {
    return rows.factors[i] + panel * factors * rows.factor_stride;
  }
  // Zeros in the lanes beyond H, where an infinity in x or h, times weights of 0, may have left a NaN.
  void clear_beyond(T* f, int64_t count, int64_t stride, int64_t units) const {
    for (int64_t k = 0; units < W && k < count; k++) store(f + k * stride, load_first(f + k * stride, units));
  }
  T* gx_of(const Rows<T>& rows, int64_t i, int64_t panel) const { return rows.gx + (i * panels + panel) * PANEL; }

  // The activations of the gates and of the candidate; PLAIN says that they are sigmoid and tanh.
  template <bool PLAIN>
  ALWAYS_INLINE auto gate(Vector<T> x) const {
    if constexpr (PLAIN)
      return Sigmoid<T>(x);
    else
      return activated<T>(recurrent_activation, x);
  }
  template <bool PLAIN>
  ALWAYS_INLINE auto candidate(Vector<T> x) const {
    if constexpr (PLAIN)
      return tanh<T>(x);
    else
      return activated<T>(activation, x);
  }

  // The gates' products of rows of K numbers with packed weights, for the panels from `begin` to `end`.
  void multiply(const T* const* a, int64_t count, int64_t K, const T* w, const T* init, T* out, int64_t stride,
                int64_t begin, int64_t end) const {
    over_tiles<3>(count, begin, end, [&](int64_t i, auto M, int64_t panel, auto P) {
      product_tile<M, P>(a + i, K, w + panel * PANEL * K, init ? init + panel * PANEL : nullptr,
                         out + i * stride + panel * PANEL, stride);
    });
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) static void product_tile(const T* const* rows, int64_t K, const T* w, const T* init, T* out,
                                                     int64_t stride) {
    const T* a[ROWS];
    Vector<T> sums[ROWS][PANELS][3];
    for (int i = 0; i < ROWS; i++) a[i] = rows[i];
    over_sums<ROWS, PANELS, 3>(
        [&](int i, int p, int g) { sums[i][p][g] = init ? load(init + p * PANEL + g * W) : Vector<T>{}; });
    add_product<3, 0>(a, K, w, PANEL * K, sums);
    over_sums<ROWS, PANELS, 3>(
        [&](int i, int p, int g) { store(out + i * stride + p * PANEL + g * W, sums[i][p][g]); });
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void step_tile(const Rows<T>& rows, int64_t first, int64_t panel) const {
    const T* h[ROWS];
    Vector<T> sums[ROWS][PANELS][3];
    for (int i = 0; i < ROWS; i++) h[i] = rows.h[first + i];
    over_sums<ROWS, PANELS, 3>([&](int i, int p, int g) {
      sums[i][p][g] = load(g < 2 ? gx_of(rows, first + i, panel + p) + g * W : b_hn + (panel + p) * W);
    });
    add_product<3, 0>(h, H, w_hh + panel * PANEL * H, PANEL * H, sums);
    T u[ROWS][PANELS][3][W];  // in memory, or the loop over it is unrolled as well
    over_sums<ROWS, PANELS, 3>([&](int i, int p, int g) { store(u[i][p][g], sums[i][p][g]); });
    finish(rows, first, ROWS, panel, PANELS, u[0][0][0], gx_of(rows, first, panel));
  }

  // The gates of some rows and panels from u, [row][panel][r, z, gh_n][lane], and the gx of the first.
  ALWAYS_INLINE void finish(const Rows<T>& rows, int64_t row, int64_t count, int64_t panel, int64_t width, const T* u,
                            const T* gx) const {
    is_plain ? finish_as<true>(rows, row, count, panel, width, u, gx)
             : finish_other(rows, row, count, panel, width, u, gx);
  }
  __attribute__((noinline)) void finish_other(const Rows<T>& rows, int64_t row, int64_t count, int64_t panel,
                                              int64_t width, const T* u, const T* gx) const {
    finish_as<false>(rows, row, count, panel, width, u, gx);
  }
  template <bool PLAIN>
  ALWAYS_INLINE void finish_as(const Rows<T>& rows, int64_t first, int64_t count, int64_t panel, int64_t width,
                               const T* u, const T* gx) const {
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 1
      for (int64_t p = 0; p < width; p++) {
        const T* const u_p = u + (i * width + p) * PANEL;
        const Vector<T> gh_n = load(u_p + 2 * W);
        const Vector<T> h_p = load_first(rows.state[first + i] + (panel + p) * W, H - (panel + p) * W);
        const auto r = gate<PLAIN>(load(u_p)), update = gate<PLAIN>(load(u_p + W));
        Vector<T> z = update.value, not_z = update.rest, slope_z = update.slope();
        if (zones) zone_out(taken(rows, first + i, panel + p), z, not_z, slope_z);
        const auto n = candidate<PLAIN>(fma<T>(r.value, gh_n, load(gx + (i * panels + p) * PANEL + 2 * W)));
        write(rows, first + i, panel + p, blended(z, not_z, n.value, h_p));
        if (rows.factors) {
          T* const f = factors_of(rows, first + i, panel + p);
          const int64_t next = rows.factor_stride;
          const Vector<T> a_n = not_z * n.slope();
          store(f, a_n * r.value), store(f + next, a_n * gh_n * r.slope());
          store(f + 2 * next, (h_p - n.value) * slope_z), store(f + 3 * next, a_n), store(f + 4 * next, z);
          clear_beyond(f, FACTORS, next, H - (panel + p) * W);
        }
      }
  }

  // The gates of a row whose products are complete, for the panels from `begin` to `end`.
  __attribute__((noinline)) void normalise(const Rows<T>& rows, int64_t row, int64_t begin, int64_t end) const {
    constexpr int BLOCK = 8;  // panels
    const T *const x = rows.gx + row * panels * PANEL, *const h = rows.between + row * rows.between_stride;
    const Moments<T> of_x(x, panels, H), of_h(h, panels, H);
    T u[BLOCK][3][W], gx[BLOCK][3][W];
    for (int64_t block = begin; block < end; block += BLOCK) {
      const int64_t width = std::min<int64_t>(BLOCK, end - block);
      for (int64_t p = 0; p < width; p++) {
        const int64_t panel = block + p, unit = panel * W, units = H - unit;
        T* const f = rows.factors ? factors_of(rows, row, panel) + FACTORS * rows.factor_stride : nullptr;
#pragma GCC unroll 3
        for (int g = 0; g < 3; g++) {
          const int64_t at = panel * PANEL + g * W;
          const Vector<T> v_x = of_x.normalised(x + at, units), v_h = of_h.normalised(h + at, units);
          const Vector<T> side = fma<T>(v_x, load_first(gain_x + g * H + unit, units), load(bias + at));
          const Vector<T> add = g < 2 ? side : load(b_hn + unit);
          store(u[p][g], fma<T>(v_h, load_first(gain_h + g * H + unit, units), add));
          if (g == 2) store(gx[p][g], side);
          if (f) store(f + (g + 1) % 3 * rows.factor_stride, v_h), store(f + (3 + g) * rows.factor_stride, v_x);
        }
      }
      finish(rows, row, 1, block, width, u[0][0], gx[0][0]);
    }
    if (rows.factors && begin == 0 && end > 0) {
      T* const scales = factors_of(rows, row, panels);
      scales[0] = of_x.scale, scales[1] = of_h.scale;
    }
  }

  // The first half of the other form: r * h for all units, whose product the second half reads. 1 - z and z take the
  // place of gx_r and gx_z.
  template <int ROWS, int PANELS>
  __attribute__((noinline)) void reset_tile(const Rows<T>& rows, int64_t first, int64_t panel) const {
    const T* h[ROWS];
    Vector<T> sums[ROWS][PANELS][2];
    for (int i = 0; i < ROWS; i++) h[i] = rows.h[first + i];
    over_sums<ROWS, PANELS, 2>(
        [&](int i, int p, int g) { sums[i][p][g] = load(gx_of(rows, first + i, panel + p) + g * W); });
    add_product<3, 0>(h, H, w_hh + panel * PANEL * H, PANEL * H, sums);
    T u[ROWS][PANELS][2][W];
    over_sums<ROWS, PANELS, 2>([&](int i, int p, int g) { store(u[i][p][g], sums[i][p][g]); });
    is_plain ? reset_as<true>(rows, first, ROWS, panel, PANELS, u[0][0][0])
             : reset_other(rows, first, ROWS, panel, PANELS, u[0][0][0]);
  }
  __attribute__((noinline)) void reset_other(const Rows<T>& rows, int64_t first, int64_t count, int64_t panel,
                                             int64_t width, const T* u) const {
    reset_as<false>(rows, first, count, panel, width, u);
  }
  template <bool PLAIN>
  ALWAYS_INLINE void reset_as(const Rows<T>& rows, int64_t first, int64_t count, int64_t panel, int64_t width,
                              const T* u) const {
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 1
      for (int64_t p = 0; p < width; p++) {
        const T* const u_p = u + (i * width + p) * 2 * W;
        const Vector<T> h_p = load_first(rows.h[first + i] + (panel + p) * W, H - (panel + p) * W);
        const auto r = gate<PLAIN>(load(u_p)), update = gate<PLAIN>(load(u_p + W));
        Vector<T> z = update.value, not_z = update.rest, slope_z = update.slope();
        if (zones) zone_out(taken(rows, first + i, panel + p), z, not_z, slope_z);
        T* const gx = gx_of(rows, first + i, panel + p);
        store(gx, not_z), store(gx + W, z);
        store(rows.between + (first + i) * rows.between_stride + (panel + p) * W, r.value * h_p);
        if (rows.factors) {
          T* const f = factors_of(rows, first + i, panel + p);
          const int64_t next = rows.factor_stride;
          store(f + next, h_p * r.slope()), store(f + 2 * next, slope_z), store(f + 3 * next, r.value);
          store(f + 4 * next, z);
          clear_beyond(f + next, FACTORS - 1, next, H - (panel + p) * W);
        }
      }
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void candidate_tile(const Rows<T>& rows, int64_t first, int64_t panel) const {
    const T* rh[ROWS];
    Vector<T> sums[ROWS][PANELS][1];
    for (int i = 0; i < ROWS; i++) rh[i] = rows.between + (first + i) * rows.between_stride;
    over_sums<ROWS, PANELS, 1>(
        [&](int i, int p, int) { sums[i][p][0] = load(gx_of(rows, first + i, panel + p) + 2 * W); });
    add_product<3, 2>(rh, H, w_hh + panel * PANEL * H, PANEL * H, sums);
    T u[ROWS][PANELS][W];
    over_sums<ROWS, PANELS, 1>([&](int i, int p, int) { store(u[i][p], sums[i][p][0]); });
    is_plain ? candidate_as<true>(rows, first, ROWS, panel, PANELS, u[0][0])
             : candidate_other(rows, first, ROWS, panel, PANELS, u[0][0]);
  }
  __attribute__((noinline)) void candidate_other(const Rows<T>& rows, int64_t first, int64_t count, int64_t panel,
                                                 int64_t width, const T* u) const {
    candidate_as<false>(rows, first, count, panel, width, u);
  }
  template <bool PLAIN>
  ALWAYS_INLINE void candidate_as(const Rows<T>& rows, int64_t first, int64_t count, int64_t panel, int64_t width,
                                  const T* u) const {
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 1
      for (int64_t p = 0; p < width; p++) {
        const T* const gx = gx_of(rows, first + i, panel + p);
        const auto n = candidate<PLAIN>(load(u + (i * width + p) * W));
        const Vector<T> not_z = load(gx), z = load(gx + W);
        const Vector<T> h_p = load_first(rows.state[first + i] + (panel + p) * W, H - (panel + p) * W);
        write(rows, first + i, panel + p, blended(z, not_z, n.value, h_p));
        if (rows.factors) {
          T* const f = factors_of(rows, first + i, panel + p);
          T* const a_z = f + 2 * rows.factor_stride;  // holds the slope of z
          store(f, not_z * n.slope()), store(a_z, (h_p - n.value) * load(a_z));
          clear_beyond(f, 2, 2 * rows.factor_stride, H - (panel + p) * W);
        }
      }
  }
};

}  // namespace
