"""TVM's RPC tracker, which knows devices by a key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tvmconv.errors import BuildError, ConfigError, TuningError

__all__ = ["Tracker"]

_SHAPE = re.compile(r"tracker:(?P<host>.+):(?P<port>[0-9]{1,5}),(?P<key>[^,\s]+)")
#: Seconds for the tracker's answer.
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Tracker:
    """Where TVM's RPC tracker listens, and the key of the devices that are wanted."""

    host: str
    port: int
    key: str

    module = "tvmconv.tuning.device"
    patience_s = 0.0

    @classmethod
    def parse(cls, text: str) -> Tracker:
        """Read ``tracker:HOST:PORT,KEY``.

        Raises
        ------
        ConfigError
            It is written otherwise.
        """
        match = _SHAPE.fullmatch(text)
        if match is None or not 0 < int(match["port"]) < 1 << 16:
            raise ConfigError(
                f"expected the device as ssh:HOST, or tracker:HOST:PORT,KEY, for example "
                f"tracker:127.0.0.1:9190,pi4. Received: {text!r}"
            )
        return cls(match["host"].strip("[]"), int(match["port"]), match["key"])

    def devices(self) -> int:
        """How many devices of the key are free.

        Raises
        ------
        BuildError
            TVM's RPC is not installed.
        TuningError
            The tracker does not answer, or has no such device, or all are in use.
        """
        try:
            from tvm.rpc import base  # noqa: F401
        except ImportError as exc:
            raise BuildError(
                f"tuning on devices needs TVM's RPC ({exc}): pip install 'tvmconv[tune]'"
            ) from exc
        from tvmconv.tuning import device

        where = f"{self.host}:{self.port}"
        try:
            found = device.summary(self.host, self.port, _ANSWER_S)
        except (OSError, ValueError, OverflowError) as exc:
            raise TuningError(
                f"no RPC tracker answers at {where} within {_ANSWER_S:.0f} s ({exc}); start one "
                "with: python -m tvm.exec.rpc_tracker --host 127.0.0.1"
            ) from exc
        keys = [str(server["key"]).partition(":")[2] for server in found["server_info"]]
        if self.key not in keys:
            known = ", ".join(sorted(set(keys))) or "none"
            raise TuningError(
                f"no device {self.key!r} behind the tracker {where}; there are: {known}"
            )
        free = int(found["queue_info"].get(self.key, {}).get("free", 0))
        if not free:
            raise TuningError(
                f"all devices {self.key!r} behind the tracker {where} are in use "
                f"({keys.count(self.key)})"
            )
        return free

    def connection(self, seconds: float) -> dict[str, Any]:
        """What a session needs to know."""
        return {"host": self.host, "port": self.port, "key": self.key, "seconds": seconds}

    def about(self, cores: int) -> dict[str, Any]:
        """What measures: nobody asks the devices."""
        return {"cpu_model": f"{self.key} behind a tracker", "cores": cores}

    def gone(self, reason: str) -> str:
        """The message when no device is left."""
        del reason
        return f"no device {self.key!r} is left behind the tracker {self.host}:{self.port}"

    def close(self) -> None:
        """Nothing to do: the tracker notices when a session ends."""
