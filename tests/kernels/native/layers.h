// Layers of random numbers for sanitize.cpp and fuzz.cpp, in memory that is exactly as large as gru.h says. Teams are
// of std::thread, which a sanitizer follows, unlike the threads of an OpenMP runtime.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gru.h"

namespace {

struct Place {
  int thread = 0, threads = 1;
};
thread_local Place place;           // of this thread in its team
thread_local unsigned granted = 4;  // threads that a team has at most: a runtime may give fewer than asked for
int largest_team = 1;

}  // namespace

// What library.cpp takes from the process.
extern "C" {
int omp_get_thread_num() { return place.thread; }
int omp_get_num_threads() { return place.threads; }
int omp_in_parallel() { return place.threads > 1; }
void GOMP_parallel(void (*body)(void*), void* data, unsigned asked, unsigned) {
  const int threads = int(std::min(asked, granted));
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++)
    others.emplace_back([=] {
      place = {i, threads};
      body(data);
    });
  place = {0, threads};
  body(data);
  place = {};
  for (std::thread& other : others) other.join();
  if (granted > 1) largest_team = std::max(largest_team, threads);
}
}

namespace {

// Memory of exactly n numbers; with an offset the first is not aligned to a vector.
template <typename T>
class Numbers {
 public:
  Numbers(int64_t n, int64_t offset) : n_(n), offset_(offset), memory_(new T[n + offset]) {}
  T* data() const { return memory_.get() + offset_; }
  T* fill(T value) const {
    std::fill_n(data(), n_, value);
    return data();
  }
  T* draw(uint64_t seed, double scale) const {
    for (int64_t i = 0; i < n_; i++) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      data()[i] = T((double(seed >> 40) / double(1 << 24) - 0.5) * scale);
    }
    return data();
  }
  void add_to(std::vector<T>& all) const { all.insert(all.end(), data(), data() + n_); }

 private:
  int64_t n_, offset_;
  std::unique_ptr<T[]> memory_;
};

struct Sizes {
  int64_t T, B, I, H;
};

// What a layer is made of besides its sizes.
struct Options {
  bool reset_after = true;
  int64_t recurrences = 1;        // D directions, or those of heads
  std::vector<char> real, start;  // (T, B) each, as masks and resets are; empty: not given
  int64_t offset = 0, gap = 0;    // of all memory from a vector's alignment; between the rows of x
  bool has_h0 = true, has_biases = true, has_dy = true, has_dh_n = true, has_dx = true, has_keep = false;
  int64_t zoneout = 0, zone_seed = 0, activation = 0, recurrent_activation = 1;
  bool is_normalised = false;
  double largest = 2;  // of the initial states, twice

  bool is_packed() const { return !real.empty(); }
};

// Rows as what a call walks through: without padding, cut by resets.
class Packed {
 public:
  Packed(const Sizes& c, const Options& o, bool reverse)
      : real_(new bool[c.T * c.B]),
        start_(new bool[o.start.size()]),
        after_reset_(new bool[o.start.empty() ? 0 : most(c, o)]) {
    std::copy(o.real.begin(), o.real.end(), real_.get());
    std::copy(o.start.begin(), o.start.end(), start_.get());
    const int64_t R = most(c, o);
    sizes.resize(c.T), last_.resize(c.B), row.resize(R), position.resize(c.T * c.B);
    const GruSegments arguments{real_.get(),
                                o.start.empty() ? nullptr : start_.get(),
                                c.T,
                                c.B,
                                reverse,
                                R,
                                sizes.data(),
                                last_.data(),
                                row.data(),
                                position.data(),
                                o.start.empty() ? nullptr : after_reset_.get()};
    steps = gru_segments(&arguments);
    if (steps < 0) std::abort();
    segments = steps ? sizes[0] : 0;
  }

  std::vector<int64_t> sizes, row, position;
  int64_t steps, segments;

 private:
  static int64_t most(const Sizes& c, const Options& o) {
    return c.B + std::count(o.start.begin(), o.start.end(), char(1));
  }

  std::unique_ptr<bool[]> real_, start_, after_reset_;
  std::vector<int64_t> last_;
};

// The walks of a layer's recurrences; `states` is how many each begins from.
struct Walks {
  Walks(const Sizes& c, const Options& o) {
    for (int64_t d = 0; d < o.recurrences; d++) {
      if (o.is_packed()) packed.emplace_back(c, o, is_reverse(o, d));
      states.push_back(o.start.empty() ? c.B : packed[d].segments);
    }
  }
  static bool is_reverse(const Options& o, int64_t d) { return d >= (o.recurrences + 1) / 2; }
  bool has_steps() const { return packed.empty() || packed[0].steps > 0; }

  GruCall call(const Sizes& c, const Options& o, int64_t d) const {
    GruCall call{};
    call.reset_after = o.reset_after, call.reverse = is_reverse(o, d);
    call.T = call.steps = c.T, call.B = call.segments = c.B, call.I = c.I, call.H = c.H;
    if (!packed.empty()) {
      call.position = packed[d].position.data(), call.sizes = packed[d].sizes.data();
      call.steps = packed[d].steps, call.segments = packed[d].segments;
      call.row = o.start.empty() ? packed[d].row.data() : nullptr;
    }
    return call;
  }

  std::vector<Packed> packed;
  std::vector<int64_t> states;
};

using Buffer = std::unique_ptr<void, decltype(&std::free)>;
inline Buffer aligned(int64_t bytes) { return {std::aligned_alloc(64, std::max<int64_t>(64, bytes)), &std::free}; }

// One layer: what is given to it, and its results under some number of threads and of kept rows.
template <typename T>
class Layer {
 public:
  Layer(const Sizes& c, const Options& o)
      : c_(c),
        o_(o),
        walks_(c, o),
        x_((c.T - 1) * c.B * (c.I + o.gap) + (c.B - 1) * (c.I + o.gap) + c.I, o.offset),
        dy_(c.T * c.B * o.recurrences * c.H, o.offset) {
    x_.draw(1, 2), dy_.draw(2, 2);
    const int64_t D = o.recurrences, H = c.H;
    const double scale = 2 / std::sqrt(double(H));
    const auto drawn = [&](int64_t n, double by) { return given_.emplace_back(n, o.offset).draw(given_.size(), by); };
    for (int64_t d = 0; d < D; d++) {
      const int64_t states = walks_.states[d];
      GruCall call = walks_.call(c, o, d);
      call.float64 = sizeof(T) == 8;
      call.x = x_.data(), call.x_b = c.I + o.gap, call.x_t = c.B * call.x_b;
      if (o.has_h0) call.h0 = drawn(states * H, o.largest), call.h0_r = H;
      call.w_ih = drawn(3 * H * c.I, scale), call.w_hh = drawn(3 * H * H, scale);
      if (o.has_biases) call.b_ih = drawn(3 * H, 2), call.b_hh = drawn(3 * H, 2);
      if (o.has_dy) call.dy = dy_.data() + d * H, call.dy_t = c.B * D * H, call.dy_b = D * H;
      if (o.has_dh_n) call.dh_n = drawn(states * H, 2), call.dh_n_r = H;
      if (o.has_keep) call.keep = drawn(states * H, 2);
      call.zoneout = o.zoneout;
      call.zone_seed = o.zone_seed, call.zone_threshold = int64_t{1} << 31, call.zone_keep = 0.5;
      call.activation = o.activation, call.recurrent_activation = o.recurrent_activation;
      if (o.is_normalised) call.gain_x = drawn(3 * H, 3), call.gain_h = drawn(3 * H, 3);
      calls_.push_back(call);
    }
  }

  bool has_steps() const { return walks_.has_steps(); }

  // All results, in one row. `kept_rows` is how many rows forward keeps for backward.
  std::vector<T> run(int64_t threads, int64_t kept_rows, bool packs_weights) {
    const int64_t H = c_.H, D = o_.recurrences, rows = c_.T * c_.B, padded = (H + 15) / 16 * 16;
    const int64_t kept_r = o_.is_normalised ? 11 * padded + 16 : 5 * padded;
    const T fresh =
        o_.is_packed() ? T(0) : std::numeric_limits<T>::quiet_NaN();  // of what is not written where rows are padded
    std::vector<Numbers<T>> results, others;
    const auto made = [&](int64_t n) { return results.emplace_back(n, o_.offset).fill(fresh); };
    T* const y = made(rows * D * H);
    std::vector<GruCall> calls = calls_, forward;
    std::vector<Buffer> packed;
    for (int64_t d = 0; d < D; d++) {
      GruCall& call = calls[d];
      const int64_t states = walks_.states[d] * H;
      call.threads = threads;
      call.y = y + d * H, call.y_t = c_.B * D * H, call.y_b = D * H;
      call.kept = kept_rows ? others.emplace_back(kept_rows * kept_r, 0).data() : nullptr;
      call.kept_rows = kept_rows, call.kept_r = kept_r;
      call.h_n = made(states), call.h_n_r = H;
      if (o_.has_dx) {
        call.dx = d < 2 ? made(rows * c_.I) : calls[d - 2].dx;
        call.dx_t = c_.B * c_.I, call.dx_b = c_.I;
      }
      call.dx_adds = d >= 2;
      call.dh0 = made(states), call.dw_ih = made(3 * H * c_.I), call.dw_hh = made(3 * H * H);
      call.db_ih = made(3 * H), call.db_hh = made(3 * H);
      if (o_.is_normalised) call.d_gain_x = made(3 * H), call.d_gain_h = made(3 * H);
      forward.push_back(call);
      if (packs_weights) {
        packed.push_back(aligned(gru_packed_bytes(&call)));
        gru_pack(&call, packed.back().get());
        forward.back().packed = packed.back().get();
        forward.back().w_ih = forward.back().w_hh = forward.back().b_ih = forward.back().b_hh = nullptr;
      }
    }
    if (gru_forward(forward.data(), D) || gru_backward(calls.data(), D)) std::abort();
    std::vector<T> all;
    for (const Numbers<T>& each : results) each.add_to(all);
    return all;
  }

 private:
  Sizes c_;
  Options o_;
  Walks walks_;
  Numbers<T> x_, dy_;
  std::vector<Numbers<T>> given_;
  std::vector<GruCall> calls_;
};

// A layer on quantised weights, int8 or bfloat16.
class Quantised {
 public:
  Quantised(const Sizes& c, const Options& o, bool is_int8)
      : c_(c), o_(o), is_int8_(is_int8), walks_(c, o), x_((c.T * c.B - 1) * (c.I + o.gap) + c.I, o.offset) {
    const int64_t H = c.H, x_b = c.I + o.gap;
    x_.draw(1, 2);
    const auto drawn = [&](int64_t n, double by) { return given_.emplace_back(n, o.offset).draw(given_.size(), by); };
    for (int64_t d = 0; d < o.recurrences; d++) {
      GruQuantised q{is_int8, o.reset_after, c.I,     H,      weights(3 * H * c.I), weights(3 * H * H),
                     nullptr, nullptr,       nullptr, nullptr};
      if (is_int8) q.scale_ih = drawn(3 * H, 0.01), q.scale_hh = drawn(3 * H, 0.01);
      if (o.has_biases) q.b_ih = drawn(3 * H, 2), q.b_hh = drawn(3 * H, 2);
      packed_.push_back(aligned(gru_quantised_bytes(&q)));
      gru_quantised_pack(&q, packed_.back().get());
      GruCall call = walks_.call(c, o, d);
      call.packed = packed_.back().get();
      call.x = x_.data(), call.x_t = c.B * x_b, call.x_b = x_b;
      if (o.has_h0) call.h0 = drawn(walks_.states[d] * H, o.largest), call.h0_r = H;
      calls_.push_back(call);
    }
  }

  bool has_steps() const { return walks_.has_steps(); }

  // y and h_n, in one row.
  std::vector<float> run(int64_t threads) const {
    const int64_t H = c_.H, y_b = o_.recurrences * H;
    const float fresh = o_.is_packed() ? 0 : std::numeric_limits<float>::quiet_NaN();
    std::vector<Numbers<float>> results;
    const auto made = [&](int64_t n) { return results.emplace_back(n, o_.offset).fill(fresh); };
    float* const y = made(c_.T * c_.B * y_b);
    std::vector<GruCall> calls = calls_;
    for (size_t d = 0; d < calls.size(); d++) {
      GruCall& call = calls[d];
      call.threads = threads, call.y = y + d * H, call.y_t = c_.B * y_b, call.y_b = y_b;
      call.h_n = made(walks_.states[d] * H), call.h_n_r = H;
    }
    if ((is_int8_ ? gru_forward_int8 : gru_forward_bf16)(calls.data(), int64_t(calls.size()))) std::abort();
    std::vector<float> all;
    for (const Numbers<float>& each : results) each.add_to(all);
    return all;
  }

 private:
  const void* weights(int64_t n) {
    if (is_int8_) return bytes_.emplace_back(n, o_.offset).draw(bytes_.size(), 254);
    const Numbers<uint16_t>& made = halves_.emplace_back(n, o_.offset);
    for (int64_t i = 0; i < n; i++) made.data()[i] = uint16_t(0x3d00 + i % 64 + i % 2 * 0x8000);
    return made.data();
  }

  Sizes c_;
  Options o_;
  bool is_int8_;
  Walks walks_;
  Numbers<float> x_;
  std::vector<Numbers<float>> given_;
  std::vector<Numbers<int8_t>> bytes_;
  std::vector<Numbers<uint16_t>> halves_;
  std::vector<Buffer> packed_;
  std::vector<GruCall> calls_;
};

// y and h_n of a step of B rows, all at once by several threads, or one by one.
template <typename T>
std::vector<T> step(const Sizes& c, const Options& o, int64_t threads, bool alone) {
  std::vector<Numbers<T>> given;
  const auto drawn = [&](int64_t n) { return given.emplace_back(n, given.size() % 2).draw(given.size(), 1); };
  const int64_t B = c.B, I = c.I, H = c.H;
  const T *const x = drawn(B * I), *const h = drawn(B * H);
  GruCall call{};
  call.float64 = sizeof(T) == 8, call.reset_after = call.T = call.steps = 1, call.I = I, call.H = H;
  call.w_ih = drawn(3 * H * I), call.w_hh = drawn(3 * H * H);
  if (o.has_biases) call.b_ih = drawn(3 * H), call.b_hh = drawn(3 * H);
  if (o.is_normalised) call.gain_x = drawn(3 * H), call.gain_h = drawn(3 * H);
  call.activation = o.activation, call.recurrent_activation = o.recurrent_activation;
  call.x_b = I, call.h0_r = call.y_b = call.h_n_r = H;
  const T fresh = std::numeric_limits<T>::quiet_NaN();
  const Numbers<T> y(B * H, 1), h_n(B * H, 0);
  y.fill(fresh), h_n.fill(fresh);
  call.B = call.segments = alone ? 1 : B, call.threads = alone ? 1 : threads;
  for (int64_t b = 0; b < B; b += call.B) {
    call.x = x + b * I, call.h0 = h + b * H, call.y = y.data() + b * H, call.h_n = h_n.data() + b * H;
    if (gru_step(&call)) std::abort();
  }
  std::vector<T> all;
  y.add_to(all), h_n.add_to(all);
  return all;
}

// What is wrong with results: they must be finite, and have the bits of `want`. Null if nothing is.
template <typename T>
const char* fault(const std::vector<T>& got, const std::vector<T>& want) {
  if (!std::all_of(got.begin(), got.end(), [](T number) { return std::isfinite(number); })) return "not finite";
  const bool is_same = got.size() == want.size() && !std::memcmp(got.data(), want.data(), got.size() * sizeof(T));
  return is_same ? nullptr : "other bits";
}

inline std::string named(const Sizes& c) {
  return "T B I H = " + std::to_string(c.T) + " " + std::to_string(c.B) + " " + std::to_string(c.I) + " " +
         std::to_string(c.H);
}

}  // namespace
