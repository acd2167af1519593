"""Peers of the case read."""

from peers.store import PEERS as PEERS
