// The table of opcodes. Semantics: PTX ISA 8, section 9.7.
#include "opcodes.h"

#include <initializer_list>
#include <utility>

namespace {

const std::map<std::string, Type> TYPES = {{"b8", B8},   {"b16", B16}, {"b32", B32}, {"b64", B64},   {"u8", U8},
                                           {"u16", U16}, {"u32", U32}, {"u64", U64}, {"s16", S16},   {"s32", S32},
                                           {"s64", S64}, {"f16", F16}, {"f32", F32}, {"bf16", BF16}, {"pred", PRED}};

using Names = std::initializer_list<const char*>;
const Names INTEGERS = {"s16", "u16", "s32", "u32", "s64", "u64"};
const Names HALVES = {"f16", "bf16"};

struct Table {
  std::map<std::string, Opcode> entries;

  void add(const std::string& name, Op op, Names types, int detail = 0) {
    for (const char* type : types) entries[name + "." + type] = {op, TYPES.at(type), B32, 1, detail};
  }

  // Loads or stores of one, two or four elements.
  void add_memory(const std::string& name, Op op, Order order = WEAK) {
    for (const char* type : {"b8", "b16", "b32", "b64"})
      for (const auto& [vector, count] : {std::pair{"", 1}, {"v2.", 2}, {"v4.", 4}})
        if (bytes_of(TYPES.at(type)) * count <= 16)
          entries[name + "." + vector + type] = {op, TYPES.at(type), B32, count, order};
  }

  void add_integers();
  void add_floats();
  void add_conversions();
  void add_memories();
  void add_matrices();
  void add_control();
};

void Table::add_integers() {
  const Names bits = {"b16", "b32", "b64", "pred"};
  add("add", ADD, INTEGERS);
  add("sub", SUB, INTEGERS);
  add("mul.lo", MUL, INTEGERS);
  add("mad.lo", MAD, INTEGERS);
  add("mul.hi", MUL_HIGH, {"s32", "u32"});
  add("mul.wide", MUL_WIDE, {"s16", "u16", "s32", "u32"});
  add("mad.wide", MAD_WIDE, {"s16", "u16", "s32", "u32"});
  add("div", DIV, INTEGERS);
  add("rem", REMAINDER, INTEGERS);
  add("neg", NEG, {"s32", "s64"});
  add("min", MIN, INTEGERS);
  add("max", MAX, INTEGERS);
  entries["max.u16x2"] = {MAX_PAIR};
  add("not", NOT, bits);
  add("and", AND, bits);
  add("or", OR, bits);
  add("xor", XOR, bits);
  add("shl", SHL, {"b16", "b32", "b64"});
  add("shr", SHR, INTEGERS);
  add("bfe", BFE, {"u32", "s32"});
  entries["prmt.b32"] = {PERMUTE};
  add("selp", SELECT, {"b16", "b32", "b64", "f32"});
  const char* names[] = {"eq", "ne", "lt", "le", "gt", "ge"};
  for (int comparison = EQ; comparison <= GE; comparison++) {
    const std::string name = std::string("setp.") + names[comparison];
    add(name, SET_PREDICATE, INTEGERS, comparison);
    add(name, SET_PREDICATE, {"f32"}, comparison);
    if (comparison <= NE) add(name, SET_PREDICATE, {"b16", "b32", "b64"}, comparison);
  }
}

void Table::add_floats() {
  add("add", ADD, {"f32"});
  add("sub", SUB, {"f32"});
  add("mul", MUL, {"f32"});
  add("fma.rn", FMA, {"f32"});
  add("neg", NEG, {"f32"});
  add("abs", ABS, {"f32"});
  add("min", MIN, {"f32"});
  add("max", MAX, {"f32"});
  add("div.full", DIV_FULL, {"f32"});
  add("ex2.approx", EX2, {"f32"});
  add("tanh.approx", TANH, {"f32"});
  add("setp.num", SET_PREDICATE, {"f32"}, NUM);
  add("setp.nan", SET_PREDICATE, {"f32"}, NAN_);
  for (const char* half : HALVES)
    for (const int count : {1, 2}) {
      const std::string type = std::string(half) + (count == 2 ? "x2" : "");
      entries["mul." + type] = {MUL_HALF, TYPES.at(half), B32, count};
      entries["mul.rn." + type] = {MUL_HALF, TYPES.at(half), B32, count};
      entries["fma.rn." + type] = {FMA_HALF, TYPES.at(half), B32, count};
    }
}

void Table::add_conversions() {
  for (const char* to : INTEGERS)
    for (const char* from : {"u8", "u16", "s16", "u32", "s32", "u64", "s64"})
      entries[std::string("cvt.") + to + "." + from] = {CVT, TYPES.at(to), TYPES.at(from)};
  for (const char* half : HALVES) {
    entries[std::string("cvt.f32.") + half] = {CVT, F32, TYPES.at(half)};
    entries[std::string("cvt.rn.") + half + ".f32"] = {CVT, TYPES.at(half), F32};
    entries[std::string("cvt.rn.") + half + "x2.f32"] = {CVT_PAIR, TYPES.at(half), F32};
  }
  add("mov", MOV, {"b16", "u16", "b32", "u32", "b64", "u64", "f32", "pred"});
  entries["mov.b32.pack"] = {PACK, B32, B16};
  entries["mov.b64.pack"] = {PACK, B64, B32};
  entries["mov.b32.unpack"] = {UNPACK, B32, B16};
  entries["mov.b64.unpack"] = {UNPACK, B64, B32};
}

void Table::add_memories() {
  add("ld.param", LOAD_PARAM, {"b32", "u32", "s32", "b64", "u64"});
  add_memory("ld.global", LOAD_GLOBAL);
  add_memory("ld.global.cg", LOAD_GLOBAL);
  add_memory("ld.volatile.global", LOAD_GLOBAL, RELAXED);
  add_memory("st.global", STORE_GLOBAL);
  add_memory("st.volatile.global", STORE_GLOBAL, RELAXED);
  add_memory("st.relaxed.gpu.global", STORE_GLOBAL, RELAXED);
  add_memory("st.relaxed.sys.global", STORE_GLOBAL, RELAXED);
  add_memory("ld.shared", LOAD_SHARED);
  add_memory("st.shared", STORE_SHARED);
  add("ld.acquire.gpu.global", LOAD_GLOBAL, {"s32"}, ACQUIRE);
  add("ld.relaxed.gpu.global", LOAD_GLOBAL, {"s32"}, RELAXED);
  for (const auto& [name, order] :
       {std::pair{"relaxed", RELAXED}, {"acquire", ACQUIRE}, {"release", RELEASE}, {"acq_rel", ACQ_REL}})
    add(std::string("atom.global.gpu.") + name + ".add", ATOMIC_ADD, {"u32", "f32"}, order);
  entries["cp.async.cg.shared.global"] = {COPY};
  entries["cp.async.ca.shared.global"] = {COPY};
  entries["cp.async.commit_group"] = {COPY_COMMIT};
  entries["cp.async.wait_group"] = {COPY_WAIT};
}

void Table::add_matrices() {
  for (const int count : {1, 2, 4})
    for (const bool transposed : {false, true}) {
      const std::string form = ".sync.aligned.m8n8.x" + text(count) + (transposed ? ".trans" : "") + ".shared.b16";
      entries["ldmatrix" + form] = {LDMATRIX, B16, B32, count, transposed};
      entries["stmatrix" + form] = {STMATRIX, B16, B32, count, transposed};
    }
  entries["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = {MMA, BF16};
  entries["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = {MMA, F16};
  entries["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"] = {MMA, TF32};
  for (const int columns : {8, 16, 32, 64, 128}) {
    const std::string form = "wgmma.mma_async.sync.aligned.m64n" + text(columns) + "k16.f32.";
    entries[form + "bf16.bf16"] = {WGMMA, BF16, B32, columns};
    entries[form + "f16.f16"] = {WGMMA, F16, B32, columns};
  }
  entries["wgmma.fence.sync.aligned"] = {WGMMA_FENCE};
  entries["wgmma.commit_group.sync.aligned"] = {WGMMA_COMMIT};
  entries["wgmma.wait_group.sync.aligned"] = {WGMMA_WAIT};
  entries["fence.proxy.async.shared::cta"] = {PROXY_FENCE};
}

void Table::add_control() {
  entries["bar.sync"] = {BARRIER};
  entries["bar.warp.sync"] = {WARP_BARRIER};
  entries["shfl.sync.bfly.b32"] = {SHUFFLE, B32, B32, 1, false};
  entries["shfl.sync.idx.b32"] = {SHUFFLE, B32, B32, 1, true};
  add("redux.sync.max", REDUX, {"s32", "u32"});
  entries["bra"] = {BRANCH};
  entries["bra.uni"] = {BRANCH};
  entries["ret"] = {RETURN};
}

}  // namespace

std::map<std::string, Opcode> opcodes() {
  Table table;
  table.add_integers();
  table.add_floats();
  table.add_conversions();
  table.add_memories();
  table.add_matrices();
  table.add_control();
  return table.entries;
}
