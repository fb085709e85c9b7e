"""Pieces on a Ray cluster."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retain.errors import InputError, RetainError
from retain.runs.elsewhere import TRIES, Follow, data_folder, do_far, lost, missing
from retain.runs.folder import Listener
from retain.runs.pieces import Ends, Piece
from retain.studies.base import Spec

STORE = 80 * 2**20
"""Bytes of the object store of a Ray of this machine: results go over the file system, so the least that Ray takes will do."""
PATIENCE = 30.0
"""Seconds in which a cluster has to answer."""
_QUIET = {"log_to_driver": False, "logging_level": "ERROR"}
_PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


class OnRay:
    """Every piece a task of ``spec.threads`` processors; Ray begins a task again whose process or node dies, and it goes on from its checkpoint.

    A Ray that this process is connected to already is used as it is.

    Args:
        address: ``HOST:PORT`` of the cluster or ``auto``; ``None`` is a Ray of this machine.
        folder: Of the run; all nodes have to see it.
        spec: The run's settings.
        every: Least seconds between two checkpoints of an arm.

    Raises:
        InputError: If the address is none, or nothing answers there.
        RetainError: If Ray is not installed.
    """

    def __init__(self, address: str | None, folder: Path, spec: Spec, every: float) -> None:
        self.address, self.folder, self.spec, self.every = address, folder.resolve(), spec, every
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray announces to become its default
        try:
            import ray
        except ImportError as error:
            raise missing("ray", error) from error
        if not ray.is_initialized():
            _answers(address)

    def __call__(self, pieces: list[Piece], tell: Listener) -> Ends:
        """Do the pieces; see :class:`retain.runs.pieces.Place`."""
        import ray

        with self._connected():
            nodes = self._nodes()
            self._check(nodes)
            task = ray.remote(do_far).options(num_cpus=self.spec.threads, num_gpus=int(self.spec.device.startswith("cuda")), max_retries=TRIES - 1)
            running = {task.remote(piece, self.every, data_folder()): piece for piece in pieces}
            if pieces:
                tell(pieces[0].seed, "", "note", {"text": f"pieces handed to Ray: {len(pieces)}, to {len(nodes)} node{'s' * (len(nodes) != 1)}"})
            follow = Follow(tell)
            try:
                while running:
                    ready, _ = ray.wait(list(running), timeout=1)
                    for reference in ready:
                        piece = running.pop(reference)
                        try:
                            end = ray.get(reference)
                        except ray.exceptions.RayError as error:
                            end = lost(piece, str(error).splitlines()[0])
                        if end.how == "done":
                            follow.over(piece)
                        yield piece, end
                    for piece in running.values():
                        follow.look(piece)
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        import ray

        if ray.is_initialized():
            yield
            return
        try:
            if self.address is None:
                processors = max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, self.spec.threads)
                ray.init(address="local", num_cpus=processors, include_dashboard=False, object_store_memory=STORE, **_QUIET)
            else:
                ray.init(address=self.address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RetainError(f"Ray could not be used: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()

    def _nodes(self) -> dict[str, str]:
        """Names of the nodes with processors, by their ids."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        largest = max((node["Resources"]["CPU"] for node in nodes), default=0)
        if largest < self.spec.threads:
            raise InputError("threads", f"at most the {largest:g} processors of the largest node", self.spec.threads, "Pass --set threads=N.")
        return {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in nodes}

    def _check(self, nodes: dict[str, str]) -> None:
        """Raise if a node does not see the run's folder, or has another version of retain."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from retain import __version__

        def look(path: str) -> tuple[str, str]:
            # sent by value, as the node may have another retain or none
            try:
                import retain

                version = str(getattr(retain, "__version__", "unknown"))
            except ImportError:
                version = "none"
            try:
                with open(path) as file:
                    return version, file.read()
            except OSError:
                return version, ""

        token, path = secrets.token_hex(8), self.folder / f".shared-{secrets.token_hex(4)}"
        path.write_text(token)
        try:
            asked = {
                node: ray.remote(look)
                .options(num_cpus=0, max_retries=2, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
                .remote(str(path))
                for node in nodes
            }
            for node, reference in asked.items():
                try:
                    version, found = ray.get(reference, timeout=120)
                except ray.exceptions.RayError as error:
                    raise RetainError(f"Node {nodes[node]} of the Ray cluster does not work: {str(error).splitlines()[0]}") from error
                if version != __version__:
                    hint = "Install the same version on every node."
                    raise RetainError(f"Node {nodes[node]} of the Ray cluster: expected retain {__version__}, as here, found {version}. {hint}")
                if found != token:
                    raise InputError("--out", "a folder that all nodes share", f"{self.folder}, which node {nodes[node]} does not see")
        finally:
            path.unlink(missing_ok=True)


def _answers(address: str | None) -> None:
    """Raise if nothing that is a Ray cluster answers within some seconds; ``ray.init`` itself waits for minutes."""
    if address is None:
        return
    hint = "Start one with 'ray start --head', or leave the address out for a Ray of this machine."
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdigit():
            raise InputError("--address", "HOST:PORT or auto", repr(address), "The port of a Ray cluster is 6379 unless it was started with another.")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise InputError("--address", "a Ray cluster that answers", f"{address} ({error})", hint) from error
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE, address], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError("--address", "a Ray cluster that answers", f"{address}, silent for {PATIENCE:g} s", hint) from error
    if probe.returncode:
        said = (probe.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise InputError("--address", "a Ray cluster that this process can join", f"{address} ({said})", hint)
