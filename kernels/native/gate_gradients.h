// The gradients of the gates in a chunk of steps, and their products with the weights.
//
// The slots of dg are n, r, z and gx_n, so that the state's side reads the first three and the input's the last three.
// With layer normalisation the state's side reads three others, behind them.
// A chunk's dg lies as [panel][slot][row][lane]: what a product reads is side by side in memory.
#pragma once
#include "products.h"
#include "sequence.h"

namespace {

constexpr int N_SLOT = 0, R_SLOT = 1, Z_SLOT = 2, X_SLOT = 3, SLOTS = 4;
constexpr int HIDDEN_ORDER[3] = {2, 0, 1}, INPUT_ORDER[3] = {0, 1, 2};  // the gates of the slots of each side

template <typename T>
struct GateGradients {
  static constexpr int W = LANES<T>, PANEL = 3 * W;

  int64_t H, panels;
  Columns of_h, of_x;
  int64_t slot_size;   // elements of a slot
  int64_t slots;       // of a panel
  int64_t state_slot;  // the first that the state's side reads
  T *w_hh_t, *w_ih_t, *dg;

  GateGradients(const GruCall& c, int64_t chunk, Arena& arena)
      : H(c.H),
        panels((c.H + W - 1) / W),
        of_h(c.H, W),
        of_x(c.I, W),
        slot_size((chunk + 2) * W),  // not a power of two apart, which would fall on the same lines of the cache
        slots(c.gain_h ? SLOTS + 3 : SLOTS),
        state_slot(c.gain_h ? SLOTS : N_SLOT) {
    w_hh_t = arena.take<T>(panels * PANEL * of_h.vectors * W);
    w_ih_t = arena.take<T>(c.dx ? panels * PANEL * of_x.vectors * W : 0);
    dg = arena.take<T>(panels * slots * slot_size);
  }

  T* at(int64_t panel, int64_t slot, int64_t row) const { return dg + (panel * slots + slot) * slot_size + row * W; }

  // This thread's part of the weights.
  void pack(const GruCall& c, int64_t thread, int64_t threads) const {
    const auto pack_part = [&](const void* w, const Columns& columns, const int (&order)[3], T* out) {
      for (int64_t panel = thread; panel < columns.panels; panel += threads) {
        const int64_t first = columns.first(panel), vectors = columns.first(panel + 1) - first;
        pack_columns(static_cast<const T*>(w), H, columns.size, first, vectors, order,
                     out + first * W * panels * PANEL);
      }
    };
    pack_part(c.w_hh, of_h, HIDDEN_ORDER, w_hh_t);
    if (c.dx) pack_part(c.w_ih, of_x, INPUT_ORDER, w_ih_t);
  }

  // Adds W_hh^T times `slots` slots of a step's gates, from `slot` on, to the panels from `begin` to `end` of `out`.
  // The step's `count` rows begin at `row` of the chunk, `row_stride` apart.
  void add_state_side(int64_t row, int64_t row_stride, int64_t slot, int64_t slots, int64_t count, int64_t begin,
                      int64_t end, T* out, int64_t stride) const {
    of_h.over(begin, end, [&](auto V, int64_t from, int64_t to) {
      constexpr int VECTORS = decltype(V)::value;
      over_blocks<VECTORS>(slots, [&](int64_t j, int64_t j_end) {
        over_tiles<VECTORS>(count, from, to, [&](int64_t i, auto M, int64_t panel, auto P) {
          const T* const w = w_hh_t + (of_h.first(panel) * panels * PANEL + slot * W * VECTORS) * W;
          T* const to_row = out + i * stride + of_h.first(panel) * W;
          state_tile<VECTORS, M, P>(row + i * row_stride, row_stride, state_slot + slot, slots, j, j_end, w, to_row,
                                    stride);
        });
      });
    });
  }

  // dx of the chunk's rows from `begin` to `end`; `adds`: to what is there.
  void make_dx(T* const* dx, bool adds, int64_t begin, int64_t end) const {
    of_x.over(0, of_x.panels, [&](auto V, int64_t from, int64_t to) {
      constexpr int VECTORS = decltype(V)::value;
      over_blocks<VECTORS>(3, [&](int64_t j, int64_t j_end) {
        over_tiles<VECTORS>(end - begin, from, to, [&](int64_t i, auto M, int64_t panel, auto P) {
          dx_tile<VECTORS, M, P>(begin + i, of_x.first(panel), j, j_end, dx + begin + i, adds || j > 0);
        });
      });
    });
  }

 private:
  // A product with columns runs over the panels of units in blocks, whose part of the columns stays in the L1 cache for
  // all rows; between blocks the sums wait in memory.
  template <int VECTORS, typename Body>
  void over_blocks(int64_t slots, const Body& body) const {
    const int64_t block = std::max<int64_t>(1, (20 << 10) / (slots * W * VECTORS * W * int64_t{sizeof(T)}));
    for (int64_t j = 0; j < panels; j += block) body(j, std::min(panels, j + block));
  }

  // product += `slots` slots of the gates of rows `stride` apart, of the units' panels from j to `end`, times a panel
  // of columns that was packed for three slots.
  template <int ROWS, int PANELS, int VECTORS>
  ALWAYS_INLINE void add_gates(int64_t first, int64_t stride, int64_t slot, int64_t slots, int64_t j, int64_t end,
                               const T* w, Vector<T> (&product)[ROWS][PANELS][VECTORS]) const {
    const int64_t unit_size = PANEL * VECTORS * W, lanes = unknown(W);
    w += j * unit_size;
    for (; j < end; j++, w += unit_size)
      for (int64_t s = 0; s < slots; s++) {
        const T* row[ROWS];
        for (int i = 0; i < ROWS; i++) row[i] = at(j, slot + s, first + i * stride);
        add_product<VECTORS, 0>(row, lanes, w + s * W * VECTORS * W, panels * unit_size, product);
      }
  }

  template <int VECTORS, int ROWS, int PANELS>
  __attribute__((noinline)) void state_tile(int64_t row, int64_t row_stride, int64_t slot, int64_t slots, int64_t j,
                                            int64_t j_end, const T* w, T* out, int64_t stride) const {
    Vector<T> product[ROWS][PANELS][VECTORS];
    over_sums<ROWS, PANELS, VECTORS>(
        [&](int i, int p, int v) { product[i][p][v] = load(out + i * stride + (p * VECTORS + v) * W); });
    add_gates(row, row_stride, slot, slots, j, j_end, w, product);
    over_sums<ROWS, PANELS, VECTORS>(
        [&](int i, int p, int v) { store(out + i * stride + (p * VECTORS + v) * W, product[i][p][v]); });
  }

  template <int VECTORS, int ROWS, int PANELS>
  __attribute__((noinline)) void dx_tile(int64_t row, int64_t first, int64_t j, int64_t j_end, T* const* dx,
                                         bool adds) const {
    Vector<T> product[ROWS][PANELS][VECTORS];
    const auto column = [&](int p, int v) { return (first + p * VECTORS + v) * W; };
    over_sums<ROWS, PANELS, VECTORS>([&](int i, int p, int v) {
      const int64_t from = column(p, v);
      product[i][p][v] = adds ? load_first(dx[i] + from, of_x.size - from) : Vector<T>{};
    });
    add_gates(row, 1, R_SLOT, 3, j, j_end, w_ih_t + first * W * panels * PANEL, product);
    over_sums<ROWS, PANELS, VECTORS>(
        [&](int i, int p, int v) { store_first(dx[i] + column(p, v), product[i][p][v], of_x.size - column(p, v)); });
  }
};

}  // namespace
