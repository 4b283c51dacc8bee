// A launch while it runs: its programs (CTAs) and their warps, memory, and what was found wrong.
//
// One warp executes at a time, all of its lanes in lockstep; schedule.cpp says which and for how long. The members of
// Machine are defined in the file that their comment names.
#pragma once
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "numbers.h"
#include "opcodes.h"

struct Failure : std::runtime_error {
  using runtime_error::runtime_error;
};

constexpr int LANES = 32;
constexpr u32 ALL_LANES = ~0u;
constexpr int BUFFER_SHIFT = 36;   // an address without these bits is the number of its buffer, from 1
constexpr u64 SHARED_BASE = 1024;  // as on sm_90, where the first KiB is the system's

enum Kind { REGISTER, IMMEDIATE, SPECIAL, SINK };
enum Special { TID_X, CTAID_X, CTAID_Y, CTAID_Z, NTID_X, NCTAID_X, NCTAID_Y, NCTAID_Z, LANEID };

struct Operand {
  i32 kind, unused;
  i64 value;
};

struct Instruction {
  Opcode opcode;
  i32 predicate;             // register, -1 without one
  i32 negated;               // whether it executes where the predicate is false
  i32 target, join;          // of a branch: where it goes, and where its two sides meet again
  i32 operands, n_operands;  // the first of its operands, and how many
};

// A tensor's memory, at `base` for the kernel.
struct Buffer {
  u8* host;
  u64 base, size, item;  // item: bytes of an element
};

// Who touched a byte of global memory last. An epoch is warp << CLOCK_BITS | clock, 0 for nobody.
constexpr int CLOCK_BITS = 20;
constexpr u32 MANY_READERS = 1u << 31;  // in `read`: the rest is an index of Machine::readers
constexpr int MOST_WARPS = 2047;        // so that no epoch has that bit
struct GlobalCell {
  u32 write, read;
  u16 write_pc, read_pc;
  bool relaxed;  // the write was, so that a relaxed read which meets it is not a race
};

// Who touched two bytes of shared memory last, and what is still to touch them.
constexpr u8 SEVERAL = 255;     // warps or lanes
constexpr u8 TOGETHER = LANES;  // all lanes of a warp at once
struct SharedCell {
  u32 write_epoch, write_warp_epoch, read_epoch, read_warp_epoch;  // of the CTA and of the warp
  u16 write_pc, read_pc;
  u8 writer, writer_lane, reader, reader_lane;
  bool written;
  u8 copies, products;  // unfinished: cp.async that will write, wgmma that read
  u32 fences;           // the writer's fence.proxy.async before it
};

// 16 bytes of global memory that a CTA wrote, in part, and that others do not see yet.
struct Line {
  u64 address;
  u32 mask;  // of the bytes written
  u8 data[16];
};

// One lane's cp.async.
struct Copy {
  u64 to, from;
  int bytes, given;  // given: 0 where zeros are written
  int lane;
  u32 pc;
  bool landed;
};

// A wgmma whose sums are made when it is waited for, with the descriptor that it was issued with.
struct LateProduct {
  int pc;
  u64 descriptor;
  bool accumulate;
};

// What a group of wgmma still uses.
struct Products {
  std::vector<u64> shared;         // cells
  std::vector<int> sums, factors;  // registers
  std::vector<LateProduct> late;
};

// Lanes that execute from `pc` until they come to `join`.
struct Frame {
  int pc, join;
  u32 mask;
};

struct Cta;
struct Warp {
  Cta* cta;
  int id, index;  // in the launch, in the CTA
  std::vector<Frame> stack;
  std::vector<u64> registers;  // [register][lane]
  std::vector<u32> clock;      // of every warp of the launch: what happened before this one's next access
  u32 epoch = 1;               // counts barriers, bar.warp.sync included
  int barrier = -1;            // the one it waits at
  bool done = false;
  double speed = 1;
  std::vector<std::vector<Copy>> copies;  // groups of cp.async
  std::vector<Copy> open_copies;
  std::vector<Products> products;  // groups of wgmma
  Products open_products;
  std::vector<u8> summed, multiplied;  // of each register, the unfinished wgmma that use it; empty before the first
  bool fenced = false;                 // by wgmma.fence
  std::vector<u32> proxy_fences;       // the CTA's epoch at each
};

struct Cta {
  u32 x, y, z;
  std::vector<u8> shared;
  std::vector<SharedCell> cells;
  std::vector<Warp> warps;
  u32 epoch = 1;  // counts barriers
  int live;       // warps that have not left
  std::vector<Line> lines;
  std::unordered_map<u64, int> line_of;  // by address / 16
};

struct Settings {
  u64 seed;
  i32 exact;          // tanh, exp2 and division without the error that the hardware may have
  i32 round_to_zero;  // sums of tensor cores
  i32 delay_stores;
  i32 cooperative;  // all CTAs at once
  i32 resident;     // how many at once otherwise; 0: drawn
  i32 most_polls;   // backward branches a warp without any store, until it is a deadlock
};

struct Machine {
  std::vector<Instruction> code;
  std::vector<Operand> operands;
  std::vector<std::string> texts;  // of the instructions, for messages
  int n_registers, threads;
  u64 shared_bytes;
  u32 grid[3];
  std::vector<u64> params;
  std::vector<Buffer> buffers;
  std::vector<std::vector<GlobalCell>> cells;          // of each buffer, by byte; empty before the first access
  std::vector<std::pair<u32, u32>> readers;            // (epoch, next), lists that begin in GlobalCell::read
  std::unordered_map<u64, std::vector<u32>> released;  // by address: the clock that an acquire takes over
  Settings settings;
  Random random;
  bool late_products = false;
  std::vector<std::unique_ptr<Cta>> resident;
  int n_warps;  // of the launch
  u64 executed = 0;
  u64 polls = 0;                                                // backward branches since the last store
  std::map<std::string, std::pair<u64, std::string>> findings;  // how often, and where first

  Warp* warp;  // that executes
  const Instruction* instruction;
  int pc;
  u32 mask;  // of the lanes that execute the instruction

  // findings.cpp: what ends the run, and what is noted.
  std::string place(int at) const;
  std::string who(int lane) const;
  [[noreturn]] void fail(const std::string& what, int lane = -1) const;
  void report(const std::string& kind, int other_pc, int lane, const std::string& detail = "");

  // operands.h
  struct Source;
  const Operand& operand(int i) const { return operands[instruction->operands + i]; }
  u64* values_of(int number) { return &warp->registers[size_t(number) * LANES]; }
  u64* destination(int i);
  void address(int i, u64* out, bool narrow);
  void need_all_lanes(const char* what) const;
  template <class F>
  void each_lane(F f) const;

  // global_memory.cpp
  Buffer& buffer_of(u64 address, int bytes, int lane, const char* what);
  GlobalCell& cell_of(const Buffer& buffer, u64 offset);
  std::string byte_of(const Buffer& buffer, u64 offset) const;
  bool is_ordered(u32 epoch) const;
  bool reads_are_ordered(u32 read) const;
  void note_reader(GlobalCell& cell);
  void note_global_read(const Buffer& buffer, u64 offset, Order order, int lane);
  void note_global_write(const Buffer& buffer, u64 offset, u8 value, Order order, int lane);
  void look(const Buffer& buffer, u64 address, int bytes, u8* out) const;
  void check_initialised(const Buffer& buffer, u64 address, int bytes, const u8* data, int other_pc, int lane);
  void read_global(u64 address, int bytes, u8* out, Order order, int lane);
  void write_global(u64 address, int bytes, const u8* data, Order order, int lane);
  void atomic_add(u64 address, Type type, u64 operand, Order order, int lane, u64& old);
  void acquire(u64 address);
  void tick(Warp& of);
  void show(Cta& cta, int line, bool whole);
  void show_all(Cta& cta);

  // shared_memory.cpp
  u64 shared_offset(u64 address, int bytes, int lane, const char* what) const;
  void check_against_write(const SharedCell& cell, u64 i, bool writes, int lane);
  void check_against_read(const SharedCell& cell, u64 i, int lane);
  void check_proxy(const SharedCell& cell, int lane);
  void note_shared_write(SharedCell& cell, u32 at_pc, int lane);
  void note_shared_read(SharedCell& cell, int lane);
  void track_shared_read(u64 offset, int bytes, int lane, bool by_wgmma = false);
  void track_shared_write(u64 offset, int bytes, int lane, const u8* data);
  void read_shared(u64 address, int bytes, u8* out, int lane);
  void write_shared(u64 address, int bytes, const u8* data, int lane);

  // copies.cpp
  void issue_copies();
  void land(Copy& copy);
  void land_some();
  void finish(const std::vector<Copy>& group);
  void wait_for_copies(size_t left);

  // matrices.cpp
  float rounded_sum(double x) const;
  void left_factor(int first, Type type, int depth, std::vector<double>& a);
  void ldmatrix();
  void stmatrix();
  void mma();

  // wgmma.cpp
  u64 descriptor(int i);
  float described(u64 descriptor, bool k_major, int column, int k, Type type, bool issue);
  void wgmma(const LateProduct* late = nullptr);
  void wait_for_products(size_t left);

  // arithmetic.cpp
  void arithmetic();

  // execute.cpp: everything that is not of control
  void load();
  void store();
  void shuffle();
  void redux();
  void execute();

  // control.cpp
  void step();
  void settle();
  void branch(u32 active);
  void leave();
  void arrive(int barrier);

  // schedule.cpp
  std::unique_ptr<Cta> begin(u32 number);
  void draw_speeds();
  Warp* choose();
  void show_some(double lines);
  void run();
};
