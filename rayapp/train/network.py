"""Where the ranks of a training meet: at the addresses by which Ray knows their nodes."""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

TIMEOUT_S = 600  # of a collective; a rank may be this late
# Which interface each library listens on. NCCL takes a name as the beginning of one, unless it stands after "=".
VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}


def meet_at_node_address() -> None:
    """Let gloo and NCCL in this process use the interface that Ray's address of this node is on, unless told another.

    By itself gloo takes the address of the host's own name, which on Debian and Ubuntu is 127.0.1.1: ranks on two such
    hosts never meet.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            for variable, form in VARIABLES.items():
                os.environ.setdefault(variable, form.format(name))  # the only way to tell them


class _MeetingBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray does not say which class it is
    """Ray's own, after each rank has been told where to listen."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(meet_at_node_address)
        super().on_start(worker_group, backend_config)


class NodeAddresses(TorchConfig):
    """The torch_config of every TorchTrainer here."""

    @property
    def backend_cls(self) -> type:
        """What sets up the process group."""
        return _MeetingBackend


def torch_config() -> TorchConfig:
    """Ranks that meet across nodes, and wait for a late one."""
    return NodeAddresses(timeout_s=TIMEOUT_S)
