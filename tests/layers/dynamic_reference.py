"""What `DynamicIds` does, restated one id at a time with dictionaries."""

from collections import Counter

import numpy as np

WORD = 2**32 - 1


def murmur(number: int) -> int:
    x = number & WORD
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & WORD
    return x ^ (x >> 16)


class Cache:
    """`size` places; the id of set `s` may stand in the places `s, s + sets, s + 2 * sets, ...`."""

    def __init__(self, size: int, ways: int) -> None:
        self.size, self.sets = size, -(-size // ways)
        self.owner: dict[int, int] = {}
        self.place: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def touch(self, number: int, step: int) -> None:
        self.last[self.place[number]] = step

    def leave(self, number: int) -> None:
        place = self.place.pop(number)
        del self.owner[place], self.last[place]

    def enter(self, number: int, step: int) -> tuple[bool, int | None]:
        """Whether there was a place, and the id that had to leave it."""
        places = range(murmur(number) % self.sets, self.size, self.sets)
        free = [p for p in places if self.last.get(p, 0) < step]
        if not free:
            return False, None
        place = min(free, key=lambda p: (self.last.get(p, 0), p))
        evicted = self.owner.get(place)
        if evicted is not None:
            self.leave(evicted)
        self.owner[place], self.place[number], self.last[place] = number, place, step
        return True, evicted


class DynamicReference:
    def __init__(self, capacity, admit_after=2, candidates=None, ways=8) -> None:
        self.rows = Cache(capacity, ways)
        self.admit_after = admit_after
        self.waiting = Cache(candidates or capacity, ways) if admit_after > 1 else None
        self.seen: dict[int, int] = {}
        self.step = 0
        self.counters = Counter()

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        rows = [-1 if i == -1 else 1 + self.rows.place.get(i, -1) for i in ids.ravel().tolist()]
        return np.array(rows, "int32").reshape(ids.shape)

    def train(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.step += 1
        present = [i for i in ids.ravel().tolist() if i != -1]
        for number in present:
            if number in self.rows.place:
                self.rows.touch(number, self.step)
        new = Counter(i for i in present if i not in self.rows.place)  # in order of first lookups
        admitted, waiting = set(), {}
        for number, lookups in new.items():
            total = lookups + self.seen.get(number, 0)
            if total >= self.admit_after:
                entered, evicted = self.rows.enter(number, self.step)
                if entered:
                    admitted.add(number)
                    self.counters["admissions"] += 1
                    self.counters["evictions"] += evicted is not None
                    if number in self.seen:
                        del self.seen[number]
                        self.waiting.leave(number)
                    continue
            waiting[number] = total
        if self.waiting is not None:
            for number in [i for i in waiting if i in self.seen]:
                self.waiting.touch(number, self.step)
                self.seen[number] = waiting[number]
            for number in [i for i in waiting if i not in self.seen]:
                entered, forgotten = self.waiting.enter(number, self.step)
                if entered:
                    self.seen[number] = waiting[number]
                    if forgotten is not None:
                        self.counters["forgotten"] += 1
                        del self.seen[forgotten]
        rows = self.lookup(ids)
        self.counters["lookups"] += len(present)
        self.counters["default_lookups"] += int((rows == 0).sum())
        return rows, np.isin(ids, list(admitted))

    def expected_counters(self) -> dict:
        names = ("admissions", "evictions", "forgotten", "lookups", "default_lookups")
        count = {name: self.counters[name] for name in names}
        return {
            **count,
            "occupancy": len(self.rows.owner),
            "capacity": self.rows.size,
            "candidates": len(self.seen),
            "default_share": count["default_lookups"] / max(count["lookups"], 1),
        }
