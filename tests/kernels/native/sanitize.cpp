// Runs the kernels over a grid of sizes, for sanitizers and valgrind. Whatever the number of threads and of kept rows,
// the results must be finite and have the same bits. sanitize.py builds this file.
//
// Usage: sanitize all|few
#include <array>
#include <cstdio>

#include "layers.h"

namespace {

int failures = 0;

template <typename T>
void expect_same(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
  if (const char* const wrong = fault(got, want)) std::printf("%s: %s\n", what.c_str(), wrong), failures++;
}

// Options of which `turn` varies what may be left out, and alignment. Packed rows have different lengths, some are
// empty, and some are cut by resets.
Options options(const Sizes& c, bool after, int64_t recurrences, bool is_packed, int64_t turn) {
  Options o;
  o.reset_after = after, o.recurrences = recurrences;
  if (is_packed)
    for (int64_t t = 0; t < c.T; t++)
      for (int64_t b = 0; b < c.B; b++) {
        const int64_t length = c.T - b * 5 % (c.T + 1);
        o.real.push_back(t < length);
        if (turn % 3 != 0) o.start.push_back(t == length / 3);
      }
  o.offset = turn % 2, o.gap = turn % 3;
  o.has_h0 = turn % 4 != 1, o.has_biases = turn % 5 != 2, o.has_keep = turn % 5 == 3;
  o.has_dy = turn % 7 != 3, o.has_dh_n = turn % 7 != 4, o.has_dx = turn % 6 != 5;
  o.zoneout = turn % 4 == 2 ? 1 : turn % 8 == 5 ? 2 : 0, o.zone_seed = turn;
  o.activation = turn % 3 == 0 ? turn / 3 % 7 : 0;                                                // of activations.h
  o.recurrent_activation = std::array<int64_t, 4>{1, 0, 3, 5}[turn % 6 == 3 ? turn / 6 % 4 : 0];  // bounded
  o.is_normalised = after && turn % 2;
  return o;
}

template <typename T>
void check_layer(const Sizes& c, const Options& o, int64_t turn) {
  Layer<T> layer(c, o);
  granted = 4;
  const std::vector<T> want = layer.run(1, 0, false);
  for (int64_t threads = 1; threads <= 5; threads++) {
    granted = threads == 5 ? 3 : 4;  // of 5, the runtime gives 3
    const int64_t kept = c.T * c.B * ((threads + turn) % 3) / 2;
    const std::string what = std::to_string(sizeof(T) * 8) + " bits, " + named(c) +
                             (o.reset_after ? ", reset after, " : ", reset before, ") + std::to_string(o.recurrences) +
                             (o.is_packed() ? " recurrences, packed, " : " recurrences, ") + std::to_string(threads) +
                             " threads, " + std::to_string(kept) + " rows kept";
    expect_same(layer.run(threads, kept, threads == 2), want, what);
  }
}

// A step of B rows, by as many threads as pay; each row by itself must have the same bits.
template <typename T>
void check_step(const Sizes& c, bool is_normalised) {
  Options o;
  o.has_biases = c.B % 2, o.is_normalised = is_normalised;
  o.activation = c.B % 7, o.recurrent_activation = c.H == 16 ? 3 : 1;
  expect_same(step<T>(c, o, 3, false), step<T>(c, o, 1, true), "a step, " + named(c));
}

void check_quantised(const Sizes& c, Options o, bool is_int8, int64_t turn) {
  if (turn % 4 == 2) o.largest = 4;
  const Quantised layer(c, o, is_int8);
  const std::vector<float> want = layer.run(1);
  for (int64_t threads = 1; threads <= 5; threads++) {
    granted = threads == 5 ? 3 : 4;
    expect_same(layer.run(threads), want,
                (is_int8 ? "int8, " : "bf16, ") + named(c) + ", " + std::to_string(threads) + " threads");
  }
}

template <typename T>
void check_all(bool few) {
  std::vector<Sizes> cases = {
      {2, 1, 1, 1},
      {6, 5, 11, 19},   // less than a vector, and not a multiple of one
      {3, 1, 21, 391},  // units divided among threads
      {9, 67, 13, 30},  // rows divided, in several chunks
  };
  if (!few)
    cases.insert(cases.end(),
                 {{5, 3, 16, 16}, {4, 2, 8, 64}, {7, 9, 40, 33}, {2, 250, 5, 40}, {70, 6, 3, 50}, {12, 2, 100, 200}});
  int64_t turn = 0;
  for (const Sizes& c : cases)
    for (const bool after : {true, false})
      for (const int64_t recurrences : {1, 2, 3, 4})
        for (const bool is_packed : {false, true})
          if (turn++; !few || turn % 7 == 0) {
            const Options o = options(c, after, recurrences, is_packed, turn);
            check_layer<T>(c, o, turn);
            if (recurrences <= 2) check_quantised(c, o, sizeof(T) == 4, turn);
          }
  for (const int64_t B : {1, 2, 3, 5, 7, 9, 14})
    for (const int64_t H : {1, 7, 16, 37})
      for (const bool is_normalised : {false, true})
        if (!few || H == 37) check_step<T>({1, B, H == 7 ? 33 : 6, H}, is_normalised);
  for (const bool is_normalised : {false, true})
    if (!few) check_step<T>({1, 30, 250, 150}, is_normalised);  // units divided among threads
}

// Two callers at once, as two Python threads are.
void check_callers() {
  const Sizes c{9, 30, 20, 40};
  Layer<float> layers[] = {{c, options(c, true, 1, false, 0)}, {c, options(c, false, 2, true, 0)}};
  const std::vector<float> want[] = {layers[0].run(1, 0, false), layers[1].run(1, 0, false)};
  std::vector<float> got;
  std::thread other([&] { granted = 1, got = layers[0].run(2, c.T * c.B, false); });
  const std::vector<float> own = layers[1].run(2, c.T * c.B, false);
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
