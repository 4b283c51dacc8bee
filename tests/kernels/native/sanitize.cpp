// Runs the kernels over a grid of sizes, for sanitizers and valgrind, on memory that is exactly as large as gru.h says.
// Teams are of std::thread, which a sanitizer follows, unlike the threads of an OpenMP runtime. Whatever the number of
// threads and of kept rows, the results must be finite and have the same bits. sanitize.py builds this file.
//
// Usage: sanitize all|few
#include <algorithm>
#include <cmath>
#include <cstdio>
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

struct Case {
  int64_t T, B, I, H;
};

// Rows of different lengths, some empty, cut by resets or not, as what a call walks through.
class Packed {
 public:
  Packed(const Case& c, bool reverse, bool cuts)
      : real_(new bool[c.T * c.B]), start_(new bool[cuts ? c.T * c.B : 0]), after_reset_(new bool[cuts ? 2 * c.B : 0]) {
    for (int64_t t = 0; t < c.T; t++)
      for (int64_t b = 0; b < c.B; b++) {
        const int64_t length = c.T - b * 5 % (c.T + 1);
        real_[t * c.B + b] = t < length;
        if (cuts) start_[t * c.B + b] = t == length / 3;
      }
    const int64_t most = cuts ? 2 * c.B : c.B;
    sizes.resize(c.T), last_.resize(c.B), row.resize(most), position.resize(c.T * c.B);
    const GruSegments arguments{real_.get(),
                                cuts ? start_.get() : nullptr,
                                c.T,
                                c.B,
                                reverse,
                                most,
                                sizes.data(),
                                last_.data(),
                                row.data(),
                                position.data(),
                                cuts ? after_reset_.get() : nullptr};
    steps = gru_segments(&arguments);
    if (steps < 0) std::abort();
    segments = steps ? sizes[0] : 0;
  }

  std::vector<int64_t> sizes, row, position;
  int64_t steps, segments;

 private:
  std::unique_ptr<bool[]> real_, start_, after_reset_;
  std::vector<int64_t> last_;
};

// One layer: what is given to it, and its results under some number of threads and of kept rows.
template <typename T>
class Layer {
 public:
  // `turn` varies what may be left out, and alignment.
  Layer(const Case& c, bool after, int64_t recurrences, bool is_packed, int64_t turn)
      : c_(c),
        D_(recurrences),
        offset_(turn % 2),
        x_b_(c.I + turn % 3),
        x_t_(c.B * x_b_),
        x_((c.T - 1) * x_t_ + (c.B - 1) * x_b_ + c.I, offset_),
        dy_(c.T * c.B * D_ * c.H, offset_) {
    x_.draw(1, 2), dy_.draw(2, 2);
    for (int64_t d = 0; d < D_; d++) {
      const bool cuts = turn % 3 != 0;
      if (is_packed) packed_.emplace_back(c, d >= (D_ + 1) / 2, cuts);
      const int64_t R = is_packed ? packed_[d].segments : c.B, states = is_packed && cuts ? R : c.B, H = c.H;
      const double scale = 2 / std::sqrt(double(H));
      const auto drawn = [&](int64_t n, double by) { return given_.emplace_back(n, offset_).draw(given_.size(), by); };
      GruCall call{};
      call.float64 = sizeof(T) == 8, call.reset_after = after;
      call.T = c.T, call.B = c.B, call.I = c.I, call.H = H, call.reverse = d >= (D_ + 1) / 2, call.steps = c.T,
      call.segments = R;
      if (is_packed) {
        call.position = packed_[d].position.data(), call.sizes = packed_[d].sizes.data();
        call.steps = packed_[d].steps, call.row = cuts ? nullptr : packed_[d].row.data();
      }
      states_.push_back(states);
      call.x = x_.data(), call.x_t = x_t_, call.x_b = x_b_;
      if (turn % 4 != 1) call.h0 = drawn(states * H, 2), call.h0_r = H;
      call.w_ih = drawn(3 * H * c.I, scale), call.w_hh = drawn(3 * H * H, scale);
      if (turn % 5 != 2) call.b_ih = drawn(3 * H, 2), call.b_hh = drawn(3 * H, 2);
      if (turn % 7 != 3) call.dy = dy_.data() + d * H, call.dy_t = c.B * D_ * H, call.dy_b = D_ * H;
      if (turn % 7 != 4) call.dh_n = drawn(states * H, 2), call.dh_n_r = H;
      if (turn % 5 == 3) call.keep = drawn(states * H, 2);
      call.zoneout = turn % 4 == 2 ? 1 : turn % 8 == 5 ? 2 : 0;
      call.zone_seed = turn, call.zone_threshold = int64_t{1} << 31, call.zone_keep = 0.5;
      has_dx_ = turn % 6 != 5;
      calls_.push_back(call);
    }
  }

  // All results, in one row. `kept` is the part of the rows that forward keeps for backward, of 2.
  std::vector<T> run(int64_t threads, int64_t kept, bool packs_weights) {
    const int64_t H = c_.H, rows = c_.T * c_.B, kept_rows = rows * kept / 2, kept_r = 5 * ((H + 15) / 16 * 16);
    const T fresh =
        packed_.empty() ? std::numeric_limits<T>::quiet_NaN() : T(0);  // of what is not written where rows are padded
    std::vector<Numbers<T>> results, others;
    const auto made = [&](int64_t n) { return results.emplace_back(n, offset_).fill(fresh); };
    T* const y = made(rows * D_ * H);
    std::vector<GruCall> calls = calls_, forward;
    std::vector<std::unique_ptr<void, decltype(&std::free)>> packed;
    for (int64_t d = 0; d < D_; d++) {
      GruCall& call = calls[d];
      call.threads = threads;
      call.y = y + d * H, call.y_t = c_.B * D_ * H, call.y_b = D_ * H;
      call.kept = kept ? others.emplace_back(kept_rows * kept_r, 0).data() : nullptr, call.kept_rows = kept_rows,
      call.kept_r = kept_r;
      call.h_n = made(states_[d] * H), call.h_n_r = H;
      if (has_dx_) call.dx = d < 2 ? made(rows * c_.I) : calls[d - 2].dx, call.dx_t = c_.B * c_.I, call.dx_b = c_.I;
      call.dx_adds = d >= 2;
      call.dh0 = made(states_[d] * H), call.dw_ih = made(3 * H * c_.I), call.dw_hh = made(3 * H * H);
      call.db_ih = made(3 * H), call.db_hh = made(3 * H);
      forward.push_back(call);
      if (packs_weights) {
        packed.emplace_back(std::aligned_alloc(64, gru_packed_bytes(&call)), &std::free);
        gru_pack(&call, packed.back().get());
        forward.back().packed = packed.back().get();
        forward.back().w_ih = forward.back().w_hh = forward.back().b_ih = forward.back().b_hh = nullptr;
      }
    }
    if (gru_forward(forward.data(), D_) || gru_backward(calls.data(), D_)) std::abort();
    std::vector<T> all;
    for (const Numbers<T>& each : results) each.add_to(all);
    return all;
  }

 private:
  Case c_;
  int64_t D_, offset_, x_b_, x_t_;
  bool has_dx_;
  Numbers<T> x_, dy_;
  std::vector<Packed> packed_;
  std::vector<int64_t> states_;  // how many there are of each recurrence
  std::vector<Numbers<T>> given_;
  std::vector<GruCall> calls_;
};

int failures = 0;

template <typename T>
void expect_same(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
  const bool is_finite = std::all_of(got.begin(), got.end(), [](T number) { return std::isfinite(number); });
  const bool is_same = got.size() == want.size() && !std::memcmp(got.data(), want.data(), got.size() * sizeof(T));
  if (is_finite && is_same) return;
  std::printf("%s: %s\n", what.c_str(), is_finite ? "other bits" : "not finite");
  failures++;
}

template <typename T>
void check_layer(const Case& c, bool after, int64_t recurrences, bool is_packed, int64_t turn) {
  Layer<T> layer(c, after, recurrences, is_packed, turn);
  granted = 4;
  const std::vector<T> want = layer.run(1, 0, false);
  for (int64_t threads = 1; threads <= 5; threads++) {
    granted = threads == 5 ? 3 : 4;  // of 5, the runtime gives 3
    const int64_t kept = (threads + turn) % 3;
    const std::string what = std::to_string(sizeof(T) * 8) + " bits, T B I H = " + std::to_string(c.T) + " " +
                             std::to_string(c.B) + " " + std::to_string(c.I) + " " + std::to_string(c.H) +
                             (after ? ", reset after" : ", reset before") + ", " + std::to_string(recurrences) +
                             (is_packed ? " recurrences, packed, " : " recurrences, ") + std::to_string(threads) +
                             " threads, " + std::to_string(kept) + "/2 kept";
    expect_same(layer.run(threads, kept, threads == 2), want, what);
  }
}

// A step of B rows; each alone must have the same bits.
template <typename T>
void check_step(int64_t B, int64_t I, int64_t H) {
  std::vector<Numbers<T>> given;
  const auto drawn = [&](int64_t n) { return given.emplace_back(n, given.size() % 2).draw(given.size(), 1); };
  const T *const x = drawn(B * I), *const h = drawn(B * H);
  GruCall call{};
  call.float64 = sizeof(T) == 8, call.reset_after = call.threads = call.T = call.steps = 1, call.I = I, call.H = H;
  call.w_ih = drawn(3 * H * I), call.w_hh = drawn(3 * H * H);
  if (B % 2) call.b_ih = drawn(3 * H), call.b_hh = drawn(3 * H);
  call.x_b = I, call.h0_r = call.y_b = call.h_n_r = H;
  std::vector<T> results[2];  // all rows at once, and one by one
  for (const bool alone : {false, true}) {
    const Numbers<T> y(B * H, 1), h_n(B * H, 0);
    call.B = call.segments = alone ? 1 : B;
    for (int64_t b = 0; b < B; b += call.B) {
      call.x = x + b * I, call.h0 = h + b * H, call.y = y.data() + b * H, call.h_n = h_n.data() + b * H;
      gru_step(&call);
    }
    y.add_to(results[alone]), h_n.add_to(results[alone]);
  }
  expect_same(results[0], results[1],
              "a step of " + std::to_string(B) + " rows, I H = " + std::to_string(I) + " " + std::to_string(H));
}

template <typename T>
void check_all(bool few) {
  std::vector<Case> cases = {
      {2, 1, 1, 1},
      {6, 5, 11, 19},   // less than a vector, and not a multiple of one
      {3, 1, 21, 391},  // units divided among threads
      {9, 67, 13, 30},  // rows divided, in several chunks
  };
  if (!few)
    cases.insert(cases.end(),
                 {{5, 3, 16, 16}, {4, 2, 8, 64}, {7, 9, 40, 33}, {2, 250, 5, 40}, {70, 6, 3, 50}, {12, 2, 100, 200}});
  int64_t turn = 0;
  for (const Case& c : cases)
    for (const bool after : {true, false})
      for (const int64_t recurrences : {1, 2, 3, 4})
        for (const bool is_packed : {false, true})
          if (turn++; !few || turn % 3 == 0) check_layer<T>(c, after, recurrences, is_packed, turn);
  for (const int64_t B : {1, 2, 3, 5, 7, 9, 14})
    for (const int64_t H : {1, 7, 16, 37})
      if (!few || H == 37) check_step<T>(B, H == 7 ? 33 : 6, H);
}

// Two callers at once, as two Python threads are.
void check_callers() {
  Layer<float> layers[] = {{{9, 30, 20, 40}, true, 1, false, 0}, {{9, 30, 20, 40}, false, 2, true, 0}};
  const std::vector<float> want[] = {layers[0].run(1, 0, false), layers[1].run(1, 0, false)};
  std::vector<float> got;
  std::thread other([&] { granted = 1, got = layers[0].run(2, 2, false); });
  const std::vector<float> own = layers[1].run(2, 2, false);
  other.join();
  expect_same(got, want[0], "one of two callers"), expect_same(own, want[1], "the other of two callers");
}

}  // namespace

int main(int count, char** arguments) {
  const bool few = count > 1 && !std::strcmp(arguments[1], "few");
  check_all<float>(few), check_all<double>(few), check_callers();
  if (largest_team < 4) std::puts("no team had four threads"), failures++;
  std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
