// Matrices of 8 x 8 between shared memory and registers, and the products of one warp.
//
// Which lane has which element is from the figures of the PTX ISA, sections 9.7.14.5 (mma) and 9.7.14.5.15 (ldmatrix).
#include <cstring>

#include "operands.h"

namespace {

double element(u64 word, int half, Type type) {
  if (type == TF32) return as_float(word & 0xffffe000u);  // the low 13 bits are ignored
  return from_half(word >> (16 * half) & 0xffff, type);
}

}  // namespace

float Machine::rounded_sum(double x) const { return settings.round_to_zero ? toward_zero(x) : float(x); }

void Machine::ldmatrix() {
  need_all_lanes("ldmatrix");
  const Opcode& opcode = instruction->opcode;
  u64 rows[LANES];
  address(opcode.count, rows, true);
  for (int matrix = 0; matrix < opcode.count; matrix++) {
    u16 m[8][8];
    for (int row = 0; row < 8; row++) read_shared(rows[8 * matrix + row], 16, reinterpret_cast<u8*>(m[row]), TOGETHER);
    u64* out = destination(matrix);
    for (int lane = 0; lane < LANES; lane++) {
      const int a = lane / 4, b = lane % 4 * 2;
      out[lane] = opcode.detail ? m[b][a] | u32(m[b + 1][a]) << 16 : m[a][b] | u32(m[a][b + 1]) << 16;
    }
  }
}

void Machine::stmatrix() {
  need_all_lanes("stmatrix");
  const Opcode& opcode = instruction->opcode;
  u64 rows[LANES];
  address(0, rows, true);
  for (int matrix = 0; matrix < opcode.count; matrix++) {
    u16 m[8][8];
    const Source from(*this, 2 + matrix);
    for (int lane = 0; lane < LANES; lane++)
      for (int half = 0; half < 2; half++) {
        const int a = lane / 4, b = lane % 4 * 2 + half;
        (opcode.detail ? m[b][a] : m[a][b]) = u16(from[lane] >> (16 * half));
      }
    for (int row = 0; row < 8; row++) write_shared(rows[8 * matrix + row], 16, reinterpret_cast<u8*>(m[row]), TOGETHER);
  }
}

// The left factor, 16 x depth, out of four registers.
void Machine::left_factor(int first, Type type, int depth, std::vector<double>& a) {
  a.resize(16 * depth);
  for (int r = 0; r < 4; r++) {
    const Source from(*this, first + r);
    for (int lane = 0; lane < LANES; lane++) {
      double* row = &a[(lane / 4 + (r & 1) * 8) * depth];
      if (type == TF32) {
        row[lane % 4 + (r >> 1) * 4] = element(from[lane], 0, type);
      } else {
        for (int half = 0; half < 2; half++) row[lane % 4 * 2 + half + (r >> 1) * 8] = element(from[lane], half, type);
      }
    }
  }
}

void Machine::mma() {
  need_all_lanes("mma");
  const Type type = instruction->opcode.type;
  const int depth = type == TF32 ? 8 : 16;
  std::vector<double> a, b(depth * 8), product(16 * 8);
  left_factor(4, type, depth, a);
  for (int r = 0; r < 2; r++) {
    const Source from(*this, 8 + r);
    for (int lane = 0; lane < LANES; lane++) {
      if (type == TF32) {
        b[(lane % 4 + r * 4) * 8 + lane / 4] = element(from[lane], 0, type);
      } else {
        for (int half = 0; half < 2; half++)
          b[(lane % 4 * 2 + half + r * 8) * 8 + lane / 4] = element(from[lane], half, type);
      }
    }
  }
  u64 c[4][LANES];
  for (int r = 0; r < 4; r++) memcpy(c[r], Source(*this, 10 + r).values, sizeof c[r]);
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < depth; k++)
      for (int j = 0; j < 8; j++) product[i * 8 + j] += a[i * depth + k] * b[k * 8 + j];
  for (int r = 0; r < 4; r++) {
    u64* out = destination(r);
    for (int lane = 0; lane < LANES; lane++) {
      const int row = lane / 4 + (r >> 1) * 8, column = lane % 4 * 2 + (r & 1);
      out[lane] = as_bits(rounded_sum(as_float(c[r][lane]) + product[row * 8 + column]));
    }
  }
}
