// Threads of the OpenMP runtime that the process has: torch brings one and makes its symbols global. The library links
// none, so that there is never a second pool; without a runtime, in a nested call and after a fork it runs one thread.
#pragma once
#include <cstdint>

void run_team(int64_t threads, void (*body)(const void* of, int64_t thread, int64_t threads), const void* of);

namespace {

// Calls body(thread, threads) once for each thread of a team of at most so many.
template <typename Body>
void parallel(int64_t threads, const Body& body) {
  run_team(threads, [](const void* of, int64_t thread, int64_t n) { (*static_cast<const Body*>(of))(thread, n); }, &body);
}

}  // namespace
