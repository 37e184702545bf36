"""Runs the PTX of a kernel on a CPU, a warp at a time, and counts the instructions that it executes: of PTX, what these kernels need.

An instruction of PTX counts as one of the machine's, but for those that a GPU has no instruction for, and those that become none.

Lanes that part wait for each other where the program has the lower address, so that they meet again after a branch or loop, as on a GPU.
"""

import operator
import re

import numpy as np

LANES = 32
# Of the machine's instructions for one of PTX, by the bytes of its type.
LONG = {("div", "u4"): 19, ("rem", "u4"): 20, ("div", "i4"): 23, ("rem", "i4"): 24, ("div", "u8"): 75, ("rem", "u8"): 80, ("div", "i8"): 75, ("rem", "i8"): 80,
        ("sqrt.rn", "f4"): 8, ("div.rn", "f4"): 9, ("div.rn", "f8"): 20}
FREE = ("ld.param", "cvta.to", "bar.warp")
TYPES = {**{f"{kind}{8 * size}": np.dtype(f"{code}{size}") for kind, code in (("u", "u"), ("s", "i"), ("b", "u")) for size in (1, 2, 4, 8)},
         "f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)}
COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
ROUND = {"rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil, "rni": np.rint, "rz": np.trunc}
BITS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
FLOATS = {"sqrt": np.sqrt, "rsqrt": lambda v: 1 / np.sqrt(v), "rcp": lambda v: 1 / v, "ex2": np.exp2, "lg2": np.log2}


def kernels(ptx):
    """{kernel: (places of its labels, [(guard, instruction, operands)], {array in shared memory: where}, bytes of shared memory)}"""
    found = {}
    for name, body in re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", re.sub(r"//[^\n]*", "", ptx), re.S):
        labels, code, shared, end = {}, [], {}, 0
        for line in map(str.strip, body[body.index("{"):].splitlines()):
            array = re.match(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", line)
            if array:
                align, size = int(array[1]), int(array[3])
                shared[array[2]] = -(-end // align) * align
                end = shared[array[2]] + size
            elif line.endswith(":"):
                labels[line[:-1]] = len(code)
            elif line.endswith(";") and line[0] not in ".{":
                guard, instruction, operands = re.fullmatch(r"(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*);", line).groups()
                code.append((guard, instruction.split("."), re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", operands)))
        found[name] = labels, code, shared, end
    return found


def weight(instruction):
    if ".".join(instruction[:2]) in FREE:
        return 0
    dtype = TYPES.get(instruction[-1], np.dtype(bool))
    return LONG.get((".".join(instruction[:2 if "rn" in instruction else 1]), f"{dtype.kind}{dtype.itemsize}"), 1)


class Warp:
    """Row `row` of a launch of a kernel with these arguments, `rows` first: numpy scalars and arrays, which stores change."""

    def __init__(self, kernel, arguments, row, rows_per_block=4):
        self.labels, self.code, self.symbols, end = kernel
        self.registers, self.executed = {}, 0
        self.shared = np.full(end, 0xFF, np.uint8)
        self.arrays = [(a.ctypes.data, a.reshape(-1).view(np.uint8)) for a in arguments if isinstance(a, np.ndarray)]
        self.parameters = [np.uint64(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments]
        self.special = {"%tid.x": row % rows_per_block * LANES + np.arange(LANES), "%ctaid.x": row // rows_per_block, "%ntid.x": LANES * rows_per_block,
                        "%nctaid.x": -(-int(arguments[0]) // rows_per_block)}

    def run(self):
        groups = {0: np.ones(LANES, bool)}
        while groups:
            at = min(groups)
            lanes = groups.pop(at)
            guard, instruction, operands = self.code[at]
            able = lanes
            if guard:
                able = lanes & (self.value(guard.lstrip("!"), "pred") ^ (guard[0] == "!"))
            self.executed += weight(instruction)
            to = {at + 1: lanes}
            if instruction[0] == "bra":
                to = {self.labels[operands[-1]]: able, at + 1: lanes & ~able}
            elif instruction[0] in ("ret", "exit"):
                to = {at + 1: lanes & ~able}
            elif able.any():
                self.execute(instruction, operands, able)
            for place, these in to.items():
                if these.any():
                    groups[place] = groups.get(place, False) | these
        return self.executed

    def value(self, operand, kind):
        """An operand of that type, for each lane."""
        dtype = TYPES[kind]
        if operand in self.special:
            return np.broadcast_to(np.asarray(self.special[operand]).astype(dtype), LANES)
        if operand in self.symbols:
            return np.full(LANES, self.symbols[operand], dtype)
        if operand[0] == "%":
            held = self.registers[operand]
            return held if dtype == bool else held.view(dtype)[::8 // dtype.itemsize]
        if operand[:2] in ("0f", "0d"):
            held = np.array([int(operand[2:], 16)], "u4" if operand[1] == "f" else "u8").view("f4" if operand[1] == "f" else "f8")
            return np.full(LANES, held[0], dtype)
        return np.full(LANES, int(operand, 0) % (1 << 8 * dtype.itemsize) if dtype != bool else int(operand, 0)).astype(dtype)

    def put(self, register, value, lanes):
        value = np.broadcast_to(value, LANES)
        if register.startswith("%p"):
            held = self.registers.setdefault(register, np.zeros(LANES, bool))
            held[lanes] = value[lanes]
            return
        held = self.registers.setdefault(register, np.zeros(LANES, np.uint64))
        if value.dtype.kind == "f":
            value = np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")
        held[lanes] = value.astype(np.int64 if value.dtype.kind == "i" else np.uint64).view(np.uint64)[lanes]

    def place(self, operand, space, lanes, size):
        """The bytes that [register + offset] of these lanes lies in, and where there."""
        base, offset = re.fullmatch(r"\[([^+\]]+)\+?(-?\w+)?\]", operand).groups()
        wide = base[:3] == "%rd" or space != "shared"
        at = self.value(base, "u64" if wide else "u32").astype(np.uint64)[lanes] + np.uint64(int(offset or "0", 0) % (1 << 64))
        if (at % np.uint64(size)).any():
            raise ValueError(f"{size} bytes at an address that is not a multiple of that")
        if space == "shared":
            return self.shared, (at & np.uint64(0xFFFFFFFF)).astype(np.int64)
        start, held = next((start, held) for start, held in self.arrays if start <= at[0] < start + len(held))
        return held, at.astype(np.int64) - start

    def memory(self, instruction, operands, lanes):
        kind = instruction[-1]
        size, space = TYPES[kind].itemsize, next((s for s in ("shared", "global", "param") if s in instruction), "global")
        loads = instruction[0] == "ld"
        registers = operands[0 if loads else 1].strip("{} ").replace(",", " ").split()
        if space == "param":
            value = self.parameters[int(re.search(r"_param_(\d+)", operands[1])[1])]
            self.put(operands[0], np.asarray(value).reshape(1).view(TYPES[kind]), lanes)
            return
        held, at = self.place(operands[1 if loads else 0], space, lanes, size * len(registers))
        for i, register in enumerate(registers):
            where = at[:, None] + i * size + np.arange(size)
            if loads:
                value = np.zeros(LANES, TYPES[kind])
                value[lanes] = held[where].view(TYPES[kind])[:, 0]
                self.put(register, value, lanes)
            else:
                held[where] = self.value(register, kind)[lanes].copy().view(np.uint8).reshape(-1, size)

    def execute(self, instruction, operands, lanes):
        name, kind = instruction[0], instruction[-1]
        if name in ("ld", "st"):
            self.memory(instruction, operands, lanes)
        elif name not in ("bar", "membar"):
            with np.errstate(all="ignore"):
                self.put(operands[0].split("|")[0], self.result(name, kind, instruction, operands, lanes), lanes)

    def result(self, name, kind, instruction, operands, lanes):
        if name == "cvt":
            value, to = self.value(operands[1], kind), TYPES[instruction[-2]]
            how = next((ROUND[part] for part in instruction if part in ROUND), None)
            return (how(value) if how and value.dtype.kind == "f" else value).astype(to)
        if name == "shfl":
            return self.value(operands[1], kind)[np.arange(LANES) ^ self.value(operands[2], "s32")]
        if name == "selp":
            return np.where(self.value(operands[3], "pred"), self.value(operands[1], kind), self.value(operands[2], kind))
        if name == "setp":
            return self.comparison(kind, instruction, operands)
        if name == "mov" and operands[1][0] == "{":      # two halves
            low, high = (self.value(part, "u32").astype(np.uint64) for part in operands[1].strip("{} ").replace(",", " ").split())
            return low | high << np.uint64(32)
        values = [self.value(operand, kind) for operand in operands[1:]]
        a, b = [*values, None][:2]
        if name in ("mov", "cvta"):
            return a
        if name in ("mul", "mad", "fma"):
            product = self.product(kind, instruction, operands) if a.dtype.kind != "f" else a.astype(np.float64) * b
            if len(values) == 3:
                product = product + (self.value(operands[3], kind.replace("32", "64")) if "wide" in instruction else values[2])
            return product.astype(a.dtype) if a.dtype.kind == "f" else product
        if name in ("shl", "shr"):
            amount, bits = self.value(operands[2], "u32"), 8 * a.dtype.itemsize
            inside = np.minimum(amount, bits - 1).astype(a.dtype)
            moved = a << inside if name == "shl" else a >> inside
            return np.where(amount < bits, moved, (a >> inside) if a.dtype.kind == "i" and name == "shr" else 0).astype(a.dtype)
        if name in FLOATS:
            return FLOATS[name](a)
        if name in BITS:
            return BITS[name](a, b)
        if name in ("div", "rem"):
            if a.dtype.kind == "f":
                return a / b
            quotient = np.where(b == 0, 0, np.fix(a.astype(np.longdouble) / np.where(b == 0, 1, b))).astype(a.dtype)
            return quotient if name == "div" else a - quotient * b
        simple = {"add": lambda: a + b, "sub": lambda: a - b, "neg": lambda: -a, "abs": lambda: abs(a), "not": lambda: ~a,
                  "min": lambda: np.fmin(a, b), "max": lambda: np.fmax(a, b)}
        if name not in simple:
            raise NotImplementedError(".".join(instruction))
        return simple[name]()

    def product(self, kind, instruction, operands):
        a, b = (self.value(operand, kind) for operand in operands[1:3])
        bits = 8 * a.dtype.itemsize
        if "lo" in instruction:
            return a * b
        if bits == 64:
            return np.array([(int(x) * int(y) >> 64) % (1 << 64) for x, y in zip(a, b)], np.uint64).view(a.dtype)
        wide = a.astype(f"{a.dtype.kind}{a.dtype.itemsize * 2}") * b.astype(f"{a.dtype.kind}{a.dtype.itemsize * 2}")
        return wide if "wide" in instruction else (wide >> wide.dtype.type(bits)).astype(a.dtype)

    def comparison(self, kind, instruction, operands):
        name = instruction[1]
        a, b = (self.value(operand, kind) for operand in operands[1:3])
        if name in ("num", "nan"):
            found = (np.isnan(a) | np.isnan(b)) ^ (name == "num")
        elif a.dtype.kind == "f" and name[:-1] in COMPARE:      # or one is NaN
            found = COMPARE[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
        else:
            found = COMPARE[UNSIGNED.get(name, name)](a, b)
            if a.dtype.kind == "f" and name == "ne":
                found &= ~(np.isnan(a) | np.isnan(b))
        if instruction[2] in BITS:
            found = BITS[instruction[2]](found, self.value(operands[3].lstrip("!"), "pred") ^ (operands[3][0] == "!"))
        return found
