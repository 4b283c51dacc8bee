// One step on the weights as they lie in memory: nothing is packed, since each weight is read only once. Vectors run
// along the features; a tile is ROWS rows times UNITS hidden units, four sums each (r, z, and n's two sides). Every sum
// runs in one order, whatever the tile.
#include "activations.h"
#include "gru.h"
#include "products.h"
#include "team.h"

namespace {

constexpr int SUMS = 4;                       // r, z, gx_n, gh_n
constexpr int AT_ONCE = ACCUMULATORS / SUMS;  // rows times units of a tile

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

// The pre-activations of ROWS rows and UNITS units, written to out[row][sum][unit], rows `SUMS * W` apart.
template <typename T, int ROWS, int UNITS>
__attribute__((noinline)) void tile(const GruCall& c, int64_t row, int64_t unit, T* out) {
  constexpr int W = LANES<T>, ALL = ROWS * UNITS * SUMS;
  const T *x[ROWS], *h[ROWS];
  for (int i = 0; i < ROWS; i++) {
    x[i] = static_cast<const T*>(c.x) + (row + i) * c.x_b;
    h[i] = static_cast<const T*>(c.h0) + (row + i) * c.h0_r;
  }
  Vector<T> sums[ROWS][UNITS][SUMS];
  for (int i = 0; i < ROWS; i++)
    for (int u = 0; u < UNITS; u++)
      for (int s = 0; s < SUMS; s++) sums[i][u][s] = Vector<T>{};
  add<2>(x, c.I, static_cast<const T*>(c.w_ih) + unit * c.I, c.H * c.I, sums);
  add<3>(h, c.H, static_cast<const T*>(c.w_hh) + unit * c.H, c.H * c.H, sums);
  T of_all[(ALL + W - 1) / W * W];
  for (int first = 0; first < ALL; first += W) {
    Vector<T> some[W];
    for (int j = 0; j < W; j++) {
      const int at = first + j;
      some[j] = at < ALL ? sums[at / (UNITS * SUMS)][at / SUMS % UNITS][at % SUMS] : Vector<T>{};
    }
    store(of_all + first, sums_of_lanes<T>(some));
  }
  for (int i = 0; i < ROWS; i++)
    for (int u = 0; u < UNITS; u++)
      for (int s = 0; s < SUMS; s++) out[(i * SUMS + s) * W + u] = of_all[(i * UNITS + u) * SUMS + s];
}

// The new states of one row and as many units as a vector has lanes, from the pre-activations without biases.
template <bool PLAIN, typename T>
ALWAYS_INLINE void gates(const GruCall& c, int64_t row, int64_t unit, const T* sums) {
  constexpr int W = LANES<T>;
  const int64_t units = std::min<int64_t>(W, c.H - unit);
  Vector<T> b_r{}, b_z{}, b_in{}, b_hn{};
  if (c.b_ih) {
    const auto bias = [&](const void* b, int gate) {
      return load_first(static_cast<const T*>(b) + gate * c.H + unit, units);
    };
    b_r = bias(c.b_ih, 0) + bias(c.b_hh, 0), b_z = bias(c.b_ih, 1) + bias(c.b_hh, 1);
    b_in = bias(c.b_ih, 2), b_hn = bias(c.b_hh, 2);
  }
  const auto gate = [&](Vector<T> x) { return activated<T>(PLAIN ? SIGMOID : c.recurrent_activation, x); };
  const Activated<T> r = gate(load(sums) + b_r), z = gate(load(sums + W) + b_z);
  const Vector<T> u_n = fma<T>(r.value, load(sums + 3 * W) + b_hn, load(sums + 2 * W) + b_in);
  const Vector<T> n = activated<T>(PLAIN ? TANH : c.activation, u_n).value;
  const Vector<T> h = load_first(static_cast<const T*>(c.h0) + row * c.h0_r + unit, units);
  const Vector<T> now = fma<T>(z.value, h, z.rest * n);
  store_first(static_cast<T*>(c.y) + row * c.y_b + unit, now, units);
  if (c.h_n) store_first(static_cast<T*>(c.h_n) + row * c.h_n_r + unit, now, units);
}

// Blocks of as many units as a vector has lanes, in groups whose weights stay in the L1 cache for all rows of a block.
template <typename T>
void step(const GruCall& c, int64_t first_block, int64_t end_block) {
  constexpr int W = LANES<T>;
  constexpr int64_t ROWS = 24;
  const int64_t bytes = 3 * (c.I + c.H) * int64_t{sizeof(T)};  // of a unit's weights
  const int64_t group = std::max<int64_t>(1, std::min<int64_t>(W, (16 << 10) / std::max<int64_t>(1, bytes)));
  T sums[ROWS][SUMS][W] = {};
  for (int64_t first = 0; first < c.B; first += ROWS) {
    const int64_t end = std::min(c.B, first + ROWS);
    for (int64_t block = first_block * W; block < std::min(c.H, end_block * W); block += W) {
      const int64_t units = std::min<int64_t>(W, c.H - block);
      for (int64_t u = 0; u < units; u += group)
        for (int64_t row = first; row < end;) {
          const int64_t left = end - row;
          const int64_t count = left >= 2 * AT_ONCE || left == AT_ONCE ? AT_ONCE
                                : left > AT_ONCE                       ? (left + 1) / 2
                                                                       : left;
          with_number<AT_ONCE>(count, [&](auto M) {
            constexpr int UNITS = AT_ONCE / decltype(M)::value;
            const int64_t last = std::min(units, u + group);
            int64_t at = u;
            for (; at + UNITS <= last; at += UNITS) tile<T, M, UNITS>(c, row, block + at, &sums[row - first][0][at]);
            for (; at < last; at++) tile<T, M, 1>(c, row, block + at, &sums[row - first][0][at]);
          });
          row += count;
        }
      const bool is_plain = c.activation == TANH && c.recurrent_activation == SIGMOID;
      for (int64_t row = first; row < end; row++)
        is_plain ? gates<true>(c, row, block, &sums[row - first][0][0])
                 : gates<false>(c, row, block, &sums[row - first][0][0]);
    }
  }
}

// Divides the units, whose sums stay the same, among the threads that pay: some 100 us of work for each, or of reading.
template <typename T>
int64_t step(const GruCall& c) {
  const int64_t blocks = (c.H + LANES<T> - 1) / LANES<T>;
  const double weights = 3. * double(c.H) * double(c.I + c.H);
  const double work = weights * std::max(2. * double(c.B), 4. * sizeof(T));
  parallel(std::min({c.threads, blocks, 1 + int64_t(work / 1e7)}), [&](int64_t thread, int64_t threads) {
    step<T>(c, blocks * thread / threads, blocks * (thread + 1) / threads);
  });
  return 0;
}

}  // namespace

extern "C" int64_t EXPORTED(gru_step)(const GruCall* call) {
  return call->float64 ? step<double>(*call) : step<float>(*call);
}
