"""Exact int8 vector search beside float32 NumPy: the k best inner products of each query with a million
vectors.

    python examples/vector_search.py [--quick]

Vectors of unit length are stored as int8 (x 127). "Exact" means: the order is that of the true integer inner
products of the stored vectors, with none left out (no index, no approximation). Both searches go through the
vectors in blocks, keep the k best of each block by `argpartition`, and the times of both include it. They run
in turn.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import lowgemm

DIM, K, BLOCK = 256, 10, 50_000


def best_of_blocks(scores_of_block, blocks: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and scores of the k largest of each row, over all blocks; ties go to the smaller index."""
    kept_index, kept_score = [], []
    for b in range(blocks):
        start, scores = scores_of_block(b)
        # argpartition takes any of several equal scores at the border: the k-th best decides who is looked at
        border = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k, None]
        for row, (s, limit) in enumerate(zip(scores, border, strict=True)):
            at = np.flatnonzero(s >= limit)
            if b == 0:
                kept_index.append(at + start)
                kept_score.append(s[at])
            else:
                kept_index[row] = np.concatenate([kept_index[row], at + start])
                kept_score[row] = np.concatenate([kept_score[row], s[at]])
    indices, values = [], []
    for index, score in zip(kept_index, kept_score, strict=True):
        order = np.lexsort((index, -score))[:k]
        indices.append(index[order])
        values.append(score[order])
    return np.array(indices), np.array(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the vectors, fewer queries")
    quick = parser.parse_args().quick
    count, queries, rounds = (100_000, 16, 1) if quick else (1_000_000, 64, 3)

    rng = np.random.default_rng(0)
    stored = np.empty((count, DIM), np.int8)
    for start in range(0, count, BLOCK):
        x = rng.standard_normal((BLOCK, DIM), dtype=np.float32)
        x *= 127 / np.abs(x).max(axis=1, keepdims=True)
        stored[start : start + BLOCK] = np.rint(x)
    asked = stored[rng.integers(0, count, queries)].astype(np.int16) + rng.integers(-20, 21, (queries, DIM))
    asked = np.clip(asked, -127, 127).astype(np.int8)

    blocks = count // BLOCK
    parts = [slice(b * BLOCK, (b + 1) * BLOCK) for b in range(blocks)]
    packed = [lowgemm.pack_rhs(stored[part].T) for part in parts]
    floats = [stored[part].T.astype(np.float32) for part in parts]
    asked_float = asked.astype(np.float32)
    print(f"{count:,} vectors of {DIM}: int8 {sum(p.nbytes for p in packed) / 1e6:.0f} MB packed, "
          f"float32 {sum(f.nbytes for f in floats) / 1e6:.0f} MB")  # fmt: skip

    sums = np.empty((queries, BLOCK), np.int32)
    scores = np.empty((queries, BLOCK), np.float32)

    def search_int8(b):
        return parts[b].start, lowgemm.gemm(asked, packed[b], out=sums)

    def search_float(b):
        return parts[b].start, np.matmul(asked_float, floats[b], out=scores)

    searches = {"lowgemm int8": search_int8, "NumPy float32": search_float}
    times = {(name, what): [] for name in searches for what in ("products only", "with top-k")}
    found = {}
    for _ in range(rounds + 1):  # the first round warms up
        for name, search in searches.items():
            start = time.perf_counter()
            for b in range(blocks):
                search(b)
            times[name, "products only"].append(time.perf_counter() - start)
            start = time.perf_counter()
            found[name] = best_of_blocks(search, blocks, K)
            times[name, "with top-k"].append(time.perf_counter() - start)
    for (name, what), seconds in times.items():
        print(f"{name:>14}, {what:13}: {queries / min(seconds[1:]):8.0f} queries/s (batches of {queries})")

    index, score = found["lowgemm int8"]
    exact = asked[:4].astype(np.int64) @ stored.T.astype(np.int64) if quick else None
    for row in range(4):
        true = stored[index[row]].astype(np.int64) @ asked[row].astype(np.int64)
        assert (true == score[row]).all()
        if exact is not None:
            expected = np.lexsort((np.arange(count), -exact[row]))[:K]
            assert (index[row] == expected).all()
    # whole numbers up to 2**24 are exact in float32, and 256 * 127 * 127 is below it: here both must agree
    assert (index == found["NumPy float32"][0]).all()
    print(f"top-{K} of all queries: the same as float32 finds (sums below 2**24 are exact there too)")


if __name__ == "__main__":
    main()
