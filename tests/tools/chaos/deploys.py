"""Rolling restarts under load: nobody outside may notice."""

import time
from collections import Counter

from processes import say
from storm import Storm


def roll(storm: Storm, restarts: int, callbacks: int) -> dict[int, int]:
    """Restart node after node under load; give what the sender was answered, by status."""
    stage, began = storm.stage, time.monotonic()
    for number in range(restarts):
        share = callbacks * (number + 1) // restarts - callbacks * number // restarts
        stage.sender.send(stage.plan.portion(share, twins=0), seconds=1.5)
        node = stage.nodes[number % len(stage.nodes)]
        node.restart()
        stage.until_ready(node)
        say(f"  restart {number + 1} of {restarts}, {stage.sender.unsettled} under way")
    storm.settle()
    storm.judge_probes("rolling restarts")
    tries = stage.sender.log.during(began, time.monotonic())
    codes = Counter(each.status for each in tries if each.to == "balancer")
    others = sum(count for code, count in codes.items() if not 200 <= code < 300)
    if others:
        stage.violations.append(
            f"rolling restarts: {others} tries were not answered 2xx: {dict(codes)}"
        )
    return dict(codes)
