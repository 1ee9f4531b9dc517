"""What can go wrong, said in one line each. `str(error)` is what the operator reads."""

# ruff: noqa: N818 - names that say what happened read better than names that say "Error"

from __future__ import annotations


class CampaignsError(Exception):
    """Something that the caller can act upon. Catch this one to catch them all."""


class SettingsError(CampaignsError):
    """The configuration is missing or has a mistake. Correct the keys that the message names."""


class UnknownServer(SettingsError):
    """No server of that name is configured. Add it under [[servers]], or use one of the names given."""


class UnknownStream(SettingsError):
    """No stream of that name is configured. Add it under [streams], or use one of the names given."""


class DatabaseError(CampaignsError):
    """The database refused or cannot be used as it is. Do what the message says, then try again."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached or cannot write now. Nothing was changed: wait and try again."""


class BrokerError(CampaignsError):
    """The broker refused or is not fit for use. Nothing is lost: correct it, and the work goes on."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached now. What was not published is published later by the workers."""


class CampaignExists(CampaignsError):
    """A campaign of that name exists already. Choose another name."""


class UnknownCampaign(CampaignsError):
    """No campaign has that name. `campaigns status` lists the names."""


class TransitionRefused(CampaignsError):
    """The campaign's status does not allow this. The message names the status and what is possible."""


class InvalidRecipients(CampaignsError):
    """The list cannot be read, or lacks a column that is needed. Nothing of it was sent."""


class InvalidAddress(CampaignsError):
    """This is not a mail address that can be sent to. `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TemplateError(CampaignsError):
    """The template is wrong, or cannot be rendered for a recipient. Correct the template or the field."""


class MessageError(CampaignsError):
    """A header or an address would make a broken or dangerous message. Correct the value named."""


class DrillRefused(CampaignsError):
    """A failover cannot be rehearsed like this, or now. The message says what is in the way."""


class AlreadyRunning(CampaignsError):
    """`campaigns up` runs here already. Stop that one first, or use it as it is."""
