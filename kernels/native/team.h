// Threads of the OpenMP runtime that the process has: torch brings one and makes its symbols global. The library links
// none, so that there is never a second pool; without a runtime, in a nested call and after a fork it runs one thread.
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>

constexpr int64_t MOST_THREADS = 64;

void run_team(int64_t threads, void (*body)(const void* of, int64_t thread, int64_t threads), const void* of);

namespace {

// All of a team wait for the last.
class alignas(64) Barrier {
 public:
  void wait(int64_t threads) {
    if (threads <= 1) return;
    const int64_t turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int64_t spins = 0; turn_.load(std::memory_order_acquire) == turn; spins++) {
      if (spins < 2000) {
        pause();
      } else {
        sched_yield();  // the thread that is waited for may need this core
      }
    }
  }

 private:
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }

  std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> turn_{0};  // apart from what arriving threads write
};

// Calls body(thread, threads) once for each thread of a team of at most so many.
template <typename Body>
void parallel(int64_t threads, const Body& body) {
  run_team(
      threads, [](const void* of, int64_t thread, int64_t n) { (*static_cast<const Body*>(of))(thread, n); }, &body);
}

}  // namespace
