// How a call is walked through, and which part of it each thread does.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "gru.h"
#include "team.h"

namespace {

constexpr int64_t CHUNK_ROWS = 192;  // rows of several steps whose products do not depend on each other, done together

// The steps of a call in the order of travel.
struct Sequence {
  const GruCall& call;

  // How many rows run at step k.
  int64_t size(int64_t k) const { return call.position ? call.sizes[k] : call.B; }

  // The time step and the batch row of a row of step k; `offset` rows run before that step.
  int64_t position(int64_t k, int64_t offset, int64_t row) const {
    return call.position ? call.position[offset + row] : (call.reverse ? call.T - 1 - k : k) * call.B + row;
  }

  // Where a segment's state lies in an array of them.
  int64_t state(int64_t segment) const { return call.row ? call.row[segment] : segment; }

  int64_t total() const {
    return call.position ? std::accumulate(call.sizes, call.sizes + call.steps, int64_t{0}) : call.T * call.B;
  }

  // The most rows of a chunk, or of a step.
  int64_t chunk_rows() const { return std::max(CHUNK_ROWS, call.segments); }

  // Where a row of step k lies in an array with strides for time and batch; `offset` rows run before that step.
  template <typename T>
  T* at(T* array, int64_t stride_t, int64_t stride_b, int64_t k, int64_t offset, int64_t row) const {
    if (!call.position) return array + (call.reverse ? call.T - 1 - k : k) * stride_t + row * stride_b;
    const int64_t position = call.position[offset + row];
    return array + position / call.B * stride_t + position % call.B * stride_b;
  }
};

// A thread's part of a direction: every `stride`-th row from `first` on, and of those rows' units part `part` of
// `parts`, for which the threads of the same rows wait for each other at every step.
struct Share {
  int64_t first, stride, part, parts;

  Share(int64_t rows, int64_t thread, int64_t threads) {
    constexpr int64_t FEW = 4;  // rows a thread: below, units are divided rather than rows
    stride = 1;
    for (int64_t groups = 2; groups <= threads; groups++)
      if (threads % groups == 0 && rows >= groups * FEW) stride = groups;
    parts = threads / stride;
    first = thread / parts;
    part = thread % parts;
  }

  // How many of a step's rows are this thread's.
  int64_t count(int64_t size) const { return size > first ? (size - first + stride - 1) / stride : 0; }
  int64_t begin(int64_t n) const { return n * part / parts; }
  int64_t end(int64_t n) const { return n * (part + 1) / parts; }
};

// Where a direction's threads meet: all of them, and those that share rows.
struct Meeting {
  Barrier all, rows[MOST_THREADS];
};

// Hands out aligned parts of one piece of memory; without it, counts.
class Arena {
 public:
  explicit Arena(char* memory = nullptr) : memory_(memory) {}

  template <typename T>
  T* take(int64_t count) {
    char* const part = memory_ + used_;
    used_ += (count * int64_t{sizeof(T)} + 63) / 64 * 64;
    return reinterpret_cast<T*>(part);
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// Threads that pay: some 20 us of work for each, and more work a step than it costs to meet where units are divided.
// Two directions have half of them each.
inline int64_t worthwhile_threads(const GruCall* calls, int64_t n, double passes) {
  const GruCall& c = calls[0];
  double rows = 0;
  for (int64_t d = 0; d < n; d++) rows += double(Sequence{calls[d]}.total());
  const double work = passes * 6 * rows * double(c.H) * double(c.I + c.H);
  int64_t threads = std::min({c.threads, MOST_THREADS, 1 + int64_t(work / 2e6)});
  const int64_t teams = n == 2 && threads > 1 ? 2 : 1, R = c.segments;
  threads /= teams;
  if (R < 4 * threads && 6. * double(R) * double(c.H) * double(c.H) / double(threads) < 1e5)
    threads = std::max<int64_t>(1, R / 4);
  return threads * teams;
}

// Runs the directions of a layer by a team: each is a Pass<T>(call, threads, arena), which run(thread, threads,
// meeting) computes. Returns 1 without memory for them.
template <typename Pass>
int64_t run_directions(const GruCall* calls, int64_t n, double passes) {
  const int64_t threads = worthwhile_threads(calls, n, passes);
  Arena counting;
  for (int64_t d = 0; d < n; d++) Pass(calls[d], threads, counting);
  char* const memory = static_cast<char*>(std::aligned_alloc(64, std::max<int64_t>(64, counting.used())));
  if (!memory) return 1;
  Arena arena(memory);
  const Pass first(calls[0], threads, arena), second(calls[n - 1], threads, n == 2 ? arena : counting);
  Meeting meetings[2];
  parallel(threads, [&](int64_t thread, int64_t team) {
    if (n == 2 && team % 2 == 0) {
      (thread % 2 ? second : first).run(thread / 2, team / 2, meetings[thread % 2]);
    } else {
      first.run(thread, team, meetings[0]);
      if (n == 2) second.run(thread, team, meetings[1]);
    }
  });
  std::free(memory);
  return 0;
}

}  // namespace
