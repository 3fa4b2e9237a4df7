"""Whether the hub's host is there: names are looked up here by a table; nothing connects."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants

from incontext.model import hub_access
from incontext.model.hub_access import REPO_ID, is_reachable


@pytest.fixture
def lookups(monkeypatch):
    """Hosts that were looked up; an address comes with the look after `failing` ones."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setattr(hub_access, "getproxies", dict)
    monkeypatch.setattr(hub_access, "_PATIENCE", 0)

    class Lookups(list):
        failing = 0

    asked = Lookups()

    def look_up(host, port):
        asked.append((host, port))
        if len(asked) <= asked.failing:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize(("failing", "found", "asked"), [(0, True, 1), (1, True, 2), (2, False, 2)])
def test_a_host_without_an_address_is_looked_up_twice(lookups, failing, found, asked):
    lookups.failing = failing
    assert is_reachable() == found
    assert lookups == [("hub.example", "https")] * asked


def test_a_mirror_has_its_own_port(lookups, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example:8080")
    assert is_reachable() and lookups == [("mirror.example", 8080)]


def test_nobody_looks_up_what_a_proxy_does_or_the_user_forbids(lookups, monkeypatch):
    lookups.failing = 9
    for scheme in ("https", "all"):
        monkeypatch.setattr(hub_access, "getproxies", lambda scheme=scheme: {scheme: "http://proxy.example:3128"})
        assert is_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not is_reachable() and not lookups


def test_ids():
    assert REPO_ID.fullmatch("some-one/their.model_2")
    assert not any(REPO_ID.fullmatch(text) for text in ("name", "a/b/c", "a/", "/b", "a b/c"))
