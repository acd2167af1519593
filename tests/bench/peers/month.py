"""Peers of the case month."""

from peers.store import PEERS as PEERS
