"""A training job's outside without its inside: honours the launch contract in the standard library.

`python -m pipeline train run=FOLDER steps=N [pause=S] [crash=STEP crashes=N] [exit=CODE]` on each
node: the nodes meet at PET_MASTER_ADDR:PORT, agree at each step whether anybody was asked to stop,
node 0 appends `steps.jsonl` and keeps `state.json`; asked to stop, all leave with 75 at one step.
"""

import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path


def main() -> int:
    words = dict(word.split("=", 1) for word in sys.argv[2:] if "=" in word)
    run = Path(words["run"])
    run.mkdir(parents=True, exist_ok=True)
    if "exit" in words:
        print(f"leaving with {words['exit']}", file=sys.stderr)
        return int(words["exit"])
    asked = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda n, _: asked.append(n))
    nodes, node = int(os.environ["PET_NNODES"]), int(os.environ["PET_NODE_RANK"])
    agree = meet(nodes, node)
    state = run / "state.json"
    step = json.loads(state.read_text())["step"] if state.exists() else 0
    started = run / "starts"
    if node == 0:
        with open(started, "a") as log:
            log.write(f"{step} on {os.uname().nodename}\n")
    while step < int(words["steps"]):
        time.sleep(float(words.get("pause", 0.1)))
        step += 1
        crashed = run / "crashes"
        times = len(crashed.read_text()) if crashed.exists() else 0
        if (
            node == nodes - 1
            and step == int(words.get("crash", -1))
            and times < int(words["crashes"])
        ):
            crashed.write_text("x" * (times + 1))
            os._exit(1)
        if node == 0:
            with open(run / "steps.jsonl", "a") as log:
                log.write(json.dumps({"step": step}) + "\n")
        if agree(bool(asked)):
            break
    if node == 0:
        state.with_suffix(".tmp").write_text(json.dumps({"step": step}))
        state.with_suffix(".tmp").rename(state)
    print(f"the end of {node} at {step}", flush=True)
    return 0 if step >= int(words["steps"]) else 75


def meet(nodes: int, node: int):
    """A function that tells whether any node says True; every node calls it once a step."""
    address, port = os.environ["PET_MASTER_ADDR"], int(os.environ["PET_MASTER_PORT"])
    if node == 0:
        server = socket.create_server(("", port))
        peers = [server.accept()[0] for _ in range(nodes - 1)]
    else:
        peers = [dial(address, port)]

    def agree(mine: bool) -> bool:
        if node:
            peers[0].sendall(struct.pack("?", mine))
            return struct.unpack("?", take(peers[0]))[0]
        answer = any([mine, *(struct.unpack("?", take(p))[0] for p in peers)])
        for peer in peers:
            peer.sendall(struct.pack("?", answer))
        return answer

    return agree


def take(peer: socket.socket) -> bytes:
    data = peer.recv(1)
    if not data:
        raise ConnectionError("a node is gone")
    return data


def dial(address: str, port: int) -> socket.socket:
    end = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((address, port), timeout=60)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
