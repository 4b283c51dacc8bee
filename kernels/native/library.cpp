// What is the same for all instruction sets: which of them runs, and the team of threads.
#include <cstdlib>
#include <cstring>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "gru.h"
#include "team.h"

#if defined(__x86_64__)
GRU_FUNCTIONS(avx2)
GRU_FUNCTIONS(avx512)
#elif defined(__aarch64__)
GRU_FUNCTIONS(neon)
#endif

extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);
__attribute__((weak)) int omp_get_thread_num();
__attribute__((weak)) int omp_get_num_threads();
__attribute__((weak)) int omp_in_parallel();
}

namespace {

struct Set {
  const char* name;
  int64_t (*packed_bytes)(const GruCall*);
  void (*pack)(const GruCall*, void*);
  int64_t (*forward)(const GruCall*, int64_t);
  int64_t (*backward)(const GruCall*, int64_t);
  int64_t (*step)(const GruCall*);
  int64_t (*quantised_bytes)(const GruQuantised*);
  void (*quantised_pack)(const GruQuantised*, void*);
  int64_t (*forward_int8)(const GruCall*, int64_t);
  int64_t (*forward_bf16)(const GruCall*, int64_t);
};
#define SET_OF(NAME)           \
  {#NAME,                      \
   gru_packed_bytes_##NAME,    \
   gru_pack_##NAME,            \
   gru_forward_##NAME,         \
   gru_backward_##NAME,        \
   gru_step_##NAME,            \
   gru_quantised_bytes_##NAME, \
   gru_quantised_pack_##NAME,  \
   gru_forward_int8_##NAME,    \
   gru_forward_bf16_##NAME}

#if defined(__x86_64__)
const Set AVX512 = SET_OF(avx512), AVX2 = SET_OF(avx2);

// GRUCORE_NATIVE_SET=avx2 takes the narrower one, to compare.
const Set* chosen() {
  __builtin_cpu_init();
  const char* wanted = std::getenv("GRUCORE_NATIVE_SET");
  const bool narrow = wanted && !std::strcmp(wanted, AVX2.name);
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  if (has_avx512 && !narrow) return &AVX512;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &AVX2 : nullptr;
}
#elif defined(__aarch64__)
const Set NEON = SET_OF(neon);

const Set* chosen() { return &NEON; }  // every such processor has it
#endif
const Set* const SET = chosen();

bool forked = false;  // the runtime's threads are not in the child, which would wait for them
#if defined(__unix__) || defined(__APPLE__)
const int WATCHED = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

struct Job {
  void (*body)(const void*, int64_t, int64_t);
  const void* of;
};

void run_job(void* data) {
  const Job* job = static_cast<const Job*>(data);
  job->body(job->of, omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace

void run_team(int64_t threads, void (*body)(const void*, int64_t, int64_t), const void* of) {
  Job job{body, of};
  if (threads <= 1 || forked || !GOMP_parallel || !omp_in_parallel || omp_in_parallel()) {
    body(of, 0, 1);
  } else {
    GOMP_parallel(run_job, &job, unsigned(threads), 0);
  }
}

extern "C" {
const char* gru_sources() { return GRU_SOURCES; }
const char* gru_instruction_set() { return SET ? SET->name : nullptr; }
int64_t gru_packed_bytes(const GruCall* call) { return SET->packed_bytes(call); }
void gru_pack(const GruCall* call, void* packed) { SET->pack(call, packed); }
int64_t gru_forward(const GruCall* calls, int64_t n) { return SET->forward(calls, n); }
int64_t gru_backward(const GruCall* calls, int64_t n) { return SET->backward(calls, n); }
int64_t gru_step(const GruCall* call) { return SET->step(call); }
int64_t gru_quantised_bytes(const GruQuantised* weights) { return SET->quantised_bytes(weights); }
void gru_quantised_pack(const GruQuantised* weights, void* packed) { SET->quantised_pack(weights, packed); }
int64_t gru_forward_int8(const GruCall* calls, int64_t n) { return SET->forward_int8(calls, n); }
int64_t gru_forward_bf16(const GruCall* calls, int64_t n) { return SET->forward_bf16(calls, n); }
}
