// Global memory: bounds, races by happens-before, and stores that other programs see late and in any order.
//
// Each warp has a clock for every warp of the launch. Barriers of a program join the clocks of its warps, an acquire
// takes over what a release left. An access is ordered behind an earlier one if the warp's clock covers its epoch.
#include <algorithm>
#include <cstring>

#include "operands.h"

namespace {

constexpr u16 POISON = 0x7ed5;  // as in device.py: what memory holds that nobody wrote

const Line* hidden_line(const Cta& cta, u64 address) {
  const auto at = cta.line_of.find(address / 16);
  return at == cta.line_of.end() ? nullptr : &cta.lines[at->second];
}

void join(std::vector<u32>& clock, const std::vector<u32>& other) {
  for (size_t i = 0; i < other.size(); i++) clock[i] = std::max(clock[i], other[i]);
}

bool holds_poison(const u8* data, u64 bytes) {
  for (u64 i = 0; i < bytes; i += 2) {
    u16 word;
    memcpy(&word, data + i, 2);
    if (word != POISON) return false;
  }
  return true;
}

}  // namespace

Buffer& Machine::buffer_of(u64 address, int bytes, int lane, const char* what) {
  const u64 number = address >> BUFFER_SHIFT;
  const auto access = [&] { return std::string(what) + " of " + text(bytes) + " bytes"; };
  if (number == 0 || number > buffers.size())
    fail(access() + " at global address " + text(address) + ", in no buffer", lane);
  Buffer& buffer = buffers[number - 1];
  if (address < buffer.base || address + bytes > buffer.base + buffer.size) {
    const std::string offset = std::to_string(i64(address - buffer.base));
    fail(access() + " at byte " + offset + " of buffer " + text(number - 1) + ", which has " + text(buffer.size), lane);
  }
  if (address % bytes) fail("misaligned " + access(), lane);
  return buffer;
}

GlobalCell& Machine::cell_of(const Buffer& buffer, u64 offset) {
  auto& of_buffer = cells[&buffer - buffers.data()];
  if (of_buffer.empty()) of_buffer.resize(buffer.size);
  return of_buffer[offset];
}

std::string Machine::byte_of(const Buffer& buffer, u64 offset) const {
  return ", byte " + text(offset) + " of buffer " + text(&buffer - buffers.data());
}

bool Machine::is_ordered(u32 epoch) const {
  return warp->clock[epoch >> CLOCK_BITS] >= (epoch & ((1u << CLOCK_BITS) - 1));
}

bool Machine::reads_are_ordered(u32 read) const {
  if (!(read & MANY_READERS)) return !read || is_ordered(read);
  for (u32 at = read & ~MANY_READERS;; at = readers[at].second) {
    if (!is_ordered(readers[at].first)) return false;
    if (!readers[at].second) return true;
  }
}

// One reader is kept in the cell itself, several that nothing orders in a list.
void Machine::note_reader(GlobalCell& cell) {
  const u32 mine = u32(warp->id) << CLOCK_BITS | warp->clock[warp->id];
  cell.read_pc = u16(pc);
  if (!(cell.read & MANY_READERS)) {
    if (!cell.read || cell.read >> CLOCK_BITS == u32(warp->id) || is_ordered(cell.read)) {
      cell.read = mine;
      return;
    }
    readers.push_back({cell.read, 0});
    cell.read = MANY_READERS | u32(readers.size() - 1);
  }
  for (u32 at = cell.read & ~MANY_READERS;; at = readers[at].second) {
    if (readers[at].first >> CLOCK_BITS == u32(warp->id)) {
      readers[at].first = mine;
      return;
    }
    if (!readers[at].second) {
      readers[at].second = u32(readers.size());
      readers.push_back({mine, 0});
      return;
    }
  }
}

void Machine::note_global_read(const Buffer& buffer, u64 offset, Order order, int lane) {
  GlobalCell& cell = cell_of(buffer, offset);
  const bool both_relaxed = order != WEAK && cell.relaxed;
  if (cell.write && !both_relaxed && !is_ordered(cell.write))
    report("race: read after write", cell.write_pc, lane, byte_of(buffer, offset));
  if (order == WEAK) note_reader(cell);
}

void Machine::note_global_write(const Buffer& buffer, u64 offset, u8 value, Order order, int lane) {
  GlobalCell& cell = cell_of(buffer, offset);
  if (cell.write && !is_ordered(cell.write)) {  // to write what is there is harmless, and lanes that have a copy do
    u8 present;
    look(buffer, buffer.base + offset, 1, &present);
    if (value != present) report("race: write after write", cell.write_pc, lane, byte_of(buffer, offset));
  }
  if (!reads_are_ordered(cell.read)) report("race: write after read", cell.read_pc, lane, byte_of(buffer, offset));
  cell = {u32(warp->id) << CLOCK_BITS | warp->clock[warp->id], 0, u16(pc), 0, order != WEAK};
}

// Bytes of one line as the warp's program sees them: its own stores at once.
void Machine::look(const Buffer& buffer, u64 address, int bytes, u8* out) const {
  memcpy(out, buffer.host + (address - buffer.base), bytes);
  if (warp->cta->lines.empty()) return;
  const Line* line = hidden_line(*warp->cta, address);
  for (int i = 0; line && i < bytes; i++)
    if (line->mask >> (address % 16 + i) & 1) out[i] = line->data[address % 16 + i];
}

void Machine::check_initialised(const Buffer& buffer, u64 address, int bytes, const u8* data, int other_pc, int lane) {
  if (buffer.item < 2) return;
  for (u64 i = 0; i + buffer.item <= u64(bytes); i += buffer.item)
    if (holds_poison(data + i, buffer.item)) {
      report("read of uninitialised global memory", other_pc, lane, byte_of(buffer, address - buffer.base));
      return;
    }
}

void Machine::read_global(u64 address, int bytes, u8* out, Order order, int lane) {
  const Buffer& buffer = buffer_of(address, bytes, lane, "read");
  if (order == ACQUIRE) acquire(address);
  for (int i = 0; i < bytes; i++) note_global_read(buffer, address - buffer.base + i, order, lane);
  look(buffer, address, bytes, out);
  check_initialised(buffer, address, bytes, out, -1, lane);
}

void Machine::write_global(u64 address, int bytes, const u8* data, Order order, int lane) {
  Buffer& buffer = buffer_of(address, bytes, lane, "write");
  for (int i = 0; i < bytes; i++) note_global_write(buffer, address - buffer.base + i, data[i], order, lane);
  polls = 0;
  if (!settings.delay_stores) {
    memcpy(buffer.host + (address - buffer.base), data, bytes);
    return;
  }
  Cta& cta = *warp->cta;
  const auto [at, is_new] = cta.line_of.try_emplace(address / 16, int(cta.lines.size()));
  if (is_new) cta.lines.push_back({address / 16 * 16, 0, {}});
  Line& line = cta.lines[at->second];
  memcpy(line.data + address % 16, data, bytes);
  line.mask |= ((1u << bytes) - 1) << (address % 16);
}

// Makes a line, or some aligned words of it, visible to all. A word that was written in part is seen by halves.
void Machine::show(Cta& cta, int number, bool whole) {
  Line& line = cta.lines[number];
  const Buffer& buffer = buffers[(line.address >> BUFFER_SHIFT) - 1];
  for (int word = 0; word < 16; word += 4) {
    const int step = (line.mask >> word & 15) == 15 ? 4 : 2;
    for (int part = word; part < word + 4; part += step) {
      if (!whole && random.below(2)) continue;
      for (int i = part; i < part + step; i++)
        if (line.mask >> i & 1) buffer.host[line.address + i - buffer.base] = line.data[i];
      line.mask &= ~(((1u << step) - 1) << part);
    }
  }
  if (line.mask) return;
  cta.line_of.erase(line.address / 16);
  if (size_t(number) + 1 != cta.lines.size()) {
    line = cta.lines.back();
    cta.line_of[line.address / 16] = number;
  }
  cta.lines.pop_back();
}

void Machine::show_all(Cta& cta) {
  while (!cta.lines.empty()) show(cta, int(cta.lines.size()) - 1, true);
}

void Machine::acquire(u64 address) {
  if (const auto at = released.find(address); at != released.end()) join(warp->clock, at->second);
}

void Machine::tick(Warp& of) {
  if (++of.clock[of.id] >> CLOCK_BITS) fail("a warp's clock is full");
}

void Machine::atomic_add(u64 address, Type type, u64 operand, Order order, int lane, u64& old) {
  const Buffer& buffer = buffer_of(address, 4, lane, "atomic");
  Cta& cta = *warp->cta;
  const bool releases = order == RELEASE || order == ACQ_REL;
  if (releases)
    show_all(cta);
  else if (const auto at = cta.line_of.find(address / 16); at != cta.line_of.end())
    show(cta, at->second, true);
  const GlobalCell& cell = cell_of(buffer, address - buffer.base);
  if (cell.write && !is_ordered(cell.write)) report("race: atomic after write", cell.write_pc, lane);
  u8* at = buffer.host + (address - buffer.base);
  u32 value;
  memcpy(&value, at, 4);
  old = value;
  value = type == F32 ? u32(as_bits(as_float(value) + as_float(operand))) : value + u32(operand);
  memcpy(at, &value, 4);
  polls = 0;
  if (order == ACQUIRE || order == ACQ_REL) acquire(address);
  if (releases) {
    auto& clock = released[address];
    clock.resize(n_warps);
    join(clock, warp->clock);
    tick(*warp);
  }
}
