"""The inner loops of decoding and adding, one number at a time: what `compiled` turns into machine code.

Owns loops over bits and coordinates, in the part of Python that numba compiles. Refuses to say what is wrong with a
payload: a kernel that is not content answers False, and numpy's way, which reads the same layout, says why. Nothing
here is needed, and nothing here calls numba: uncompiled these are slow functions with the same results.

Rules:
- A kernel is content only with what numpy's way accepts, and then its results are the same. Tests hold it to that.
- Machine code reads and writes wherever it is told to. So every bit is counted before it is read, every coordinate is
  compared with the length before it is an index, and no output is longer than its array.
- Whole numbers are int64 throughout. Mixed with uint64 numba would make them float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["HELPERS", "add", "checksum", "gaps", "ranked"]

Int64s = NDArray[np.int64]

SHARE_BITS = 10
FIRST_SHARE = 860
PLAIN, COLUMN, LEAN = 0, 1, 2
"""As in `contexts`: what a kernel reads is fixed as it is compiled, and a test compares them."""

MOST_CLASSES = 64
"""Classes end at half octaves of a length below 2^31."""

DIGIT_BITS = 10
"""Of the radix sort: 2^20 coordinates in two passes, over counts that stay in the nearest cache."""


def _crc_tables() -> Int64s:
    """`(8, 256)`: the remainder of each byte with 0 to 7 zero bytes behind it."""
    tables = np.zeros((8, 256), dtype=np.int64)
    remainders = np.arange(256, dtype=np.int64) << 8
    for behind in range(8):
        for _ in range(8):
            remainders = (remainders << 1 ^ np.where(remainders & 0x8000, 0x1021, 0)) & 0xFFFF
        tables[behind] = remainders
    return tables


CRC_TABLES = _crc_tables()


# --- kernels ----------------------------------------------------------------------------------------------------------


def add(total: Int64s, indices: Int64s, steps: Int64s, weight: int) -> bool:
    """Adds `weight` times the steps at strictly increasing indices; where they are not that, adds nothing."""
    last = -1
    for index in indices:
        if index <= last:
            return False
        last = index
    if last >= total.size or steps.size != indices.size:
        return False
    for i in range(indices.size):
        total[indices[i]] += steps[i] * weight
    return True


def checksum(data: bytes, start: int) -> int:
    """CRC-16/IBM-3740 that goes on from `start`, eight bytes at a time (Kounavis and Berry 2005)."""
    crc = start & 0xFFFF
    whole = len(data) // 8 * 8
    for i in range(0, whole, 8):
        crc = (
            CRC_TABLES[7, data[i] ^ crc >> 8]
            ^ CRC_TABLES[6, data[i + 1] ^ crc & 0xFF]
            ^ CRC_TABLES[5, data[i + 2]]
            ^ CRC_TABLES[4, data[i + 3]]
            ^ CRC_TABLES[3, data[i + 4]]
            ^ CRC_TABLES[2, data[i + 5]]
            ^ CRC_TABLES[1, data[i + 6]]
            ^ CRC_TABLES[0, data[i + 7]]
        )
    for i in range(whole, len(data)):
        crc = (crc << 8 & 0xFF00) ^ CRC_TABLES[0, data[i] ^ crc >> 8]
    return crc


def gaps(
    data: bytes,
    at: int,
    length: int,
    told: int,
    divisor: int,
    unsent: bool,
    scale: int,
    indices: Int64s,
    steps: Int64s,
) -> bool:
    """Fills the indices from `told` Golomb-coded gaps, theirs or those of all others, from bit `at` on.

    Unless `scale` is 0 the signs come first, a bit each, and the steps are filled, too.
    """
    if divisor < 1 or told != (length - indices.size if unsent else indices.size):
        return False
    if scale:
        at = signs(data, at, scale, steps)
        if at < 0 or steps.size != indices.size:
            return False
    numbers = np.empty(told, dtype=np.int64) if unsent else indices
    at = golomb(data, at, np.full(1, told), np.full(1, divisor), length, numbers)
    if at < 0 or not ends(data, at) or not to_places(numbers, 0, length):
        return False
    if unsent:
        others(numbers, 0, length, indices)
    return True


def ranked(
    data: bytes,
    at: int,
    order: NDArray[np.int32],
    lean: NDArray[np.int8],
    blocks: Int64s,
    scale: int,
    indices: Int64s,
    steps: Int64s,
) -> bool:
    """Fills the indices from what `contexts.code_ranked` told from bit `at` on, and unless `scale` is 0 the steps.

    `blocks`, `(n, 2)`: rows and columns of each. See `contexts` for what is told, and why.
    """
    length = order.size
    at = ranked_support(data, at, order, indices)
    if at < 0 or lean.size != length or indices.min() < 0 or indices.max() >= length:
        return False
    if scale:
        if steps.size != indices.size:
            return False
        negative = np.empty(indices.size, dtype=np.uint8)
        at = ranked_signs(data, at, lean, blocks, indices, negative)
        if at < 0:
            return False
        for i in range(steps.size):
            steps[i] = -scale if negative[i] else scale
    return ends(data, at)


# --- the parts of a ranked payload ------------------------------------------------------------------------------------


def ranked_support(data: bytes, at: int, order: NDArray[np.int32], indices: Int64s) -> int:
    """Where the support ends, or -1."""
    length = order.size
    count = indices.size
    bounds = np.empty(MOST_CLASSES + 1, dtype=np.int64)
    classes = class_ends(length, count, bounds)
    sent = np.empty(classes, dtype=np.int64)
    at = class_counts(data, at, count, sent)
    if at < 0:
        return -1
    told = np.empty(classes, dtype=np.int64)
    divisors = np.empty(classes, dtype=np.int64)
    for c in range(classes):
        size = bounds[c + 1] - bounds[c]
        if sent[c] > size:
            return -1
        told[c] = min(sent[c], size - sent[c])
        divisors[c] = natural_divisor(size, told[c])
    numbers = np.empty(told.sum(), dtype=np.int64)
    at = golomb(data, at, told, divisors, length, numbers)
    if at < 0:
        return -1
    start = 0
    filled = 0
    for c in range(classes):
        ranks = numbers[start : start + told[c]]
        if not to_places(ranks, bounds[c], bounds[c + 1]):
            return -1
        if told[c] < sent[c]:
            others(ranks, bounds[c], bounds[c + 1], indices[filled : filled + sent[c]])
        else:
            indices[filled : filled + sent[c]] = ranks
        start += told[c]
        filled += sent[c]
    for i in range(count):
        indices[i] = order[indices[i]]
    sort(indices, length)
    return at


def class_ends(length: int, count: int, bounds: Int64s) -> int:
    """How many classes there are; `bounds` becomes 0 and where each ends, as `Contexts.ends` has it."""
    classes = 1
    while class_end(length, classes) >= max(8, count):
        classes += 1
    bounds[0] = 0
    for c in range(classes):
        bounds[classes - c] = class_end(length, c)
    return classes


def class_end(length: int, half_octaves: int) -> int:
    end = length >> (half_octaves // 2)
    return end * 181 >> 8 if half_octaves % 2 else end


def class_counts(data: bytes, at: int, count: int, sent: Int64s) -> int:
    """How many are sent of each class; where that ends, or -1."""
    share = FIRST_SHARE
    for c in range(sent.size - 1, 0, -1):
        middle = (count * share + (1 << (SHARE_BITS - 1))) >> SHARE_BITS
        spread = square_root(count * share * ((1 << SHARE_BITS) - share))
        divisor = max(1, spread * 5 >> (SHARE_BITS + 2))
        folded, at = golomb_number(data, at, divisor, count)
        if at < 0:
            return -1
        inner = unfolded(folded, middle, count)
        sent[c] = count - inner
        if count >= 4:
            newest = ((inner << SHARE_BITS) + (1 << (SHARE_BITS - 1))) // (count + 1)
            share = min((1 << SHARE_BITS) - 32, max(32, (share + newest) // 2))
        count = inner
    sent[0] = count
    return at


def unfolded(folded: int, middle: int, most: int) -> int:
    sides = min(middle, most - middle)
    if folded > 2 * sides:
        away = folded - sides
        return middle - away if middle > most - middle else middle + away
    return middle + folded // 2 if folded % 2 == 0 else middle - (folded + 1) // 2


def ranked_signs(
    data: bytes, at: int, lean: NDArray[np.int8], blocks: Int64s, indices: Int64s, negative: NDArray[np.uint8]
) -> int:
    """Where the signs end, or -1."""
    if at + 2 > 8 * len(data):
        return -1
    plan = 2 * bit(data, at) + bit(data, at + 1)
    if plan == PLAIN:
        return plain_signs(data, at + 2, negative)
    if plan == COLUMN:
        return signs_by_column(data, at + 2, blocks, indices, negative)
    if plan == LEAN:
        return signs_by_lean(data, at + 2, lean, indices, negative)
    return -1


def plain_signs(data: bytes, at: int, negative: NDArray[np.uint8]) -> int:
    if at + negative.size > 8 * len(data):
        return -1
    for i in range(negative.size):
        negative[i] = bit(data, at + i)
    return at + negative.size


def signs_by_column(data: bytes, at: int, blocks: Int64s, indices: Int64s, negative: NDArray[np.uint8]) -> int:
    columns = np.empty(indices.size, dtype=np.int64)
    all_columns = columns_of(blocks, indices, columns)
    if all_columns < 0:
        return -1
    # For each column: how many are in it; then which bit tells its first, and which turn tells its next.
    inside = np.zeros(all_columns, dtype=np.int64)
    for i in range(columns.size):
        inside[columns[i]] += 1
    first = np.empty(all_columns, dtype=np.int64)
    turn = np.empty(all_columns, dtype=np.int64)
    firsts = 0
    turns = 0
    for column in range(all_columns):
        first[column] = at + firsts
        turn[column] = turns
        if inside[column]:
            firsts += 1
            turns += inside[column] - 1
    if at + firsts > 8 * len(data):
        return -1
    turned = np.empty(turns, dtype=np.uint8)
    at = rare(data, at + firsts, turned)
    if at < 0:
        return -1
    newest = np.full(all_columns, 2, dtype=np.uint8)
    for i in range(indices.size):
        column = columns[i]
        if newest[column] == 2:
            newest[column] = bit(data, first[column])
        else:
            newest[column] ^= turned[turn[column]]
            turn[column] += 1
        negative[i] = newest[column]
    return at


def columns_of(blocks: Int64s, indices: Int64s, columns: Int64s) -> int:
    """Fills the column of each increasing index, counted through all blocks; how many there are, or -1."""
    block = 0
    start = 0
    before = 0
    for i in range(indices.size):
        while block < blocks.shape[0] and indices[i] >= start + blocks[block, 0] * blocks[block, 1]:
            start += blocks[block, 0] * blocks[block, 1]
            before += blocks[block, 1]
            block += 1
        if block == blocks.shape[0]:
            return -1
        columns[i] = before + (indices[i] - start) % blocks[block, 1]
    return int(blocks[:, 1].sum())


def signs_by_lean(data: bytes, at: int, lean: NDArray[np.int8], indices: Int64s, negative: NDArray[np.uint8]) -> int:
    leaning = 0
    for index in indices:
        leaning += lean[index] != 0
    upright = indices.size - leaning
    if at + upright > 8 * len(data):
        return -1
    turned = np.empty(leaning, dtype=np.uint8)
    end = rare(data, at + upright, turned)
    if end < 0:
        return -1
    turns = 0
    for i in range(indices.size):
        leans = lean[indices[i]]
        if leans == 0:
            negative[i] = bit(data, at)
            at += 1
        else:
            negative[i] = turned[turns] ^ (leans < 0)
            turns += 1
    return end


def rare(data: bytes, at: int, flags: NDArray[np.uint8]) -> int:
    """Fills the flags from their count and the gaps of the fewer kind; where that ends, or -1."""
    size = flags.size
    width = bit_length(size)
    if at + width > 8 * len(data):
        return -1
    count = 0
    for i in range(width):
        count = 2 * count + bit(data, at + i)
    at += width
    if count > size:
        return -1
    few = min(count, size - count)
    few_are = 0 if 2 * count > size else 1
    for i in range(size):
        flags[i] = 1 - few_are
    numbers = np.empty(few, dtype=np.int64)
    at = golomb(data, at, np.full(1, few), np.full(1, natural_divisor(size, few)), size, numbers)
    if at < 0:
        return -1
    if not to_places(numbers, 0, size):
        return -1
    for place in numbers:
        flags[place] = few_are
    return at


# --- the values of a payload of gaps ----------------------------------------------------------------------------------


def signs(data: bytes, at: int, scale: int, steps: Int64s) -> int:
    """Fills the steps with `scale`, negative where the bit is set; where the bits end, or -1."""
    if at + steps.size > 8 * len(data):
        return -1
    filled = 0
    if at % 8 == 0:
        # Whole bytes, which the processor does all bits of at once.
        for byte in range(at >> 3, (at + steps.size) >> 3):
            window = data[byte]
            for i in range(8):
                steps[filled + i] = scale - 2 * scale * (window >> (7 - i) & 1)
            filled += 8
    for i in range(filled, steps.size):
        steps[i] = scale - 2 * scale * bit(data, at + i)
    return at + steps.size


# --- places -----------------------------------------------------------------------------------------------------------


def to_places(gaps: Int64s, first: int, bound: int) -> bool:
    """Makes places of the gaps between them, the first counted from `first` on; whether all are below `bound`."""
    next_place = first
    for i in range(gaps.size):
        place = next_place + gaps[i]
        if place >= bound:
            return False
        gaps[i] = place
        next_place = place + 1
    return True


def others(places: Int64s, first: int, bound: int, found: Int64s) -> None:
    """Fills `found`, which has room for exactly these, with what lies between the places that `to_places` made."""
    filled = 0
    next_place = first
    for place in places:
        for other in range(next_place, place):
            found[filled] = other
            filled += 1
        next_place = place + 1
    for other in range(next_place, bound):
        found[filled] = other
        filled += 1


def sort(indices: Int64s, length: int) -> None:
    """Numbers from 0 to `length`, by digits from the lowest (Knuth, TAOCP 3, 5.2.5)."""
    other = np.empty_like(indices)
    shift = 0
    while (length - 1) >> shift:
        places = np.zeros((1 << DIGIT_BITS) + 1, dtype=np.int64)
        for index in indices:
            places[(index >> shift & ((1 << DIGIT_BITS) - 1)) + 1] += 1
        for digit in range(1 << DIGIT_BITS):
            places[digit + 1] += places[digit]
        for index in indices:
            digit = index >> shift & ((1 << DIGIT_BITS) - 1)
            other[places[digit]] = index
            places[digit] += 1
        indices[:] = other
        shift += DIGIT_BITS


# --- bits and numbers -------------------------------------------------------------------------------------------------


def golomb(data: bytes, at: int, counts: Int64s, divisors: Int64s, most: int, numbers: Int64s) -> int:
    """Fills the numbers, `counts[c]` of each class, with its divisor, from bit `at` on; where they end, or -1.

    First all fields, then all further bits, then all unary parts, as `bits` has it. A number that is surely above
    `most` is refused; others above it are not.
    """
    end = 8 * len(data)
    needed = 0
    for c in range(counts.size):
        needed += counts[c] * (bit_length(divisors[c]) - 1)
    if at + needed + numbers.size > end or counts.sum() != numbers.size:
        return -1
    start = 0
    for c in range(counts.size):
        width = bit_length(divisors[c]) - 1
        fields(data, at, width, numbers[start : start + counts[c]])
        at += width * counts[c]
        start += counts[c]
    i = 0
    for c in range(counts.size):
        short = (2 << (bit_length(divisors[c]) - 1)) - divisors[c]
        for _ in range(counts[c]):
            # Without a branch, which would often be guessed wrong. The bit is there even where it is the next part's:
            # there are as many bits as numbers at least.
            number = numbers[i]
            further = int(number >= short)
            numbers[i] = number + further * (number - short + bit(data, at))
            at += further
            i += 1
    if at + numbers.size > end:
        return -1
    ones = np.empty(numbers.size + 8, dtype=np.int64)
    if not find_ones(data, at, numbers.size, ones):
        return -1
    last = at - 1
    i = 0
    for c in range(counts.size):
        divisor = divisors[c]
        most_quotient = most // divisor
        for _ in range(counts[c]):
            quotient = ones[i] - last - 1
            last = ones[i]
            # Before the product, which could otherwise leave int64.
            if quotient > most_quotient:
                return -1
            numbers[i] += quotient * divisor
            i += 1
    return last + 1


def find_ones(data: bytes, at: int, count: int, places: Int64s) -> bool:
    """Fills `places`, which has room for eight more, with those of the next `count` set bits, if they are there.

    Every second bit is set or so, and a branch on each would often be guessed wrong. So every place is written down,
    and the next one writes over it where there was no set bit.
    """
    # Bits before the start are not looked at.
    mask = 0xFF >> (at & 7)
    found = 0
    for byte in range(at >> 3, len(data)):
        if found >= count:
            break
        window = data[byte] & mask
        mask = 0xFF
        for i in range(8):
            places[found] = 8 * byte + i
            found += window >> (7 - i) & 1
    return found >= count


def golomb_number(data: bytes, at: int, divisor: int, most: int) -> tuple[int, int]:
    """One number, none above `most`, and where it ends, or -1."""
    end = 8 * len(data)
    width = bit_length(divisor) - 1
    if at + width > end:
        return 0, -1
    number = 0
    for _ in range(width):
        number = 2 * number + bit(data, at)
        at += 1
    short = (2 << width) - divisor
    if number >= short:
        if at >= end:
            return 0, -1
        number += number - short + bit(data, at)
        at += 1
    while at < end and not bit(data, at):
        number += divisor
        if number > most:
            return 0, -1
        at += 1
    if at >= end or number > most:
        return 0, -1
    return number, at + 1


def fields(data: bytes, at: int, width: int, numbers: Int64s) -> None:
    """Fills the numbers from fields of `width` bits, which must all be there."""
    if width == 0:
        numbers[:] = 0
        return
    byte = at >> 3
    held = 0
    # Bits that are held below the top of what was read, less those of the first byte that lie before the start.
    there = -(at & 7)
    for i in range(numbers.size):
        while there < width:
            held = (held << 8 | data[byte]) & 0xFFFFFFFFFF
            byte += 1
            there += 8
        there -= width
        numbers[i] = held >> there & ((1 << width) - 1)


def bit(data: bytes, at: int) -> int:
    return data[at >> 3] >> (7 - (at & 7)) & 1


def ends(data: bytes, at: int) -> bool:
    """Whether what is left is padding: fewer than eight bits, all zero."""
    left = 8 * len(data) - at
    if left < 0 or left >= 8:
        return False
    return left == 0 or data[len(data) - 1] & ((1 << left) - 1) == 0


def natural_divisor(total: int, count: int) -> int:
    return max(1, total * 355 // (max(1, count) * 512))


def bit_length(number: int) -> int:
    length = 0
    while number >> length:
        length += 1
    return length


def square_root(number: int) -> int:
    """Rounded down, of numbers below 2^52."""
    root = int(math.sqrt(number))
    while root * root > number:
        root -= 1
    while (root + 1) * (root + 1) <= number:
        root += 1
    return root


HELPERS = (
    bit,
    ends,
    bit_length,
    square_root,
    natural_divisor,
    sort,
    to_places,
    others,
    signs,
    fields,
    find_ones,
    golomb,
    golomb_number,
    rare,
    columns_of,
    plain_signs,
    signs_by_column,
    signs_by_lean,
    ranked_signs,
    unfolded,
    class_end,
    class_ends,
    class_counts,
    ranked_support,
)
"""What kernels call, each after what it calls itself."""
