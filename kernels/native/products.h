// Products of rows with packed weights, in tiles whose sums all lie in registers.
//
// A panel is some vectors of columns for every k: [k][vector][lane]. Each sum adds its products one by one in the order
// of k, so that a row's result does not depend on the tile, and so not on what else is in the batch.
#pragma once
#include <algorithm>
#include <type_traits>

#include "vector.h"

namespace {

template <int N>
using Number = std::integral_constant<int, N>;

// Calls body(Number<n>) for an n from 1 to MOST.
template <int MOST, typename Body>
ALWAYS_INLINE void with_number(int64_t n, const Body& body) {
  if constexpr (MOST > 1) {
    if (n < MOST) return with_number<MOST - 1>(n, body);
  }
  body(Number<MOST>{});
}

// Keeps the compiler from knowing a number: a loop of a constant length in another would be unrolled, and the sums in
// it leave their registers.
ALWAYS_INLINE int64_t unknown(int64_t n) {
  __asm__("" : "+r"(n));
  return n;
}

constexpr int rows_at_most(int vectors) { return ACCUMULATORS / vectors < 8 ? ACCUMULATORS / vectors : 8; }

// Calls body(row, panel, vector) for all sums of a tile, without loops: an element that a loop's index names would be
// in memory, and with it all.
template <int ROWS, int PANELS, int VECTORS, typename Body>
ALWAYS_INLINE void over_sums(const Body& body) {
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; v++) body(i, p, v);
}

// sums[i][p][v] += the sum over k of a[i][k] w[p][k][FIRST + v], panels `panel_size` apart, of VECTORS vectors each.
template <int VECTORS, int FIRST, typename T, int ROWS, int PANELS, int USED>
ALWAYS_INLINE void add_product(const T* const (&a)[ROWS], int64_t K, const T* w, int64_t panel_size,
                               Vector<T> (&sums)[ROWS][PANELS][USED]) {
  constexpr int W = LANES<T>;
  for (int64_t k = 0; k < K; k++, w += VECTORS * W) {
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; p++) {
      Vector<T> weights[USED];
#pragma GCC unroll 3
      for (int v = 0; v < USED; v++) weights[v] = load(w + p * panel_size + (FIRST + v) * W);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; i++) {
        const Vector<T> value = broadcast(a[i][k]);
#pragma GCC unroll 3
        for (int v = 0; v < USED; v++) sums[i][p][v] = fma<T>(value, weights[v], sums[i][p][v]);
      }
    }
  }
}

// Calls tile(row, ROWS, panel, PANELS) for all rows and the panels from `panel` to `end`. Nine rows go as 5 + 4, not as
// 8 + 1; a few rows take several panels at once, so that enough sums are under way.
template <int VECTORS, typename Tile>
ALWAYS_INLINE void over_tiles(int64_t rows, int64_t panel, int64_t end, const Tile& tile) {
  constexpr int MOST = rows_at_most(VECTORS);
  if (rows > 0 && rows <= MOST / 2)
    with_number<MOST / 2>(rows, [&](auto ROWS) {
      constexpr int PANELS = MOST / decltype(ROWS)::value;
      for (; panel + PANELS <= end; panel += PANELS) tile(0, ROWS, panel, Number<PANELS>{});
    });
  for (; panel < end; panel++)
    for (int64_t i = 0; i < rows;) {
      const int64_t left = rows - i;
      const int64_t count = left >= 2 * MOST || left == MOST ? MOST : left > MOST ? (left + 1) / 2 : left;
      with_number<MOST>(count, [&](auto ROWS) { tile(i, ROWS, panel, Number<1>{}); });
      i += count;
    }
}

// The columns of a matrix as panels: of three vectors, but for the last or the last two, which then have two, or one.
struct Columns {
  int64_t size, vectors;   // columns, and vectors that hold them
  int64_t threes, panels;  // panels of three vectors, and all
  int rest;                // the vectors of the others

  Columns(int64_t n, int lanes) : size(n), vectors((n + lanes - 1) / lanes), rest(vectors == 1 ? 1 : 2) {
    threes = vectors % 3 == 0 ? vectors / 3 : vectors % 3 == 2 ? vectors / 3 : vectors == 1 ? 0 : vectors / 3 - 1;
    panels = threes + (vectors - 3 * threes) / rest;
  }

  // The first vector of a panel.
  int64_t first(int64_t panel) const { return panel <= threes ? 3 * panel : 3 * threes + rest * (panel - threes); }

  // Calls body(Number<vectors>, begin, end) for the panels from `begin` to `end`, those of the same size together.
  template <typename Body>
  ALWAYS_INLINE void over(int64_t begin, int64_t end, const Body& body) const {
    if (begin < std::min(end, threes)) body(Number<3>{}, begin, std::min(end, threes));
    begin = std::max(begin, threes);
    if (begin < end && rest == 2) body(Number<2>{}, begin, end);
    if (begin < end && rest == 1) body(Number<1>{}, begin, end);
  }
};

// A panel of the gates' weights w (3H, K): the three gates of as many units as a vector has lanes, zeros beyond H.
template <typename T>
void pack_gates(const T* w, int64_t H, int64_t K, int64_t panel, T* out) {
  constexpr int W = LANES<T>;
  const int64_t units = std::min<int64_t>(W, H - panel * W);
  for (int gate = 0; gate < 3; gate++)
    for (int64_t k = 0; k < K; k += W) {
      const T* const from = w + (gate * H + panel * W) * K + k;
      Vector<T> rows[W];
#pragma GCC unroll 16
      for (int u = 0; u < W; u++) rows[u] = u < units ? load_first(from + u * K, K - k) : Vector<T>{};
      transpose<T>(rows);
      T* const to = out + (k * 3 + gate) * W;
      for (int i = 0; i < W && k + i < K; i++) store(to + i * 3 * W, rows[i]);
    }
}

// Columns of w (3H, N), some vectors from `first` on, for products with the gates' gradients: [unit panel][gate][unit]
// [vector][lane], the gates in the given order, zeros beyond H and N.
template <typename T>
void pack_columns(const T* w, int64_t H, int64_t N, int64_t first, int64_t vectors, const int (&order)[3], T* out) {
  constexpr int W = LANES<T>;
  for (int64_t unit = 0; unit < H; unit += W)
    for (const int gate : order)
      for (int u = 0; u < W; u++)
        for (int64_t column = first * W; column < (first + vectors) * W; column += W, out += W)
          store(out, unit + u < H ? load_first(w + (gate * H + unit + u) * N + column, N - column) : Vector<T>{});
}

}  // namespace
