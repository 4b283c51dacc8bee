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
//
// The slots of dg are n, r, z and gx_n, so that the state's side reads the first three and the input's the last three.
// With layer normalisation the state's side reads three others, behind them.
// A chunk's dg lies as [panel][slot][row][lane]: what a product reads is side by side in memory. A chunk's dx and its
// part of each weight's gradient are products over all its rows; the parts are added chunk by chunk, in an order that
// neither threads nor tiles change.
#include "cell.h"

namespace {

template <typename T>
struct Backward {
  static constexpr int W = LANES<T>;
  static constexpr int N_SLOT = 0, R_SLOT = 1, Z_SLOT = 2, X_SLOT = 3, SLOTS = 4;
  static constexpr int OUTER = std::min(ACCUMULATORS / 3, W);  // rows of a weight's gradient in a tile, all of one gate

  const GruCall& call;
  Sequence sequence;
  int64_t chunk, kept_steps;
  bool is_kept;  // all of it
  Cell<T> cell;
  Columns of_h, of_x;
  int64_t dh_row;      // elements of a row of dh
  int64_t slot_size;   // elements of a slot of dg, and of one factor of a panel
  int64_t slots;       // of a panel
  int64_t state_slot;  // the first that the state's side reads
  int64_t sums_of;     // sums of a panel: the biases' four slots, and the gains' six
  T *zeros, *w_hh_t, *w_ih_t, *dg, *dh, *through, *sums, *factors, *between, *own;
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
        of_h(c.H, W),
        of_x(c.I, W) {
    const int64_t np = cell.panels;
    dh_row = np * W;
    slot_size = (chunk + 2) * W;  // not a power of two apart, which would fall on the same lines of the cache
    state_slot = c.gain_h ? SLOTS : N_SLOT;
    slots = c.gain_h ? SLOTS + 3 : SLOTS, sums_of = c.gain_h ? SLOTS + NORMALISED : SLOTS;
    zeros = arena.take<T>(c.h0 ? 0 : c.H);
    w_hh_t = arena.take<T>(np * cell.PANEL * of_h.vectors * W);
    w_ih_t = arena.take<T>(c.dx ? np * cell.PANEL * of_x.vectors * W : 0);
    dg = arena.take<T>(np * slots * slot_size);
    dh = arena.take<T>(c.segments * dh_row);
    through = arena.take<T>(c.reset_after && !c.keep ? 0 : c.segments * dh_row);
    dropped = arena.take<T>(c.keep ? chunk * c.H : 0);
    sums = arena.take<T>(np * sums_of * W);
    factors = arena.take<T>(is_kept ? 0 : (np * cell.factors + 1) * slot_size);
    between = arena.take<T>(threads * chunk * cell.between);  // for each group of threads that share rows
    own_size = chunk * std::max(is_kept ? 0 : np * cell.PANEL, int64_t{2 * 3 * W});
    own = arena.take<T>(threads * own_size);
    pointers = arena.take<T*>(threads * chunk * 11);
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

  // A thread's pointers to the rows of a chunk.
  struct Pointers {
    const T **x, **h, **dy;
    T **dx, **factors;
    const T** state;                        // h without dropout
    const T **own_x, **own_h, **own_state;  // only those of its own rows
    T** own_factors;
    int64_t* next;  // elements between a row's factors

    Pointers(T** memory, int64_t chunk) {
      const T** const reads = const_cast<const T**>(memory);
      x = reads, h = x + chunk, dy = h + chunk, own_x = dy + chunk, own_h = own_x + chunk;
      state = own_h + chunk, own_state = state + chunk;
      dx = memory + 7 * chunk, factors = dx + chunk, own_factors = factors + chunk;
      next = reinterpret_cast<int64_t*>(own_factors + chunk);
    }
  };

  void run(int64_t thread, int64_t threads, Meeting& meeting) const {
    const GruCall& c = call;
    const Share share(c.segments, thread, threads);
    const Pointers at(pointers + thread * chunk * 11, chunk);
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
        add_biases(at, rows, thread, threads, is_first);
        meeting.all.wait(threads);
        for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; row++)
          through_norm(at, INPUT_SIDE, row, 0, cell.panels);
        meeting.all.wait(threads);
      }
      if (c.dx) make_dx(at, rows * thread / threads, rows * (thread + 1) / threads);
      add_weights(at, mine, rows, thread, threads, is_first);
      if (!c.gain_x) add_biases(at, rows, thread, threads, is_first);
      meeting.all.wait(threads);
      end = k, end_offset = offset;
    }
    for (int64_t i = 0; share.part == 0 && i < share.count(c.segments); i++) {
      const int64_t row = share.first + i * share.stride;
      std::copy_n(dh + row * dh_row, c.H, static_cast<T*>(c.dh0) + sequence.state(row) * c.H);
    }
    finish_biases(thread, threads);
  }

 private:
  static constexpr int HIDDEN_ORDER[3] = {2, 0, 1}, INPUT_ORDER[3] = {0, 1, 2};  // the gates of the slots of each side

  // Where layer normalisation finds the gradients, factors and scale of a side.
  struct Side {
    bool is_hidden;
    int slot, to;       // the first slots of the gradients of its output, and of its products
    int factor, scale;  // the first factor, and the lane of the scale
  };
  static constexpr Side HIDDEN_SIDE{true, N_SLOT, SLOTS, FACTORS, 1}, INPUT_SIDE{false, R_SLOT, R_SLOT, FACTORS + 3, 0};

  void begin(int64_t thread, int64_t threads) const {
    const GruCall& c = call;
    const auto pack = [&](const void* w, const Columns& columns, const int (&order)[3], T* out) {
      for (int64_t panel = thread; panel < columns.panels; panel += threads) {
        const int64_t first = columns.first(panel), vectors = columns.first(panel + 1) - first;
        pack_columns(static_cast<const T*>(w), c.H, columns.size, first, vectors, order,
                     out + first * W * cell.panels * cell.PANEL);
      }
    };
    pack(c.w_hh, of_h, HIDDEN_ORDER, w_hh_t);
    if (c.dx) pack(c.w_ih, of_x, INPUT_ORDER, w_ih_t);
    if (!c.h0 && thread == 0) std::fill_n(zeros, c.H, T(0));
    for (int64_t panel = thread; !is_kept && panel < cell.panels; panel += threads) cell.pack(c, panel);
  }

  // A thread's units: whole panels of columns of W_hh^T, and the panels of gates that they are.
  struct Units {
    int64_t begin, end, panel, panel_end;
  };
  Units units_of(const Share& share) const {
    const int64_t begin = share.begin(of_h.panels), end = share.end(of_h.panels);
    return {begin, end, of_h.first(begin), of_h.first(end)};
  }

  // Points at all rows of the steps from k to `end`, `offset` rows before them.
  void point(const Pointers& at, int64_t k, int64_t end, int64_t offset) const {
    const GruCall& c = call;
    const T *const x = static_cast<const T*>(c.x), *const y = static_cast<const T*>(c.y),
                   *const dy = static_cast<const T*>(c.dy);
    const T* const h0 = c.h0 ? static_cast<const T*>(c.h0) : zeros;
    for (int64_t row = 0, before = k ? sequence.size(k - 1) : 0; k < end; k++) {
      const int64_t size = sequence.size(k);
      for (int64_t i = 0; i < size; i++, row++) {
        at.next[row] = k < kept_steps ? size * W : slot_size;
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
  void drop(const Pointers& at, const Share& share, Meeting& meeting, int64_t k, int64_t end) const {
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
  void compute_factors(const Pointers& at, const Share& share, Meeting& meeting, T* gx, int64_t k, int64_t end,
                       int64_t offset, uint32_t* zone) const {
    int64_t count = 0;
    for (int64_t row = 0; k < end; row += sequence.size(k), offset += sequence.size(k++))
      for (int64_t i = share.first; k >= kept_steps && i < sequence.size(k); i += share.stride, count++) {
        at.own_x[count] = at.x[row + i], at.own_h[count] = at.h[row + i], at.own_factors[count] = at.factors[row + i];
        at.own_state[count] = at.state[row + i];
        if (zone) zone[count] = zone_of(call, sequence.position(k, offset, i));
      }
    T* const own_between = between + share.first * chunk * cell.between;
    Rows<T> rows{count, at.own_x, at.own_h, nullptr, at.own_factors, slot_size, gx, own_between, cell.between};
    rows.state = at.own_state, rows.zone = zone;
    const Units units = units_of(share);
    cell.input(rows, units.panel, units.panel_end);
    cell.step(rows, units.panel, units.panel_end, [&] { meeting.rows[share.first].wait(share.parts); });
  }

  // dg of a step whose `size` rows begin at `row` of the chunk, and dh of the step before.
  void step_back(const Pointers& at, const Share& share, Meeting& meeting, int64_t row, int64_t size, bool kept) const {
    const int64_t count = share.count(size), next = kept ? size * W : slot_size;
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
        T *const to = dg_of(j, 0, row + i * share.stride), *const d = dh_k + i * stride + j * W;
        Vector<T> gradient = load(d);
        if (call.dy) gradient += load_first(at.dy[row + i * share.stride] + j * W, call.H - j * W);
        if (call.reset_after) {
          for (int slot = 0; slot < SLOTS; slot++) store(to + slot * slot_size, load(f + slot * next) * gradient);
          store(d, load(f + 4 * next) * gradient);
        } else {
          const Vector<T> d_n = load(f) * gradient;
          store(to + N_SLOT * slot_size, d_n), store(to + X_SLOT * slot_size, d_n), store(d, gradient);
        }
      }
    meet();
    if (call.gain_h) {
      for (int64_t i = 0; i < count; i++) through_norm(at, HIDDEN_SIDE, row + i * share.stride, panel, last);
      meet();
    }
    if (call.reset_after) {
      if (!call.keep) return add_state_side(row, share.stride, N_SLOT, 3, count, begin, end, dh_k, stride);
      clear_through();
      add_state_side(row, share.stride, N_SLOT, 3, count, begin, end, through_k, stride);
      return add_dropped();
    }
    clear_through();
    add_state_side(row, share.stride, N_SLOT, 1, count, begin, end, through_k, stride);
    for (int64_t j = panel; j < last; j++)
      for (int64_t i = 0; i < count; i++) {
        const T* const f = at.factors[row + i * share.stride] + j * cell.factors * next;
        T *const to = dg_of(j, 0, row + i * share.stride), *const d = dh_k + i * stride + j * W;
        const Vector<T> d_rh = load(through_k + i * stride + j * W), gradient = load(d);
        store(to + R_SLOT * slot_size, load(f + next) * d_rh),
            store(to + Z_SLOT * slot_size, load(f + 2 * next) * gradient);
        if (call.keep) {
          store(d, load(f + 4 * next) * gradient), store(through_k + i * stride + j * W, load(f + 3 * next) * d_rh);
        } else {
          store(d, fma<T>(load(f + 3 * next), d_rh, load(f + 4 * next) * gradient));
        }
      }
    meet();
    add_state_side(row, share.stride, R_SLOT, 2, count, begin, end, call.keep ? through_k : dh_k, stride);
    if (call.keep) add_dropped();
  }

  T* dg_of(int64_t panel, int64_t slot, int64_t row) const { return dg + (panel * slots + slot) * slot_size + row * W; }

  // The gradients of a side's products in a row of the chunk, for the panels from `begin` to `end`.
  void through_norm(const Pointers& at, const Side& side, int64_t row, int64_t begin, int64_t end) const {
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
        const Vector<T> g = load_first(gain[s] + panel * W, H - panel * W) * load(dg_of(panel, side.slot + s, row));
        sums[s] += g, with[s] = fma<T>(g, load(v), with[s]);
      }
    const Vector<T> mean = broadcast(sum_of_lanes<T>(sums[0] + sums[1] + sums[2]) / T(3 * H));
    const Vector<T> slope = broadcast(-sum_of_lanes<T>(with[0] + with[1] + with[2]) / T(3 * H));
    for (int64_t panel = begin; panel < end; panel++)
#pragma GCC unroll 3
      for (int s = 0; s < 3; s++) {
        const T* const v = normalised + (panel * cell.factors + s) * next;
        const Vector<T> g = load_first(gain[s] + panel * W, H - panel * W) * load(dg_of(panel, side.slot + s, row));
        store(dg_of(panel, side.to + s, row), fma<T>(slope, load(v), g - mean) * scale);
      }
  }

  // A product with columns runs over the panels of units in blocks, whose part of the columns stays in the L1 cache for
  // all rows; between blocks the sums wait in memory.
  template <int VECTORS, typename Body>
  void over_blocks(int64_t slots, const Body& body) const {
    const int64_t block = std::max<int64_t>(1, (20 << 10) / (slots * W * VECTORS * W * int64_t{sizeof(T)}));
    for (int64_t j = 0; j < cell.panels; j += block) body(j, std::min(cell.panels, j + block));
  }

  // product += `slots` slots of the gates of rows `stride` apart, of the units' panels from j to `end`, times a panel
  // of columns that was packed for three slots.
  template <int ROWS, int PANELS, int VECTORS>
  ALWAYS_INLINE void add_gates(int64_t first, int64_t stride, int64_t slot, int64_t slots, int64_t j, int64_t end,
                               const T* w, Vector<T> (&product)[ROWS][PANELS][VECTORS]) const {
    const int64_t unit_size = cell.PANEL * VECTORS * W, lanes = unknown(W);
    w += j * unit_size;
    for (; j < end; j++, w += unit_size)
      for (int64_t s = 0; s < slots; s++) {
        const T* row[ROWS];
        for (int i = 0; i < ROWS; i++) row[i] = dg_of(j, slot + s, first + i * stride);
        add_product<VECTORS, 0>(row, lanes, w + s * W * VECTORS * W, cell.panels * unit_size, product);
      }
  }

  // Adds W_hh^T times `slots` slots of a step's gates, from `slot` on, to the panels from `begin` to `end` of `out`.
  void add_state_side(int64_t row, int64_t row_stride, int64_t slot, int64_t slots, int64_t count, int64_t begin,
                      int64_t end, T* out, int64_t stride) const {
    of_h.over(begin, end, [&](auto V, int64_t from, int64_t to) {
      constexpr int VECTORS = decltype(V)::value;
      over_blocks<VECTORS>(slots, [&](int64_t j, int64_t j_end) {
        over_tiles<VECTORS>(count, from, to, [&](int64_t i, auto M, int64_t panel, auto P) {
          const T* const w = w_hh_t + (of_h.first(panel) * cell.panels * cell.PANEL + slot * W * VECTORS) * W;
          T* const at = out + i * stride + of_h.first(panel) * W;
          state_tile<VECTORS, M, P>(row + i * row_stride, row_stride, state_slot + slot, slots, j, j_end, w, at,
                                    stride);
        });
      });
    });
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

  // dx of the chunk's rows from `begin` to `end`.
  void make_dx(const Pointers& at, int64_t begin, int64_t end) const {
    of_x.over(0, of_x.panels, [&](auto V, int64_t from, int64_t to) {
      constexpr int VECTORS = decltype(V)::value;
      over_blocks<VECTORS>(3, [&](int64_t j, int64_t j_end) {
        over_tiles<VECTORS>(end - begin, from, to, [&](int64_t i, auto M, int64_t panel, auto P) {
          dx_tile<VECTORS, M, P>(begin + i, of_x.first(panel), j, j_end, at.dx + begin + i);
        });
      });
    });
  }
  template <int VECTORS, int ROWS, int PANELS>
  __attribute__((noinline)) void dx_tile(int64_t row, int64_t first, int64_t j, int64_t j_end, T* const* dx) const {
    Vector<T> product[ROWS][PANELS][VECTORS];
    const auto column = [&](int p, int v) { return (first + p * VECTORS + v) * W; };
    over_sums<ROWS, PANELS, VECTORS>([&](int i, int p, int v) {
      const int64_t at = column(p, v);
      product[i][p][v] = j > 0 || call.dx_adds ? load_first(dx[i] + at, call.I - at) : Vector<T>{};
    });
    add_gates(row, 1, R_SLOT, 3, j, j_end, w_ih_t + first * W * cell.panels * cell.PANEL, product);
    over_sums<ROWS, PANELS, VECTORS>(
        [&](int i, int p, int v) { store_first(dx[i] + column(p, v), product[i][p][v], call.I - column(p, v)); });
  }

  // Adds the chunk's part of both weights' gradients: this thread's rows of them, OUTER at a time. The chunk's rows of
  // a panel of columns are first copied side by side.
  void add_weights(const Pointers& at, T* side, int64_t rows, int64_t thread, int64_t threads, bool is_first) const {
    const int64_t blocks = cell.panels * cell.PANEL / OUTER, begin = blocks * thread / threads,
                  end = blocks * (thread + 1) / threads;
    for (const bool is_hidden : {true, false}) {
      const Columns& columns = is_hidden ? of_h : of_x;
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
                const Vector<T> r = load(at.factors[row] + ((first + v) * cell.factors + 3) * at.next[row]);
                store(side_rh + (row * VECTORS + v) * W, r * values);
              }
            }
          for (int64_t block = begin; block < end; block++) {
            const int64_t unit_panel = block * OUTER / cell.PANEL, in_panel = block * OUTER % cell.PANEL,
                          slot = in_panel / W;
            const int64_t unit = unit_panel * W + in_panel % W;
            if (unit >= call.H) continue;
            const T* const gates = dg_of(unit_panel, slot + (is_hidden ? state_slot : R_SLOT), 0) + in_panel % W;
            T* const out = dw + (order[slot] * call.H + unit) * columns.size + column;
            const T* const with = has_rh && slot == N_SLOT ? side_rh : side;
            outer_tile<VECTORS>(gates, rows, with, call.H - unit, columns.size, columns.size - column, out, is_first);
          }
        }
      });
    }
  }
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

  // The sums of dg's rows, and of those times what was normalised: this thread's panels.
  void add_biases(const Pointers& at, int64_t rows, int64_t thread, int64_t threads, bool is_first) const {
    for (int64_t panel = cell.panels * thread / threads; panel < cell.panels * (thread + 1) / threads; panel++)
      for (int64_t k = 0; k < sums_of; k++) {
        const int64_t of_gain = k - SLOTS;
        Vector<T> sum{};
        if (of_gain < 0) {
          for (int64_t row = 0; row < rows; row++) sum += load(dg_of(panel, k, row));
        } else {
          const int64_t slot = of_gain < 3 ? N_SLOT + of_gain : R_SLOT + of_gain - 3;
          const int64_t factor = panel * cell.factors + FACTORS + of_gain;
          for (int64_t row = 0; row < rows; row++)
            sum = fma<T>(load(dg_of(panel, slot, row)), load(at.factors[row] + factor * at.next[row]), sum);
        }
        T* const to = sums + (panel * sums_of + k) * W;
        store(to, is_first ? sum : load(to) + sum);
      }
  }
  void finish_biases(int64_t thread, int64_t threads) const {
    for (int64_t panel = cell.panels * thread / threads; panel < cell.panels * (thread + 1) / threads; panel++)
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
};

}  // namespace

extern "C" int64_t EXPORTED(gru_backward)(const GruCall* calls, int64_t n) {
  return calls->float64 ? run_all<Backward<double>>(calls, n, 2) : run_all<Backward<float>>(calls, n, 2);
}
