"""The Celery application of the workers: the app that Settings describe, with tasks and their runtime."""

import sys
from functools import cache

from celery import Celery

from campaigns.errors import CampaignsError
from campaigns.queues import create_app
from campaigns.settings import Settings, load_settings
from workers.flower import keep_flower_on_loopback
from workers.log_format import set_up_logging
from workers.tasks import register

__all__ = ["create_worker_app", "the_app"]


def create_worker_app(settings: Settings) -> Celery:
    """The app of `settings` with every task. Connects to nothing."""
    app = create_app(settings)
    register(app, settings)
    keep_flower_on_loopback()
    set_up_logging()
    return app


@cache
def the_app() -> Celery:
    """The app of this process's configuration. A mistake in it ends the process with one clear line."""
    try:
        return create_worker_app(load_settings())
    except CampaignsError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from error
