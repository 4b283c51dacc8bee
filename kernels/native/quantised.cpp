// Inference on quantised weights (quantised.h). The equations are those of cell.h, and the walk through a call that of
// forward.cpp.
#include "quantised.h"

namespace {

// The rows of one step, or of several whose inputs are all known.
template <typename Operand>
struct Rows {
  int64_t count;
  const Operand* const* operands;       // x, or the state before the step
  const float* unit;                    // of each row's; null: none
  float* gx;                            // (count, panels) panels of [gate][lane]
  const float* const* state = nullptr;  // before the step
  float* const* y = nullptr;            // after it
  Operand* const* next = nullptr;       // where the state after it goes as an operand, null: nowhere
  Operand* const* rh = nullptr;         // r * h, of the form that has the reset gate before the product
};

template <typename Kind>
struct Cell {
  using Operand = typename Kind::Operand;
  using Sum = typename Kind::Sum;

  Packed<Kind> weights;
  int64_t panels;

  // gx of all rows, for the panels from `begin` to `end`.
  void input(const Rows<Operand>& rows, int64_t begin, int64_t end) const {
    over_tiles<REGISTERS>(rows.count, begin, end,
                          [&](int64_t i, auto M, int64_t panel, auto P) { input_tile<M, P>(rows, i, panel); });
  }

  // y of all rows, from gx. `meet` waits for the threads that have the same rows and other panels.
  template <typename Meet>
  void step(const Rows<Operand>& rows, bool reset_after, int64_t begin, int64_t end, const Meet& meet) const {
    if (reset_after) {
      over_tiles<REGISTERS>(rows.count, begin, end,
                            [&](int64_t i, auto M, int64_t panel, auto P) { step_tile<M, P>(rows, i, panel); });
    } else {
      over_tiles<REGISTERS>(rows.count, begin, end,
                            [&](int64_t i, auto M, int64_t panel, auto P) { reset_tile<M, P>(rows, i, panel); });
      meet();
      over_tiles<REGISTERS>(rows.count, begin, end,
                            [&](int64_t i, auto M, int64_t panel, auto P) { candidate_tile<M, P>(rows, i, panel); });
    }
  }

 private:
  template <int ROWS, int PANELS, int USED>
  using Sums = Sum[ROWS][PANELS][USED];

  float* gx_of(const Rows<Operand>& rows, int64_t i, int64_t panel) const {
    return rows.gx + (i * panels + panel) * PANEL;
  }
  static float unit_of(const Rows<Operand>& rows, int64_t i) { return Kind::ROUNDS ? rows.unit[i] : 0; }
  const float* scale(int64_t panel, int gate) const { return weights.scale_hh + panel * PANEL + gate * W; }
  Floats state_of(const Rows<Operand>& rows, int64_t i, int64_t panel) const {
    return load_first(rows.state[i] + panel * W, weights.H - panel * W);
  }
  void write(const Rows<Operand>& rows, int64_t i, int64_t panel, Floats h) const {
    store_first(rows.y[i] + panel * W, h, weights.H - panel * W);
    if constexpr (Kind::ROUNDS) store_rounded(rows.next[i] + panel * W, h * (1 / rows.unit[i]));
  }

  // The sums of the products of ROWS rows, gates from FIRST on, each begun with addend(row, panel, gate).
  template <int FIRST, int ROWS, int PANELS, int USED, typename Addend>
  static ALWAYS_INLINE void sum(const Operand* const* operands, int64_t K, const typename Kind::Weight* w, int64_t size,
                                const Addend& addend, Sums<ROWS, PANELS, USED>& out) {
    const Operand* a[ROWS];
    Sum sums[ROWS][PANELS][USED];
    for (int i = 0; i < ROWS; i++) {
      a[i] = operands[i];
      for (int p = 0; p < PANELS; p++)
        for (int v = 0; v < USED; v++) sums[i][p][v] = Kind::begun(addend(i, p, v));
    }
    Kind::template add_product<FIRST>(a, K, w, size, sums);
    for (int i = 0; i < ROWS; i++)
      for (int p = 0; p < PANELS; p++)
        for (int v = 0; v < USED; v++) out[i][p][v] = sums[i][p][v];
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void input_tile(const Rows<Operand>& rows, int64_t first, int64_t panel) const {
    const auto addend = [&](int, int p, int g) { return load(weights.bias + (panel + p) * PANEL + g * W); };
    Sum sums[ROWS][PANELS][3];
    sum<0, ROWS, PANELS, 3>(rows.operands + first, weights.I, weights.w_ih + panel * weights.size_ih, weights.size_ih,
                            addend, sums);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++)
        for (int g = 0; g < 3; g++)
          store(gx_of(rows, first + i, panel + p) + g * W,
                Kind::ended(sums[i][p][g], addend(i, p, g), weights.scale_ih + (panel + p) * PANEL + g * W,
                            unit_of(rows, first + i)));
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void step_tile(const Rows<Operand>& rows, int64_t first, int64_t panel) const {
    const auto addend = [&](int i, int p, int g) {
      return load(g == 2 ? weights.b_hn + (panel + p) * W : gx_of(rows, first + i, panel + p) + g * W);
    };
    Sum sums[ROWS][PANELS][3];
    sum<0, ROWS, PANELS, 3>(rows.operands + first, weights.H, weights.w_hh + panel * weights.size_hh, weights.size_hh,
                            addend, sums);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++) {
        const auto ended = [&](int g) {
          return Kind::ended(sums[i][p][g], addend(i, p, g), scale(panel + p, g), unit_of(rows, first + i));
        };
        Floats not_r, not_z;
        const Floats r = sigmoid<float>(ended(0), not_r), z = sigmoid<float>(ended(1), not_z);
        const Floats gx_n = load(gx_of(rows, first + i, panel + p) + 2 * W);
        const Floats n = tanh<float>(fma<float>(r, ended(2), gx_n)).value;
        write(rows, first + i, panel + p, fma<float>(z, state_of(rows, first + i, panel + p), not_z * n));
      }
  }

  // The first half of the other form: r * h for all units. 1 - z and z overwrite gx_r and gx_z.
  template <int ROWS, int PANELS>
  __attribute__((noinline)) void reset_tile(const Rows<Operand>& rows, int64_t first, int64_t panel) const {
    const auto addend = [&](int i, int p, int g) { return load(gx_of(rows, first + i, panel + p) + g * W); };
    Sum sums[ROWS][PANELS][2];
    sum<0, ROWS, PANELS, 2>(rows.operands + first, weights.H, weights.w_hh + panel * weights.size_hh, weights.size_hh,
                            addend, sums);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++) {
        const auto ended = [&](int g) {
          return Kind::ended(sums[i][p][g], addend(i, p, g), scale(panel + p, g), unit_of(rows, first + i));
        };
        Floats not_r, not_z;
        const Floats r = sigmoid<float>(ended(0), not_r), z = sigmoid<float>(ended(1), not_z);
        float* const gx = gx_of(rows, first + i, panel + p);
        store(gx, not_z), store(gx + W, z);
        const Floats rh = r * state_of(rows, first + i, panel + p);
        Operand* const to = rows.rh[first + i] + (panel + p) * W;
        if constexpr (Kind::ROUNDS)
          store_rounded(to, rh * (1 / rows.unit[first + i]));
        else
          store(to, rh);
      }
  }

  template <int ROWS, int PANELS>
  __attribute__((noinline)) void candidate_tile(const Rows<Operand>& rows, int64_t first, int64_t panel) const {
    const auto addend = [&](int i, int p, int) { return load(gx_of(rows, first + i, panel + p) + 2 * W); };
    Sum sums[ROWS][PANELS][1];
    sum<2, ROWS, PANELS, 1>(rows.rh + first, weights.H, weights.w_hh + panel * weights.size_hh, weights.size_hh, addend,
                            sums);
#pragma GCC unroll 1
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 1
      for (int p = 0; p < PANELS; p++) {
        const Floats n =
            tanh<float>(Kind::ended(sums[i][p][0], addend(i, p, 0), scale(panel + p, 2), unit_of(rows, first + i)))
                .value;
        const float* const gx = gx_of(rows, first + i, panel + p);
        write(rows, first + i, panel + p, fma<float>(load(gx + W), state_of(rows, first + i, panel + p), load(gx) * n));
      }
  }
};

template <typename Kind>
struct Forward {
  using Operand = typename Kind::Operand;

  const GruCall& call;
  Sequence sequence;
  Cell<Kind> cell;
  int64_t panels, chunk, x_row, h_row;
  float *zeros, *gx, *units;
  Operand *x_rounded, *h_rounded, *rh;  // the states of this step and those of the next
  const float** floats;
  const Operand** operands;

  Forward(const GruCall& c, int64_t threads, Arena& arena)
      : call(c),
        sequence{c},
        cell{packed(c), (c.H + W - 1) / W},
        panels(cell.panels),
        chunk(sequence.chunk_rows()),
        x_row((c.I + W - 1) / W * W),
        h_row(panels * W) {
    zeros = arena.take<float>(c.h0 ? 0 : c.H);
    gx = arena.take<float>(threads * chunk * panels * PANEL);
    units = arena.take<float>(Kind::ROUNDS ? threads * chunk * 2 : 0);
    x_rounded = arena.take<Operand>(Kind::ROUNDS ? threads * chunk * x_row : 0);
    h_rounded = arena.take<Operand>(Kind::ROUNDS ? 2 * c.segments * h_row : 0);
    rh = arena.take<Operand>(c.reset_after ? 0 : c.segments * h_row);
    floats = arena.take<const float*>(threads * chunk * 3);
    operands = arena.take<const Operand*>(threads * chunk * 4);
  }

  static Packed<Kind> packed(const GruCall& c) {
    Arena arena(const_cast<char*>(static_cast<const char*>(c.packed)));
    return {c.I, c.H, arena};
  }

  void run(int64_t thread, int64_t threads, Meeting& meeting) const {
    const GruCall& c = call;
    if (!c.h0 && thread == 0) std::fill_n(zeros, c.H, 0.f);
    meeting.all.wait(threads);

    const Share share(c.segments, thread, threads);
    const int64_t begin = share.begin(panels), end = share.end(panels), segments = share.count(c.segments);
    const auto meet = [&] { meeting.rows[share.first].wait(share.parts); };
    const float **const x = floats + thread * chunk * 3, **const state = x + chunk;
    float** const y = const_cast<float**>(state + chunk);
    const Operand **const xq = operands + thread * chunk * 4, **h = xq + chunk, **next = h + chunk;
    Operand** const rh_of = const_cast<Operand**>(xq + 3 * chunk);
    float *const x_unit = units + thread * chunk * 2 * Kind::ROUNDS, *const h_unit = x_unit + chunk * Kind::ROUNDS;
    float* const gx_own = gx + thread * chunk * panels * PANEL;

    const float* const h0 = c.h0 ? static_cast<const float*>(c.h0) : zeros;
    for (int64_t i = 0; i < segments; i++) {
      const int64_t segment = share.first + i * share.stride;
      state[i] = h0 + sequence.state(segment) * c.h0_r;
      if (!c.reset_after) rh_of[i] = rh + segment * h_row;
      if constexpr (Kind::ROUNDS) {
        Operand* const to = h_rounded + segment * h_row;
        const float size = largest(state[i], c.H);
        h_unit[i] = (size < 1 ? 1 : size) / most(c.H);
        divide(state[i], begin * W, std::min(c.H, end * W), h_unit[i], to);
        h[i] = to, next[i] = to + c.segments * h_row;
      }
    }
    if constexpr (Kind::ROUNDS)
      meet();
    else
      h = state;
    int64_t offset = 0;  // rows before the step
    for (int64_t k = 0; k < c.steps;) {
      int64_t rows = 0, last = k;
      for (; last < c.steps; last++) {
        const int64_t size = sequence.size(last), count = share.count(size);
        if (rows && rows + count > CHUNK_ROWS) break;
        for (int64_t i = 0; i < count; i++, rows++) {
          const int64_t row = share.first + i * share.stride;
          x[rows] = sequence.at(static_cast<const float*>(c.x), c.x_t, c.x_b, last, offset, row);
          y[rows] = sequence.at(static_cast<float*>(c.y), c.y_t, c.y_b, last, offset, row);
          if constexpr (Kind::ROUNDS) {
            Operand* const to = x_rounded + (thread * chunk + rows) * x_row;
            const float size = largest(x[rows], c.I);
            x_unit[rows] = (size < SMALLEST ? SMALLEST : size) / most(c.I);
            divide(x[rows], 0, c.I, x_unit[rows], to);
            xq[rows] = to;
          } else {
            xq[rows] = x[rows];
          }
        }
        offset += size;
      }
      cell.input({rows, xq, x_unit, gx_own}, begin, end);
      for (int64_t row = 0; k < last; k++) {
        const int64_t count = share.count(sequence.size(k));
        Operand* const* const to = const_cast<Operand* const*>(next);
        cell.step({count, h, h_unit, gx_own + row * panels * PANEL, state, y + row, to, rh_of}, c.reset_after, begin,
                  end, meet);
        std::copy_n(y + row, count, state);
        if constexpr (Kind::ROUNDS) std::swap(h, next);
        row += count;
        meet();
      }
    }
    if (c.h_n && share.part == 0)
      for (int64_t i = 0; i < segments; i++)
        std::copy_n(state[i], c.H,
                    static_cast<float*>(c.h_n) + sequence.state(share.first + i * share.stride) * c.h_n_r);
  }
};

template <typename Kind>
int64_t bytes(const GruQuantised& q) {
  Arena arena;
  Packed<Kind>(q.I, q.H, arena);
  return arena.used();
}

template <typename Kind>
void pack(const GruQuantised& q, void* to) {
  Arena arena(static_cast<char*>(to));
  Packed<Kind>(q.I, q.H, arena).pack(q);
}

}  // namespace

extern "C" int64_t EXPORTED(gru_quantised_bytes)(const GruQuantised* weights) {
  return weights->is_int8 ? bytes<Int8>(*weights) : bytes<Bf16>(*weights);
}

extern "C" void EXPORTED(gru_quantised_pack)(const GruQuantised* weights, void* packed) {
  weights->is_int8 ? pack<Int8>(*weights, packed) : pack<Bf16>(*weights, packed);
}

extern "C" int64_t EXPORTED(gru_forward_int8)(const GruCall* calls, int64_t n) {
  return run_all<Forward<Int8>>(calls, n, 0.5);
}

extern "C" int64_t EXPORTED(gru_forward_bf16)(const GruCall* calls, int64_t n) {
  return run_all<Forward<Bf16>>(calls, n, 1);
}
