// The recurrence: for a chunk of steps the input's side at once, then step after step.
#include "cell.h"

namespace {

template <typename T>
struct Forward {
  const GruCall& call;
  Sequence sequence;
  Cell<T> cell;
  bool is_packed;
  int64_t chunk;
  T *zeros, *rh, *own;
  T* dropped;  // states as they enter the products of this step, and those of the next
  const T** pointers;
  uint32_t* zones;

  Forward(const GruCall& c, int64_t threads, Arena& arena)
      : call(c), sequence{c}, cell(packed_or_own(c, arena)), is_packed(c.packed), chunk(sequence.chunk_rows()) {
    zeros = arena.take<T>(c.h0 ? 0 : c.H);
    rh = arena.take<T>(c.reset_after ? 0 : c.segments * cell.panels * cell.W);
    own = arena.take<T>(threads * chunk * cell.panels * cell.PANEL);
    dropped = arena.take<T>(c.keep ? 2 * c.segments * c.H : 0);
    pointers = arena.take<const T*>(threads * chunk * 7);
    zones = arena.take<uint32_t>(c.zoneout == 1 ? threads * chunk : 0);
  }

  static Cell<T> packed_or_own(const GruCall& c, Arena& arena) {
    Arena packed(const_cast<char*>(static_cast<const char*>(c.packed)));
    return Cell<T>(c, c.packed ? packed : arena);
  }

  void run(int64_t thread, int64_t threads, Meeting& meeting) const {
    const GruCall& c = call;
    if (!is_packed)
      for (int64_t panel = thread; panel < cell.panels; panel += threads) cell.pack(c, panel);
    if (!c.h0 && thread == 0) std::fill_n(zeros, c.H, T(0));
    meeting.all.wait(threads);

    const Share share(c.segments, thread, threads);
    const int64_t begin = share.begin(cell.panels), end = share.end(cell.panels);
    const auto meet = [&] { meeting.rows[share.first].wait(share.parts); };
    const T **const x = pointers + thread * chunk * 7, **const state = x + chunk;
    T **const y = const_cast<T**>(state + chunk), **const factors = y + chunk;
    T **h = factors + chunk, **next = h + chunk;
    const T** const keep = const_cast<const T**>(factors + 3 * chunk);
    uint32_t* const zone = c.zoneout == 1 ? zones + thread * chunk : nullptr;
    T* const gx = own + thread * chunk * cell.panels * cell.PANEL;
    const int64_t rh_row = cell.panels * cell.W;

    const T* const h0 = c.h0 ? static_cast<const T*>(c.h0) : zeros;
    for (int64_t i = 0; i < share.count(c.segments); i++)
      state[i] = h0 + sequence.state(share.first + i * share.stride) * c.h0_r;
    if (c.keep) {
      for (int64_t i = 0; i < share.count(c.segments); i++) {
        const int64_t row = share.first + i * share.stride;
        h[i] = dropped + row * c.H, next[i] = h[i] + c.segments * c.H;
        keep[i] = static_cast<const T*>(c.keep) + sequence.state(row) * c.H;
        for (int64_t unit = share.begin(c.H); unit < share.end(c.H); unit++)
          h[i][unit] = keep[i][unit] * state[i][unit];
      }
      meet();
    }
    int64_t offset = 0;  // rows before the step
    for (int64_t k = 0; k < c.steps;) {
      int64_t rows = 0, last = k;
      for (; last < c.steps; last++) {
        const int64_t size = sequence.size(last), count = share.count(size);
        if (rows && rows + count > CHUNK_ROWS) break;
        for (int64_t i = 0; i < count; i++, rows++) {
          const int64_t row = share.first + i * share.stride;
          x[rows] = sequence.at(static_cast<const T*>(c.x), c.x_t, c.x_b, last, offset, row);
          y[rows] = sequence.at(static_cast<T*>(c.y), c.y_t, c.y_b, last, offset, row);
          const bool is_kept = offset + size <= c.kept_rows;
          if (zone) zone[rows] = zone_of(c, sequence.position(last, offset, row));
          factors[rows] = is_kept ? static_cast<T*>(c.kept) + offset * c.kept_r + row * cell.W : nullptr;
        }
        offset += size;
      }
      cell.input({rows, x, nullptr, nullptr, nullptr, 0, gx, nullptr, 0}, begin, end);
      for (int64_t row = 0; k < last; k++) {
        const int64_t size = sequence.size(k), count = share.count(size);
        T* const* const kept = count && factors[row] ? factors + row : nullptr;
        T *const gx_k = gx + row * cell.panels * cell.PANEL, *const rh_k = rh + share.first * rh_row;
        Rows<T> rows_k{count, nullptr, c.keep ? h : state, y + row, kept, size * cell.W, gx_k, rh_k};
        rows_k.rh_stride = share.stride * rh_row;
        rows_k.state = state, rows_k.zone = zone ? zone + row : nullptr;
        if (c.keep) rows_k.keep = keep, rows_k.dropped = next;
        cell.step(rows_k, begin, end, meet);
        std::copy_n(y + row, count, state);
        std::swap(h, next);
        row += count;
        meet();
      }
    }
    if (c.h_n && share.part == 0)
      for (int64_t i = 0; i < share.count(c.segments); i++)
        std::copy_n(state[i], c.H, static_cast<T*>(c.h_n) + sequence.state(share.first + i * share.stride) * c.h_n_r);
  }
};

template <typename T>
int64_t packed_bytes(const GruCall& c) {
  Arena arena;
  Cell<T>(c, arena);
  return arena.used();
}

template <typename T>
void pack(const GruCall& c, void* packed) {
  Arena arena(static_cast<char*>(packed));
  const Cell<T> cell(c, arena);
  for (int64_t panel = 0; panel < cell.panels; panel++) cell.pack(c, panel);
}

}  // namespace

extern "C" int64_t EXPORTED(gru_packed_bytes)(const GruCall* call) {
  return call->float64 ? packed_bytes<double>(*call) : packed_bytes<float>(*call);
}

extern "C" void EXPORTED(gru_pack)(const GruCall* call, void* packed) {
  call->float64 ? pack<double>(*call, packed) : pack<float>(*call, packed);
}

extern "C" int64_t EXPORTED(gru_forward)(const GruCall* calls, int64_t n) {
  return calls->float64 ? run_all<Forward<double>>(calls, n, 1) : run_all<Forward<float>>(calls, n, 1);
}
