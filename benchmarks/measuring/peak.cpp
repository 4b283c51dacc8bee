// Fused multiply-adds that wait for nothing: LANES floats in each of twelve chains, which hide the latency of four
// cycles in two units and fit in sixteen registers. Compiled when it is measured, for each instruction set.
typedef float Vector __attribute__((vector_size(4 * LANES)));

extern "C" float multiply_add(long rounds, float factor, float summand) {
  Vector chains[12], factors = {}, summands = {};
  factors += factor;
  summands += summand;
  for (int k = 0; k < 12; k++) chains[k] = summands * float(k);
  for (long i = 0; i < rounds; i++) {
#pragma GCC unroll 12
    for (int k = 0; k < 12; k++) chains[k] = chains[k] * factors + summands;
  }
  Vector sum = {};
  for (const Vector& chain : chains) sum += chain;
  float total = 0;
  for (int lane = 0; lane < LANES; lane++) total += sum[lane];
  return total;
}
