"""Parses PTX text as Triton writes it into the form that the executor runs."""

from __future__ import annotations

import re
from typing import NamedTuple

from .flow import Jump, joins

REGISTER, IMMEDIATE, SPECIAL, SINK = range(4)  # kinds of operands, as in core/machine.h
SPECIALS = ("tid.x", "ctaid.x", "ctaid.y", "ctaid.z", "ntid.x", "nctaid.x", "nctaid.y", "nctaid.z", "laneid")
SHARED_BASE = 1024  # as in core/machine.h


class PtxError(Exception):
    """Text that this reader does not know."""


class Instruction(NamedTuple):
    """One instruction; target and join are indices into the kernel's code, -1 if there is none."""

    name: str
    text: str  # with the number of its line, for messages
    predicate: int  # register, -1 without one
    negated: bool
    operands: list[tuple[int, int]]  # (kind, value)
    target: int = -1
    join: int = -1  # where the sides of a branch meet again


class Kernel(NamedTuple):
    """A kernel's code and what a launch needs."""

    name: str
    code: list[Instruction]
    registers: int
    params: int
    threads: int


class Statement(NamedTuple):
    """An instruction whose operands are still text."""

    text: str
    predicate: int
    negated: bool
    name: str
    rest: str
    scopes: tuple[tuple[int, set[str]], ...]  # whose names it means, labels that come later included


def parse(text: str) -> Kernel:
    """The one kernel of a PTX module."""
    head = re.search(r"\.visible \.entry (\w+)\((.*?)\)(.*?)\{", text, re.DOTALL)
    if not head:
        raise PtxError("no kernel")
    name, params, directives = head.groups()
    threads = re.search(r"\.reqntid (\d+)", directives)
    if not threads:
        raise PtxError("no .reqntid")
    reader = _Reader()
    reader.read(text[head.end() :], 1 + text.count("\n", 0, head.end()))
    return Kernel(name, reader.code(), len(reader.registers), len(re.findall(r"\.param", params)), int(threads[1]))


class _Reader:
    def __init__(self) -> None:
        self.registers: dict[str, int] = {}
        self.scopes: list[tuple[int, set[str]]] = []  # number and declared names of each open block
        self.blocks = 0
        self.labels: dict[str, int] = {}
        self.statements: list[Statement] = []

    def read(self, body: str, line: int) -> None:
        """Takes the body of a kernel apart, up to its closing brace."""
        pending, source = "", ""
        for number, raw in enumerate(body.split("\n"), line):
            code = re.sub(r"//.*", "", raw).strip()
            if located := re.match(r"\.loc\s+\d+\s+(\d+)", code):
                source, code = f", source line {located[1]}", ""
            pending = f"{pending} {code}".strip()
            while pending:  # whole statements off the front
                if pending[0] == "{":
                    self.blocks += 1
                    self.scopes.append((self.blocks, set()))
                    pending = pending[1:].strip()
                elif pending[0] == "}":
                    if not self.scopes:
                        return
                    self.scopes.pop()
                    pending = pending[1:].strip()
                elif label := re.match(r"([$\w]+):", pending):
                    self.labels[self.scoped(label[1], declare=True)] = len(self.statements)
                    pending = pending[label.end() :].strip()
                elif ";" in pending:
                    statement, pending = (part.strip() for part in pending.split(";", 1))
                    self.take(statement, f"line {number}{source}")
                else:
                    break
        raise PtxError("the kernel does not end")

    def scoped(self, name: str, declare: bool = False) -> str:
        """A name, made unique where a block declares it."""
        if declare and self.scopes:
            self.scopes[-1][1].add(name)
        return next((f"{name}@{number}" for number, names in reversed(self.scopes) if name in names), name)

    def take(self, statement: str, where: str) -> None:
        """Declares registers or keeps an instruction."""
        if declared := re.fullmatch(r"\.reg\s+\.\w+\s+(.*)", statement):
            for name in map(str.strip, declared[1].split(",")):
                many = re.fullmatch(r"(%?\w+)<(\d+)>", name)
                names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [self.scoped(name, declare=True)]
                self.registers |= {name: len(self.registers) + i for i, name in enumerate(names)}
        elif not statement.startswith(".pragma"):
            found = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)", statement, re.DOTALL)
            if not found:
                raise PtxError(f"{where}: {statement}")
            negated, predicate, name, rest = found.groups()
            register = -1 if predicate is None else self.registers[self.scoped(predicate)]
            text = f"{where}: {statement}"
            self.statements.append(Statement(text, register, bool(negated), name, rest, tuple(self.scopes)))

    def code(self) -> list[Instruction]:
        """All instructions, with resolved references."""
        code = []
        for statement in self.statements:
            try:
                code.append(self.resolved(statement))
            except (PtxError, KeyError) as error:
                raise PtxError(f"{statement.text}: {error}") from error
        jumps = [Jump(i.target, i.predicate < 0 and i.name in ("bra", "bra.uni", "ret"), i.name == "ret") for i in code]
        return [i._replace(join=join) for i, join in zip(code, joins(jumps), strict=True)]

    def resolved(self, statement: Statement) -> Instruction:
        """An instruction; its name says in which form a mov has its operands."""
        text, predicate, negated, name, rest, scopes = statement
        self.scopes = list(scopes)
        if name in ("bra", "bra.uni"):
            return Instruction(name, text, predicate, negated, [], self.labels[self.scoped(rest)])
        if name.startswith("mov.b") and rest.count("{") == 1:
            name += ".unpack" if rest.startswith("{") else ".pack"
        operands: list[tuple[int, int]] = []
        for token in re.findall(r"\[[^\]]*\]|[^\s,{}]+", rest):
            base, _, offset = token.strip("[]").replace(" ", "").partition("+")
            if token[0] != "[":
                operands.append(self.operand(token))
            elif name.startswith("ld.param"):
                operands.append((IMMEDIATE, int(base.rpartition("_")[2])))
            else:
                operands += [self.operand(base), (IMMEDIATE, int(offset or "0", 0))]
        return Instruction(name, text, predicate, negated, operands)

    def operand(self, token: str) -> tuple[int, int]:
        """The kind and value of a register or a number."""
        scoped = self.scoped(token)
        if scoped in self.registers:
            return REGISTER, self.registers[scoped]
        if token == "_":
            return SINK, 0
        if token[0] == "%" and token[1:] in SPECIALS:
            return SPECIAL, SPECIALS.index(token[1:])
        if token == "global_smem":
            return IMMEDIATE, SHARED_BASE
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", token):
            return IMMEDIATE, int(token[2:], 16)
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", token):
            return IMMEDIATE, int(token.rstrip("U"), 0)
        raise PtxError(f"operand {token}")
