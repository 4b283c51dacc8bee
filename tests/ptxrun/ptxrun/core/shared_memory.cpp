// Shared memory: races between two barriers, of two warps or of two lanes in one; bytes that nobody wrote.
#include <algorithm>
#include <cstring>

#include "operands.h"

u64 Machine::shared_offset(u64 address, int bytes, int lane, const char* what) const {
  const u64 offset = address - SHARED_BASE;
  const auto access = [&] { return std::string(what) + " of " + text(bytes) + " bytes"; };
  if (address < SHARED_BASE || offset + bytes > shared_bytes)
    fail(access() + " at shared byte " + std::to_string(i64(offset)) + " of " + text(shared_bytes), lane);
  if (address % bytes) fail("misaligned shared " + access(), lane);
  return offset;
}

void Machine::check_against_write(const SharedCell& cell, u64 i, bool writes, int lane) {
  if (cell.write_epoch != warp->cta->epoch) return;
  const std::string kind = writes ? "write after write" : "read after write";
  if (cell.writer != warp->index)
    report("shared race: " + kind, cell.write_pc, lane, " and warp " + text(cell.writer) + ", byte " + text(2 * i));
  else if (cell.write_warp_epoch == warp->epoch && cell.writer_lane != lane)
    report("in a warp: " + kind, cell.write_pc, lane);
}

void Machine::check_against_read(const SharedCell& cell, u64 i, int lane) {
  if (cell.read_epoch != warp->cta->epoch) return;
  if (cell.reader != warp->index)
    report("shared race: write after read", cell.read_pc, lane,
           " and warp " + text(cell.reader) + ", byte " + text(2 * i));
  else if (cell.read_warp_epoch == warp->epoch && cell.reader_lane != lane)
    report("in a warp: write after read", cell.read_pc, lane);
}

// wgmma reads by another way than ordinary stores write: a fence.proxy.async has to come between, of the writer before
// the barrier or of the reader after it.
void Machine::check_proxy(const SharedCell& cell, int lane) {
  const Cta& cta = *warp->cta;
  const Warp& writer = cta.warps[cell.writer];
  const bool by_writer =
      cell.fences < writer.proxy_fences.size() && (&writer == warp || writer.proxy_fences[cell.fences] < cta.epoch);
  const bool by_reader = !warp->proxy_fences.empty() && warp->proxy_fences.back() > cell.write_epoch;
  if (!by_writer && !by_reader) report("wgmma reads what no fence.proxy.async handed over", cell.write_pc, lane);
}

void Machine::note_shared_write(SharedCell& cell, u32 at_pc, int lane) {
  cell.write_epoch = warp->cta->epoch;
  cell.write_warp_epoch = warp->epoch;
  cell.writer = u8(warp->index);
  cell.writer_lane = u8(lane);
  cell.write_pc = u16(at_pc);
  cell.written = true;
  cell.fences = u32(warp->proxy_fences.size());
}

void Machine::note_shared_read(SharedCell& cell, int lane) {
  const bool first = cell.read_epoch != warp->cta->epoch;
  if (!first && cell.reader != warp->index) {
    cell.reader = SEVERAL;
  } else {
    const bool others = !first && cell.read_warp_epoch == warp->epoch && cell.reader_lane != lane;
    cell.reader = u8(warp->index);
    cell.reader_lane = others ? SEVERAL : u8(lane);
    cell.read_warp_epoch = warp->epoch;
  }
  cell.read_epoch = warp->cta->epoch;
  cell.read_pc = u16(pc);
}

void Machine::track_shared_read(u64 offset, int bytes, int lane, bool by_wgmma) {
  for (u64 i = offset / 2; i < (offset + bytes + 1) / 2; i++) {
    SharedCell& cell = warp->cta->cells[i];
    if (cell.copies) report("read of shared bytes that a cp.async is to write", cell.write_pc, lane);
    if (!cell.written) report("read of uninitialised shared memory", -1, lane, ", byte " + text(2 * i));
    check_against_write(cell, i, false, lane);
    if (by_wgmma && cell.written) check_proxy(cell, lane);
    note_shared_read(cell, lane);
  }
}

void Machine::track_shared_write(u64 offset, int bytes, int lane, const u8* data) {
  Cta& cta = *warp->cta;
  for (u64 i = offset / 2; i < (offset + bytes + 1) / 2; i++) {
    SharedCell& cell = cta.cells[i];
    if (cell.copies) report("write of shared bytes that a cp.async is to write", cell.write_pc, lane);
    if (cell.products) report("write of shared bytes that an unfinished wgmma reads", cell.read_pc, lane);
    const u64 first = std::max(2 * i, offset);  // to write what is there is harmless, and lanes that have a copy do
    const bool same = cell.written && !memcmp(data + (first - offset), &cta.shared[first], std::min(2, bytes));
    if (!same) check_against_write(cell, i, true, lane);
    check_against_read(cell, i, lane);
    note_shared_write(cell, u32(pc), lane);
  }
}

void Machine::read_shared(u64 address, int bytes, u8* out, int lane) {
  const u64 offset = shared_offset(address, bytes, lane, "read");
  track_shared_read(offset, bytes, lane);
  memcpy(out, &warp->cta->shared[offset], bytes);
}

void Machine::write_shared(u64 address, int bytes, const u8* data, int lane) {
  const u64 offset = shared_offset(address, bytes, lane, "write");
  track_shared_write(offset, bytes, lane, data);
  memcpy(&warp->cta->shared[offset], data, bytes);
}
