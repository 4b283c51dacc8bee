// What an opcode is decoded to.
#pragma once
#include <map>
#include <string>

#include "numbers.h"

enum Op {
  ABS,
  ADD,
  AND,
  BFE,
  CVT,
  CVT_PAIR,
  DIV,
  DIV_FULL,
  EX2,
  FMA,
  FMA_HALF,
  MAD,
  MAD_WIDE,
  MAX,
  MAX_PAIR,
  MIN,
  MOV,
  MUL,
  MUL_HALF,
  MUL_HIGH,
  MUL_WIDE,
  NEG,
  NOT,
  OR,
  PACK,
  PERMUTE,
  REMAINDER,
  SELECT,
  SET_PREDICATE,
  SHL,
  SHR,
  SUB,
  TANH,
  UNPACK,
  XOR,
  LOAD_PARAM,
  LOAD_GLOBAL,
  STORE_GLOBAL,
  LOAD_SHARED,
  STORE_SHARED,
  ATOMIC_ADD,
  REDUX,
  SHUFFLE,
  COPY,
  COPY_COMMIT,
  COPY_WAIT,
  LDMATRIX,
  STMATRIX,
  MMA,
  WGMMA,
  WGMMA_FENCE,
  WGMMA_COMMIT,
  WGMMA_WAIT,
  PROXY_FENCE,
  BARRIER,
  WARP_BARRIER,
  BRANCH,
  RETURN
};

enum Comparison { EQ, NE, LT, LE, GT, GE, NUM, NAN_ };
enum Order { WEAK, RELAXED, ACQUIRE, RELEASE, ACQ_REL };  // volatile accesses are at least relaxed

struct Opcode {
  Op op;
  Type type = B32;
  Type from = B32;  // of what is converted, packed or unpacked
  int count = 1;    // elements of a vector, matrices, columns of a wgmma
  int detail = 0;   // a Comparison, an Order, whether a matrix is transposed, whether a shuffle is by index
};

// Every opcode that may occur, by its name. Any other ends the run.
std::map<std::string, Opcode> opcodes();
