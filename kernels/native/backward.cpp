// Backpropagation through time, chunks of steps from the end. From the factors of cell.h, kept or computed again, a
// step makes the gradients of its pre-activations out of dh, that of its state, and then dh of the step before:
//
//     reset after    dg_n = a_n r dh,  dg_r = a_r dh,              dg_z = a_z dh,  dgx_n = a_n dh
//                    dh'  = z dh + W_hh^T (dg_r, dg_z, dg_n)
//     reset before   dg_n = dgx_n = a_n dh;  drh = W_hn^T dg_n;  dg_r = h r (1 - r) drh,  dg_z = a_z dh
//                    dh'  = z dh + r drh + W_hr^T dg_r + W_hz^T dg_z
//
// Recurrent dropout multiplies all of dh' but z dh. With layer normalisation these are gradients of what is normalised,
// and those of the products come from them (norm.h): the state's side in every step, the input's once in a chunk.
#include "weight_gradients.h"

namespace {

template <typename T>
struct Backward {
  static constexpr int W = LANES<T>;

  const GruCall& call;
  Sequence sequence;
  int64_t chunk, kept_steps;
  bool is_kept;  // all of it
  Cell<T> cell;
  GateGradients<T> dg;
  WeightGradients<T> weights;
  int64_t dh_row;  // elements of a row of dh
  T *zeros, *dh, *through, *factors, *between, *own;
  T* dropped;  // the states before the steps of a chunk, as they enter products
  int64_t own_size;
  T** pointers;
  uint32_t* zones;

  Backward(const GruCall& c, int64_t threads, Arena& arena)
      : call(c),
        sequence{c},
        chunk(sequence.chunk_rows()),
        kept_steps(steps_kept(c)),
        is_kept(kept_steps == c.steps),
        cell(is_kept ? counted(c) : Cell<T>(c, arena)),
        dg(c, chunk, arena),
        weights(c, dg, cell.factors, arena),
        dh_row(cell.panels * W) {
    zeros = arena.take<T>(c.h0 ? 0 : c.H);
    dh = arena.take<T>(c.segments * dh_row);
    through = arena.take<T>(c.reset_after && !c.keep ? 0 : c.segments * dh_row);
    dropped = arena.take<T>(c.keep ? chunk * c.H : 0);
    factors = arena.take<T>(is_kept ? 0 : (cell.panels * cell.factors + 1) * dg.slot_size);
    between = arena.take<T>(threads * chunk * cell.between);  // for each group of threads that share rows
    own_size = std::max(is_kept ? 0 : chunk * cell.panels * cell.PANEL, weights.side_size(chunk));
    own = arena.take<T>(threads * own_size);
    pointers = arena.take<T*>(threads * chunk * ChunkRows<T>::FIELDS);
    zones = arena.take<uint32_t>(c.zoneout == 1 ? threads * chunk : 0);
  }

  static int64_t steps_kept(const GruCall& c) {
    const Sequence sequence{c};
    int64_t k = 0, rows = 0;
    while (k < c.steps && rows + sequence.size(k) <= c.kept_rows) rows += sequence.size(k++);
    return k;
  }

  static Cell<T> counted(const GruCall& c) {
    Arena nothing;
    return Cell<T>(c, nothing);
  }

  void run(int64_t thread, int64_t threads, Meeting& meeting) const {
    const GruCall& c = call;
    const Share share(c.segments, thread, threads);
    const ChunkRows<T> at(pointers + thread * chunk * ChunkRows<T>::FIELDS, chunk);
    T* const mine = own + thread * own_size;
    T* const gx = cell.gain_x ? mine - share.part * own_size : mine;
    begin(thread, threads);
    if (share.part == 0)
      for (int64_t i = 0; i < share.count(c.segments); i++) {
        const int64_t row = share.first + i * share.stride;
        std::fill_n(dh + row * dh_row, dh_row, T(0));
        if (c.dh_n) std::copy_n(static_cast<const T*>(c.dh_n) + sequence.state(row) * c.dh_n_r, c.H, dh + row * dh_row);
      }
    meeting.all.wait(threads);

    int64_t end = c.steps, end_offset = sequence.total();
    for (bool is_first = true; end > 0; is_first = false) {
      int64_t k = end, offset = end_offset;  // the chunk's first step, and the rows before it
      while (k > 0 && (k == end || end_offset - offset + sequence.size(k - 1) <= CHUNK_ROWS))
        offset -= sequence.size(--k);
      point(at, k, end, offset);
      if (c.keep) drop(at, share, meeting, k, end);
      if (end > kept_steps)
        compute_factors(at, share, meeting, gx, k, end, offset, c.zoneout == 1 ? zones + thread * chunk : nullptr);
      for (int64_t step = end, row = end_offset - offset; step > k;) {
        row -= sequence.size(--step);
        step_back(at, share, meeting, row, sequence.size(step), step < kept_steps);
      }
      meeting.all.wait(threads);
      const int64_t rows = end_offset - offset;
      if (c.gain_x) {
        weights.add_biases(at, rows, thread, threads, is_first);
        meeting.all.wait(threads);
        for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; row++)
          through_norm(at, INPUT_SIDE, row, 0, cell.panels);
        meeting.all.wait(threads);
      }
      if (c.dx) dg.make_dx(at.dx, c.dx_adds, rows * thread / threads, rows * (thread + 1) / threads);
      weights.add_weights(at, mine, rows, thread, threads, is_first);
      if (!c.gain_x) weights.add_biases(at, rows, thread, threads, is_first);
      meeting.all.wait(threads);
      end = k, end_offset = offset;
    }
    for (int64_t i = 0; share.part == 0 && i < share.count(c.segments); i++) {
      const int64_t row = share.first + i * share.stride;
      std::copy_n(dh + row * dh_row, c.H, static_cast<T*>(c.dh0) + sequence.state(row) * c.H);
    }
    weights.finish_biases(thread, threads);
  }

 private:
  // Where layer normalisation finds the gradients, factors and scale of a side.
  struct Side {
    bool is_hidden;
    int slot, to;       // the first slots of the gradients of its output, and of its products
    int factor, scale;  // the first factor, and the lane of the scale
  };
  static constexpr Side HIDDEN_SIDE{true, N_SLOT, SLOTS, FACTORS, 1}, INPUT_SIDE{false, R_SLOT, R_SLOT, FACTORS + 3, 0};

  void begin(int64_t thread, int64_t threads) const {
    const GruCall& c = call;
    dg.pack(c, thread, threads);
    if (!c.h0 && thread == 0) std::fill_n(zeros, c.H, T(0));
    for (int64_t panel = thread; !is_kept && panel < cell.panels; panel += threads) cell.pack(c, panel);
  }

  // A thread's units: whole panels of columns of W_hh^T, and the panels of gates that they are.
  struct Units {
    int64_t begin, end, panel, panel_end;
  };
  Units units_of(const Share& share) const {
    const int64_t begin = share.begin(dg.of_h.panels), end = share.end(dg.of_h.panels);
    return {begin, end, dg.of_h.first(begin), dg.of_h.first(end)};
  }

  // Points at all rows of the steps from k to `end`, `offset` rows before them.
  void point(const ChunkRows<T>& at, int64_t k, int64_t end, int64_t offset) const {
    const GruCall& c = call;
    const T *const x = static_cast<const T*>(c.x), *const y = static_cast<const T*>(c.y),
                   *const dy = static_cast<const T*>(c.dy);
    const T* const h0 = c.h0 ? static_cast<const T*>(c.h0) : zeros;
    for (int64_t row = 0, before = k ? sequence.size(k - 1) : 0; k < end; k++) {
      const int64_t size = sequence.size(k);
      for (int64_t i = 0; i < size; i++, row++) {
        at.next[row] = k < kept_steps ? size * W : dg.slot_size;
        at.x[row] = sequence.at(x, c.x_t, c.x_b, k, offset, i);
        at.state[row] = k ? sequence.at(y, c.y_t, c.y_b, k - 1, offset - before, i) : h0 + sequence.state(i) * c.h0_r;
        at.h[row] = c.keep ? dropped + row * c.H : at.state[row];
        if (dy) at.dy[row] = sequence.at(dy, c.dy_t, c.dy_b, k, offset, i);
        if (c.dx) at.dx[row] = sequence.at(static_cast<T*>(c.dx), c.dx_t, c.dx_b, k, offset, i);
        at.factors[row] = k < kept_steps ? static_cast<T*>(c.kept) + offset * c.kept_r + i * W : factors + row * W;
      }
      offset += size, before = size;
    }
  }

  const T* keep_of(int64_t segment) const {
    return static_cast<const T*>(call.keep) + sequence.state(segment) * call.H;
  }

  // The states as they enter products, of the thread's rows and units; the others' are there when all have met.
  void drop(const ChunkRows<T>& at, const Share& share, Meeting& meeting, int64_t k, int64_t end) const {
    for (int64_t row = 0; k < end; row += sequence.size(k++))
      for (int64_t i = share.first; i < sequence.size(k); i += share.stride) {
        const T *const keep = keep_of(i), *const h = at.state[row + i];
        T* const to = dropped + (row + i) * call.H;
        for (int64_t unit = share.begin(call.H); unit < share.end(call.H); unit++) to[unit] = keep[unit] * h[unit];
      }
    meeting.rows[share.first].wait(share.parts);
  }

  // The factors of the chunk's steps that are not kept, for the thread's rows and units; `zone` is memory for what
  // their masks begin from.
  void compute_factors(const ChunkRows<T>& at, const Share& share, Meeting& meeting, T* gx, int64_t k, int64_t end,
                       int64_t offset, uint32_t* zone) const {
    int64_t count = 0;
    for (int64_t row = 0; k < end; row += sequence.size(k), offset += sequence.size(k++))
      for (int64_t i = share.first; k >= kept_steps && i < sequence.size(k); i += share.stride, count++) {
        at.own_x[count] = at.x[row + i], at.own_h[count] = at.h[row + i], at.own_factors[count] = at.factors[row + i];
        at.own_state[count] = at.state[row + i];
        if (zone) zone[count] = zone_of(call, sequence.position(k, offset, i));
      }
    T* const own_between = between + share.first * chunk * cell.between;
    Rows<T> rows{count, at.own_x, at.own_h, nullptr, at.own_factors, dg.slot_size, gx, own_between, cell.between};
    rows.state = at.own_state, rows.zone = zone;
    const Units units = units_of(share);
    cell.input(rows, units.panel, units.panel_end);
    cell.step(rows, units.panel, units.panel_end, [&] { meeting.rows[share.first].wait(share.parts); });
  }

  // dg of a step whose `size` rows begin at `row` of the chunk, and dh of the step before.
  void step_back(const ChunkRows<T>& at, const Share& share, Meeting& meeting, int64_t row, int64_t size,
                 bool kept) const {
    const int64_t count = share.count(size), next = kept ? size * W : dg.slot_size;
    const Units units = units_of(share);
    const int64_t begin = units.begin, end = units.end, panel = units.panel, last = units.panel_end;
    const auto meet = [&] { meeting.rows[share.first].wait(share.parts); };
    row += share.first;
    const int64_t stride = share.stride * dh_row;
    T *const dh_k = dh + share.first * dh_row, *const through_k = through + share.first * dh_row;
    const auto clear_through = [&] {
      for (int64_t i = 0; i < count; i++)
        std::fill(through_k + i * stride + panel * W, through_k + i * stride + last * W, T(0));
    };
    const auto add_dropped = [&] {  // of the thread's own units, which no other reads
      for (int64_t i = 0; i < count; i++) {
        const T* const keep = keep_of(share.first + i * share.stride);
        for (int64_t j = panel; j < last; j++) {
          T* const d = dh_k + i * stride + j * W;
          store(d, fma<T>(load_first(keep + j * W, call.H - j * W), load(through_k + i * stride + j * W), load(d)));
        }
      }
    };
    for (int64_t j = panel; j < last; j++)
      for (int64_t i = 0; i < count; i++) {
        const T* const f = at.factors[row + i * share.stride] + j * cell.factors * next;
        T *const to = dg.at(j, 0, row + i * share.stride), *const d = dh_k + i * stride + j * W;
        Vector<T> gradient = load(d);
        if (call.dy) gradient += load_first(at.dy[row + i * share.stride] + j * W, call.H - j * W);
        if (call.reset_after) {
          for (int slot = 0; slot < SLOTS; slot++) store(to + slot * dg.slot_size, load(f + slot * next) * gradient);
          store(d, load(f + 4 * next) * gradient);
        } else {
          const Vector<T> d_n = load(f) * gradient;
          store(to + N_SLOT * dg.slot_size, d_n), store(to + X_SLOT * dg.slot_size, d_n), store(d, gradient);
        }
      }
    meet();
    if (call.gain_h) {
      for (int64_t i = 0; i < count; i++) through_norm(at, HIDDEN_SIDE, row + i * share.stride, panel, last);
      meet();
    }
    if (call.reset_after) {
      if (!call.keep) return dg.add_state_side(row, share.stride, N_SLOT, 3, count, begin, end, dh_k, stride);
      clear_through();
      dg.add_state_side(row, share.stride, N_SLOT, 3, count, begin, end, through_k, stride);
      return add_dropped();
    }
    clear_through();
    dg.add_state_side(row, share.stride, N_SLOT, 1, count, begin, end, through_k, stride);
    for (int64_t j = panel; j < last; j++)
      for (int64_t i = 0; i < count; i++) {
        const T* const f = at.factors[row + i * share.stride] + j * cell.factors * next;
        T *const to = dg.at(j, 0, row + i * share.stride), *const d = dh_k + i * stride + j * W;
        const Vector<T> d_rh = load(through_k + i * stride + j * W), gradient = load(d);
        store(to + R_SLOT * dg.slot_size, load(f + next) * d_rh),
            store(to + Z_SLOT * dg.slot_size, load(f + 2 * next) * gradient);
        if (call.keep) {
          store(d, load(f + 4 * next) * gradient), store(through_k + i * stride + j * W, load(f + 3 * next) * d_rh);
        } else {
          store(d, fma<T>(load(f + 3 * next), d_rh, load(f + 4 * next) * gradient));
        }
      }
    meet();
    dg.add_state_side(row, share.stride, R_SLOT, 2, count, begin, end, call.keep ? through_k : dh_k, stride);
    if (call.keep) add_dropped();
  }

  // The gradients of a side's products in a row of the chunk, for the panels from `begin` to `end`.
  void through_norm(const ChunkRows<T>& at, const Side& side, int64_t row, int64_t begin, int64_t end) const {
    const int64_t next = at.next[row], H = call.H;
    const T* const normalised = at.factors[row] + side.factor * next;
    const T scale = at.factors[row][cell.panels * cell.factors * next + side.scale];
    const T* const gains = side.is_hidden ? cell.gain_h : cell.gain_x;
    const auto& order = side.is_hidden ? HIDDEN_ORDER : INPUT_ORDER;
    const T* gain[3];
    for (int s = 0; s < 3; s++) gain[s] = gains + order[s] * H;
    Vector<T> sums[3] = {}, with[3] = {};
    for (int64_t panel = 0; panel < cell.panels; panel++)
#pragma GCC unroll 3
      for (int s = 0; s < 3; s++) {
        const T* const v = normalised + (panel * cell.factors + s) * next;
        const Vector<T> g = load_first(gain[s] + panel * W, H - panel * W) * load(dg.at(panel, side.slot + s, row));
        sums[s] += g, with[s] = fma<T>(g, load(v), with[s]);
      }
    const Vector<T> mean = broadcast(sum_of_lanes<T>(sums[0] + sums[1] + sums[2]) / T(3 * H));
    const Vector<T> slope = broadcast(-sum_of_lanes<T>(with[0] + with[1] + with[2]) / T(3 * H));
    for (int64_t panel = begin; panel < end; panel++)
#pragma GCC unroll 3
      for (int s = 0; s < 3; s++) {
        const T* const v = normalised + (panel * cell.factors + s) * next;
        const Vector<T> g = load_first(gain[s] + panel * W, H - panel * W) * load(dg.at(panel, side.slot + s, row));
        store(dg.at(panel, side.to + s, row), fma<T>(slope, load(v), g - mean) * scale);
      }
  }
};

}  // namespace

extern "C" int64_t EXPORTED(gru_backward)(const GruCall* calls, int64_t n) {
  return calls->float64 ? run_all<Backward<double>>(calls, n, 2) : run_all<Backward<float>>(calls, n, 2);
}
