// One instruction of a warp: its predicate, branches that part its lanes until they meet again, barriers, its end.
#include <algorithm>

#include "operands.h"

void Machine::step() {
  Frame& frame = warp->stack.back();
  pc = frame.pc;
  instruction = &code[pc];
  const u32 active = frame.mask;
  mask = active;
  const bool predicated = instruction->predicate >= 0;
  if (predicated) {
    const u64* predicate = values_of(instruction->predicate);
    u32 on = 0;
    for (int lane = 0; lane < LANES; lane++) on |= u32((predicate[lane] & 1) != u64(instruction->negated)) << lane;
    mask &= on;
  }
  executed++;
  switch (instruction->opcode.op) {
    case BRANCH:
      branch(active);
      settle();
      return;
    case RETURN:
      if (mask && (mask != active || warp->stack.size() > 1)) fail("ret of some lanes only: not implemented");
      if (mask) {
        leave();
        return;
      }
      break;
    case BARRIER:
      if (predicated || active != ALL_LANES) fail("bar.sync without all lanes of the warp");
      frame.pc++;
      arrive(int(operand(0).value));
      return;
    default:
      if (mask) execute();
  }
  warp->stack.back().pc++;
  settle();
}

void Machine::settle() {
  while (warp->stack.size() > 1 && warp->stack.back().pc == warp->stack.back().join) warp->stack.pop_back();
}

void Machine::branch(u32 active) {
  Frame& frame = warp->stack.back();
  if (instruction->target <= pc) polls++;
  if (mask == active) {
    frame.pc = instruction->target;
  } else if (!mask) {
    frame.pc++;
  } else {
    const int join = instruction->join, target = instruction->target;
    if (join < 0) fail("divergent branch that never meets again");
    frame.pc = join;
    warp->stack.push_back({pc + 1, join, active & ~mask});
    warp->stack.push_back({target, join, mask});
  }
}

void Machine::leave() {
  warp->done = true;
  wait_for_copies(0);
  finish(warp->open_copies);
  if (!warp->products.empty() || !warp->open_products.sums.empty()) fail("exit with an unfinished wgmma");
  Cta& cta = *warp->cta;
  cta.live--;
  polls = 0;
  for (const Warp& other : cta.warps)
    if (other.barrier >= 0) fail("exit while warp " + text(other.index) + " waits at a barrier");
}

void Machine::arrive(int barrier) {
  Cta& cta = *warp->cta;
  warp->barrier = barrier;
  for (const Warp& other : cta.warps) {
    if (other.done) fail("barrier that warp " + text(other.index) + " left without");
    if (other.barrier < 0) return;
    if (other.barrier != barrier) fail("warps wait at different barriers");
  }
  std::vector<u32> latest(n_warps);
  for (const Warp& other : cta.warps)
    for (int i = 0; i < n_warps; i++) latest[i] = std::max(latest[i], other.clock[i]);
  cta.epoch++;
  for (Warp& other : cta.warps) {
    other.clock = latest;
    other.barrier = -1;
    other.epoch++;
    tick(other);
  }
}
