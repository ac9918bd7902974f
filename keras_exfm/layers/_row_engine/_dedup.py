"""Equal ids found without a sort, in memory that depends on the batch only."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def representatives(ids: Any) -> Any:
    """For each place the place of one id, the same for all equal ids, that is equal to it.

    Sorting is what costs most in a row-sparse update on a CPU. Instead each place writes its index
    into a hash table at its id's bucket; whoever was last there wins, and all places that find
    their own id at the winner take it as their representative. Places whose bucket another id won
    go on with another hash. With four buckets or more a place three rounds or so are enough.

    Args:
        ids: int32 `(n,)`, any values.

    Returns:
        int32 `(n,)` places with `ids[result] == ids` and `result[result] == result`.
    """
    n = ids.shape[0]
    # A model exported with an open batch size is traced with a symbolic `n`.
    buckets = 1 << max(4, (4 * n - 1).bit_length()) if isinstance(n, int) else 1 << 16
    places = jnp.arange(n, dtype=jnp.int32)
    words = ids.astype(jnp.uint32)

    def unfinished(carry: tuple[Any, Any, Any]) -> Any:
        found, _, _ = carry
        return jnp.any(found < 0)

    def one_round(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        found, table, salt = carry
        bucket = (_mix(words + salt) & jnp.uint32(buckets - 1)).astype(jnp.int32)
        # Finished places write to one bucket of their own, past the end.
        bucket = jnp.where(found < 0, bucket, buckets)
        table = table.at[bucket].set(places, mode="promise_in_bounds")
        winner = table.at[bucket].get(mode="promise_in_bounds")
        same = (found < 0) & (ids.at[winner].get(mode="promise_in_bounds") == ids)
        return jnp.where(same, winner, found), table, salt + jnp.uint32(0x9E3779B9)

    start = (jnp.full((n,), -1, jnp.int32), jnp.zeros((buckets + 1,), jnp.int32), jnp.uint32(0))
    found, _, _ = jax.lax.while_loop(unfinished, one_round, start)
    return found


def _mix(x: Any) -> Any:
    # MurmurHash3's finalizer.
    x = x ^ (x >> 16)
    x = x * jnp.uint32(0x85EBCA6B)
    x = x ^ (x >> 13)
    x = x * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
