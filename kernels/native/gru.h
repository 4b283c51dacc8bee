// The C ABI between Python (ctypes) and the kernels: one direction of one layer. No torch and no Python headers.
#pragma once
#include <cstdint>

constexpr int64_t GRU_ABI = 1;  // to be raised with every change of GruCall or of what a function does

// All fields have 8 bytes, so that Python fills an array of int64. T steps, B rows, I features, H hidden units; strides
// count elements, and the last dimension is dense. Weights are dense, gates in the order r, z, n.
//
// Without `position` all B rows run T steps. With it the sequence is packed: at its step k the first sizes[k] of R
// segments run, and the next sizes[k] positions, each t * B + b, say which (t, b) of x and y they are.
struct GruCall {
  int64_t T, B, I, H;
  const float* x;  // (T, B, I)
  int64_t x_t, x_b;
  const float* h0;  // (R, H): what each segment begins from; R is B without `position`
  int64_t h0_r;
  const float* w_ih;  // (3H, I)
  const float* w_hh;  // (3H, H)
  const float* b_ih;  // (3H,), or null
  const float* b_hh;  // (3H,), or null
  float* y;           // (T, B, H): the state after each step
  int64_t y_t, y_b;
  int64_t reverse;          // whether rows run from the last step; with `position` its order says it
  const int64_t* position;  // (sum of sizes,), or null
  const int64_t* sizes;     // (steps,), not growing; or null
  int64_t steps, segments;  // T and B without `position`
  float* workspace;         // gru_workspace(call) floats, aligned to 64 bytes
  int64_t threads;          // at most; each has rows of its own
};

// Each is compiled once for each instruction set, as NAME_avx2 and so on; library.cpp exports the one that the
// processor runs.
#define GRU_FUNCTIONS(SET)                                \
  extern "C" int64_t gru_workspace_##SET(const GruCall*); \
  extern "C" void gru_forward_##SET(const GruCall*);      \
  extern "C" void gru_step_##SET(const GruCall*);

#define GRU_NAME(name, set) name##_##set
#define GRU_EXPANDED(name, set) GRU_NAME(name, set)
#define EXPORTED(name) GRU_EXPANDED(name, INSTRUCTION_SET)

extern "C" {
int64_t gru_abi();
const char* gru_instruction_set();           // null where the processor has none that the library was built for
int64_t gru_workspace(const GruCall* call);  // in floats
void gru_forward(const GruCall* call);
void gru_step(const GruCall* call);  // T = 1, no position, no workspace
}
