// wgmma: products of four warps that go on while the program does. Checked when issued; computed then or, in half of
// the launches, when waited for. Until then neither its registers nor what it reads in shared memory may be touched.
//
// Operands: N / 2 sums; the left factor in four registers (the form that takes it from shared memory is not there); a
// descriptor of the right one; whether sums are added to; two scales; whether the right factor is transposed.
#include <cstring>

#include "operands.h"

u64 Machine::descriptor(int i) {
  const Source given(*this, i);
  for (int lane = 1; lane < LANES; lane++)
    if (given[lane] != given[0]) fail("wgmma: descriptor differs between lanes");
  return given[0];
}

// Element (k, column) of the right factor in shared memory.
float Machine::described(u64 descriptor, bool k_major, int column, int k, Type type, bool issue) {
  const u64 start = (descriptor & 0x3fff) << 4;
  const u64 leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  const int swizzle = int(descriptor >> 62);
  if (swizzle == 0 || (descriptor >> 49 & 7)) fail("wgmma: only swizzled layouts without base offset are implemented");
  const u64 width = 256 >> swizzle;  // bytes of a swizzled row
  u64 at = start;
  if (k_major)
    at += column % 8 * width + column / 8 * stride + k * 2;
  else
    at += column * 2 % width + column * 2 / width * leading + k % 8 * width + k / 8 * stride;
  at ^= (at >> 7 & (width / 16 - 1)) << 4;
  const u64 offset = shared_offset(at, 2, TOGETHER, "wgmma read");
  if (issue) {
    track_shared_read(offset, 2, TOGETHER, true);
    warp->cta->cells[offset / 2].products++;
    warp->open_products.shared.push_back(offset / 2);
  }
  u16 value;
  memcpy(&value, &warp->cta->shared[offset], 2);
  return from_half(value, type);
}

void Machine::wgmma(const LateProduct* late) {
  const bool issue = !late;
  if (issue) {
    need_all_lanes("wgmma");
    if (!warp->fenced) fail("wgmma without wgmma.fence");
  }
  const Type type = instruction->opcode.type;
  const int columns = instruction->opcode.count, sums = columns / 2;
  if (instruction->n_operands != sums + 9) fail("wgmma: this form is not implemented");
  const int right = sums + 4;
  for (const int scale : {right + 2, right + 3})
    if (operand(scale).kind != IMMEDIATE || operand(scale).value != 1)
      fail("wgmma: scales other than 1 are not implemented");
  if (warp->summed.empty()) {
    warp->summed.resize(n_registers);
    warp->multiplied.resize(n_registers);
  }
  const bool accumulate = late ? late->accumulate : Source(*this, right + 1)[0] & 1;
  const bool transposed = operand(right + 4).value;
  const u64 b_descriptor = late ? late->descriptor : descriptor(right);
  std::vector<double> a, b(16 * columns);
  left_factor(sums, type, 16, a);
  for (int k = 0; k < 16; k++)
    for (int j = 0; j < columns; j++) b[k * columns + j] = described(b_descriptor, !transposed, j, k, type, issue);
  if (late || !late_products)
    for (int r = 0; r < sums; r++) {
      u64* sum = values_of(int(operand(r).value));
      for (int lane = 0; lane < LANES; lane++) {
        const int row = lane / 4 + (r >> 1 & 1) * 8, column = r / 4 * 8 + lane % 4 * 2 + (r & 1);
        double product = 0;
        for (int k = 0; k < 16; k++) product += a[row * 16 + k] * b[k * columns + column];
        sum[lane] = as_bits(rounded_sum((accumulate ? as_float(sum[lane]) : 0.0) + product));
      }
    }
  if (late) return;
  if (late_products) warp->open_products.late.push_back({pc, b_descriptor, accumulate});
  for (int r = 0; r < sums; r++) {
    const int number = int(operand(r).value);
    warp->summed[number]++;
    warp->open_products.sums.push_back(number);
  }
  for (int r = 0; r < 4; r++) {
    const int number = int(operand(sums + r).value);
    warp->multiplied[number]++;
    warp->open_products.factors.push_back(number);
  }
}

void Machine::wait_for_products(size_t left) {
  const int waiting = pc;
  while (warp->products.size() > left) {
    const Products& group = warp->products.front();
    for (const u64 cell : group.shared) warp->cta->cells[cell].products--;
    for (const int number : group.sums) warp->summed[number]--;
    for (const int number : group.factors) warp->multiplied[number]--;
    for (const LateProduct& late : group.late) {
      pc = late.pc;
      instruction = &code[pc];
      wgmma(&late);
    }
    warp->products.erase(warp->products.begin());
  }
  pc = waiting;
  instruction = &code[pc];
  if (warp->products.empty()) warp->fenced = false;
}
