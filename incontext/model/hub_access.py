"""What a call to the Hugging Face hub needs: an id of the right form, and a host that is there."""

from __future__ import annotations

import re
import socket
import time
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""OWNER/NAME."""

_PATIENCE = 1.0  # seconds until the second and last look: names fail for a moment where a connection has just come up


def is_reachable() -> bool:
    """Whether the hub's host has an address. Its client asks no less than six times, for half a minute.

    True behind a proxy, where the proxy looks hosts up. A host that has an address and does not answer is the client's
    business, which tries again.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = urlsplit(constants.ENDPOINT)
    host, proxies = url.hostname or "", getproxies()
    if (url.scheme in proxies or "all" in proxies) and not proxy_bypass(host):
        return True
    for last in (False, True):
        try:
            socket.getaddrinfo(host, url.port or url.scheme)
            return True
        except OSError:
            if not last:
                time.sleep(_PATIENCE)
    return False
