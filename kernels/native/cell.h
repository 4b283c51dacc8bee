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
// k of the new state, 1 - z becomes k (1 - z), and z what is left to 1.
#pragma once
#include "gru.h"
#include "noise.h"
#include "products.h"
#include "sequence.h"

namespace {

constexpr int FACTORS = 5;

// The rows of one step, or of several whose states are all known.
template <typename T>
struct Rows {
  int64_t count;
  const T* const* x;  // of each row, I features
  const T* const* h;  // the state before the step, as it enters products
  T* const* y;        // the state after it; null: not wanted
  T* const* factors;  // where a row's first vector goes, the others `factor_stride` apart; null: not wanted
  int64_t factor_stride;
  T* gx;  // (count, panels) panels of [gate][lane]
  T* rh;  // (count, rh_stride): r * h, of the form that has the reset gate before the product
  int64_t rh_stride = 0;
  const T* const* state = nullptr;  // the state before the step; where there is dropout it is not h
  const uint32_t* zone = nullptr;   // what the masks of zoneout begin from; null: there are none
  const T* const* keep = nullptr;   // of each row, what y is multiplied by in the next step's products; null: nothing
  T* const* dropped = nullptr;      // where that goes
};

template <typename T>
struct Cell {
  static constexpr int W = LANES<T>, PANEL = 3 * W;

  int64_t I, H, panels;
  bool reset_after, zones;
  uint32_t zone_threshold;
  T zone_keep;
  T *w_ih, *w_hh;  // [panel][k][gate][lane]
  T* bias;         // of the input's side, with those of the state's that are only added: [panel][gate][lane]
  T* b_hn;         // what is left of them: [panel][lane]

  Cell(const GruCall& c, Arena& arena)
      : I(c.I),
        H(c.H),
        panels((c.H + W - 1) / W),
        reset_after(c.reset_after),
        zones(c.zoneout),
        zone_threshold(uint32_t(c.zone_threshold)),
        zone_keep(T(c.zone_keep)) {
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

  // gx of all rows, for the panels from `begin` to `end`.
  void input(const Rows<T>& rows, int64_t begin, int64_t end) const {
    over_tiles<3>(rows.count, begin, end,
                  [&](int64_t i, auto M, int64_t panel, auto P) { input_tile<M, P>(rows, i, panel); });
  }

  // y and the factors of all rows, from gx. `meet` waits for the threads that have the same rows and other panels.
  template <typename Meet>
  void step(const Rows<T>& rows, int64_t begin, int64_t end, const Meet& meet) const {
    if (reset_after) {
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
  static void zone_out(Vector<T> k, Vector<T>& z, Vector<T>& not_z, Vector<T>& slope_z) {
    not_z *= k, slope_z *= k;
    z = T(1) - not_z;
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
    return rows.factors[i] + panel * FACTORS * rows.factor_stride;
  }
  T* gx_of(const Rows<T>& rows, int64_t i, int64_t panel) const { return rows.gx + (i * panels + panel) * PANEL; }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void input_tile(const Rows<T>& rows, int64_t first, int64_t panel) const {
    const T* x[ROWS];
    Vector<T> sums[ROWS][PANELS][3];
    for (int i = 0; i < ROWS; i++) {
      x[i] = rows.x[first + i];
      for (int p = 0; p < PANELS; p++)
        for (int g = 0; g < 3; g++) sums[i][p][g] = load(bias + (panel + p) * PANEL + g * W);
    }
    add_product<3, 0>(x, I, w_ih + panel * PANEL * I, PANEL * I, sums);
    for (int i = 0; i < ROWS; i++)
      for (int p = 0; p < PANELS; p++)
        for (int g = 0; g < 3; g++) store(gx_of(rows, first + i, panel + p) + g * W, sums[i][p][g]);
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void step_tile(const Rows<T>& rows, int64_t first, int64_t panel) const {
    const T* h[ROWS];
    Vector<T> sums[ROWS][PANELS][3];
    for (int i = 0; i < ROWS; i++) {
      h[i] = rows.h[first + i];
      for (int p = 0; p < PANELS; p++) {
        const T* const gx = gx_of(rows, first + i, panel + p);
        sums[i][p][0] = load(gx), sums[i][p][1] = load(gx + W), sums[i][p][2] = load(b_hn + (panel + p) * W);
      }
    }
    add_product<3, 0>(h, H, w_hh + panel * PANEL * H, PANEL * H, sums);
    T u[ROWS][PANELS][3][W];  // in memory, or the loop below is unrolled as well
    for (int i = 0; i < ROWS; i++)
      for (int p = 0; p < PANELS; p++)
        for (int g = 0; g < 3; g++) store(u[i][p][g], sums[i][p][g]);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++) {
        Vector<T> not_r, not_z;
        const Vector<T> gh_n = load(u[i][p][2]);
        const Vector<T> h_p = load_first(rows.state[first + i] + (panel + p) * W, H - (panel + p) * W);
        const Vector<T> r = sigmoid<T>(load(u[i][p][0]), not_r);
        Vector<T> z = sigmoid<T>(load(u[i][p][1]), not_z), slope_z = z * not_z;
        if (zones) zone_out(taken(rows, first + i, panel + p), z, not_z, slope_z);
        const Tanh<T> n = tanh<T>(fma<T>(r, gh_n, load(gx_of(rows, first + i, panel + p) + 2 * W)));
        write(rows, first + i, panel + p, fma<T>(z, h_p, not_z * n.value));
        if (rows.factors) {
          T* const f = factors_of(rows, first + i, panel + p);
          const int64_t next = rows.factor_stride;
          const Vector<T> a_n = not_z * n.slope();
          store(f, a_n * r), store(f + next, a_n * gh_n * (r * not_r));
          store(f + 2 * next, (h_p - n.value) * slope_z), store(f + 3 * next, a_n), store(f + 4 * next, z);
        }
      }
  }

  // The first half of the other form: r * h for all units, whose product the second half reads. 1 - z and z take the
  // place of gx_r and gx_z.
  template <int ROWS, int PANELS>
  __attribute__((noinline)) void reset_tile(const Rows<T>& rows, int64_t first, int64_t panel) const {
    const T* h[ROWS];
    Vector<T> sums[ROWS][PANELS][2];
    for (int i = 0; i < ROWS; i++) {
      h[i] = rows.h[first + i];
      for (int p = 0; p < PANELS; p++)
        for (int g = 0; g < 2; g++) sums[i][p][g] = load(gx_of(rows, first + i, panel + p) + g * W);
    }
    add_product<3, 0>(h, H, w_hh + panel * PANEL * H, PANEL * H, sums);
    T u[ROWS][PANELS][2][W];
    for (int i = 0; i < ROWS; i++)
      for (int p = 0; p < PANELS; p++)
        for (int g = 0; g < 2; g++) store(u[i][p][g], sums[i][p][g]);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++) {
        Vector<T> not_r, not_z;
        const Vector<T> h_p = load_first(h[i] + (panel + p) * W, H - (panel + p) * W);
        const Vector<T> r = sigmoid<T>(load(u[i][p][0]), not_r);
        Vector<T> z = sigmoid<T>(load(u[i][p][1]), not_z), slope_z = z * not_z;
        if (zones) zone_out(taken(rows, first + i, panel + p), z, not_z, slope_z);
        T* const gx = gx_of(rows, first + i, panel + p);
        store(gx, not_z), store(gx + W, z);
        store(rows.rh + (first + i) * rows.rh_stride + (panel + p) * W, r * h_p);
        if (rows.factors) {
          T* const f = factors_of(rows, first + i, panel + p);
          const int64_t next = rows.factor_stride;
          store(f + next, h_p * (r * not_r)), store(f + 2 * next, slope_z), store(f + 3 * next, r);
          store(f + 4 * next, z);
        }
      }
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void candidate_tile(const Rows<T>& rows, int64_t first, int64_t panel) const {
    const T* rh[ROWS];
    Vector<T> sums[ROWS][PANELS][1];
    for (int i = 0; i < ROWS; i++) {
      rh[i] = rows.rh + (first + i) * rows.rh_stride;
      for (int p = 0; p < PANELS; p++) sums[i][p][0] = load(gx_of(rows, first + i, panel + p) + 2 * W);
    }
    add_product<3, 2>(rh, H, w_hh + panel * PANEL * H, PANEL * H, sums);
    T u[ROWS][PANELS][W];
    for (int i = 0; i < ROWS; i++)
      for (int p = 0; p < PANELS; p++) store(u[i][p], sums[i][p][0]);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++) {
        const T* const gx = gx_of(rows, first + i, panel + p);
        const Tanh<T> n = tanh<T>(load(u[i][p]));
        const Vector<T> not_z = load(gx), z = load(gx + W);
        const Vector<T> h_p = load_first(rows.state[first + i] + (panel + p) * W, H - (panel + p) * W);
        write(rows, first + i, panel + p, fma<T>(z, h_p, not_z * n.value));
        if (rows.factors) {
          T* const f = factors_of(rows, first + i, panel + p);
          T* const a_z = f + 2 * rows.factor_stride;  // holds the slope of z
          store(f, not_z * n.slope()), store(a_z, (h_p - n.value) * load(a_z));
        }
      }
  }
};

}  // namespace
