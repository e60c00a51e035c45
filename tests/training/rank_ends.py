"""One rank that fails or stalls, started by test_ranks.py. It is separate from rank_worker.py to import little.

Usage: python rank_ends.py fail | stall [SECONDS]
"""

import sys
import time

from speech_exp import ranks
from speech_exp.training.monitor import Watchdog


def stall(seconds="1.5"):
    """Rank 1 stalls in a step, and rank 0 waits for it."""
    ranks.all_gather(0)
    print("all have met", flush=True)
    with Watchdog(0.5) as watchdog:
        watchdog.step()
        if ranks.rank() == 1:
            time.sleep(float(seconds))
        ranks.all_gather(0)


def fail():
    """Rank 1 fails while rank 0 waits for it and rank 2 sleeps."""
    ranks.all_gather(0)
    try:
        if ranks.rank() == 1:
            raise ValueError("the disk of rank 1 is full")
        if ranks.rank() == 2:
            time.sleep(300)
        ranks.all_gather(1)
    except ValueError:
        print(f"rank {ranks.rank()} knows: {ranks.peer_failure()}", flush=True)
        raise


if __name__ == "__main__":
    with ranks.fail_together():
        {"fail": fail, "stall": stall}[sys.argv[1]](*sys.argv[2:])
