// How a call is walked through, and which part of it each thread does.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <new>
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
  int64_t chunk_rows() const { return std::max(std::min(CHUNK_ROWS, call.T * call.B), call.segments); }

  // Where a row of step k lies in an array with strides for time and batch; `offset` rows run before that step.
  template <typename T>
  T* at(T* array, int64_t stride_t, int64_t stride_b, int64_t k, int64_t offset, int64_t row) const {
    if (!call.position) return array + (call.reverse ? call.T - 1 - k : k) * stride_t + row * stride_b;
    const int64_t position = call.position[offset + row];
    return array + position / call.B * stride_t + position % call.B * stride_b;
  }
};

// A thread's part of a recurrence: every `stride`-th row from `first` on, and of those rows' units part `part` of
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

// Where a team's threads meet: all of them, and those that share rows.
struct Meeting {
  Barrier all, rows[MOST_THREADS];
};

// Hands out aligned parts of one piece of memory; without it, counts.
class Arena {
 public:
  explicit Arena(char* memory = nullptr) : memory_(memory) {}

  template <typename T>
  T* take(int64_t count) {
    char* const part = memory_ ? memory_ + used_ : nullptr;
    used_ += (count * int64_t{sizeof(T)} + 63) / 64 * 64;
    return reinterpret_cast<T*>(part);
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// How many teams share n recurrences, each as many of them. Those that add to one dx are of one team, one after the
// other.
inline int64_t teams_of(const GruCall* calls, int64_t n, int64_t threads) {
  int64_t teams = std::min({n, threads, calls[0].dx ? 2 : MOST_THREADS});
  while (n % teams) teams--;
  return teams;
}

// Threads that pay: some 20 us of work for each, and more work a step than it costs to meet where units are divided.
// Each team has its part of them.
inline int64_t worthwhile_threads(const GruCall* calls, int64_t n, double passes) {
  const GruCall& c = calls[0];
  double rows = 0;
  for (int64_t d = 0; d < n; d++) rows += double(Sequence{calls[d]}.total());
  const double work = passes * 6 * rows * double(c.H) * double(c.I + c.H);
  int64_t threads = std::min({c.threads, MOST_THREADS, 1 + int64_t(work / 2e6)});
  const int64_t teams = teams_of(calls, n, threads), R = c.segments;
  threads /= teams;
  if (R < 4 * threads && 6. * double(R) * double(c.H) * double(c.H) / double(threads) < 1e5)
    threads = std::max<int64_t>(1, R / 4);
  return threads * teams;
}

// Runs the recurrences of a layer by teams: each is a Pass<T>(call, threads, arena), which run(thread, threads,
// meeting) computes. A team runs one after another, in the same memory. Returns 1 without memory for them.
template <typename Pass>
int64_t run_all(const GruCall* calls, int64_t n, double passes) {
  const int64_t threads = worthwhile_threads(calls, n, passes), teams = teams_of(calls, n, threads),
                most = threads / teams;  // of a team
  int64_t size = 0;
  for (int64_t d = 0; d < n; d++) {
    Arena counting;
    counting.take<Meeting>(1);
    Pass(calls[d], most, counting);
    size = std::max(size, counting.used());
  }
  char* const memory = static_cast<char*>(std::aligned_alloc(64, teams * size));
  if (!memory) return 1;
  for (int64_t team = 0; team < teams; team++) new (memory + team * size) Meeting;
  parallel(threads, [&](int64_t thread, int64_t given) {
    const int64_t stride = given == threads ? teams : 1;  // of fewer threads than asked for there is one team
    const int64_t team = thread % stride, member = thread / stride, members = std::min(given / stride, most);
    if (member >= members) return;
    char* const own = memory + team * size;
    for (int64_t d = team; d < n; d += stride) {
      Arena arena(own);
      Meeting& meeting = *arena.take<Meeting>(1);
      const Pass pass(calls[d], most, arena);
      pass.run(member, members, meeting);
      if (d + stride < n) meeting.all.wait(members);  // the next writes where this one reads
    }
  });
  std::free(memory);
  return 0;
}

}  // namespace
