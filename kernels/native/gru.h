// The C ABI between Python (ctypes) and the kernels. No torch and no Python headers.
#pragma once
#include <cstdint>

// One recurrence of a layer: a direction, or one of its heads. All fields have 8 bytes, so that Python fills them as
// int64. T steps, B rows, I features, H hidden units. Memory is of float, or of double where float64 says so. Strides
// count elements; the last dimension is dense, and so is all that has no stride. Weights have gates in the order r, z,
// n.
//
// Without `position` all B rows run T steps. With it the sequence is packed: at its step k the first sizes[k] of R
// segments run, and the next sizes[k] positions, each t * B + b, say which (t, b) of x, y, dy and dx they are. With
// `row` there is one segment to a row at most, and states are those of the B rows; without it, of the R segments.
struct GruCall {
  int64_t float64, reset_after, threads;  // threads: at most
  int64_t T, B, I, H;
  int64_t reverse;          // whether rows run from the last step; with `position` its order says it
  const int64_t* position;  // (sum of sizes,), or null
  const int64_t* sizes;     // (steps,), not growing; or null
  const int64_t* row;       // (R,): the row of each segment; or null
  int64_t steps, segments;  // T and B without `position`
  const void* x;            // (T, B, I)
  int64_t x_t, x_b;
  const void* h0;  // (R, H) or (B, H): what each segment begins from; null: zeros
  int64_t h0_r;
  const void* w_ih;    // (3H, I)
  const void* w_hh;    // (3H, H)
  const void* b_ih;    // (3H,), or null
  const void* b_hh;    // (3H,), or null
  const void* packed;  // what gru_pack made of the weights, which then may be null; or null
  void* y;             // (T, B, H): the state after each step
  int64_t y_t, y_b;
  void* h_n;  // as h0: the last state of each segment; or null
  int64_t h_n_r;
  // Recurrent dropout: what the state is multiplied by where it enters products, as h0 without a stride; or null.
  const void* keep;
  // Zoneout: 0 for none; 1 where a unit keeps its state by the masks of noise.py, which are functions of zone_seed (a
  // seed mixed with its stream), step, row and unit, and False for a number below zone_threshold; 2 for zone_keep, what
  // the expectation takes of the new state.
  int64_t zoneout, zone_seed, zone_threshold;
  double zone_keep;
  int64_t activation, recurrent_activation;  // of the candidate and of the gates; see activations.h
  // Layer normalisation, with reset_after: the gains of W_ih x and of W_hh h, (3H,), both or neither null.
  const void *gain_x, *gain_h;
  void* kept;  // (kept_rows, kept_r): what backward would compute again, of the first steps whose rows it holds
  int64_t kept_rows, kept_r;

  // Only for gru_backward.
  const void* dy;  // (T, B, H), or null
  int64_t dy_t, dy_b;
  const void* dh_n;  // as h0: of each segment's last state; or null
  int64_t dh_n_r;
  void* dx;  // (T, B, I), or null; only steps that run are written
  int64_t dx_t, dx_b;
  int64_t dx_adds;                            // whether dx adds to what is there
  void *dh0, *dw_ih, *dw_hh, *db_ih, *db_hh;  // as h0, without a stride, and as the weights
  void *d_gain_x, *d_gain_h;                  // as the gains
};

// What gru_segments makes of lengths, masks and resets.
struct GruSegments {
  const bool *real, *start;  // (T, B): which steps are not padding, and before which a row is cut; either may be null
  int64_t T, B, reverse;
  int64_t most;       // R at most: B, and one more for each True of `start`
  int64_t* sizes;     // (T,): how many segments run at each packed step, 0 after the last
  int64_t* last;      // (B,): the segment in which each row ends, -1 for a row without steps
  int64_t* row;       // (R,): of each segment, the longest first
  int64_t* position;  // (T * B,) at most
  bool* after_reset;  // (R,): whether the segment begins after a reset; null without `start`
};

// One direction's weights, quantised: int8 with a scale for each row, which may be of any size, or bfloat16 without.
struct GruQuantised {
  int64_t is_int8, reset_after, I, H;
  const void *w_ih, *w_hh;           // (3H, I) and (3H, H)
  const float *scale_ih, *scale_hh;  // (3H,) each; null for bfloat16
  const float *b_ih, *b_hh;          // (3H,), or null
};

// Each is compiled once for each instruction set, as NAME_avx2 and so on; library.cpp exports the one that the
// processor runs. They return 0, or 1 where there is not enough memory.
#define GRU_FUNCTIONS(SET)                                                     \
  extern "C" int64_t gru_packed_bytes_##SET(const GruCall*);                   \
  extern "C" void gru_pack_##SET(const GruCall*, void* packed);                \
  extern "C" int64_t gru_forward_##SET(const GruCall*, int64_t n);             \
  extern "C" int64_t gru_backward_##SET(const GruCall*, int64_t n);            \
  extern "C" int64_t gru_step_##SET(const GruCall*);                           \
  extern "C" int64_t gru_quantised_bytes_##SET(const GruQuantised*);           \
  extern "C" void gru_quantised_pack_##SET(const GruQuantised*, void* packed); \
  extern "C" int64_t gru_forward_int8_##SET(const GruCall*, int64_t n);        \
  extern "C" int64_t gru_forward_bf16_##SET(const GruCall*, int64_t n);

#define GRU_NAME(name, set) name##_##set
#define GRU_EXPANDED(name, set) GRU_NAME(name, set)
#define EXPORTED(name) GRU_EXPANDED(name, INSTRUCTION_SET)

extern "C" {
const char* gru_sources();          // a digest of the sources that the library was built from, see sources.py
const char* gru_instruction_set();  // null where the processor has none that the library was built for
int64_t gru_packed_bytes(const GruCall* call);
void gru_pack(const GruCall* call, void* packed);  // aligned to 64 bytes
// The n recurrences of a layer, of the same sizes. Of more than two, every other one may have the same dx, to which it
// adds after those before it.
int64_t gru_forward(const GruCall* calls, int64_t n);
int64_t gru_backward(const GruCall* calls, int64_t n);
int64_t gru_step(const GruCall* call);  // T = 1, reset_after, no `position`; reads the weights as they lie
int64_t gru_quantised_bytes(const GruQuantised* weights);
void gru_quantised_pack(const GruQuantised* weights, void* packed);  // aligned to 64 bytes
int64_t gru_forward_int8(const GruCall* calls,
                         int64_t n);  // as gru_forward in float, on `packed` of gru_quantised_pack
int64_t gru_forward_bf16(const GruCall* calls, int64_t n);
int64_t gru_segments(const GruSegments* arguments);  // the packed steps, or -1 where there is not enough memory
}
