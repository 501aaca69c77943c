"""The administrator's side of the agent's HTTP API."""

from cosmian_vm.client._channel import one_line, parse_address
from cosmian_vm.client.agent import MAX_EVIDENCE, AgentClient, application_peer

__all__ = ["MAX_EVIDENCE", "AgentClient", "application_peer", "one_line", "parse_address"]
