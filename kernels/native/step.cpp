// One step on the weights as they lie in memory: nothing is packed, since each weight is read only once. Vectors run
// along the features; a tile is ROWS rows times UNITS hidden units, four sums each (r, z, and n's two sides). Every sum
// runs in one order, whatever the tile.
#include <algorithm>

#include "gru.h"
#include "vector.h"

namespace {

using V = Vector<float>;
constexpr int W = LANES<float>;
constexpr int AT_ONCE = ACCUMULATORS / 4;  // rows times units of a tile

// The pre-activations of W units for one row.
struct Sums {
  float r[W], z[W], gx_n[W], gh_n[W];
};

// acc[i][u] += a_i . w_u, gate by gate: r and z to the first two sums, n to the one named by N.
template <int N, int ROWS, int UNITS>
ALWAYS_INLINE void add(const float* const* a, int64_t K, const float* w, int64_t gate, V (&acc)[ROWS][UNITS][4]) {
  constexpr int SUM[3] = {0, 1, N};
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    V x[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) x[i] = load(a[i] + k);
#pragma GCC unroll 3
    for (int g = 0; g < 3; g++)
#pragma GCC unroll 8
      for (int u = 0; u < UNITS; u++) {
        const V ww = load(w + g * gate + u * K + k);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) acc[i][u][SUM[g]] += x[i] * ww;
      }
  }
  if (k < K)
    for (int g = 0; g < 3; g++)
      for (int u = 0; u < UNITS; u++) {
        const V ww = load_first(w + g * gate + u * K + k, K - k);
        for (int i = 0; i < ROWS; i++) acc[i][u][SUM[g]] += load_first(a[i] + k, K - k) * ww;
      }
}

template <int ROWS, int UNITS>
__attribute__((noinline)) void tile(const GruCall& c, const float* const* x, const float* const* h, int64_t unit, int at, Sums* sums) {
  V acc[ROWS][UNITS][4] = {};
  add<2>(x, c.I, c.w_ih + unit * c.I, c.H * c.I, acc);
  add<3>(h, c.H, c.w_hh + unit * c.H, c.H * c.H, acc);
  for (int i = 0; i < ROWS; i++)
    for (int u = 0; u < UNITS; u++) {
      sums[i].r[at + u] = sum_of_lanes<float>(acc[i][u][0]);
      sums[i].z[at + u] = sum_of_lanes<float>(acc[i][u][1]);
      sums[i].gx_n[at + u] = sum_of_lanes<float>(acc[i][u][2]);
      sums[i].gh_n[at + u] = sum_of_lanes<float>(acc[i][u][3]);
    }
}

// W units from `unit` on, for ROWS rows.
template <int ROWS>
ALWAYS_INLINE void block(const GruCall& c, const float* const* x, const float* const* h, int64_t unit, float* const* y) {
  constexpr int UNITS = AT_ONCE / ROWS;
  const int units = int(std::min<int64_t>(W, c.H - unit));
  Sums sums[ROWS] = {};
  int u = 0;
  for (; u + UNITS <= units; u += UNITS) tile<ROWS, UNITS>(c, x, h, unit + u, u, sums);
  if constexpr (UNITS > 1)
    for (; u < units; u++) tile<ROWS, 1>(c, x, h, unit + u, u, sums);
  V b_r{}, b_z{}, b_in{}, b_hn{};
  if (c.b_ih) {
    const auto bias = [&](const float* b, int g) { return load_first(b + g * c.H + unit, units); };
    b_r = bias(c.b_ih, 0) + bias(c.b_hh, 0), b_z = bias(c.b_ih, 1) + bias(c.b_hh, 1);
    b_in = bias(c.b_ih, 2), b_hn = bias(c.b_hh, 2);
  }
  for (int i = 0; i < ROWS; i++) {
    V not_r, not_z;
    const V r = sigmoid(load(sums[i].r) + b_r, not_r), z = sigmoid(load(sums[i].z) + b_z, not_z);
    const V n = tanh((load(sums[i].gx_n) + b_in) + r * (load(sums[i].gh_n) + b_hn));
    store_first(y[i] + unit, not_z * n + z * load_first(h[i] + unit, units), units);
  }
}

}  // namespace

extern "C" void EXPORTED(gru_step)(const GruCall* call) {
  const GruCall& c = *call;
  for (int64_t unit = 0; unit < c.H; unit += W)  // the weights of a block stay in the cache for all rows
    for (int64_t b = 0; b < c.B;) {
      const float *x[AT_ONCE], *h[AT_ONCE];
      float* y[AT_ONCE];
      const int64_t rows = std::min<int64_t>(AT_ONCE, c.B - b);
      for (int64_t i = 0; i < rows; i++) {
        x[i] = c.x + (b + i) * c.x_b;
        h[i] = c.h0 + (b + i) * c.h0_r;
        y[i] = c.y + (b + i) * c.y_b;
      }
      if (rows == AT_ONCE) {
        block<AT_ONCE>(c, x, h, unit, y);
        b += AT_ONCE;
      } else {
        block<1>(c, x, h, unit, y);
        b++;
      }
    }
}
