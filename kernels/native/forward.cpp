// The forward recurrence. The four equations, in the names and order of reference.py, are in `gates`:
//
//     r  = sigmoid(gx_r + gh_r)           the sum comes in one register
//     z  = sigmoid(gx_z + gh_z)
//     n  = tanh(gx_n + r * gh_n)
//     h' = (1 - z) * n + z * h
//
// Weights are packed at each call, in panels of as many hidden units as a vector has lanes: [panel][k][gate][unit]. A
// tile is ROWS rows of PANELS panels, all its sums in registers. Each sum adds its products one by one in the order of
// k, so that a row's result does not depend on the tile, and so on the batch.
#include <algorithm>
#include <numeric>
#include <type_traits>

#include "gru.h"
#include "team.h"
#include "vector.h"

namespace {

using V = Vector<float>;
constexpr int W = LANES<float>;
constexpr int PANEL = 3 * W;  // floats of a panel for one k
constexpr int ROWS_AT_MOST = ACCUMULATORS / 3;
constexpr int64_t CHUNK_ROWS = 192;  // rows whose input side is computed at once: it stays in the L2 cache

int64_t panels(int64_t H) { return (H + W - 1) / W; }

// Panel j of w (3H, K) as [k][gate][W], zeros beyond H.
void pack(const float* w, int64_t H, int64_t K, int64_t j, float* out) {
  constexpr int64_t BLOCK = 64;  // of k, so that what is written stays in the L1 cache
  for (int64_t first = 0; first < K; first += BLOCK) {
    const int64_t last = std::min(K, first + BLOCK);
    for (int g = 0; g < 3; g++)
      for (int u = 0; u < W; u++) {
        const int64_t unit = j * W + u;
        const float* row = w + (g * H + unit) * K;
        for (int64_t k = first; k < last; k++) out[k * PANEL + g * W + u] = unit < H ? row[k] : 0.f;
      }
  }
}

// acc[i][p][g] += a_i . w_pg for ROWS rows and PANELS panels, `panel_size` floats apart.
template <int ROWS, int PANELS>
ALWAYS_INLINE void product(const float* const* a, int64_t K, const float* w, int64_t panel_size, V (&acc)[ROWS][PANELS][3]) {
  const float* row[ROWS];
  for (int i = 0; i < ROWS; i++) row[i] = a[i];
  for (int64_t k = 0; k < K; k++, w += PANEL) {
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; p++) {
      V ww[3];
#pragma GCC unroll 3
      for (int g = 0; g < 3; g++) ww[g] = load(w + p * panel_size + g * W);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; i++) {
        const V b = broadcast(row[i][k]);
#pragma GCC unroll 3
        for (int g = 0; g < 3; g++) acc[i][p][g] += b * ww[g];
      }
    }
  }
}

// What all threads read: the weights, packed into the workspace.
struct Layer {
  const GruCall& call;
  int64_t np;               // panels
  float *w_ih, *w_hh;       // [panel][k][gate][W]
  float *bias, *b_hn;       // b_ih + (b_hr, b_hz, 0) as [panel][gate][W]; b_hn as [panel][W]
  float* own;               // what follows: a part for each thread

  explicit Layer(const GruCall& c) : call(c), np(panels(c.H)) {
    w_ih = c.workspace;
    w_hh = w_ih + np * PANEL * c.I;
    bias = w_hh + np * PANEL * c.H;
    b_hn = bias + np * PANEL;
    own = b_hn + np * W;
  }

  void pack_panel(int64_t j) const {
    const GruCall& c = call;
    pack(c.w_ih, c.H, c.I, j, w_ih + j * PANEL * c.I);
    pack(c.w_hh, c.H, c.H, j, w_hh + j * PANEL * c.H);
    for (int u = 0; u < W; u++) {
      const int64_t unit = j * W + u;
      const bool has = c.b_ih && unit < c.H;
      for (int g = 0; g < 3; g++)
        bias[j * PANEL + g * W + u] = has ? c.b_ih[g * c.H + unit] + (g < 2 ? c.b_hh[g * c.H + unit] : 0.f) : 0.f;
      b_hn[unit] = has ? c.b_hh[2 * c.H + unit] : 0.f;
    }
  }
};

template <int ROWS, int PANELS>
__attribute__((noinline)) void input_tile(const Layer& layer, const float* const* x, int64_t panel, float* gx) {
  const int64_t I = layer.call.I;
  V acc[ROWS][PANELS][3];
  for (int i = 0; i < ROWS; i++)
    for (int p = 0; p < PANELS; p++)
      for (int g = 0; g < 3; g++) acc[i][p][g] = load(layer.bias + (panel + p) * PANEL + g * W);
  product<ROWS, PANELS>(x, I, layer.w_ih + panel * PANEL * I, PANEL * I, acc);
  for (int i = 0; i < ROWS; i++)
    for (int p = 0; p < PANELS; p++)
      for (int g = 0; g < 3; g++) store(gx + (i * layer.np + panel + p) * PANEL + g * W, acc[i][p][g]);
}

ALWAYS_INLINE V gates(V sum_r, V sum_z, V gx_n, V gh_n, V h) {
  V not_r, not_z;
  const V r = sigmoid(sum_r, not_r), z = sigmoid(sum_z, not_z);
  const V n = tanh(gx_n + r * gh_n);
  return not_z * n + z * h;
}

template <int ROWS, int PANELS>
__attribute__((noinline)) void step_tile(const Layer& layer, const float* const* h, int64_t panel, const float* gx, float* const* y) {
  const int64_t H = layer.call.H;
  V acc[ROWS][PANELS][3];
  for (int i = 0; i < ROWS; i++)
    for (int p = 0; p < PANELS; p++) {
      const float* at = gx + (i * layer.np + panel + p) * PANEL;
      acc[i][p][0] = load(at);
      acc[i][p][1] = load(at + W);
      acc[i][p][2] = load(layer.b_hn + (panel + p) * W);
    }
  product<ROWS, PANELS>(h, H, layer.w_hh + panel * PANEL * H, PANEL * H, acc);
  for (int i = 0; i < ROWS; i++)
    for (int p = 0; p < PANELS; p++) {
      const int64_t unit = (panel + p) * W, units = H - unit;
      const V gx_n = load(gx + (i * layer.np + panel + p) * PANEL + 2 * W);
      const V now = gates(acc[i][p][0], acc[i][p][1], gx_n, acc[i][p][2], load_first(h[i] + unit, units));
      store_first(y[i] + unit, now, units);
    }
}

template <int N>
using Number = std::integral_constant<int, N>;

// Calls tile(row, ROWS, panel, PANELS) for all rows and panels. Nine rows go as 5 + 4, not as 8 + 1; a single row takes
// several panels at once, so that enough sums are under way.
template <typename Tile>
ALWAYS_INLINE void over_tiles(int64_t rows, int64_t np, Tile tile) {
  constexpr int M = ROWS_AT_MOST;
  int64_t j = 0;
  if (rows == 1)
    for (; j + M <= np; j += M) tile(0, Number<1>{}, j, Number<M>{});
  for (; j < np; j++)
    for (int64_t i = 0; i < rows;) {
      const int64_t left = rows - i;
      const int64_t m = left >= 2 * M || left == M ? M : left > M ? (left + 1) / 2 : left;
      switch (m) {
        case 1: tile(i, Number<1>{}, j, Number<1>{}); break;
        case 2: tile(i, Number<2>{}, j, Number<1>{}); break;
        case 3: tile(i, Number<3>{}, j, Number<1>{}); break;
#if defined(__AVX512F__)
        case 4: tile(i, Number<4>{}, j, Number<1>{}); break;
        case 5: tile(i, Number<5>{}, j, Number<1>{}); break;
        case 6: tile(i, Number<6>{}, j, Number<1>{}); break;
        case 7: tile(i, Number<7>{}, j, Number<1>{}); break;
#endif
        default: tile(i, Number<M>{}, j, Number<1>{}); break;
      }
      i += m;
    }
}

// Threads that pay: some 20 us of work for each, and a full tile of rows.
int64_t worthwhile_threads(const GruCall& c) {
  int64_t rows = c.T * c.B;
  if (c.position) rows = std::accumulate(c.sizes, c.sizes + c.steps, int64_t{0});
  const double work = 6.0 * double(rows) * double(c.H) * double(c.I + c.H);
  const int64_t paid = 1 + int64_t(work / 2e6), tiles = std::max<int64_t>(1, c.segments / ROWS_AT_MOST);
  return std::min({c.threads, paid, tiles});
}

// What a thread has of its own: the input side of a chunk, and where its rows of x, h and y lie.
struct Own {
  float* gx;
  const float **x, **h;
  float** y;

  static int64_t rows(const GruCall& c) { return std::max(CHUNK_ROWS, c.segments) + 1; }
  static int64_t floats(const GruCall& c) {  // a multiple of 16
    const int64_t pointers = 3 * sizeof(void*) / sizeof(float);
    return (rows(c) * (panels(c.H) * PANEL + pointers) + 15) / 16 * 16;
  }

  Own(const Layer& layer, int64_t thread) {
    const GruCall& c = layer.call;
    gx = layer.own + thread * floats(c);
    void** const pointers = reinterpret_cast<void**>(gx + rows(c) * layer.np * PANEL);
    x = const_cast<const float**>(reinterpret_cast<float**>(pointers));
    h = x + rows(c);
    y = reinterpret_cast<float**>(pointers + 2 * rows(c));
  }
};

// Every `stride`-th segment from `first` on, through all steps.
void run_rows(const Layer& layer, Own own, int64_t first, int64_t stride) {
  const GruCall& c = layer.call;
  const auto mine = [&](int64_t size) { return size > first ? (size - first + stride - 1) / stride : 0; };
  const auto size_of = [&](int64_t k) { return c.position ? c.sizes[k] : c.B; };
  for (int64_t i = 0; i < mine(size_of(0)); i++) own.h[i] = c.h0 + (first + i * stride) * c.h0_r;
  int64_t offset = 0;  // of the step in `position`
  for (int64_t k = 0; k < c.steps;) {
    int64_t rows = 0, end = k;
    for (; end < c.steps; end++) {
      const int64_t size = size_of(end), m = mine(size);
      if (rows && rows + m > CHUNK_ROWS) break;
      for (int64_t i = 0; i < m; i++, rows++) {
        const int64_t row = first + i * stride;
        const int64_t at = c.position ? c.position[offset + row] : (c.reverse ? c.T - 1 - end : end) * c.B + row;
        own.x[rows] = c.x + at / c.B * c.x_t + at % c.B * c.x_b;
        own.y[rows] = c.y + at / c.B * c.y_t + at % c.B * c.y_b;
      }
      offset += size;
    }
    over_tiles(rows, layer.np, [&](int64_t i, auto M, int64_t j, auto P) {
      input_tile<M, P>(layer, own.x + i, j, own.gx + i * layer.np * PANEL);
    });
    for (int64_t row = 0; k < end; k++) {
      const int64_t m = mine(size_of(k));
      over_tiles(m, layer.np, [&](int64_t i, auto M, int64_t j, auto P) {
        step_tile<M, P>(layer, own.h + i, j, own.gx + (row + i) * layer.np * PANEL, own.y + row + i);
      });
      for (int64_t i = 0; i < m; i++) own.h[i] = own.y[row + i];
      row += m;
    }
  }
}

}  // namespace

extern "C" int64_t EXPORTED(gru_workspace)(const GruCall* call) {
  const GruCall& c = *call;
  return panels(c.H) * (PANEL * (c.I + c.H + 1) + W) + std::max<int64_t>(1, c.threads) * Own::floats(c);
}

extern "C" void EXPORTED(gru_forward)(const GruCall* call) {
  const Layer layer(*call);
  const int64_t threads = worthwhile_threads(*call);
  parallel(threads, [&](int64_t thread, int64_t of) {
    for (int64_t j = thread; j < layer.np; j += of) layer.pack_panel(j);
  });
  parallel(threads, [&](int64_t thread, int64_t of) { run_rows(layer, Own(layer, thread), thread, of); });
}
