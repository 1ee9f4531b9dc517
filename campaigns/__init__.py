"""Mail campaigns over two servers: nobody is lost, nobody gets it twice, a dead server is a detail.

from campaigns import Campaign

campaign = Campaign.create("spring", sender="News <news@example.com>", subject="Hi {{ first_name }}",
                           html=Path("spring.html"))
campaign.recipients.add_csv("list.csv")
campaign.send()
campaign.watch()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaigns.campaign import Campaign, Delivery
    from campaigns.client import Client, connect
    from campaigns.errors import CampaignsError
    from campaigns.progress import Progress
    from campaigns.recipients import ImportReport
    from campaigns.settings import Settings, load_settings

__all__ = [
    "Campaign",
    "CampaignsError",
    "Client",
    "Delivery",
    "ImportReport",
    "Progress",
    "Settings",
    "connect",
    "load_settings",
]

# Loaded when asked for: a process that needs one module of the package should not wait for all of them.
_HOMES = {
    "Campaign": "campaign",
    "CampaignsError": "errors",
    "Client": "client",
    "Delivery": "campaign",
    "ImportReport": "recipients",
    "Progress": "progress",
    "Settings": "settings",
    "connect": "client",
    "load_settings": "settings",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
