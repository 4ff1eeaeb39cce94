"""Decide after a failure whether all workers of a job start again in place, on every node alike.

With several nodes their launchers are connected to node 0's while workers run. A launcher whose
workers have failed tells the others, which end theirs; when all have ended, node 0 decides. If a
launcher is gone, or not all answer in time, every launcher exits with its failure, and the
scheduler restarts the job.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jobs.cause import cause
from pipeline.common.environment import RESTARTS_LEFT
from pipeline.launch.topology import Place, free_port

FAILED = "LACUNA_FAILED"  # the time of the failure that an attempt follows, seconds since 1970
MEET = 60.0  # seconds for the workers of all nodes to end
PORTS = 12_000  # from the workers' port to the launchers', which no job's workers use
LONGEST = 1 << 16  # bytes of a message
Message = dict[str, Any]


class Restarts:
    """Restarts in place: at most `retries` in a row that save no checkpoint.

    progress: returns the images of the newest checkpoint. record: keeps cause and time (seconds
    since 1970) of a failure. Both are called on node 0 only.
    """

    def __init__(
        self,
        here: Place,
        retries: int,
        progress: Callable[[], int],
        record: Callable[[str, float], object],
    ) -> None:
        self.here, self.retries = here, retries
        self._progress, self._record = progress, record
        self._left, self._reached, self._failed = retries, 0, 0.0
        self._peers = Peers(here) if here.nodes > 1 and retries else None

    def settings(self) -> dict[str, str]:
        """Return the variables of the workers that start next."""
        settings = {RESTARTS_LEFT: str(self._left)}
        if self._failed:
            settings[FAILED] = repr(self._failed)
        if self.here.nodes == 1:
            settings["MASTER_PORT"] = str(free_port())
        return settings

    def called(self) -> bool:
        """Return whether this node's workers must end: others' have failed, or are gone."""
        return self._peers is not None and self._peers.called()

    def again(self, error: str) -> str | None:
        """Return the cause if all nodes start again after `error` of this one's workers."""
        self._failed = time.time()
        if not self.retries:
            return None
        return self._peers.agree(error, self._decide) if self._peers else self._decide(error)

    def _decide(self, error: str) -> str | None:
        reached = self._reached
        with suppress(OSError, ValueError):
            reached = self._progress()
        if reached > self._reached:
            self._left, self._reached = self.retries, reached
        if not self._left:
            return None
        self._left -= 1
        with suppress(OSError, ValueError):  # the disk may be full: workers will say so
            self._record(error, self._failed)
        return error

    def close(self, in_order: bool) -> None:
        """Leave the other launchers; unless it is `in_order` they end their workers."""
        if self._peers:
            self._peers.close(in_order)


class Peers:
    """The launchers of a job's nodes: on node 0 connections from the others, else one to it."""

    def __init__(self, here: Place) -> None:
        self.here, self._job = here, f"{here.nodes} nodes of {here.master_addr}:{here.master_port}"
        self._links: list[Link] = []
        self._new: list[Link] = []
        self._errors: dict[int, tuple[float, str]] = {}  # of nodes whose workers have ended
        self._answer: Message | None = None
        self._gone = self._left = self._called = self._closed = False
        self._server: socket.socket | None = None
        port = here.master_port + (PORTS if here.master_port < 20_000 else -PORTS)
        if here.node_rank == 0:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            with suppress(OSError):  # a taken port: all fall back to the scheduler
                self._server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
                self._server.setblocking(False)
        else:  # node 0 may start later, and its name resolve later still
            address = here.master_addr, port
            threading.Thread(target=self._connect, args=address, daemon=True).start()

    def _connect(self, host: str, port: int) -> None:
        while not self._closed:
            with suppress(OSError):
                link = Link(socket.create_connection((host, port), timeout=5), 0)
                link.send({"job": self._job, "node": self.here.node_rank})
                self._new.append(link)
                return
            time.sleep(1)

    def called(self) -> bool:
        """Return whether workers of another node have failed, or its launcher is gone."""
        self._read()
        return self._gone or self._called or bool(self._errors)

    def _read(self) -> None:
        with suppress(OSError):
            while self._server is not None:
                self._new.append(Link(self._server.accept()[0]))
        while self._new:
            self._links.append(self._new.pop())
        for link in self._links:
            for message in link.read():
                if link.node is None:
                    known = message.get("job") == self._job
                    link.node, link.closed = (message["node"], False) if known else (None, True)
                elif "error" in message:
                    self._errors[link.node] = time.time(), message["error"]
                    self._tell({"called": True})
                elif "cause" in message:
                    self._answer = message
                elif "left" in message:
                    self._left, link.node = True, None
                else:
                    self._called = True
            self._gone = self._gone or link.closed and link.node is not None
        self._links = [link for link in self._links if not link.closed]

    def _tell(self, message: Message) -> None:
        for link in self._links:
            link.send(message)

    def agree(self, error: str, decide: Callable[[str], str | None]) -> str | None:
        """Wait for all nodes' workers to end; returns the cause if node 0 decided to go on."""
        first, end = self.here.node_rank == 0, time.monotonic() + MEET
        if first:
            self._errors[0] = time.time(), error
        self._tell({"called": True} if first else {"error": error})
        while time.monotonic() < end and not (self._gone or self._left):
            self._read()
            if first and len(self._errors) == self.here.nodes:
                self._answer = {"cause": decide(cause(self._errors.values()) or error)}
                self._tell(self._answer)
            if self._answer is not None:
                reason: str | None = self._answer["cause"]
                self._answer, self._called = None, False
                self._errors.clear()
                return reason
            time.sleep(0.05)
        self.close(False)  # others need not wait as long
        return None

    def close(self, in_order: bool) -> None:
        self._closed = True
        if in_order:
            self._tell({"left": True})
        for closing in (self._server, *(link.socket for link in self._links)):
            if closing is not None:
                closing.close()


class Link:
    """A connection that carries JSON objects, one a line; `node` is None until it says which."""

    def __init__(self, connected: socket.socket, node: int | None = None) -> None:
        self.socket, self.node, self.closed, self._rest = connected, node, False, b""
        connected.setblocking(False)

    def send(self, message: Message) -> None:
        try:
            self.socket.sendall(f"{json.dumps(message)}\n".encode())
        except OSError:
            self.closed = True

    def read(self) -> list[Message]:
        """Return the messages that have arrived."""
        try:
            while len(self._rest) < LONGEST and (chunk := self.socket.recv(LONGEST)):
                self._rest += chunk
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        *lines, self._rest = self._rest.split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines]
        except (TypeError, ValueError):  # a stranger's
            self.closed = True
            return []
