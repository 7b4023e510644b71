"""A heap of (count, key): on top the largest count, among equals the smallest key.

Each has four children rather than two: half as many levels, and four children share a cache line.
"""

from model.fast.memory import part


@part
def _before(count, key, other_count, other_key):
    return count > other_count or (count == other_count and key < other_key)


@part
def best(heap):
    return heap[0], heap[1]


@part
def push(heap, size, count, key):
    """Returns the new size."""
    at = size
    while at > 0:
        parent = (at - 1) >> 2
        if not _before(count, key, heap[2 * parent], heap[2 * parent + 1]):
            break
        heap[2 * at], heap[2 * at + 1] = heap[2 * parent], heap[2 * parent + 1]
        at = parent
    heap[2 * at], heap[2 * at + 1] = count, key
    return size + 1


@part
def lower(heap, size, count):
    """The top has a smaller count than it promised."""
    _sink(heap, size, count, heap[1])


@part
def drop(heap, size):
    """Take the top away; returns the new size."""
    size -= 1
    if size > 0:
        _sink(heap, size, heap[2 * size], heap[2 * size + 1])
    return size


@part
def _sink(heap, size, count, key):
    """Let (count, key) find its place from the top down."""
    at = 0
    while True:
        first = 4 * at + 1
        if first >= size:
            break
        child = first
        for other in range(first + 1, min(first + 4, size)):
            other_first = _before(
                heap[2 * other], heap[2 * other + 1], heap[2 * child], heap[2 * child + 1]
            )
            if other_first:
                child = other
        if not _before(heap[2 * child], heap[2 * child + 1], count, key):
            break
        heap[2 * at], heap[2 * at + 1] = heap[2 * child], heap[2 * child + 1]
        at = child
    heap[2 * at], heap[2 * at + 1] = count, key
