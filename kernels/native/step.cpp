// One step on the weights as they lie in memory: nothing is packed, since each weight is read only once. Vectors run
// along the features; a tile is ROWS rows times UNITS hidden units, four sums each (r, z, and n's two sides). Every sum
// runs in one order, whatever the tile.
#include "gru.h"
#include "products.h"

namespace {

constexpr int SUMS = 4;                       // r, z, gx_n, gh_n
constexpr int AT_ONCE = ACCUMULATORS / SUMS;  // rows times units of a tile

// What the sums of W units of one row need before their lanes are added.
template <typename T>
using Lanes = Vector<T>[SUMS][LANES<T>];

// sums[i][u] += a_i . w_u, gate by gate: r and z to the first two sums, n to the one named by N.
template <int N, typename T, int ROWS, int UNITS>
ALWAYS_INLINE void add(const T* const (&a)[ROWS], int64_t K, const T* w, int64_t gate,
                       Vector<T> (&sums)[ROWS][UNITS][SUMS]) {
  constexpr int W = LANES<T>, SUM[3] = {0, 1, N};
  const auto add_at = [&](int64_t k, const auto& load_some) {
    Vector<T> x[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) x[i] = load_some(a[i] + k);
#pragma GCC unroll 3
    for (int g = 0; g < 3; g++)
#pragma GCC unroll 8
      for (int u = 0; u < UNITS; u++) {
        const Vector<T> weights = load_some(w + g * gate + u * K + k);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) sums[i][u][SUM[g]] = fma<T>(x[i], weights, sums[i][u][SUM[g]]);
      }
  };
  int64_t k = 0;
  for (; k + W <= K; k += W) add_at(k, [](const T* p) { return load(p); });
  if (k < K) add_at(k, [&](const T* p) { return load_first(p, K - k); });
}

template <typename T, int ROWS, int UNITS>
__attribute__((noinline)) void tile(const GruCall& c, const T* const (&x)[ROWS], const T* const (&h)[ROWS],
                                    int64_t unit, int at, Lanes<T>* lanes) {
  Vector<T> sums[ROWS][UNITS][SUMS] = {};
  add<2>(x, c.I, static_cast<const T*>(c.w_ih) + unit * c.I, c.H * c.I, sums);
  add<3>(h, c.H, static_cast<const T*>(c.w_hh) + unit * c.H, c.H * c.H, sums);
  for (int i = 0; i < ROWS; i++)
    for (int u = 0; u < UNITS; u++)
      for (int s = 0; s < SUMS; s++) lanes[i][s][at + u] = sums[i][u][s];
}

// As many units as a vector has lanes, from `unit` on, for ROWS rows from `row` on.
template <typename T, int ROWS>
ALWAYS_INLINE void block(const GruCall& c, int64_t row, int64_t unit) {
  constexpr int W = LANES<T>, UNITS = AT_ONCE / ROWS;
  const T *x[ROWS], *h[ROWS];
  for (int i = 0; i < ROWS; i++) {
    x[i] = static_cast<const T*>(c.x) + (row + i) * c.x_b;
    h[i] = static_cast<const T*>(c.h0) + (row + i) * c.h0_r;
  }
  const int units = int(std::min<int64_t>(W, c.H - unit));
  Lanes<T> lanes[ROWS];
  int u = 0;
  for (; u + UNITS <= units; u += UNITS) tile<T, ROWS, UNITS>(c, x, h, unit + u, u, lanes);
  if constexpr (UNITS > 1)
    for (; u < units; u++) tile<T, ROWS, 1>(c, x, h, unit + u, u, lanes);
  if (units < W)
    for (auto& of_row : lanes)
      for (auto& of_sum : of_row) std::fill(of_sum + units, of_sum + W, Vector<T>{});
  Vector<T> b_r{}, b_z{}, b_in{}, b_hn{};
  if (c.b_ih) {
    const auto bias = [&](const void* b, int gate) {
      return load_first(static_cast<const T*>(b) + gate * c.H + unit, units);
    };
    b_r = bias(c.b_ih, 0) + bias(c.b_hh, 0), b_z = bias(c.b_ih, 1) + bias(c.b_hh, 1);
    b_in = bias(c.b_ih, 2), b_hn = bias(c.b_hh, 2);
  }
  for (int i = 0; i < ROWS; i++) {
    Vector<T> not_r, not_z;
    const Vector<T> r = sigmoid<T>(sums_of_lanes<T>(lanes[i][0]) + b_r, not_r);
    const Vector<T> z = sigmoid<T>(sums_of_lanes<T>(lanes[i][1]) + b_z, not_z);
    const Vector<T> gx_n = sums_of_lanes<T>(lanes[i][2]) + b_in, gh_n = sums_of_lanes<T>(lanes[i][3]) + b_hn;
    const Vector<T> n = tanh<T>(fma<T>(r, gh_n, gx_n)).value;
    const Vector<T> now = fma<T>(z, load_first(h[i] + unit, units), not_z * n);
    store_first(static_cast<T*>(c.y) + (row + i) * c.y_b + unit, now, units);
    if (c.h_n) store_first(static_cast<T*>(c.h_n) + (row + i) * c.h_n_r + unit, now, units);
  }
}

template <typename T>
void step(const GruCall& c) {
  for (int64_t unit = 0; unit < c.H; unit += LANES<T>)  // the weights of a block stay in the cache for all rows
    for (int64_t row = 0; row < c.B;) {
      const int64_t left = c.B - row;
      const int64_t count = left >= 2 * AT_ONCE || left == AT_ONCE ? AT_ONCE : left > AT_ONCE ? (left + 1) / 2 : left;
      with_number<AT_ONCE>(count, [&](auto ROWS) { block<T, ROWS>(c, row, unit); });
      row += count;
    }
}

}  // namespace

extern "C" int64_t EXPORTED(gru_step)(const GruCall* call) {
  call->float64 ? step<double>(*call) : step<float>(*call);
  return 0;
}
