// The gradients of a layer's weights, biases and gains: sums over all rows of all chunks. The parts of the chunks are
// added one after the other, in an order that neither threads nor tiles change.
#pragma once
#include "cell.h"
#include "gate_gradients.h"

namespace {

// A thread's pointers to the rows of a chunk.
template <typename T>
struct ChunkRows {
  static constexpr int FIELDS = 11;

  const T **x, **h, **dy;
  T **dx, **factors;
  const T** state;                        // h without dropout
  const T **own_x, **own_h, **own_state;  // only those of its own rows
  T** own_factors;
  int64_t* next;  // elements between a row's factors

  ChunkRows(T** memory, int64_t chunk) {
    const T** const reads = const_cast<const T**>(memory);
    x = reads, h = x + chunk, dy = h + chunk, own_x = dy + chunk, own_h = own_x + chunk;
    state = own_h + chunk, own_state = state + chunk;
    dx = memory + 7 * chunk, factors = dx + chunk, own_factors = factors + chunk;
    next = reinterpret_cast<int64_t*>(own_factors + chunk);
  }
};

template <typename T>
struct WeightGradients {
  static constexpr int W = LANES<T>;
  static constexpr int OUTER = std::min(ACCUMULATORS / 3, W);  // rows of a weight's gradient in a tile, all of one gate

  const GruCall& call;
  const GateGradients<T>& dg;
  int64_t factors;  // of a panel
  int64_t sums_of;  // sums of a panel: the biases' four slots, and the gains' six
  T* sums;

  WeightGradients(const GruCall& c, const GateGradients<T>& gates, int64_t factors_of, Arena& arena)
      : call(c), dg(gates), factors(factors_of), sums_of(c.gain_h ? SLOTS + NORMALISED : SLOTS) {
    sums = arena.take<T>(dg.panels * sums_of * W);
  }

  // The elements that `add_weights` needs to copy a chunk's rows of a panel of columns.
  static int64_t side_size(int64_t chunk) { return chunk * 2 * 3 * W; }

  // Adds the chunk's part of both weights' gradients: this thread's rows of them, OUTER at a time. The chunk's rows of
  // a panel of columns are first copied side by side.
  void add_weights(const ChunkRows<T>& at, T* side, int64_t rows, int64_t thread, int64_t threads,
                   bool is_first) const {
    const int64_t blocks = dg.panels * dg.PANEL / OUTER, begin = blocks * thread / threads,
                  end = blocks * (thread + 1) / threads;
    for (const bool is_hidden : {true, false}) {
      const Columns& columns = is_hidden ? dg.of_h : dg.of_x;
      const auto& order = is_hidden ? HIDDEN_ORDER : INPUT_ORDER;
      T* const dw = static_cast<T*>(is_hidden ? call.dw_hh : call.dw_ih);
      const bool has_rh = is_hidden && !call.reset_after;
      columns.over(0, columns.panels, [&](auto V, int64_t from, int64_t to) {
        constexpr int VECTORS = decltype(V)::value;
        T* const side_rh = side + rows * VECTORS * W;
        for (int64_t panel = from; panel < to; panel++) {
          const int64_t first = columns.first(panel), column = first * W;
          for (int64_t row = 0; row < rows; row++)
            for (int v = 0; v < VECTORS; v++) {
              const T* const source = (is_hidden ? at.h[row] : at.x[row]) + column + v * W;
              const Vector<T> values = load_first(source, columns.size - column - v * W);
              store(side + (row * VECTORS + v) * W, values);
              if (has_rh) {
                const Vector<T> r = load(at.factors[row] + ((first + v) * factors + 3) * at.next[row]);
                store(side_rh + (row * VECTORS + v) * W, r * values);
              }
            }
          for (int64_t block = begin; block < end; block++) {
            const int64_t unit_panel = block * OUTER / dg.PANEL, in_panel = block * OUTER % dg.PANEL,
                          slot = in_panel / W;
            const int64_t unit = unit_panel * W + in_panel % W;
            if (unit >= call.H) continue;
            const T* const gates = dg.at(unit_panel, slot + (is_hidden ? dg.state_slot : R_SLOT), 0) + in_panel % W;
            T* const out = dw + (order[slot] * call.H + unit) * columns.size + column;
            const T* const with = has_rh && slot == N_SLOT ? side_rh : side;
            outer_tile<VECTORS>(gates, rows, with, call.H - unit, columns.size, columns.size - column, out, is_first);
          }
        }
      });
    }
  }

  // Adds the sums of dg's rows, and of those times what was normalised: this thread's panels.
  void add_biases(const ChunkRows<T>& at, int64_t rows, int64_t thread, int64_t threads, bool is_first) const {
    for (int64_t panel = dg.panels * thread / threads; panel < dg.panels * (thread + 1) / threads; panel++)
      for (int64_t k = 0; k < sums_of; k++) {
        const int64_t of_gain = k - SLOTS;
        Vector<T> sum{};
        if (of_gain < 0) {
          for (int64_t row = 0; row < rows; row++) sum += load(dg.at(panel, k, row));
        } else {
          const int64_t slot = of_gain < 3 ? N_SLOT + of_gain : R_SLOT + of_gain - 3;
          const int64_t factor = panel * factors + FACTORS + of_gain;
          for (int64_t row = 0; row < rows; row++)
            sum = fma<T>(load(dg.at(panel, slot, row)), load(at.factors[row] + factor * at.next[row]), sum);
        }
        T* const to = sums + (panel * sums_of + k) * W;
        store(to, is_first ? sum : load(to) + sum);
      }
  }

  // Writes what `add_biases` has summed.
  void finish_biases(int64_t thread, int64_t threads) const {
    for (int64_t panel = dg.panels * thread / threads; panel < dg.panels * (thread + 1) / threads; panel++)
      for (int slot = 0; slot < 3; slot++) {
        const T* const sum = sums + (panel * sums_of + slot) * W;
        const auto write = [&](void* to, int gate, int64_t k) {
          store_first(static_cast<T*>(to) + gate * call.H + panel * W, load(sum + k * W), call.H - panel * W);
        };
        write(call.db_hh, HIDDEN_ORDER[slot], N_SLOT), write(call.db_ih, INPUT_ORDER[slot], R_SLOT);
        if (!call.gain_h) continue;
        write(call.d_gain_h, HIDDEN_ORDER[slot], SLOTS), write(call.d_gain_x, INPUT_ORDER[slot], SLOTS + 3);
      }
  }

 private:
  template <int VECTORS>
  __attribute__((noinline)) void outer_tile(const T* gates, int64_t rows, const T* side, int64_t units, int64_t stride,
                                            int64_t width, T* out, bool is_first) const {
    Vector<T> product[OUTER][VECTORS];
    for (int i = 0; i < OUTER; i++)
      for (int v = 0; v < VECTORS; v++) {
        product[i][v] = Vector<T>{};
        __builtin_prefetch(out + std::min<int64_t>(i, units - 1) * stride + v * W, 1);
      }
    for (int64_t row = 0; row < rows; row++, gates += W, side += VECTORS * W) {
      Vector<T> values[VECTORS];
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; v++) values[v] = load(side + v * W);
#pragma GCC unroll 8
      for (int i = 0; i < OUTER; i++) {
        const Vector<T> gate = broadcast(gates[i]);
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) product[i][v] = fma<T>(gate, values[v], product[i][v]);
      }
    }
    for (int i = 0; i < OUTER; i++)
      for (int v = 0; v < VECTORS; v++)
        if (i < units) {
          T* const to = out + i * stride + v * W;
          store_first(to, is_first ? product[i][v] : load_first(to, width - v * W) + product[i][v], width - v * W);
        }
  }
};

}  // namespace
