"""What Prometheus would have seen: names and values served on some ports, gathered as often as it may be asked."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, dict[str, str], float]


def scrape(port: int) -> list[Sample]:
    """The samples at a port; raises OSError when nobody serves there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    return [
        (each.name, dict(each.labels), each.value)
        for family in text_string_to_metric_families(text)
        for each in family.samples
    ]


class Scraper:
    """A thread that asks all ports once a second until `stop`.

    Attributes:
        names: metric names by service, ever seen.
        newest: the newest value of every (name, service).
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.names: dict[str, set[str]] = {}
        self.newest: dict[tuple[str, str], float] = {}
        self._ports, self._stopping = ports, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stopping.wait(1.0):
            for port in self._ports:
                try:
                    samples = scrape(port)
                except OSError:  # not up yet, or no more
                    continue
                for name, labels, value in samples:
                    if "service" in labels:
                        self.names.setdefault(labels["service"], set()).add(name)
                        self.newest[name, labels["service"]] = value
