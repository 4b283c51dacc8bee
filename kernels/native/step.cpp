// One step on the weights as they lie in memory: nothing is packed, since each weight is read only once. Vectors run
// along the features; a tile is ROWS rows times UNITS hidden units, four sums each (r, z, and n's two sides), or six
// with layer normalisation (the gates of both sides). Every sum runs in one order, whatever the tile.
#include <cstdlib>

#include "activations.h"
#include "gru.h"
#include "norm.h"
#include "products.h"
#include "team.h"

namespace {

constexpr int PLAIN_SUMS = 4, NORMALISED_SUMS = 6;
constexpr int AT_ONCE = ACCUMULATORS / 3;  // rows times units of a tile: a product has three sums of each at work
constexpr int64_t BLOCK_ROWS = 24;

// sums[i][u] += a_i . w_u, gate by gate: r and z to the sums from FIRST on, n to the one named by N. What is used
// several times stays in a register, with all sums: the weights of one unit, or the rows.
template <int FIRST, int N, typename T, int ROWS, int UNITS, int SUMS>
ALWAYS_INLINE void add(const T* const (&a)[ROWS], int64_t K, const T* w, int64_t gate,
                       Vector<T> (&sums)[ROWS][UNITS][SUMS]) {
  constexpr int W = LANES<T>, SUM[3] = {FIRST, FIRST + 1, N};
  constexpr bool BY_ROWS = UNITS == 1 && ROWS > 3;
  const auto add_at = [&](int64_t k, const auto& load_some) {
    const auto row = [&](int i) { return in_register<T>(load_some(a[i] + k)); };
    const auto weights = [&](int g, int u) {
      const T* const from = w + g * gate + u * K + k;
      // Hardware prefetching stops at the end of a page. The address may lie beyond the weights: nothing is read.
      if (BY_ROWS && BYTES == 64) __builtin_prefetch(reinterpret_cast<const char*>(from) + 512);
      return ROWS > 1 ? in_register<T>(load_some(from)) : load_some(from);
    };
    if constexpr (BY_ROWS) {
      const Vector<T> of_unit[3] = {weights(0, 0), weights(1, 0), weights(2, 0)};
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; i++) {
        const Vector<T> x = row(i);
#pragma GCC unroll 3
        for (int g = 0; g < 3; g++) sums[i][0][SUM[g]] = fma<T>(x, of_unit[g], sums[i][0][SUM[g]]);
      }
    } else {
      Vector<T> x[ROWS];
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; i++) x[i] = row(i);
#pragma GCC unroll 3
      for (int g = 0; g < 3; g++)
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; u++) {
          const Vector<T> of_unit = weights(g, u);
#pragma GCC unroll 8
          for (int i = 0; i < ROWS; i++) sums[i][u][SUM[g]] = fma<T>(x[i], of_unit, sums[i][u][SUM[g]]);
        }
    }
  };
  int64_t k = 0;
  for (; k + W <= K; k += W) add_at(k, [](const T* p) { return load(p); });
  if (k < K) add_at(k, [&](const T* p) { return load_first(p, K - k); });
}

// The sums of ROWS rows and UNITS units, to out[row][side][gate][unit]: rows and sides may be apart.
template <typename T, int SUMS, int ROWS, int UNITS>
__attribute__((noinline)) void tile(const GruCall& c, int64_t row, int64_t unit, T* out, int64_t row_size,
                                    int64_t side_size) {
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
  constexpr bool APART = SUMS == NORMALISED_SUMS;
  add<0, 2>(x, c.I, static_cast<const T*>(c.w_ih) + unit * c.I, c.H * c.I, sums);
  add<APART ? 3 : 0, SUMS - 1>(h, c.H, static_cast<const T*>(c.w_hh) + unit * c.H, c.H * c.H, sums);
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
      for (int s = 0; s < SUMS; s++)
        out[i * row_size + s / 3 * side_size + s % 3 * W + u] = of_all[(i * UNITS + u) * SUMS + s];
}

// The new states of one row and as many units as a vector has lanes, from the sums without biases.
template <bool PLAIN, typename T>
ALWAYS_INLINE void gates(const GruCall& c, int64_t row, int64_t unit, Vector<T> a_r, Vector<T> a_z, Vector<T> gx_n,
                         Vector<T> gh_n) {
  const int64_t units = std::min<int64_t>(LANES<T>, c.H - unit);
  Vector<T> b_r{}, b_z{}, b_in{}, b_hn{};
  if (c.b_ih) {
    const auto bias = [&](const void* b, int gate) {
      return load_first(static_cast<const T*>(b) + gate * c.H + unit, units);
    };
    b_r = bias(c.b_ih, 0) + bias(c.b_hh, 0), b_z = bias(c.b_ih, 1) + bias(c.b_hh, 1);
    b_in = bias(c.b_ih, 2), b_hn = bias(c.b_hh, 2);
  }
  const auto gate = [&](Vector<T> x) { return activated<T>(PLAIN ? SIGMOID : c.recurrent_activation, x); };
  const Activated<T> r = gate(a_r + b_r), z = gate(a_z + b_z);
  const Vector<T> n = activated<T>(PLAIN ? TANH : c.activation, fma<T>(r.value, gh_n + b_hn, gx_n + b_in)).value;
  const Vector<T> h = load_first(static_cast<const T*>(c.h0) + row * c.h0_r + unit, units);
  const Vector<T> now = fma<T>(z.value, h, z.rest * n);
  store_first(static_cast<T*>(c.y) + row * c.y_b + unit, now, units);
  if (c.h_n) store_first(static_cast<T*>(c.h_n) + row * c.h_n_r + unit, now, units);
}

// The sums of the rows from `first` to `end` and of a panel of units. A few rows stay in the L1 cache while the panel's
// weights pass by.
template <int SUMS, typename T>
ALWAYS_INLINE void multiply(const GruCall& c, int64_t first, int64_t end, int64_t panel, T* sums, int64_t row_size,
                            int64_t side_size) {
  const int64_t begin = panel * LANES<T>, units = std::min<int64_t>(LANES<T>, c.H - begin);
  for (int64_t row = first; row < end;) {
    const int64_t left = end - row;
    const int64_t count = left >= 2 * AT_ONCE || left == AT_ONCE ? AT_ONCE : left > AT_ONCE ? (left + 1) / 2 : left;
    with_number<AT_ONCE>(count, [&](auto M) {
      constexpr int UNITS = decltype(M)::value > AT_ONCE / 2 ? 1 : 2;  // more would read from too many places
      T* const out = sums + (row - first) * row_size;
      int64_t u = 0;
      for (; u + UNITS <= units; u += UNITS) tile<T, SUMS, M, UNITS>(c, row, begin + u, out + u, row_size, side_size);
      for (; u < units; u++) tile<T, SUMS, M, 1>(c, row, begin + u, out + u, row_size, side_size);
    });
    row += count;
  }
}

// Whether the activations are tanh and sigmoid, as a constant.
template <typename Body>
ALWAYS_INLINE void with_plainness(const GruCall& c, const Body& body) {
  c.activation == TANH&& c.recurrent_activation == SIGMOID ? body(std::true_type{}) : body(std::false_type{});
}

// The panels of units from `begin` to `end`, as many units as a vector has lanes each. A panel's weights stay in the L2
// cache for all rows.
template <typename T>
void step(const GruCall& c, int64_t begin, int64_t end) {
  constexpr int W = LANES<T>;
  T sums[BLOCK_ROWS][PLAIN_SUMS][W] = {};
  for (int64_t panel = begin; panel < end; panel++) {
    for (int64_t first = 0; first < c.B; first += BLOCK_ROWS) {
      const int64_t last = std::min(c.B, first + BLOCK_ROWS);
      multiply<PLAIN_SUMS>(c, first, last, panel, sums[0][0], PLAIN_SUMS * W, 3 * W);
      with_plainness(c, [&](auto plain) {
        for (int64_t row = first; row < last; row++) {
          const auto& s = sums[row - first];
          gates<plain.value, T>(c, row, panel * W, load(s[0]), load(s[1]), load(s[2]), load(s[3]));
        }
      });
    }
  }
}

// The same with layer normalisation, which needs all sums of a row: `sums` is that of all threads, where a row has
// those of the input's side and of the state's, [panel][gate][lane], 0 beyond H.
template <typename T>
void step_normalised(const GruCall& c, int64_t begin, int64_t end, T* sums, Barrier& barrier, int64_t threads) {
  constexpr int W = LANES<T>;
  const int64_t panels = (c.H + W - 1) / W, side = panels * 3 * W;
  const T *const gain_x = static_cast<const T*>(c.gain_x), *const gain_h = static_cast<const T*>(c.gain_h);
  for (int64_t first = 0; first < c.B; first += BLOCK_ROWS) {
    const int64_t last = std::min(c.B, first + BLOCK_ROWS);
    for (int64_t panel = begin; panel < end; panel++)
      multiply<NORMALISED_SUMS>(c, first, last, panel, sums + panel * 3 * W, 2 * side, side);
    barrier.wait(threads);
    for (int64_t row = first; row < last; row++) {
      const T *const x = sums + (row - first) * 2 * side, *const h = x + side;
      const Moments<T> of_x(x, panels, c.H), of_h(h, panels, c.H);
      for (int64_t panel = begin; panel < end; panel++) {
        const int64_t unit = panel * W, units = c.H - unit;
        Vector<T> v_x[3], v_h[3];
        for (int g = 0; g < 3; g++) {
          const int64_t at = (panel * 3 + g) * W;
          v_x[g] = of_x.normalised(x + at, units) * load_first(gain_x + g * c.H + unit, units);
          v_h[g] = of_h.normalised(h + at, units) * load_first(gain_h + g * c.H + unit, units);
        }
        with_plainness(c, [&](auto plain) {
          gates<plain.value, T>(c, row, unit, v_x[0] + v_h[0], v_x[1] + v_h[1], v_x[2], v_h[2]);
        });
      }
    }
    barrier.wait(threads);
  }
}

// Divides the units, whose sums stay the same, among the threads that pay: some 100 us of work for each, or of reading.
template <typename T>
int64_t step(const GruCall& c) {
  const int64_t panels = (c.H + LANES<T> - 1) / LANES<T>;
  const double weights = 3. * double(c.H) * double(c.I + c.H);
  const double work = weights * std::max(2. * double(c.B), 4. * sizeof(T));
  T* sums = nullptr;
  if (c.gain_x) {
    const int64_t count = std::min(c.B, BLOCK_ROWS) * panels * 6 * LANES<T>;
    sums = static_cast<T*>(std::calloc(std::max<int64_t>(1, count), sizeof(T)));
    if (!sums) return 1;
  }
  Barrier barrier;
  parallel(std::min({c.threads, panels, 1 + int64_t(work / 1e7)}), [&](int64_t thread, int64_t threads) {
    const int64_t begin = panels * thread / threads, end = panels * (thread + 1) / threads;
    sums ? step_normalised<T>(c, begin, end, sums, barrier, threads) : step<T>(c, begin, end);
  });
  std::free(sums);
  return 0;
}

}  // namespace

extern "C" int64_t EXPORTED(gru_step)(const GruCall* call) {
  return call->float64 ? step<double>(*call) : step<float>(*call);
}
