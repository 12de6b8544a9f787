#!/usr/bin/env python3
"""Block who fails to log in: access log (JSON lines) in, verdicts out.

    tail -F access.log | scripts/feeder.py | berm verdict feed

A line needs "client" and "status". Five answers 401 or 403 within ten seconds block a client
for ten minutes. Only clients that have completed a handshake get an answer, so no source is forged.
"""
import collections
import json
import sys
import time

LIMIT, WINDOW = 5, 10.0
failures = collections.defaultdict(collections.deque)

for number, line in enumerate(sys.stdin, 1):
    try:
        entry = json.loads(line)
        client, status = entry["client"], int(entry["status"])
    except (ValueError, KeyError, TypeError):
        continue
    if status not in (401, 403):
        continue
    times, now = failures[client], time.monotonic()
    times.append(now)
    while now - times[0] > WINDOW:
        times.popleft()
    if len(times) >= LIMIT:
        print(json.dumps({"source": client, "for": "10m", "reason": "login", "rule": status, "evidence": number}), flush=True)
        del failures[client]
