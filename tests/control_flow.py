"""The flow of control through machine code as nvdisasm lists it: basic blocks, loops, and the ways through a loop."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache, partial
from typing import NamedTuple

LABEL = re.compile(r"([.$\w]+):$")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
TARGET = re.compile(r"`\((.*)\)")
ENDS = ("BRA", "EXIT", "RET")
MULTIPLY_ADD = ("FFMA", "DFMA")


class Instruction(NamedTuple):
    """A machine instruction: its predicate ("" if it has none), its name with all suffixes, and its operands."""

    predicate: str
    name: str
    operands: str

    @property
    def kind(self) -> str:
        """The name without suffixes."""
        return self.name.partition(".")[0]


class Block(NamedTuple):
    """Instructions that are executed one after the other, and the blocks that may follow."""

    instructions: tuple[Instruction, ...]
    following: tuple[int, ...]


class Work(NamedTuple):
    """What is done on a way through a loop, in instructions of a thread."""

    multiplied: int
    stored: int
    loaded: int


def blocks_of(listing: str) -> list[Block]:
    """Cut what nvdisasm lists into basic blocks."""
    labels: dict[str, int] = {}
    groups: list[list[Instruction]] = [[]]
    for line in listing.splitlines():
        if label := LABEL.match(line):
            if groups[-1]:
                groups.append([])
            labels[label[1]] = len(groups) - 1
        elif match := INSTRUCTION.match(line):
            groups[-1].append(Instruction(match[1] or "", match[2], match[3].strip()))
            if groups[-1][-1].kind in ENDS:
                groups.append([])
    blocks = [Block(tuple(group), tuple(_following(index, group, labels))) for index, group in enumerate(groups[:-1])]
    # what fills up the last line of code is never executed
    return [*blocks, Block(tuple(groups[-1]), ())]


def _following(index: int, group: list[Instruction], labels: dict[str, int]) -> Iterator[int]:
    """Yield the blocks that may follow one."""
    last = group[-1]
    if last.kind == "BRA":
        target = TARGET.search(last.operands)
        assert target, last
        yield labels[target[1]]
    # a branch may have a second predicate, or a register of threads, before its target
    if last.kind not in ENDS or last.predicate or (last.kind == "BRA" and "," in last.operands):
        yield index + 1


def back_edges(blocks: list[Block]) -> Iterator[tuple[int, int]]:
    """Yield (block, header) where a block leads back to one through which all ways to it come."""
    way = [(0, iter(blocks[0].following))]
    seen, under_way = {0}, {0}
    while way:
        block, following = way[-1]
        target = next(following, None)
        if target is None:
            way.pop()
            under_way.remove(block)
        elif target in under_way:
            yield block, target
        elif target not in seen:
            seen.add(target)
            under_way.add(target)
            way.append((target, iter(blocks[target].following)))


def loops(blocks: list[Block]) -> dict[int, set[int]]:
    """Return the blocks of every loop by its header."""
    before: list[list[int]] = [[] for _ in blocks]
    for index, block in enumerate(blocks):
        for target in block.following:
            before[target].append(index)
    found: dict[int, set[int]] = {}
    for last, header in back_edges(blocks):
        body, waiting = found.setdefault(header, {header}), [last]
        while waiting:
            block_index = waiting.pop()
            if block_index not in body:
                body.add(block_index)
                waiting += before[block_index]
    return found


def work_of(instructions: Iterable[Instruction]) -> Work:
    """Count what instructions do."""
    kinds = [instruction.kind for instruction in instructions]
    return Work(sum(map(kinds.count, MULTIPLY_ADD)), kinds.count("STS"), kinds.count("LDG"))


def main_loop(blocks: list[Block]) -> tuple[int, set[int]]:
    """Return the header and the blocks of the innermost loop that multiplies most, of those with a barrier."""
    found = loops(blocks)
    innermost = [(header, body) for header, body in found.items() if found.keys() & body == {header}]

    def rank(loop: tuple[int, set[int]]) -> tuple[bool, int]:
        instructions = [instruction for index in loop[1] for instruction in blocks[index].instructions]
        return "BAR" in (instruction.kind for instruction in instructions), work_of(instructions).multiplied

    return max(innermost, key=rank)


def interior(blocks: list[Block]) -> list[Instruction]:
    """Return what a thread of a block inside the matrix executes for a slice behind which another one comes.

    Of the ways through the main loop those that multiply and put down most belong to such slices. At an edge of the
    matrix loads are checked one by one, so that the way with the fewest instructions is the one inside.
    """
    header, body = main_loop(blocks)
    ways = ways_through(blocks, header, body)
    multiplied, stored, _ = max(ways)
    whole = [way for work, way in ways.items() if work[:2] == (multiplied, stored) and work.loaded >= stored]
    return [i for index in min(whole, key=partial(length, blocks)) for i in blocks[index].instructions]


def ways_through(blocks: list[Block], header: int, body: set[int]) -> dict[Work, tuple[int, ...]]:
    """Return the ways through a loop: for all that may be done on one, that with the fewest instructions."""

    @cache
    def ways_from(index: int) -> dict[Work, tuple[int, ...]]:
        own, found = work_of(blocks[index].instructions), {}
        for target in blocks[index].following:
            ends = {Work(0, 0, 0): ()} if target == header else ways_from(target) if target in body else {}
            for rest, way in ends.items():
                work, longer = Work(*map(sum, zip(own, rest, strict=True))), (index, *way)
                found[work] = min(found.get(work, longer), longer, key=partial(length, blocks))
        return found

    return ways_from(header)


def length(blocks: list[Block], way: tuple[int, ...]) -> int:
    """Count the instructions on a way."""
    return sum(len(blocks[index].instructions) for index in way)


def share(path: list[Instruction]) -> float:
    """Return which share of a path's instructions multiply and add."""
    return work_of(path).multiplied / max(1, len(path))
