"""Hosts made of network namespaces: each with an address, a loopback and a folder for Ray of its own, as machines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4


def can_be_made() -> bool:
    """Whether this machine lets us: it takes root, and `ip`."""
    name = f"probe-{uuid4().hex[:6]}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        subprocess.run(["ip", "netns", "delete", name], check=False)
    return made


class Hosts:
    """So many hosts on one wire, in order of their addresses."""

    def __init__(self, count: int, folder: Path) -> None:
        self._mark, self._folder = uuid4().hex[:6], folder
        self.addresses = [f"10.77.{int(self._mark[:2], 16)}.{i + 1}" for i in range(count)]
        self._names = [f"host-{self._mark}-{i}" for i in range(count)]
        self._bridge = f"br-{self._mark}"

    def __enter__(self) -> Self:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        for i, (name, address) in enumerate(zip(self._names, self.addresses, strict=True)):
            outer = f"v{self._mark}{i}"
            _ip("netns", "add", name)
            _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", outer, "master", self._bridge, "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")
            (self._folder / name).mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self._names:
            inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for process in inside.split():
                subprocess.run(["kill", "-9", process], capture_output=True, check=False)
            _ip("netns", "delete", name)
        _ip("link", "delete", self._bridge)

    def start(
        self, host: int, command: list[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """A command on a host, what it prints in a file."""
        name = self._names[host]
        own = f"mount --bind {self._folder / name} /tmp/ray && exec " + '"$@"'
        inside = ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", own, "sh", *command]
        # Workers find each other by this interface: names of hosts are all the same here.
        settings: dict[str, Any] = {"GLOO_SOCKET_IFNAME": "eth0", "RAY_TMPDIR": "/tmp"}
        with log.open("wb") as out:
            return subprocess.Popen(
                inside, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment, **settings}
            )

    def where(self, name: str) -> set[str]:
        """Hosts on which a process with `name` in its title runs."""
        found = set()
        for host in self._names:
            inside = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False).stdout
            for process in inside.split():
                try:
                    title = Path(f"/proc/{process}/cmdline").read_bytes()
                except OSError:  # it has ended meanwhile
                    continue
                if name.encode() in title:
                    found.add(host)
        return found


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
